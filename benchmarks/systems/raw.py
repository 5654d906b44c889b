"""The limit: redis-py by hand, as in `benchmarks.raw`; it promises nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import redis.asyncio
import uvloop

from benchmarks import raw
from benchmarks.systems.bodies import asynchronous

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

Redis = redis.asyncio.Redis


@asynccontextmanager
async def open(url: str) -> AsyncIterator[Redis]:
    """Connect."""
    async with redis.asyncio.Redis.from_url(url) as client:
        await raw.make_group(client)
        yield client


async def one(client: Redis, job: str, argument: str) -> None:
    """Add one entry."""
    await client.xadd(raw.STREAM, {"j": job, "d": argument})


async def many(client: Redis, job: str, arguments: Sequence[str]) -> None:
    """Add entries in pipelines of 100."""
    for start in range(0, len(arguments), 100):
        async with client.pipeline(transaction=False) as pipeline:
            for argument in arguments[start : start + 100]:
                pipeline.xadd(raw.STREAM, {"j": job, "d": argument})
            await pipeline.execute()


def work(url: str, concurrency: int, setting: str = "default") -> None:
    """Read up to 100 entries, and await each in place; with a task each where jobs wait for something."""
    uvloop.run(_work(url, concurrency))


async def _work(url: str, concurrency: int) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        await raw.make_group(client)
        while True:
            reply = await raw.read(client, min(concurrency, 100), block_ms=1000)
            if not reply:
                continue
            if reply[0][1][b"j"] == b"noop":
                for _, fields in reply:
                    await asynchronous["noop"](fields[b"d"])
            else:
                bodies = (asynchronous[fields[b"j"].decode()](fields[b"d"].decode()) for _, fields in reply)
                await asyncio.gather(*bodies)
            await raw.ack(client, [entry for entry, _ in reply])
