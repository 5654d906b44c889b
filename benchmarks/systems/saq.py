"""SAQ: see https://saq-py.readthedocs.io."""

import time
from contextlib import asynccontextmanager

import saq
import uvloop

from benchmarks.systems.bodies import asynchronous


def _function(body):
    async def run(_context, *, x):
        await body(x)

    run.__qualname__ = run.__name__ = body.__name__
    return body.__name__, run


@asynccontextmanager
async def open(url):
    """Connect."""
    queue = saq.Queue.from_url(url)
    await queue.connect()
    yield queue
    await queue.disconnect()


async def one(queue, job, argument):
    """Enqueue one job; the fast setting of its worker is a setting of the job."""
    await queue.enqueue(job, x=argument)


async def later(queue, job, argument, delay_s):
    """Enqueue a delayed job; it knows whole seconds."""
    await queue.enqueue(job, x=argument, scheduled=time.time() + delay_s)


async def _work(url, concurrency, setting):
    queue = saq.Queue.from_url(url)
    timers = {"sweep": 1} if setting == "fast" else {}
    functions = [_function(body) for body in asynchronous.values()]
    worker = saq.Worker(queue, functions=functions, concurrency=concurrency, timers=timers)
    await queue.connect()
    await worker.start()


def work(url, concurrency, setting="default"):
    """Run a worker."""
    uvloop.run(_work(url, concurrency, setting))
