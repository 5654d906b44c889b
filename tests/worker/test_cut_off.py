"""What a worker does that cannot reach Redis for longer than a lease: its jobs may be others', so it lets go of them."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import redis.asyncio

from streamq import StreamQ, current_job
from streamq.broker.server import Broker
from streamq.errors import LeaseLost
from streamq.keys import Keys
from streamq.worker.threads import JobInterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamq.embedded import RedisServer

KEYS = Keys("default")
WORDS = "Redis cannot be reached, and the job may belong to another worker now"


@pytest.fixture
async def brief(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StreamQ]:
    """An application whose leases last two seconds, on a server of the test's own."""
    monkeypatch.setattr("streamq.worker.service.Broker", functools.partial(Broker, timeout_s=0.5))
    made = StreamQ(
        redis_url=redis_server.url,
        worker_concurrency=2,
        lease_ms=2_000,
        dead_after_ms=1_000,
        beat_ms=50,
        grace_ms=2_000,
    )
    yield made
    redis_server.sigcont()
    await made.close()


def async_handler(app: StreamQ, runs: list[int], heard: list[Any]) -> Any:
    """Register one that waits for ever in its first run, and says what stops it; its second run ends."""

    @app.handler(timeout=None)
    async def endless() -> None:
        job = current_job()
        runs.append(job.fence)
        if len(runs) > 1:
            return
        assert not job.is_lost
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as stop:
            heard.extend((job.is_lost, *stop.args))
            raise

    return endless


def plain_handler(app: StreamQ, runs: list[int], heard: list[Any]) -> Any:
    """Register the same as a plain function."""

    @app.handler(timeout=None)
    def endless() -> None:
        job = current_job()
        runs.append(job.fence)
        try:
            while len(runs) == 1:
                time.sleep(0.001)
        except JobInterrupted:
            heard.append(job.is_lost)
            raise

    return endless


async def records(server: RedisServer) -> list[dict[str, Any]]:
    """Return what the recorder would read of jobs."""
    async with redis.asyncio.Redis.from_url(server.unix_url) as admin:
        entries = await admin.xrange(KEYS.outbox)
    return [orjson.loads(record) for _, fields in entries for name, record in fields.items() if name != b"w"]


@pytest.mark.parametrize("register", [async_handler, plain_handler])
async def test_a_job_whose_lease_ran_out_in_an_outage_is_let_go_and_another_worker_runs_it(
    brief, redis_server, work, eventually, register
):
    """By the worker's own clock, for there is nobody to ask. One outcome is recorded."""
    runs: list[int] = []
    heard: list[Any] = []
    handler = register(brief, runs, heard)
    await handler.enqueue()
    first = await work(app=brief)
    await eventually(lambda: runs, "it runs")
    first.quiet()
    second = await work(app=brief)
    await eventually(lambda: second.slots and second.slots.pumps[0].consumer, "another worker is there")

    redis_server.sigstop()
    await eventually(lambda: heard and not first.slots.busy, "the first lets go of it, with Redis away")
    assert len(runs) == 1
    assert first.slots.pumps[0].unsettled == 0
    redis_server.sigcont()

    await eventually(lambda: second.slots.counters["completed"] == 1, "the other one runs it")
    assert heard[0] is True
    if register is async_handler:
        assert isinstance(heard[1], LeaseLost)
        assert str(heard[1]) == WORDS
    assert len(runs) == 2
    assert runs[0] < runs[1]
    assert first.slots.counters["dropped"] == 1
    assert [record["s"] for record in await records(redis_server)] == ["completed"]

    async def is_counted() -> bool:
        async with redis.asyncio.Redis.from_url(redis_server.unix_url) as admin:
            return await admin.hget(KEYS.counts, "leases_run_out") == b"1"

    await eventually(is_counted, "a metric tells of it")


async def test_what_a_handler_returns_in_spite_of_that_counts_if_nobody_has_taken_the_job(
    brief, redis_server, work, eventually
):
    """Only Redis can tell, and it does so by the fence."""
    stopped, go = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    @brief.handler(timeout=None)
    async def stubborn() -> None:
        runs.append(current_job().fence)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            await go.wait()

    await stubborn.enqueue()
    worker = await work(app=brief)
    await eventually(lambda: runs, "it runs")
    redis_server.sigstop()
    await asyncio.wait_for(stopped.wait(), 30)
    go.set()
    await eventually(lambda: worker.slots.pumps[0].unsettled == 1, "what it returned is kept")
    redis_server.sigcont()
    await eventually(lambda: worker.slots.pumps[0].unsettled == 0, "and told")
    assert [record["s"] for record in await records(redis_server)] == ["completed"]
    assert len(runs) == 1
    assert worker.slots.counters["late_outcomes"] == 0


async def test_a_loop_that_was_blocked_for_longer_than_a_lease_has_lost_nothing(brief, work, eventually):
    """Somebody else has beaten and renewed for it all the time."""
    gate, beside = threading.Event(), asyncio.Event()

    @brief.handler(timeout=None)
    async def blocks() -> None:
        beside.set()
        gate.wait()

    @brief.handler(timeout=None)
    async def waits() -> None:
        await beside.wait()

    for handler in (waits, blocks):
        await handler.enqueue()
    # The loop of this test is the one that is blocked, so the end comes from a thread.
    threading.Timer(3.0, gate.set).start()
    worker = await work(app=brief)
    await eventually(lambda: worker.slots is not None and worker.slots.counters["completed"] == 2, "both end")
    assert worker.slots.counters["dropped"] == 0
    assert worker.slots.pumps[0].meter.taken().get("leases_run_out") is None
