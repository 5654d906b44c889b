"""BullMQ's port to Python: see https://docs.bullmq.io/python."""

import asyncio
from contextlib import asynccontextmanager

import bullmq
import uvloop

from benchmarks.systems.bodies import asynchronous


@asynccontextmanager
async def open(url):
    """Connect."""
    queue = bullmq.Queue("bench", {"connection": url})
    yield queue
    await queue.close()


async def one(queue, job, argument):
    """Add one job."""
    await queue.add(job, {"x": argument})


async def many(queue, job, arguments):
    """Add in bulk."""
    await queue.addBulk([{"name": job, "data": {"x": argument}} for argument in arguments])


async def later(queue, job, argument, delay_s):
    """Add a delayed job."""
    await queue.add(job, {"x": argument}, {"delay": int(delay_s * 1000)})


async def _work(url, concurrency, setting):
    async def process(job, _token):
        await asynchronous[job.name](job.data["x"])

    fast = {"lockDuration": 5_000, "stalledInterval": 5_000} if setting == "fast" else {}
    bullmq.Worker("bench", process, {"connection": url, "concurrency": concurrency, **fast})
    await asyncio.Event().wait()


def work(url, concurrency, setting="default"):
    """Run a worker."""
    uvloop.run(_work(url, concurrency, setting))
