"""taskiq with its broker on Redis Streams: see https://github.com/taskiq-python/taskiq-redis."""

from contextlib import asynccontextmanager

import taskiq_redis
import uvloop
from taskiq.api import run_receiver_task

from benchmarks.systems.bodies import asynchronous


def _broker(url, setting="default"):
    fast = {"idle_timeout": 25_000} if setting == "fast" else {}
    broker = taskiq_redis.RedisStreamBroker(url, consumer_id="0", **fast)
    broker = broker.with_result_backend(taskiq_redis.RedisAsyncResultBackend(url))
    tasks = {name: broker.register_task(body, task_name=name) for name, body in asynchronous.items()}
    return broker, tasks


@asynccontextmanager
async def open(url):
    """Connect."""
    broker, tasks = _broker(url)
    await broker.startup()
    yield tasks
    await broker.shutdown()


async def one(tasks, job, argument):
    """Enqueue one task."""
    await tasks[job].kiq(argument)


async def _work(url, concurrency, setting):
    broker, _ = _broker(url, setting)
    broker.is_worker_process = True
    await run_receiver_task(broker, max_async_tasks=concurrency, max_prefetch=concurrency, run_startup=True)


def work(url, concurrency, setting="default"):
    """Run a receiver."""
    uvloop.run(_work(url, concurrency, setting))
