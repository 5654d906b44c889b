"""arq: see https://arq-docs.helpmanual.io."""

from contextlib import asynccontextmanager
from datetime import timedelta

import arq
import arq.connections
import uvloop

from benchmarks.systems.bodies import asynchronous


def _function(body):
    async def run(_context, argument):
        await body(argument)

    run.__qualname__ = body.__name__
    return arq.func(run, name=body.__name__)


@asynccontextmanager
async def open(url):
    """Connect."""
    pool = await arq.create_pool(arq.connections.RedisSettings.from_dsn(url))
    yield pool
    await pool.aclose()


async def one(pool, job, argument):
    """Enqueue one job."""
    await pool.enqueue_job(job, argument)


async def later(pool, job, argument, delay_s):
    """Enqueue a delayed job."""
    await pool.enqueue_job(job, argument, _defer_by=timedelta(seconds=delay_s))


async def _work(url, concurrency, setting):
    fast = {"job_timeout": 25, "poll_delay": 0.1} if setting == "fast" else {}
    worker = arq.Worker(
        functions=[_function(body) for body in asynchronous.values()],
        redis_settings=arq.connections.RedisSettings.from_dsn(url),
        max_jobs=concurrency,
        handle_signals=False,
        **fast,
    )
    await worker.main()


def work(url, concurrency, setting="default"):
    """Run a worker."""
    uvloop.run(_work(url, concurrency, setting))
