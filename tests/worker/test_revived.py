"""Jobs that had completed, and that a server which took over knows nothing of: not run again, if MongoDB knows better."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from streamq import StreamQ
from streamq.broker.inspection import Inspection
from streamq.broker.server import Broker
from streamq.clock import from_ms, utc_now
from streamq.embedded import RedisServer
from streamq.keys import Keys
from streamq.mongo import Mongo, Statuses, StatusWrite
from streamq.recorder import Recorder
from streamq.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEYS = Keys("default")

pytestmark = pytest.mark.timeout(90)


class Pair:
    """A server, and a replica that takes its place when it is told to: another server then answers at the old address."""

    def __init__(self, master: RedisServer, replica: RedisServer, eventually: Callable[..., Any]) -> None:
        self.master, self.replica = master, replica
        self.second: Any = redis.asyncio.Redis.from_url(replica.unix_url, decode_responses=True)
        self._eventually = eventually

    async def follow(self) -> None:
        """Have the replica follow."""
        await self.second.config_set("masterauth", self.master.password)
        await self.second.replicaof("127.0.0.1", self.master.port)

        async def follows() -> bool:
            return bool((await self.second.info("replication")).get("master_link_status") == "up")

        await self._eventually(follows, "the replica follows")

    async def cut(self) -> None:
        """Whatever happens from now on is not heard by the replica."""
        await self.second.replicaof("NO", "ONE")

    async def fail_over(self) -> None:
        """Let the replica take over."""
        await asyncio.to_thread(self.master.kill9)
        await self.second.config_set("requirepass", self.master.password)
        await self.second.auth(self.master.password)
        await self.second.config_set("port", self.master.port)

    async def holds(self) -> int:
        """Count the jobs that the replica knows."""
        return int(await self.second.hlen(KEYS.index))


@pytest.fixture
async def pair(redis_server: RedisServer, tmp_path: Path, eventually: Callable[..., Any]) -> AsyncIterator[Pair]:
    """Two servers of the test's own."""
    replica = RedisServer(tmp_path / "replica", binary=redis_server._asked_binary)
    await asyncio.to_thread(replica.start)
    pair = Pair(redis_server, replica, eventually)
    yield pair
    await pair.second.aclose()
    await asyncio.to_thread(replica.stop)


@contextlib.asynccontextmanager
async def recording(url: str, statuses: Statuses) -> AsyncIterator[None]:
    """Bring to MongoDB what happens, meanwhile."""
    stop = asyncio.Event()
    task = asyncio.create_task(Recorder(Broker(url), statuses, KEYS).run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


@pytest.mark.parametrize("has_history", [True, False])
async def test_a_job_that_has_completed_is_not_run_again_after_a_failover_that_forgot_it(
    pair, mongodb_url, mongo_database, eventually, has_history, caplog
):
    """Without MongoDB nobody knows, and it runs again: at least once is what was promised."""
    app = StreamQ(
        redis_url=pair.master.url, mongodb_url=mongodb_url, mongodb_database=mongo_database, history=has_history,
        worker_concurrency=1, beat_ms=100, dead_after_ms=500,
    )  # fmt: skip
    starts: list[str] = []
    may_end = asyncio.Event()

    @app.handler(key="user_id")
    async def refresh(user_id: str) -> dict[str, int]:
        starts.append(user_id)
        await may_end.wait()
        return {"letters": len(user_id)}

    mongo = Mongo(mongodb_url, mongo_database)
    statuses = Statuses(mongo)
    await pair.follow()
    async with recording(pair.master.url, statuses):
        worker = Worker(app, app.settings)
        working = asyncio.create_task(worker.run())
        jobs = [await refresh.enqueue(user) for user in ("u1", "u22")]
        await eventually(lambda: starts, "the first one runs")

        async def heard() -> bool:
            pending = await pair.second.xpending(KEYS.lanes[1], "g")
            return await pair.holds() == 2 and pending["pending"] == 1

        await eventually(heard, "the replica has heard of both, and of the delivery")
        await pair.cut()
        may_end.set()

        async def completed() -> bool:
            known = await statuses.of([job.id for job in jobs])
            return [each["state"] for each in known.values()] == ["completed"] * 2

        if has_history:
            await eventually(completed, "MongoDB knows their end")
        else:
            await eventually(lambda: len(starts) == 2 and not worker.slots.running, "both have ended")
        assert starts == ["u1", "u22"]
        assert await pair.holds() == 2, "the replica knows nothing of it"
        await pair.fail_over()
        await refresh.enqueue("u333")

        async def done() -> bool:
            return "u333" in starts and await pair.holds() == 0

        await eventually(done, "all have ended on the new server")
        before = ["u1", "u22"]
        assert sorted(starts) == sorted([*before, "u333"] if has_history else [*before, *before, "u333"])
        assert ("job.revived" in caplog.text) == has_history
        if has_history:
            found = await statuses.find({"_id": {"$in": [job.id for job in jobs]}})
            assert sorted(each["result"]["letters"] for each in found) == [2, 3]
            assert await completed()
        worker.drain()
        assert await working == 0
    await app.close()
    await mongo.close()


async def test_what_is_not_run_again_keeps_its_times_and_is_asked_about_together(
    redis_url, mongodb_url, mongo_database, eventually
):
    """The end of each is there a second time, as it was; and a backlog costs few questions."""
    app = StreamQ(redis_url=redis_url, mongodb_url=mongodb_url, mongodb_database=mongo_database, worker_concurrency=16)
    starts: list[int] = []

    @app.handler
    async def refresh(number: int) -> None:
        starts.append(number)

    mongo = Mongo(mongodb_url, mongo_database)
    statuses = Statuses(mongo)
    await statuses.prepare()
    jobs = await refresh.enqueue_many([{"number": number} for number in range(64)])
    partition = Broker(redis_url).partition("default")
    known = await Inspection(partition.wire, KEYS).locate_many([job.id for job in jobs])
    began = utc_now().replace(microsecond=0) - timedelta(hours=1)
    said: list[dict[str, Any]] = [{"result": 7}, {"result_error": "the result is not JSON"}]
    await statuses.write(
        [
            StatusWrite(
                job.id, 1, False,
                {
                    "state": "completed", "queue": "default", "handler": "refresh", "attempt": 1, "started_at": began,
                    "enqueued_at": from_ms(known[job.id].enqueued_ms), "run_ms": 90_000, **said[number % 2],
                },
                [],
            )
            for number, job in enumerate(jobs[:63])
        ]
    )  # fmt: skip
    await partition.wire.call("SET", KEYS.lineage, "a0|0")
    await partition.wire.close()
    await mongo.database.command("profile", 2)
    async with recording(redis_url, statuses):
        worker = Worker(app, app.settings)
        working = asyncio.create_task(worker.run())

        async def again() -> list[dict[str, Any]]:
            found = await statuses.find({"_id": {"$in": [job.id for job in jobs]}, "worker": {"$exists": True}})
            return found if len(found) == len(jobs) else []

        found = {each["_id"]: each for each in await eventually(again, "all have ended")}
        worker.drain()
        assert await working == 0
    await mongo.database.command("profile", 0)
    assert starts == [63], "of that one nobody knew"
    for number, job in enumerate(jobs[:63]):
        told = found[job.id]
        assert told["started_at"] == began
        assert 0 <= (told["finished_at"] - began).total_seconds() - 90 < 1
        assert {name: told[name] for name in ("result", "result_error") if name in told} == said[number % 2]
    asked = {"op": "query", "command.filter.state": "completed"}
    questions = await mongo.collection("system.profile").count_documents(asked)
    assert 0 < questions <= 32
    await app.close()
    await mongo.close()


async def test_without_mongodb_a_doubted_job_runs_and_few_wait_for_the_answer(redis_url, eventually, caplog):
    """One question is not answered; then nobody asks for a while."""
    app = StreamQ(redis_url=redis_url, mongodb_url="mongodb://127.0.0.1:9", worker_concurrency=4)
    starts: list[int] = []

    @app.handler
    async def refresh(number: int) -> None:
        starts.append(number)

    await refresh.enqueue_many([{"number": number} for number in range(100)])
    partition = Broker(redis_url).partition("default")
    await partition.wire.call("SET", KEYS.lineage, "a0|0")
    worker = Worker(app, app.settings)
    working = asyncio.create_task(worker.run())
    await eventually(lambda: len(starts) == 100, "all run")
    worker.drain()
    assert await working == 0
    assert sorted(starts) == [*range(100)]
    assert caplog.text.count("mongodb.silent") == 1
    assert worker.slots.counters == {"completed": 100}
    await partition.wire.close()
    await app.close()


async def test_a_worker_notices_another_server_though_no_call_of_its_own_failed(redis_server, eventually, caplog):
    """An address may lead elsewhere within a moment, while nothing was asked."""
    caplog.set_level("INFO", "streamq.worker")
    app = StreamQ(redis_url=redis_server.url, history=False)
    worker = Worker(app, app.settings)
    working = asyncio.create_task(worker.run())
    await eventually(lambda: worker.slots and worker.slots.pumps[0].last_good, "it works")
    pump = worker.slots.pumps[0]
    assert pump.doubted_before_ms == 0
    other = Broker(redis_server.url).partition("default")
    await other.wire.call("SET", KEYS.lineage, "a0|0")
    wire = pump._partition.wire
    await eventually(lambda: wire._line and not wire._line._waiting, "nothing is under way")
    await wire.close()
    await eventually(lambda: pump.doubted_before_ms, "it has looked who is there")
    assert "redis.lost" not in caplog.text
    assert caplog.text.count("redis.replaced") == 1
    worker.drain()
    assert await working == 0
    await other.wire.close()
    await app.close()


async def test_a_server_that_does_not_tell_its_id_is_not_doubted(redis_url):
    """Some services hide it; their jobs run as everywhere."""
    partition = Broker(redis_url).partition("default")

    async def hides(commands: Any) -> list[Any]:
        return [None, b"# Replication\r\nrole:master\r\n"]

    partition.wire.pipeline = hides
    assert await partition.forgot_before() == 0
    await partition.wire.close()


async def test_a_server_that_is_the_same_is_not_doubted_and_one_that_started_anew_is(redis_server, eventually):
    """It may have lost the last second of its log. Whoever comes later learns since when."""
    partition = Broker(redis_server.url).partition("default")
    assert [await partition.forgot_before() for _ in range(2)] == [0, 0]
    await asyncio.to_thread(redis_server.kill9)
    await asyncio.to_thread(redis_server.restart)
    await partition.wire.close()
    since = await partition.forgot_before()
    seconds, micros = await partition.wire.call("TIME")
    assert 0 < since <= int(seconds) * 1000 + int(micros) // 1000 + 1
    other = Broker(redis_server.url).partition("default")
    assert await other.forgot_before() == since
    for each in (partition, other):
        await each.wire.close()
