"""streaQ: see https://streaq.readthedocs.io."""

import streaq

from benchmarks.systems.bodies import asynchronous


def _worker(url, concurrency=32, **settings):
    worker = streaq.Worker(redis_url=url, concurrency=concurrency, **settings)
    for body in asynchronous.values():
        worker.task(silent=True)(body)
    return worker


def open(url):
    """Give the worker, which is the producer as well."""
    return _worker(url)


async def one(worker, job, argument):
    """Enqueue one task."""
    await worker.enqueue_unsafe(job, argument)


async def many(worker, job, arguments):
    """Enqueue in one pipeline."""
    await worker.enqueue_many([worker.enqueue_unsafe(job, argument) for argument in arguments])


async def later(worker, job, argument, delay_s):
    """Enqueue a delayed task."""
    await worker.enqueue_unsafe(job, argument).start(delay=delay_s)


def work(url, concurrency, setting="default"):
    """Run the worker."""
    _worker(url, concurrency, **({"idle_timeout": 5} if setting == "fast" else {})).run_sync()
