"""ChasquiMQ, whose core is in Rust, with its events off: see https://pypi.org/project/chasquimq/."""

import uvloop
from chasquimq import Queue, Worker

from benchmarks.systems.bodies import asynchronous

QUEUE = "bench"


def open(url):
    """Make a queue."""
    return Queue(QUEUE, redis_url=url)


async def one(queue, job, argument):
    """Enqueue one job."""
    await queue.add(job, argument)


async def many(queue, job, arguments):
    """Enqueue a thousand in one call."""
    await queue.add_bulk([{"name": job, "data": argument} for argument in arguments])


async def later(queue, job, argument, delay_s):
    """Enqueue a delayed job."""
    await queue.add(job, argument, delay_ms=int(delay_s * 1000))


def work(url, concurrency, setting="default"):
    """Run a worker."""
    fast = {"claim_min_idle_ms": 5_000} if setting == "fast" else {}

    async def handle(job):
        await asynchronous[job.name](job.data)

    async def main():
        await Worker(QUEUE, handle, redis_url=url, concurrency=concurrency, events_enabled=False, **fast).run()

    uvloop.run(main())
