"""ArdiQ, whose core is in Rust: see https://ardiq.bytay.dev."""

import ardiq
import uvloop

from benchmarks.systems.bodies import asynchronous


def _app(url, **settings):
    app = ardiq.Ardiq(redis_url=url, **settings)
    return app, {name: app.task(body) for name, body in asynchronous.items()}


def open(url):
    """Make the application and its tasks."""
    return _app(url)


async def one(opened, job, argument):
    """Enqueue one task."""
    await opened[1][job].enqueue(argument)


async def many(opened, job, arguments):
    """Enqueue a thousand in one call."""
    app, tasks = opened
    await app.enqueue_many([tasks[job].prepare(argument) for argument in arguments])


async def later(opened, job, argument, delay_s):
    """Enqueue a delayed task."""
    await opened[1][job].options(delay_ms=int(delay_s * 1000)).enqueue(argument)


def work(url, concurrency, setting="default"):
    """Run a worker."""
    fast = {"idle_timeout_ms": 5_000} if setting == "fast" else {}
    app, _ = _app(url, concurrency=concurrency, **fast)
    uvloop.run(app.run())
