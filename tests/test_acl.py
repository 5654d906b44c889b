"""The users of docs/deploy/redis.acl: all that streamq does works as them, and nothing else does."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from streamq import StreamQ
from streamq.broker.inspection import Inspection
from streamq.broker.orders import Orders
from streamq.broker.outbox import Outbox
from streamq.errors import JobFailed
from streamq.keys import Keys
from streamq.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamq.embedded import RedisServer

FILE = Path(__file__).parent.parent / "docs" / "deploy" / "redis.acl"
PASSWORDS = {"streamq": "change-me", "streamq-producer": "change-me-too"}
KEPT = timedelta(seconds=60)


def urls_of(server: RedisServer) -> dict[str, str]:
    """Make the users on a server, and return the address of each."""
    with redis.Redis.from_url(server.url) as admin:
        for line in FILE.read_text().splitlines():
            if line.startswith("user "):
                _, name, *rules = line.split()
                admin.execute_command("ACL", "SETUSER", name, "reset", *rules)
    place = server.url.rpartition("@")[2]
    return {name: f"redis://{name}:{password}@{place}" for name, password in PASSWORDS.items()}


@pytest.fixture
def denied(redis_server: RedisServer) -> Iterator[dict[str, str]]:
    """Give the addresses of the users; fails the test if the server refused any of them anything."""
    yield urls_of(redis_server)
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as admin:
        refused = [(entry["username"], entry["object"]) for entry in admin.acl_log()]
    assert not refused


async def test_producers_and_workers_need_no_more_than_the_file_gives_them(denied, eventually):
    """Everything that a job may meet: delay, dedup, retry, cancel, death, result, take-over, a sweep, the recorder's reading."""
    producer = StreamQ(redis_url=denied["streamq-producer"])
    app = StreamQ(redis_url=denied["streamq"], beat_ms=100, dead_after_ms=500, lease_ms=1_000)
    for each in (producer, app):

        @each.handler(max_attempts=2, dedup="name", key="name")
        async def job(name: str) -> str:
            if name == "bad":
                raise ValueError(name)
            await asyncio.sleep(0.5 if name == "long" else 0)
            return name

    enqueue = producer.handler_named("job").options(keep_result=KEPT)
    jobs = [await enqueue.enqueue(name) for name in ("good", "bad", "long")]
    later = await enqueue.options(delay=timedelta(milliseconds=200)).enqueue("later")
    doomed = await app.handler_named("job").options(delay=timedelta(hours=1)).enqueue("doomed")
    assert not (await enqueue.enqueue("good")).is_new
    assert (await enqueue.enqueue_many([("one",), ("two",)]))[1].is_new
    assert await doomed.cancel("enough") == "cancelled"
    partition = app.client.broker.partition("default")
    await partition.register("ghost")
    await partition.wait("ghost", 1, 100, asyncio.get_running_loop().time)
    await partition.wire.close()
    worker = Worker(app, app.settings)
    running = asyncio.create_task(worker.run())
    assert await jobs[0].result() == "good"
    assert await later.result() == "later"
    with pytest.raises(JobFailed, match="ValueError: bad"):
        await jobs[1].result()
    assert await jobs[2].result() == "long"
    await read_and_order(app)
    worker.drain()
    assert await running == 0
    await producer.close()
    await app.close()


async def test_a_producer_enqueues_plain_jobs_and_repeats_one_under_its_own_id(denied, redis_server):
    """By the short way, and where that ends."""
    app = StreamQ(redis_url=denied["streamq-producer"])

    @app.handler
    async def plain() -> None: ...

    assert [(await plain.enqueue()).status for _ in range(3)] == ["new"] * 3
    mine = plain.options(id="mine")
    assert [(await mine.enqueue()).status for _ in range(3)] == ["new", "present", "present"]
    await app.close()
    keys = Keys("default")
    with redis.Redis.from_url(redis_server.url) as admin:
        assert (admin.hlen(keys.index), admin.xlen(keys.lanes[1])) == (4, 4)


async def read_and_order(app: StreamQ) -> None:
    """Do what the recorder, the API and operators do."""
    wire, keys = app.client.broker.wire(), Keys("default")
    outbox = Outbox(wire, keys, "recorder")
    entries = await outbox.read(limit=100)
    await outbox.ack([entry.id for entry in entries])
    await outbox.take_over(idle_ms=0, limit=10)
    assert (await outbox.lag()).entries == 0
    assert (await Inspection(wire, keys).counts()).workers
    orders = Orders(wire, keys)
    await orders.pause(reason="deploy", by="test")
    assert await orders.resume()
    async with app.operator.dead_letters("default") as dead:
        assert (await dead.page()).letters
        assert (await dead.replay()).matched == 1
    await wire.close()


FORBIDDEN = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("DEBUG", "SLEEP", "0"), ("SCRIPT", "FLUSH"),
    ("SHUTDOWN",), ("GET", "another:key"), ("SET", "another:key", "1"), ("EVAL", "return redis.call('GET', KEYS[1])", "1", "another:key"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"), ("ACL", "LIST"), ("REPLICAOF", "NO", "ONE"), ("MONITOR",),
]  # fmt: skip
NOT_FOR_PRODUCERS = [
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "{sq:default:0}:lane:normal", ">"),
    ("XACK", "{sq:default:0}:lane:normal", "g", "1-1"),
    ("XDEL", "{sq:default:0}:lane:normal", "1-1"),
    ("DEL", "{sq:default:0}:lane:normal"),
    ("XRANGE", "{sq:default:0}:lane:normal", "-", "+"),
    ("XTRIM", "{sq:default:0}:lane:normal", "MAXLEN", "0"),
]


@pytest.mark.parametrize("name", PASSWORDS)
def test_nobody_may_touch_the_server_or_foreign_keys(redis_server, name):
    """Also not through a script."""
    with redis.Redis.from_url(urls_of(redis_server)[name]) as client:
        for command in FORBIDDEN:
            with pytest.raises(
                redis.ResponseError, match=r"NOPERM|[Nn]o permission|can't access|not allowed|can't run|ACL"
            ):
                client.execute_command(*command)


def test_a_producer_can_neither_take_nor_end_jobs(redis_server):
    """A web server that was broken into cannot empty the queue."""
    with redis.Redis.from_url(urls_of(redis_server)["streamq-producer"]) as client:
        for command in NOT_FOR_PRODUCERS:
            with pytest.raises(redis.ResponseError, match="NOPERM|permission"):
                client.execute_command(*command)
