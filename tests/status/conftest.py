"""What the tests of the status side share: a partition that is written by hand, in the documented format."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from streamq.access import TokenBook
from streamq.api import create_app
from streamq.api.role import listen, server_of
from streamq.broker.inspection import Inspection
from streamq.broker.outbox import Outbox
from streamq.broker.server import Broker
from streamq.keys import GROUP, LANES, Keys
from streamq.mongo import Mongo, Statuses
from streamq.recorder import Recorder
from streamq.recorder.documents import merged, recorded
from streamq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from starlette.applications import Starlette

# The present, since MongoDB deletes what is past its expiry also during a test.
NOW_MS = time.time_ns() // 1_000_000


class Hand:
    """Writes into a partition what producers and workers would."""

    def __init__(self, broker: Broker, keys: Keys) -> None:
        self.broker = broker
        self.keys = keys
        self.wire = broker.wire()
        self.inspection = Inspection(self.wire, keys)

    @staticmethod
    def record(state: str = "completed", **fields: Any) -> dict[str, Any]:
        """Make a record of one attempt, by its short names."""
        return {
            "s": state, "h": "refresh", "u": "u1", "n": 1, "m": 3, "l": "normal", "e": NOW_MS, "b": NOW_MS + 50,
            "f": NOW_MS + 80, "c": 0, **fields,
        }  # fmt: skip

    async def finish(
        self, *records: tuple[str | bytes, dict[str, Any] | bytes], worker: str = "w1", at: str = "*"
    ) -> bytes:
        """Put an entry into the outbox, as a worker's cycle does."""
        pairs: list[str | bytes] = []
        for job_id, record in records:
            pairs += [job_id, record if isinstance(record, bytes) else orjson.dumps(record)]
        return await self.wire.call("XADD", self.keys.outbox, at, "w", worker, *pairs)

    async def enqueue(self, job_id: str, *, lane: str = "normal", at: str = "*", **envelope: Any) -> bytes:
        """Put a job into a lane."""
        body = orjson.dumps({"v": 1, "h": "refresh", **envelope})
        entry = await self.wire.call("XADD", self.keys.lanes[LANES.index(lane)], at, "j", job_id, "d", body)
        digit = str(LANES.index(lane) + 1).encode()
        await self.wire.call("HSET", self.keys.index, job_id, digit + entry)
        return entry

    async def delay(self, job_id: str, due_ms: int, enqueued_ms: int = NOW_MS, **envelope: Any) -> None:
        """Put a job among those that are due later."""
        body = orjson.dumps({"v": 1, "h": "refresh", **envelope})
        await self.wire.call("HSET", self.keys.payload, job_id, b"2|%d|%b" % (enqueued_ms, body))
        await self.wire.call("ZADD", self.keys.delayed, due_ms, job_id)
        await self.wire.call("HSET", self.keys.index, job_id, "z")

    async def take(self, consumer: str, count: int = 1, lane: str = "normal") -> None:
        """Deliver the next jobs of a lane to a worker that beats now."""
        stream = self.keys.lanes[LANES.index(lane)]
        with contextlib.suppress(Exception):
            await self.wire.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        await self.wire.call("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", stream, ">")
        seconds, micros = await self.wire.call("TIME")
        await self.wire.call("ZADD", self.keys.workers, int(seconds) * 1000 + int(micros) // 1000, consumer)


@pytest.fixture
async def hand(redis_url: str, queue_name: str) -> AsyncIterator[Hand]:
    """Write into a partition by hand."""
    hand = Hand(Broker(redis_url), Keys(queue_name))
    yield hand
    await hand.wire.close()


@pytest.fixture
async def hand_at(queue_name: str) -> AsyncIterator[Callable[[str], Hand]]:
    """Make the hand for the partition on another server."""
    hands: list[Hand] = []

    def make(url: str) -> Hand:
        hands.append(Hand(Broker(url), Keys(queue_name)))
        return hands[-1]

    yield make
    for hand in hands:
        await hand.wire.close()


@pytest.fixture
async def mongo(mongodb_url: str, mongo_database: str) -> AsyncIterator[Mongo]:
    """Connect to the database of the test."""
    mongo = Mongo(mongodb_url, mongo_database)
    yield mongo
    await mongo.close()


@pytest.fixture
async def statuses(mongo: Mongo) -> Statuses:
    """Prepare the collections of the test."""
    statuses = Statuses(mongo)
    await statuses.prepare()
    return statuses


@pytest.fixture
async def outbox(hand: Hand) -> AsyncIterator[Outbox]:
    """Make an end of the outbox, with a connection of its own."""
    wire = hand.broker.wire()
    outbox = Outbox(wire, hand.keys)
    assert await outbox.read(limit=1) == [], "makes the group"
    yield outbox
    await wire.close()


@pytest.fixture
def absent_server() -> Iterator[None]:
    """For tests that meet a server that is not there: pymongo forgets to close a socket that was refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.fixture
def recording() -> Callable[[Hand, Statuses], AbstractAsyncContextManager[Recorder]]:
    """Give a context in which a recorder of a partition runs; it ends orderly with the block."""

    @contextlib.asynccontextmanager
    async def run(hand: Hand, statuses: Statuses) -> AsyncIterator[Recorder]:
        stop = asyncio.Event()
        recorder = Recorder(hand.broker, statuses, hand.keys)
        task = asyncio.create_task(recorder.run(stop))
        try:
            yield recorder
        finally:
            stop.set()
            await task

    return run


@pytest.fixture
def serving() -> Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]:
    """Give a context in which the API runs, and in it a client that has the token of the settings."""

    @contextlib.asynccontextmanager
    async def serve(settings: Settings, *args: Any, **kwargs: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(settings, *args, **kwargs)
        headers = {b"authorization": f"Bearer {settings.api_token}".encode()}
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client,
        ):
            yield client

    return serve


@pytest.fixture
def listening() -> Callable[..., AbstractAsyncContextManager[tuple[Starlette, str]]]:
    """Give a context in which the API listens on a port, as its process does; with its address."""

    @contextlib.asynccontextmanager
    async def listening(settings: Settings, *args: Any, **kwargs: Any) -> AsyncIterator[tuple[Starlette, str]]:
        app = create_app(settings, *args, **kwargs)
        server = server_of(app)
        with listen("127.0.0.1", 0) as listener:
            task = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            try:
                yield app, f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                app.state.hub.close()
                await task

    return listening


@pytest.fixture
def settings(redis_url: str, mongodb_url: str, mongo_database: str, queue_name: str) -> Settings:
    """Make the settings of the servers of the test."""
    return Settings(
        redis_url=redis_url,
        mongodb_url=mongodb_url,
        mongodb_database=mongo_database,
        queues=(queue_name,),
        api_token="token-of-the-tests",
    )


@pytest.fixture
async def client(settings: Settings, statuses: Statuses, serving: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of the API that has the token."""
    async with serving(settings) as client:
        yield client


@pytest.fixture
async def tokens(mongo: Mongo) -> TokenBook:
    """Give the tokens of the database of the test."""
    return TokenBook(mongo)


@pytest.fixture
def bearing(client: httpx.AsyncClient, tokens: TokenBook) -> Callable[..., Awaitable[dict[str, str]]]:
    """Make a token with some scopes, and give the header that shows it."""

    async def bear(*scopes: str, name: str = "somebody") -> dict[str, str]:
        issued = await tokens.issue(name, scopes, by="the tests")
        return {"authorization": f"Bearer {issued.text}"}

    return bear


@pytest.fixture
def store(hand: Hand, outbox: Outbox) -> Callable[..., Awaitable[None]]:
    """Put records into the history, as the recorder does."""

    async def store(statuses: Statuses, *records: Any) -> None:
        await hand.finish(*records)
        entries = await outbox.read(limit=100)
        await statuses.write(
            merged(recorded(hand.keys.queue, entry, job, raw) for entry in entries for job, raw in entry.records)
        )
        await outbox.ack([entry.id for entry in entries])

    return store
