"""A job that is another worker's now, a job that may be poison, and a worker that hears nothing any more."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from streamq import StreamQ
from streamq.broker.server import Broker
from streamq.errors import LeaseLost
from streamq.keys import Keys
from streamq.worker import Worker
from streamq.worker.threads import JobInterrupted

KEYS = Keys("default")


@pytest.fixture
async def brief(redis_url: str):
    """An application whose jobs are renewed, and missed, within a tenth of a second."""
    made = StreamQ(
        redis_url=redis_url, worker_concurrency=4, lease_ms=300, dead_after_ms=250, beat_ms=50, grace_ms=2_000
    )
    yield made
    await made.close()


async def give_away(app: StreamQ, job_id: str) -> None:
    """Do to a running job what a take-over by another worker does: its token changes."""
    wire = app.client.broker.wire()
    token = await wire.call("HGET", KEYS.index, job_id)
    await wire.call("HSET", KEYS.index, job_id, token + b"*2*0")
    await wire.close()


async def test_an_async_handler_sees_why_it_is_cancelled_when_its_job_is_anothers(brief, work, eventually):
    """It may want to undo something, and must know that whatever it returns will be refused."""
    seen: list[Any] = []
    started = asyncio.Event()

    @brief.handler
    async def fenced() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as stop:
            seen.extend(stop.args)
            raise

    job = await fenced.enqueue()
    worker = await work(app=brief)
    await started.wait()
    await give_away(brief, job.id)
    await eventually(lambda: seen, "it is told")
    assert isinstance(seen[0], LeaseLost)
    assert str(seen[0]) == "the job belongs to another worker now"
    await eventually(lambda: worker.slots.counters["dropped"] == 1, "what it came to counts for nothing")


async def test_a_plain_handler_is_interrupted_when_its_job_is_anothers(brief, work, eventually):
    seen: list[BaseException] = []
    started = threading.Event()

    @brief.handler
    def fenced() -> None:
        started.set()
        try:
            while True:
                time.sleep(0.001)
        except JobInterrupted as stop:
            seen.append(stop)
            raise

    job = await fenced.enqueue()
    worker = await work(app=brief)
    await eventually(started.is_set, "it runs")
    await give_away(brief, job.id)
    await eventually(lambda: seen, "it is told")
    await eventually(lambda: worker.slots.counters["dropped"] == 1, "what it came to counts for nothing")


async def test_an_outcome_that_comes_after_a_take_over_is_refused_and_counted(app, work, eventually):
    gate = asyncio.Event()

    @app.handler
    async def late() -> None:
        await gate.wait()

    job = await late.enqueue()
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.busy == 1, "it runs")
    await give_away(app, job.id)
    gate.set()
    await eventually(lambda: worker.slots.counters["late_outcomes"] == 1, "it is refused")
    wire = app.client.broker.wire()
    assert await wire.call("HEXISTS", KEYS.index, job.id) == 1
    await wire.close()


async def test_jobs_that_two_workers_died_with_run_alone_and_the_others_wait_their_turn(app, work, eventually):
    """Whichever of them is the poison, it takes no neighbour with it the third time."""
    running, beside = 0, []

    @app.handler
    async def counted(name: str) -> None:
        nonlocal running
        running += 1
        beside.append((name, running))
        await asyncio.sleep(0.02)
        running -= 1

    jobs = [await counted.enqueue(f"suspect{number}") for number in range(3)]
    partition = app.client.broker.partition("default")
    await partition.register("ghost")
    await partition.wait("ghost", 3, 1000, time.monotonic)
    for job in jobs:
        token = await partition.wire.call("HGET", KEYS.index, job.id)
        await partition.wire.call("HSET", KEYS.index, job.id, token + b"*2*1")
    for number in range(8):
        await counted.enqueue(f"innocent{number}")
    await partition.bury(["ghost"])
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.counters["completed"] == 11, "all have ended")
    assert {count for name, count in beside if name.startswith("suspect")} == {1}
    assert max(count for name, count in beside if name.startswith("innocent")) > 1
    await partition.wire.close()


async def test_a_worker_without_a_good_round_trip_says_so_keeps_what_has_ended_and_ends(
    redis_server, eventually, monkeypatch, caplog
):
    """Its supervisor starts a fresh one. What it had finished is told first, if the server comes back in time."""
    monkeypatch.setattr("streamq.worker.service.Broker", functools.partial(Broker, timeout_s=0.2))
    app, gate, runs = StreamQ(redis_url=redis_server.url, beat_ms=50, grace_ms=2_000), asyncio.Event(), []

    @app.handler
    async def held() -> None:
        runs.append(1)
        await gate.wait()

    await held.enqueue()
    worker = Worker(app, app.settings)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: runs, "it runs")
    redis_server.sigstop()
    monkeypatch.setattr("streamq.worker.service.SILENCE_LIMIT_S", 0.5)
    await eventually(lambda: "worker.silent" in caplog.messages, "it says so")
    assert any(check.problem for check in worker.checks())
    gate.set()
    await eventually(lambda: worker.slots.pumps[0].unsettled == 1, "the outcome is kept")
    redis_server.sigcont()
    assert await task == 69
    wire = app.client.broker.wire()
    assert await wire.call("HLEN", KEYS.index) == 0
    await wire.close()
    assert runs == [1]
    await app.close()


@pytest.fixture
async def ghost(app: StreamQ):
    """Give what a worker that is about to die holds: a job over which another one died before."""
    app.settings = msgspec.structs.replace(app.settings, dead_after_ms=50_000)
    partition = app.client.broker.partition("default")
    await partition.register("ghost")

    async def take(job_id: str) -> None:
        await partition.wait("ghost", 1, 1000, time.monotonic)
        token = await partition.wire.call("HGET", KEYS.index, job_id)
        await partition.wire.call("HSET", KEYS.index, job_id, token + b"*2*1")

    async def die() -> None:
        await partition.bury(["ghost"])

    yield SimpleNamespace(take=take, die=die)
    await partition.wire.close()


async def test_a_suspect_does_not_wait_for_the_long_job_of_one_worker_while_another_is_idle(
    app, work, eventually, ghost
):
    gate, ran = asyncio.Event(), asyncio.Event()

    @app.handler
    async def suspect() -> None:
        ran.set()

    @app.handler
    async def long() -> None:
        await gate.wait()

    await ghost.take((await suspect.enqueue()).id)
    await long.enqueue()
    busy = await work()
    await eventually(lambda: busy.slots is not None and busy.slots.busy == 1, "the long job runs")
    await ghost.die()
    await eventually(lambda: busy.slots.pumps[0]._modest_until > 0, "the suspect was here, and went back")
    idle = await work()
    await eventually(ran.is_set, "it runs")
    await eventually(lambda: idle.slots.counters["completed"] == 1, "on the other worker")
    gate.set()


async def test_a_suspect_that_no_worker_is_idle_for_does_not_stop_the_others_and_runs_in_the_end(
    app, work, eventually, ghost, monkeypatch
):
    monkeypatch.setattr("streamq.worker.pump._SUSPECT_AGAIN_S", 0.3)
    gate, ran = asyncio.Event(), Counter[str]()

    @app.handler
    async def suspect() -> None:
        assert gate.is_set()
        ran["suspect"] += 1

    @app.handler
    async def short() -> None:
        ran["short"] += 1

    @app.handler
    async def long() -> None:
        await gate.wait()

    await ghost.take((await suspect.enqueue()).id)
    await long.enqueue()
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.busy == 1, "the long job runs")
    await ghost.die()
    pump = worker.slots.pumps[0]
    for round_ in range(3):
        await eventually(lambda n=round_: pump._suspect_s >= 0.3 * 2**n, "it was here, and went back")
        await short.enqueue()
        await eventually(lambda n=round_: ran["short"] == n + 1, "another job runs")
    assert ran["suspect"] == 0
    gate.set()
    await eventually(lambda: ran["suspect"] == 1, "it runs when the long job has ended")
