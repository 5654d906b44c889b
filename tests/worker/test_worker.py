"""What becomes of a job, by what its handler does."""

import asyncio
import time
from contextvars import ContextVar
from datetime import timedelta

import pytest

from streamq import Cancel, Fail, Retry, RetryPolicy, Snooze, StreamQ, current_job
from streamq.broker.orders import Orders
from streamq.errors import JobFailed, JobNotFound, StreamQError
from streamq.keys import Keys
from streamq.worker.settle import LARGEST_RESULT

KEPT = timedelta(seconds=60)
AT_ONCE = RetryPolicy(base=timedelta(milliseconds=1))


async def test_a_job_runs_once_and_its_result_comes_back(app, work):
    runs = []

    @app.handler
    async def double(x: int) -> int:
        runs.append(x)
        return 2 * x

    job = await double.options(keep_result=KEPT).enqueue(21)
    await work()
    assert await job.result() == 42
    assert runs == [21]


async def test_a_plain_function_runs_in_a_thread_and_sees_its_job(app, work):
    @app.handler(key="x")
    def plain(x: str) -> list[str]:
        time.sleep(0.01)
        job = current_job()
        return [x, job.key or "", str(job.attempt)]

    job = await plain.options(keep_result=KEPT).enqueue("u1")
    await work()
    assert await job.result() == ["u1", "u1", "1"]


async def test_a_failed_job_is_tried_again_and_its_fence_rises(app, work):
    fences = []

    @app.handler(retry=AT_ONCE)
    async def flaky() -> int:
        job = current_job()
        fences.append(job.fence)
        if job.attempt < 3:
            raise RuntimeError("not yet")
        return job.attempt

    job = await flaky.options(keep_result=KEPT).enqueue()
    await work()
    assert await job.result() == 3
    assert fences == sorted(set(fences))


async def test_a_job_without_attempts_left_is_dead_and_kept_as_a_letter(app, work, redis_url):
    @app.handler(max_attempts=2, retry=AT_ONCE)
    async def broken() -> None:
        raise ValueError("never works")

    job = await broken.options(keep_result=KEPT).enqueue()
    worker = await work()
    with pytest.raises(JobFailed, match=r"is dead: ValueError: never works"):
        await job.result()
    assert worker.slots.counters["retrying"] == 1
    wire = app.client.broker.wire()
    assert await wire.call("XLEN", Keys("default").dead) == 1
    await wire.close()


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (Cancel("not needed"), "is cancelled: Cancelled: not needed"),
        (Fail("hopeless"), "is dead: Fail: hopeless"),
        (SystemExit(3), "is dead: SystemExit: 3"),
        (KeyboardInterrupt(), "is dead: KeyboardInterrupt"),
        (asyncio.CancelledError(), "is dead: CancelledError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_what_a_handler_raises_decides_the_end_and_not_the_worker(app, work, signal, words):
    @app.handler(max_attempts=1)
    async def raising() -> None:
        raise signal

    @app.handler
    async def beside() -> str:
        return "unharmed"

    job = await raising.options(keep_result=KEPT).enqueue()
    other = await beside.options(keep_result=KEPT).enqueue()
    await work()
    with pytest.raises(JobFailed, match=words):
        await job.result()
    assert await other.result() == "unharmed"


async def test_a_snooze_uses_up_no_attempt_and_a_retry_does(app, work):
    attempts = []

    @app.handler
    async def waits() -> int:
        attempts.append(current_job().attempt)
        if len(attempts) == 1:
            raise Snooze(timedelta(milliseconds=1))
        if len(attempts) == 2:
            raise Retry(timedelta(milliseconds=1))
        return current_job().attempt

    job = await waits.options(keep_result=KEPT).enqueue()
    await work()
    assert await job.result() == 2
    assert attempts == [1, 1, 2]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_job_that_runs_too_long_is_interrupted(app, work, kind):
    limit = timedelta(milliseconds=200)
    if kind == "async":

        @app.handler(timeout=limit, max_attempts=1, name="endless")
        async def endless() -> None:
            await asyncio.Event().wait()
    else:

        @app.handler(timeout=limit, max_attempts=1, name="endless")
        def endless() -> None:
            while True:
                time.sleep(0.001)

    job = await endless.options(keep_result=KEPT).enqueue()
    await work()
    with pytest.raises(JobFailed, match=r"JobTimeout: ran longer than its timeout of 0.2 s"):
        await job.result()


async def test_a_running_job_can_be_cancelled_and_a_waiting_one_ends_at_once(app, work, eventually):
    started = asyncio.Event()

    @app.handler
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    waiting = await endless.options(delay=timedelta(hours=1)).enqueue()
    assert await waiting.cancel("changed my mind") == "cancelled"
    with pytest.raises(JobNotFound, match=r"no job '.*' waits or runs in queue 'default'"):
        await waiting.cancel()
    running = await endless.options(keep_result=KEPT).enqueue()
    await work()
    await started.wait()
    assert await running.cancel("enough") == "asked"
    with pytest.raises(JobFailed, match=r"is cancelled: Cancelled: enough"):
        await running.result()


async def test_a_job_past_its_deadline_is_not_started(app, work):
    @app.handler
    async def late() -> None:
        raise AssertionError("must not run")

    job = await late.options(deadline=timedelta(milliseconds=-1), keep_result=KEPT).enqueue()
    await work()
    with pytest.raises(JobFailed, match=r"is expired: expired: it was not started before its deadline"):
        await job.result()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (object(), "the result is not JSON"),
        (float("nan"), "NaN and infinity are not JSON"),
        ("x" * (LARGEST_RESULT + 1), "at most 65,536 are kept"),
        ({1: 2}, "the result is not JSON"),
    ],
    ids=["object", "nan", "large", "keys"],
)
async def test_a_result_that_cannot_be_kept_leaves_the_job_completed(app, work, result, words):
    @app.handler
    async def odd() -> object:
        return result

    job = await odd.options(keep_result=KEPT).enqueue()
    worker = await work()
    with pytest.raises(JobFailed, match=f"is completed, but its result could not be kept: .*{words}"):
        await job.result()
    assert worker.slots.counters["completed"] == 1


async def test_a_job_that_nobody_here_knows_waits_for_a_worker_that_does(app, work, redis_url, eventually):
    elsewhere = StreamQ(redis_url=redis_url)

    @elsewhere.handler
    async def foreign() -> str:
        return "done"

    job = await foreign.options(keep_result=KEPT).enqueue()
    ignorant = await work()
    await eventually(lambda: ignorant.slots is not None and ignorant.slots.counters["parked"] == 1, "it is parked")
    ignorant.drain()
    wire = app.client.broker.wire()
    await wire.call("ZADD", Keys("default").delayed, 0, job.id)
    await wire.close()
    await work(app=elsewhere)
    assert await job.result() == "done"
    await elsewhere.close()


async def test_a_dedup_key_is_free_when_its_job_has_ended_whatever_the_end(app, work):
    @app.handler(dedup="user", max_attempts=1)
    async def one(user: str, fail: bool = False) -> None:
        if fail:
            raise ValueError("no")

    first = await one.options(keep_result=KEPT).enqueue("u")
    second = await one.enqueue("u")
    assert (second.status, second.id) == ("duplicate", first.id)
    await work()
    assert await first.result() is None
    third = await one.options(keep_result=KEPT).enqueue("u", fail=True)
    assert third.is_new
    with pytest.raises(JobFailed):
        await third.result()
    fourth = await one.options(keep_result=KEPT).enqueue("u")
    assert fourth.is_new
    assert await fourth.result() is None


async def test_what_a_handler_sets_in_its_context_does_not_meet_the_next_job(app, work):
    leak: ContextVar[str] = ContextVar("leak", default="clean")

    @app.handler
    async def setter() -> str:
        seen = leak.get()
        leak.set("dirty")
        return seen

    jobs = [await setter.options(keep_result=KEPT).enqueue() for _ in range(20)]
    await work()
    assert {await job.result() for job in jobs} == {"clean"}


async def test_draining_hands_back_what_runs_with_its_attempt(app, work, eventually):
    started = asyncio.Event()

    @app.handler
    async def endless() -> int:
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        return current_job().attempt

    job = await endless.options(keep_result=KEPT).enqueue()
    first = await work()
    await started.wait()
    first.force()
    await work()
    assert await job.result() == 1


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(app, work, eventually):
    @app.handler
    async def quick() -> str:
        return "ran"

    worker = await work()
    wire = app.client.broker.wire()
    orders = Orders(wire, Keys("default"))
    await orders.pause(reason="deploy", by="test")
    await eventually(lambda: worker.slots is not None and worker.slots.pumps[0]._paused, "the pause is seen")
    job = await quick.options(keep_result=KEPT).enqueue()
    assert await orders.resume()
    assert await job.result() == "ran"
    await wire.close()


async def test_the_jobs_of_a_worker_that_fell_silent_are_taken_over(app, work, eventually):
    """The second net: nobody saw it die, its beats just stop."""
    runs = []

    @app.handler
    async def job_of_the_dead() -> int:
        runs.append(current_job().fence)
        return len(runs)

    job = await job_of_the_dead.options(keep_result=KEPT).enqueue()
    partition = app.client.broker.partition("default")
    await partition.register("ghost")
    deliveries, _, _ = await partition.wait("ghost", 1, 1000, time.monotonic)
    assert len(deliveries) == 1
    await work()
    assert await job.result() == 1
    assert runs == [2]
    await partition.wire.close()


async def test_a_job_that_took_three_workers_with_it_is_dead(app, work):
    @app.handler
    async def poison() -> None:
        raise AssertionError("must not run a fourth time")

    job = await poison.options(keep_result=KEPT).enqueue()
    wire = app.client.broker.wire()
    token = await wire.call("HGET", Keys("default").index, job.id)
    partition = app.client.broker.partition("default")
    await partition.register("ghost")
    await partition.wait("ghost", 1, 1000, time.monotonic)
    await wire.call("HSET", Keys("default").index, job.id, token + b"*3*2")
    await partition.bury(["ghost"])
    await work()
    with pytest.raises(JobFailed, match=r"CrashedWorker: 3 workers died while they ran this job"):
        await job.result()
    await wire.close()
    await partition.wire.close()


def test_asking_for_the_current_job_outside_of_one_says_so():
    with pytest.raises(StreamQError, match=r"no job runs here"):
        current_job()


async def test_a_thousand_jobs_run_once_each(app, work, eventually):
    runs: list[int] = []

    @app.handler
    async def count(n: int) -> None:
        runs.append(n)

    await count.enqueue_many(range(1000))
    await work()
    await work()
    await eventually(lambda: len(runs) >= 1000, "all ran")
    assert sorted(runs) == list(range(1000))
