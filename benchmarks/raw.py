"""The raw limit: the loops that one would write by hand with redis-py, asyncio, uvloop and hiredis.

They promise nothing: no retry, no fence, no index, no record of what happened. A job is an entry with its 120-byte
argument in one field, passed to the body as it came.

Run as a program, this is the consumer: `python -m benchmarks.raw drain|tasks|latency URL`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import redis.asyncio
import uvloop
from redis.exceptions import ResponseError

from benchmarks import tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "ARGUMENT",
    "GROUP",
    "STREAM",
    "ack",
    "enqueue_one",
    "enqueue_pipelines",
    "entries_of",
    "fill",
    "make_group",
    "read",
]

STREAM, GROUP, CONSUMER = "raw", "g", "c"
BATCH = 100
ARGUMENT = "x" * 120
"""What every job carries, on both sides."""

IO_JOB_S = 0.05


async def make_group(client: redis.asyncio.Redis) -> None:
    """Make the consumer group, from the first entry on."""
    try:
        await client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


async def enqueue_one(client: redis.asyncio.Redis, arguments: Sequence[str]) -> None:
    """Add jobs with one `await xadd` after another."""
    for argument in arguments:
        await client.xadd(STREAM, {"d": argument})


async def enqueue_pipelines(client: redis.asyncio.Redis, arguments: Sequence[str]) -> None:
    """Add jobs in pipelines of 100."""
    for chunk in _chunks(arguments, BATCH):
        async with client.pipeline(transaction=False) as pipeline:
            for argument in chunk:
                pipeline.xadd(STREAM, {"d": argument})
            await pipeline.execute()


def fill(url: str, count: int) -> None:
    """Put jobs in place for a drain."""

    async def go() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await make_group(client)
            await enqueue_pipelines(client, [ARGUMENT] * count)

    uvloop.run(go())


async def drain(client: redis.asyncio.Redis) -> None:
    """Read 100 entries, await the body of each in place, ack and delete them in one pipeline; for ever."""
    done = tally.counter()

    async def body(_argument: bytes) -> None:
        done()

    while True:
        reply = await read(client, BATCH, block_ms=1000)
        if not reply:
            continue
        for _, fields in reply:
            await body(fields[b"d"])
        await ack(client, [entry for entry, _ in reply])


async def tasks(client: redis.asyncio.Redis, concurrency: int) -> None:
    """Keep that many 50 ms jobs running: read into free slots, a task per job, ack what has ended in one pipeline."""
    done = tally.counter()
    ended: list[bytes] = []
    running = 0
    news = asyncio.Event()

    async def body(entry: bytes) -> None:
        nonlocal running
        await asyncio.sleep(IO_JOB_S)
        done()
        ended.append(entry)
        running -= 1
        news.set()

    kept: set[asyncio.Task[None]] = set()
    while True:
        if ended:
            acked = ended.copy()
            ended.clear()
            await ack(client, acked)
        free = concurrency - running
        # With jobs running the loop may not block: their acks would wait.
        reply = await read(client, free, block_ms=None if running else 1000) if free else []
        for entry, _ in reply:
            running += 1
            task = asyncio.create_task(body(entry))
            kept.add(task)
            task.add_done_callback(kept.discard)
        if not ended and running:
            news.clear()
            await news.wait()


async def latency(client: redis.asyncio.Redis) -> None:
    """Block for one job after another; note how long ago each was sent, in ns."""
    keep = tally.recorder_of_values()
    while True:
        for entry, fields in await read(client, BATCH, block_ms=1000):
            keep(time.monotonic_ns() - int(fields[b"d"].split()[0]))
            await ack(client, [entry])


async def read(client: redis.asyncio.Redis, count: int, *, block_ms: int | None) -> Sequence[Any]:
    """Return what is new for this consumer: pairs of entry id and fields."""
    return entries_of(await client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=count, block=block_ms))


def entries_of(reply: Any) -> Sequence[Any]:
    """Return the pairs of entry id and fields of what XREADGROUP answered."""
    if not reply:
        return []
    # A list of pairs in RESP2, a mapping with one more level in RESP3.
    entries: Sequence[Any] = reply[STREAM.encode()][0] if isinstance(reply, dict) else reply[0][1]
    return entries


async def ack(client: redis.asyncio.Redis, entries: Sequence[bytes]) -> None:
    """Acknowledge and delete entries in one pipeline."""
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.xack(STREAM, GROUP, *entries)
        pipeline.xdel(STREAM, *entries)
        await pipeline.execute()


def _chunks(whole: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


async def _consume(what: str, url: str) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        await make_group(client)
        match what:
            case "drain":
                await drain(client)
            case "tasks":
                await tasks(client, concurrency=100)
            case "latency":
                await latency(client)
            case _:
                raise SystemExit(f"unknown loop {what}")


if __name__ == "__main__":
    uvloop.run(_consume(sys.argv[1], sys.argv[2]))
