"""docket: see https://docket.lol."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import uvloop
from docket import Docket, Worker

from benchmarks.systems.bodies import asynchronous


@asynccontextmanager
async def open(url):
    """Connect; without a larger pool, twenty loops at once meet redis-py's limit of connections."""
    async with Docket(name="bench", url=f"{url}?max_connections=500") as docket:
        for body in asynchronous.values():
            docket.register(body)
        yield docket


async def one(docket, job, argument):
    """Add one task."""
    await docket.add(asynchronous[job])(argument)


async def later(docket, job, argument, delay_s):
    """Add a delayed task."""
    when = datetime.now(UTC) + timedelta(seconds=delay_s)
    await docket.add(asynchronous[job], when=when)(argument)


async def _work(url, concurrency, setting):
    fast = {"redelivery_timeout": timedelta(seconds=5)} if setting == "fast" else {}
    async with open(url) as docket, Worker(docket, concurrency=concurrency, **fast) as worker:
        await worker.run_forever()


def work(url, concurrency, setting="default"):
    """Run a worker."""
    uvloop.run(_work(url, concurrency, setting))
