"""streamq with everything on: index, outbox, fences, leases."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from benchmarks.systems.bodies import asynchronous
from streamq.app import StreamQ
from streamq.worker import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


FAST = {"dead_after_ms": 2_000, "beat_ms": 500}


def _app(url: str, concurrency: int = 3, **settings: int) -> StreamQ:
    made = StreamQ(redis_url=url, worker_concurrency=concurrency, queues=["default"], log_level="error", **settings)
    for body in asynchronous.values():
        made.handler(body)
    return made


@asynccontextmanager
async def open(url: str) -> AsyncIterator[StreamQ]:
    """Make an application; it connects by itself."""
    app = _app(url)
    yield app
    await app.close()


async def one(app: StreamQ, job: str, argument: str) -> None:
    """Enqueue one job."""
    await app.enqueue(job, argument)


async def many(app: StreamQ, job: str, arguments: Sequence[str]) -> None:
    """Enqueue many jobs."""
    await app.handler_named(job).enqueue_many(arguments)


async def later(app: StreamQ, job: str, argument: str, delay_s: float) -> None:
    """Enqueue a delayed job."""
    await app.handler_named(job).options(delay=timedelta(seconds=delay_s)).enqueue(argument)


def work(url: str, concurrency: int, setting: str = "default") -> None:
    """Run a worker."""
    app = _app(url, concurrency, **(FAST if setting == "fast" else {}))
    service.main(app.settings, app, name=f"bench.{os.getpid()}")
