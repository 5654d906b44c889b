"""A worker that has done enough, or holds too much, ends for a fresh one; its jobs do not notice."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

import pytest

from streamq import StreamQ
from streamq.errors import ConfigurationError
from streamq.process import rss_bytes
from streamq.worker import Worker

KEPT = timedelta(seconds=60)


async def test_after_so_many_jobs_a_worker_drains_and_ends_well(redis_url, eventually):
    app = StreamQ(redis_url=redis_url, max_jobs=5, worker_concurrency=1, grace_ms=5_000)
    gate = asyncio.Event()

    @app.handler
    async def counted(number: int) -> int:
        if number == 5:
            await gate.wait()
        return number

    jobs = [await counted.options(keep_result=KEPT).enqueue(number) for number in range(6)]
    worker = Worker(app, app.settings)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: worker.slots is not None and worker.slots.is_quiet, "it takes nothing new")
    gate.set()
    assert await task == 0
    assert [await job.result() for job in jobs] == list(range(6))
    await app.close()


async def test_a_worker_that_has_grown_too_large_drains_and_ends_well(redis_url, caplog):
    caplog.set_level("INFO", "streamq")
    held: list[bytes] = []
    limit_mb = (rss_bytes(os.getpid()) or 0) // 1_000_000 + 40
    app = StreamQ(redis_url=redis_url, max_memory_mb=limit_mb, grace_ms=5_000)

    @app.handler
    async def leaks() -> int:
        held.append(b"x" * 80_000_000)
        return len(held)

    job = await leaks.options(keep_result=KEPT).enqueue()
    worker = Worker(app, app.settings)
    assert await worker.run() == 0
    assert await job.result() == 1
    assert "worker.recycling" in caplog.messages
    await app.close()


async def test_a_limit_below_what_every_worker_takes_is_refused(redis_url):
    """It would end before its first job, and so would its successor."""
    app = StreamQ(redis_url=redis_url, max_memory_mb=1)
    words = r"max_memory_mb is 1, and a worker takes \d+ MB before its first job"
    with pytest.raises(ConfigurationError, match=words):
        await Worker(app, app.settings).run()
    await app.close()
