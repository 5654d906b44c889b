"""How much a worker reads: into free slots, and ahead only what will start at once."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import msgspec
import pytest

from streamq.broker.partition import BATCH_BYTES, Partition
from streamq.worker import Worker

KEPT = timedelta(seconds=60)


def told_that_jobs_are_short(worker: Worker) -> None:
    """Have the worker believe that it has seen many jobs of a millisecond."""
    slots = worker.slots
    assert slots is not None
    slots._mean_s, slots._rate, slots._finished_at = 0.001, 1000.0, asyncio.get_running_loop().time() + 60


async def test_large_jobs_are_read_about_a_megabyte_at_a_time(app, work, eventually, monkeypatch):
    """And small ones behind them by the call again."""
    wants, cycle, ran = [], Partition.cycle, []

    async def noting(self, *args, want, **options):
        wants.append(want)
        return await cycle(self, *args, want=want, **options)

    monkeypatch.setattr(Partition, "cycle", noting)

    @app.handler
    async def refresh(text: str) -> None:
        ran.append(len(text))

    await refresh.enqueue_many(["x" * 200_000] * 60)
    await work(settings=msgspec.structs.replace(app.settings, worker_concurrency=50))
    await eventually(lambda: len(ran) == 60, "all have run")
    first, *others = [want for want in wants if want]
    assert first == 50, "nobody knows yet"
    assert max(others) <= BATCH_BYTES // 200_000
    wants.clear()
    await refresh.enqueue_many(["x"] * 600)
    await eventually(lambda: len(ran) == 660, "the small ones have run")
    assert max(wants) >= 50


async def test_jobs_of_unknown_length_are_read_into_free_slots_only(app, work, eventually, view):
    go = asyncio.Event()

    @app.handler
    async def waits() -> None:
        await go.wait()

    jobs = [await waits.options(keep_result=KEPT).enqueue() for _ in range(10)]
    worker = await work()
    await eventually(lambda: worker.slots and worker.slots.busy == 4, "every slot runs one")
    assert worker.slots.room() == 0
    assert not worker.slots.pumps[0].buffer
    _, flights = await view.flights(limit=10)
    assert len(flights) == 4
    go.set()
    for job in jobs:
        await job.result()


async def test_as_much_is_read_ahead_as_starts_within_twenty_milliseconds(app, work, eventually):
    worker = await work()
    await eventually(lambda: worker.slots and worker.slots.room() == 4, "it works, and no read is on its way")
    told_that_jobs_are_short(worker)
    assert worker.slots.room() == 4 + 20
    worker.slots._mean_s = 0.05
    assert worker.slots.room() == 4
    told_that_jobs_are_short(worker)
    worker.slots._finished_at -= 61
    assert worker.slots.room() == 4


async def test_of_jobs_that_take_about_as_long_as_many_are_read_ahead_as_are_about_to_end(
    app, work, eventually, monkeypatch
):
    go = asyncio.Event()

    @app.handler
    async def waits() -> None:
        await go.wait()

    jobs = [await waits.options(keep_result=KEPT).enqueue() for _ in range(4)]
    worker = await work()
    await eventually(lambda: worker.slots and worker.slots.busy == 4, "every slot runs one")
    slots, now = worker.slots, asyncio.get_running_loop().time()
    slots._mean_s, slots._spread_s = 0.1, 0.004
    for (job, _), ends_in_s in zip(slots.running.values(), (-0.03, 0.01, 0.015, 0.05), strict=True):
        job.begun_at = now + ends_in_s - 0.1
    with monkeypatch.context() as stopped:
        stopped.setattr(slots, "_loop", SimpleNamespace(time=lambda: now))
        assert slots.room() == 2
        assert slots.next_end_at() - now == pytest.approx(0.005)
        slots._spread_s = 0.006
        assert slots.room() == 0
        assert slots.next_end_at() == 0
    go.set()
    for job in jobs:
        await job.result()


async def test_what_was_read_ahead_and_does_not_start_goes_to_a_worker_that_is_free(
    app, work, eventually, view, monkeypatch
):
    app.settings = msgspec.structs.replace(app.settings, worker_concurrency=1)
    go = asyncio.Event()

    @app.handler
    async def long() -> None:
        await go.wait()

    @app.handler
    async def short() -> None: ...

    greedy = await work(name="greedy")
    await eventually(lambda: greedy.slots and greedy.slots.pumps[0].consumer, "it works")
    greedy.quiet()
    await greedy.slots.pumps[0]._stop_reader()  # else it takes the first job, and gives it back
    returned, return_unrun = [], greedy.slots.pumps[0].return_unrun
    monkeypatch.setattr(greedy.slots.pumps[0], "return_unrun", lambda rows: (returned.extend(rows), return_unrun(rows)))
    held = await long.options(keep_result=KEPT, priority="high").enqueue()
    others = [await short.options(keep_result=KEPT).enqueue() for _ in range(5)]
    told_that_jobs_are_short(greedy)
    greedy.resume()
    await eventually(lambda: greedy.slots.busy == 1, "the long one runs")
    await work(name="free")
    for other in others:
        await other.result()
    # The long one may have been on its way when it was still quiet, and then it was handed back as well.
    assert {delivery.id.decode() for delivery in returned} - {held.id} == {other.id for other in others}
    assert greedy.slots.busy == 1
    assert greedy.slots.counters["completed"] == 0
    _, flights = await view.flights(limit=10)
    assert [flight.worker.startswith("greedy") for flight in flights] == [True]
    go.set()
    await held.result()
