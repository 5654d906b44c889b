"""A long run without faults."""

from collections import Counter

import pytest

from streamq import StreamQ

JOBS = 100_000


@pytest.mark.slow
async def test_of_a_hundred_thousand_jobs_without_faults_none_runs_twice(redis_url, work, eventually):
    """Two workers compete for them while they are still being enqueued; some come back, and are not counted twice."""
    app = StreamQ(redis_url=redis_url, worker_concurrency=32)
    runs = bytearray(JOBS)

    @app.handler
    async def count(number: int) -> None:
        runs[number] += 1

    workers = [await work(app=app, name=f"w{number}") for number in range(2)]
    await eventually(lambda: all(worker.slots is not None for worker in workers), "both are there")
    enqueued = Counter(job.status for job in await count.enqueue_many(range(JOBS)))
    assert enqueued == {"new": JOBS}

    def counted(what: str) -> int:
        return sum(worker.slots.counters[what] for worker in workers if worker.slots)

    await eventually(lambda: counted("completed") >= JOBS, "all have ended", timeout=200)
    assert runs == bytes([1]) * JOBS
    assert (counted("completed"), counted("late_outcomes")) == (JOBS, 0)
    assert all(worker.slots.counters["completed"] for worker in workers)

    async def nothing_is_left() -> bool:
        counts = (await app.operator.counts())["default"]
        return counts.jobs == counts.dead == 0

    await eventually(nothing_is_left)
    await app.close()
