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
    for name, body in asynchronous.items():
        if name != "long":
            made.handler(body)

    @made.handler(name="long", key="user")
    async def visit(argument: str, user: str) -> None:
        await asynchronous["long"](argument)

    return made


def call_of(job: str, argument: str) -> tuple[str, ...]:
    """Return the arguments of a handler: a long job is that of a user, whom its text has as its second word."""
    return (argument, argument.split()[1]) if job == "long" else (argument,)


@asynccontextmanager
async def open(url: str) -> AsyncIterator[StreamQ]:
    """Make an application; it connects by itself."""
    app = _app(url)
    yield app
    await app.close()


async def one(app: StreamQ, job: str, argument: str) -> None:
    """Enqueue one job."""
    await app.enqueue(job, *call_of(job, argument))


async def many(app: StreamQ, job: str, arguments: Sequence[str]) -> None:
    """Enqueue many jobs."""
    await app.handler_named(job).enqueue_many([call_of(job, argument) for argument in arguments])


async def later(app: StreamQ, job: str, argument: str, delay_s: float) -> None:
    """Enqueue a delayed job."""
    await app.handler_named(job).options(delay=timedelta(seconds=delay_s)).enqueue(argument)


def work(url: str, concurrency: int, setting: str = "default") -> None:
    """Run a worker."""
    app = _app(url, concurrency, **(FAST if setting == "fast" else {}))
    service.main(app.settings, app, name=f"bench.{os.getpid()}")
