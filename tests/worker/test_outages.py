"""What a worker does while Redis cannot serve: it waits, keeps what has ended, and goes on. No job fails by it.

Each outage is a real one, on a server of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import redis.asyncio
import redis.exceptions

from streamq import StreamQ, current_job
from streamq.broker.server import Broker
from streamq.broker.wire import REMEDIES, Fault, fault_of
from streamq.errors import QueueFull
from streamq.keys import Keys
from streamq.worker import Worker
from tests.conftest import children_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamq.embedded import RedisServer
    from streamq.worker.pump import Pump

KEYS = Keys("default")


class Outage:
    """A server of the test's own, and what can happen to it."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.admin: Any = redis.asyncio.Redis.from_url(server.unix_url)
        self._other: Any = redis.asyncio.Redis.from_url(server.unix_url, socket_timeout=None)
        self._hung: asyncio.Task[Any] | None = None

    async def close(self) -> None:
        """Let go of it."""
        await self.admin.aclose()
        await self._other.aclose()

    async def set(self, name: str, value: str) -> None:
        """Set a setting of the server."""
        await self.admin.config_set(name, value)

    async def drop_clients(self) -> None:
        """Close every connection but the one that says so."""
        await self.admin.execute_command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")

    async def kill(self) -> None:
        """Kill the server."""
        await asyncio.to_thread(self.server.kill9)

    async def start(self) -> None:
        """Start it again on the same data."""
        await asyncio.to_thread(self.server.start)

    async def freeze(self) -> None:
        """Stop it where it stands: it holds its connections and answers nothing."""
        self.server.sigstop()

    async def thaw(self) -> None:
        """Let it go on."""
        self.server.sigcont()

    async def become_replica(self) -> None:
        """Follow a master that is not there; what it holds stays, and it takes no writes."""
        await self.admin.execute_command("REPLICAOF", "127.0.0.1", "1")

    async def become_master(self) -> None:
        """Take writes again."""
        await self.admin.execute_command("REPLICAOF", "NO", "ONE")

    async def need_replicas(self) -> None:
        """Refuse writes without a replica."""
        await self.set("min-replicas-to-write", "1")

    async def need_none(self) -> None:
        """Take writes alone."""
        await self.set("min-replicas-to-write", "0")

    async def fail_to_save(self) -> None:
        """Have a snapshot fail, so that no write is taken."""
        await self.set("save", "3600 1")
        await self.set("rdb-key-save-delay", "10000000")
        await self.admin.bgsave()
        for child in children_of(self.server.pid):
            os.kill(child, signal.SIGKILL)

    async def save_again(self) -> None:
        """Take writes, whatever became of the snapshot."""
        await self.set("save", "")

    async def be_busy(self) -> None:
        """Run a script without an end."""
        await self.set("busy-reply-threshold", "10")
        self._hung = asyncio.create_task(self._other.eval("while true do end", 0))
        self._hung.add_done_callback(lambda _: None)

    async def be_free(self) -> None:
        """End that script."""
        await self.admin.script_kill()
        if self._hung is not None:
            with contextlib.suppress(redis.exceptions.ResponseError):
                await self._hung

    async def load(self) -> None:
        """Read all data again, slowly, and answer only that."""
        await self.admin.mset({f"filler{number}": os.urandom(4096) for number in range(10)})
        await self.set("key-load-delay", "200000")
        await self.set("loading-process-events-interval-bytes", "1024")
        self._hung = asyncio.create_task(self._other.execute_command("DEBUG", "RELOAD"))

    async def have_loaded(self) -> None:
        """Wait for the end of that."""
        if self._hung is not None:
            await self._hung
        await self.admin.delete(*(f"filler{number}" for number in range(10)))

    async def refuse_clients(self) -> None:
        """Close all connections and take no new ones."""
        await self.set("maxclients", "1")
        await self.drop_clients()

    async def take_clients(self) -> None:
        """Take connections again."""
        await self.set("maxclients", "10000")


@pytest.fixture
async def outage(redis_server: RedisServer) -> AsyncIterator[Outage]:
    """Give a server to maltreat."""
    made = Outage(redis_server)
    yield made
    redis_server.sigcont()
    await made.close()


OUTAGES = {
    "killed": ("kill", "start", "cannot reach Redis"),
    "frozen": ("freeze", "thaw", "no reply within"),
    "readonly": ("become_replica", "become_master", "READONLY"),
    "noreplicas": ("need_replicas", "need_none", "NOREPLICAS"),
    "misconf": ("fail_to_save", "save_again", "MISCONF"),
    "busy": ("be_busy", "be_free", "BUSY"),
    "loading": ("load", "have_loaded", "LOADING"),
    "maxclients": ("refuse_clients", "take_clients", "max number of clients"),
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_what_ends_during_an_outage_is_settled_afterwards_and_nothing_runs_twice(
    outage, work, eventually, monkeypatch, name
):
    """Jobs that wait go on waiting, jobs that run end, and their outcomes are kept until they can be told."""
    begin, end, words = OUTAGES[name]
    monkeypatch.setattr("streamq.worker.service.Broker", functools.partial(Broker, timeout_s=0.5))
    app, runs, gate = application(outage.server.url), Counter[int](), asyncio.Event()

    @app.handler
    async def counted(number: int) -> None:
        runs[number] += 1
        await gate.wait()

    for number in range(12):
        await counted.enqueue(number)
    worker = await work(app=app)
    pump = await pump_of(worker, eventually)
    await eventually(lambda: len(runs) == 4, "all slots are full")

    await getattr(outage, begin)()
    await eventually(lambda: words in str(pump.failure), f"the worker meets {words}: {pump.failure}")
    gate.set()
    await eventually(lambda: pump.unsettled == 4 or len(runs) == 12, "the outcomes are kept")
    await getattr(outage, end)()

    await eventually(lambda: worker.slots.counters["completed"] == 12 and not pump.unsettled, "all jobs have ended")
    assert runs == dict.fromkeys(range(12), 1)
    assert {name: count for name, count in worker.slots.counters.items() if count} == {"completed": 12}
    assert await outage.admin.hlen(KEYS.index) == 0
    assert await recorded(outage) == dict.fromkeys(("completed",), 12)
    await app.close()


def application(url: str, **settings: Any) -> StreamQ:
    """Make an application on that server."""
    return StreamQ(redis_url=url, worker_concurrency=4, dead_after_ms=5_000, beat_ms=50, grace_ms=2_000, **settings)


async def pump_of(worker: Any, eventually: Any) -> Pump:
    """Wait until the worker is registered, and return its pump."""
    await eventually(lambda: worker.slots is not None and worker.slots.pumps and worker.slots.pumps[0].consumer)
    return worker.slots.pumps[0]


async def recorded(outage: Outage) -> dict[str, int]:
    """Return how many outcomes the recorder would read, by state."""
    states = Counter[str]()
    for _, fields in await outage.admin.xrange(KEYS.outbox):
        states.update(orjson.loads(record)["s"] for job_id, record in fields.items() if job_id != b"w")
    return dict(states)


async def test_dropped_connections_scripts_and_blocked_reads_are_made_good_at_once(outage, work, eventually):
    """CLIENT KILL, SCRIPT FLUSH and CLIENT UNBLOCK cost a round trip, and no job anything."""
    app, runs = application(outage.server.url), Counter[int]()

    @app.handler
    async def counted(number: int) -> None:
        runs[number] += 1

    worker = await work(app=app)
    await pump_of(worker, eventually)
    for round_ in range(10):
        for number in range(5):
            await counted.enqueue(5 * round_ + number)
        await outage.admin.script_flush()
        if round_ % 2:
            await outage.drop_clients()
        else:
            for client in await outage.admin.client_list():
                if client["flags"] == "b":
                    await outage.admin.execute_command("CLIENT", "UNBLOCK", client["id"], "ERROR")
        await eventually(lambda n=round_: len(runs) == 5 * (n + 1), "the jobs of this round run")
    await eventually(lambda: worker.slots.counters["completed"] == 50, "all jobs have ended")
    assert set(runs.values()) == {1}
    assert worker.slots.counters["late_outcomes"] == 0
    await app.close()


async def test_with_memory_full_running_jobs_end_and_only_enqueue_is_refused(outage, work, eventually):
    app, gate, runs = application(outage.server.url), asyncio.Event(), []

    @app.handler
    async def held() -> None:
        runs.append(1)
        await gate.wait()

    for _ in range(8):
        await held.enqueue()
    worker = await work(app=app)
    await eventually(lambda: len(runs) == 4, "all slots are full")
    await outage.set("maxmemory", "1")
    with pytest.raises(QueueFull, match=r"Redis at .* is out of memory: OOM"):
        await held.enqueue()
    gate.set()
    await eventually(lambda: worker.slots.counters["completed"] == 8, "they end, and those that waited, too")
    assert worker.slots.pumps[0].failure is None
    await outage.set("maxmemory", "0")
    await held.enqueue()
    await eventually(lambda: worker.slots.counters["completed"] == 9, "and all is as before")
    await app.close()


@pytest.mark.parametrize("loss", ["flushall", "group"])
async def test_a_worker_whose_groups_are_gone_registers_anew_and_its_handlers_hear_that_the_job_is_lost(
    outage, work, eventually, loss
):
    """What was flushed is lost; the worker is not."""
    app, heard, ran = application(outage.server.url), [], []

    @app.handler
    async def endless() -> None:
        ran.append(current_job().fence)
        if len(ran) > 1:
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            heard.append(error)
            raise

    await endless.enqueue()
    worker = await work(app=app)
    pump = await pump_of(worker, eventually)
    await eventually(lambda: ran, "it runs")
    if loss == "flushall":
        await outage.admin.flushall()
    else:
        for lane in KEYS.lanes:
            await outage.admin.xgroup_destroy(lane, "g")
    await eventually(lambda: heard, "the handler hears of it")
    await eventually(lambda: "~" in pump.consumer, "the worker has a new name")
    await endless.enqueue()
    await eventually(lambda: len(ran) >= 2 and worker.slots.counters["completed"] >= 1, "jobs run again")
    await app.close()


async def test_a_reply_that_is_dropped_loses_no_job_and_runs_none_twice(outage, work, eventually):
    """The proxy drops one reply in seven, with its connection: of reads, of beats, and of what settles."""
    async with Dropper(outage.server.port) as proxy:
        url = f"redis://:{outage.server.password}@127.0.0.1:{proxy.port}/0"
        app, direct, runs = application(url), application(outage.server.url), Counter[int]()

        @app.handler(name="counted")
        async def counted(number: int) -> None:
            runs[number] += 1

        @direct.handler(name="counted")
        async def sent(number: int) -> None: ...

        worker = await work(app=app)
        await pump_of(worker, eventually)
        jobs = 0
        while jobs < 60 or proxy.dropped <= 3:  # how many replies there are for so many jobs is the worker's to choose
            await sent.enqueue(jobs)
            jobs += 1
            await asyncio.sleep(0)
        await eventually(lambda: outage_is_over(outage), "every job has ended")
        assert runs == dict.fromkeys(range(jobs), 1)
        assert await recorded(outage) == {"completed": jobs}
        await app.close()
        await direct.close()


async def outage_is_over(outage: Outage) -> bool:
    """Whether no job is left."""
    return await outage.admin.hlen(KEYS.index) == 0


class Dropper:
    """Passes bytes on to a port, and drops each seventh reply together with its connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._replies = 0
        self.dropped = 0
        self.port = 0
        self._tasks: set[asyncio.Task[Any] | None] = set()
        """Else the garbage collector may take those that nobody but their own socket knows."""

    async def __aenter__(self) -> Dropper:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        if self._tasks:
            await asyncio.wait({task for task in self._tasks if task is not None})

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        server_in, server_out = await asyncio.open_connection("127.0.0.1", self._target)
        asking = asyncio.create_task(self._pass_on(client_in, server_out))
        ours = {asyncio.current_task(), asking}
        self._tasks |= ours
        with contextlib.suppress(OSError):
            while chunk := await server_in.read(65536):
                self._replies += 1
                if self._replies % 7 == 0:
                    self.dropped += 1
                    break
                client_out.write(chunk)
                await client_out.drain()
        asking.cancel()
        for writer in (client_out, server_out):
            writer.close()
        self._tasks -= ours

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                target.write(chunk)
                await target.drain()
        target.close()


async def test_a_wrong_password_ends_a_worker_with_its_reason_and_its_jobs_are_settled(
    outage, work, eventually, caplog
):
    """Nothing would change without a person; under systemd, exit 78 is not started again."""
    app, gate = application(outage.server.url), asyncio.Event()

    @app.handler
    async def held() -> None:
        await gate.wait()

    await held.enqueue()
    worker = Worker(app, app.settings)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: worker.slots is not None and worker.slots.busy == 1, "it runs")
    await outage.set("requirepass", "another")
    await outage.drop_clients()
    gate.set()
    assert await task == 78
    told = [record.fields["error"] for record in caplog.records if record.msg == "redis.refused"]
    assert "refused the user or password" in told[0]
    await app.close()


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.sign or "no reply")
def test_every_row_of_the_table_is_found_by_its_sign_plain_and_inside_a_script(remedy):
    if not remedy.sign:
        assert remedy.fault is Fault.RECONNECT
        return
    if " " in remedy.sign:
        assert fault_of(f"ERR {remedy.sign} reached") is remedy.fault
        return
    assert fault_of(f"{remedy.sign} some words") is remedy.fault
    wrapped = f"ERR Error running script (call to f_1): @user_script:12: {remedy.sign} some words"
    assert fault_of(wrapped) is remedy.fault


def test_an_error_that_nobody_foresaw_asks_for_a_person():
    assert fault_of("ERR something new") is Fault.EXIT
