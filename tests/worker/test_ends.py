"""How jobs end, besides by their handlers: too late, cancelled, or with nobody to run them."""

import asyncio
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from streamq import RateLimited, RetryPolicy, current_job
from streamq.broker.inspection import Inspection
from streamq.broker.partition import NewJob
from streamq.codec import decode_envelope
from streamq.errors import BadArguments, JobFailed, JobNotFound
from streamq.job import latest_start_ms
from streamq.keys import Keys, lane_digit

KEPT = timedelta(seconds=60)
SHORT = timedelta(milliseconds=30)
EXPIRED = r"is expired: expired: it was not started before its deadline"


async def test_a_job_whose_time_to_live_is_over_is_not_started(app, work, eventually):
    """By the server's clock alone."""

    @app.handler
    async def late() -> None: ...

    job = await late.options(ttl=SHORT, keep_result=KEPT).enqueue()
    wire = app.client.broker.wire()
    added_ms = int((await wire.call("XRANGE", Keys("default").lanes[1], "-", "+"))[0][0].partition(b"-")[0])

    async def is_over() -> bool:
        seconds, micros = await wire.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000 > added_ms + 31

    await eventually(is_over)
    await wire.close()
    await work()
    with pytest.raises(JobFailed, match=EXPIRED):
        await job.result()


@pytest.mark.parametrize("how", ["delay", "at"])
async def test_a_delayed_job_lives_from_when_it_is_due(app, work, how):
    """Else it would never start."""

    @app.handler
    async def patient() -> str:
        return "ran"

    wait, keys = timedelta(hours=1), Keys("default")
    due = {"delay": wait} if how == "delay" else {"at": datetime.now(UTC) + wait}
    job = await patient.options(**due, ttl=timedelta(minutes=1), keep_result=KEPT).enqueue()
    wire = app.client.broker.wire()
    [waiting] = await Inspection(wire, keys).delayed(limit=2)
    ends_ms = latest_start_ms(decode_envelope(waiting.envelope), waiting.enqueued_ms)
    assert ends_ms - waiting.due_ms == pytest.approx(60_000, abs=50_000)
    await wire.call("ZADD", keys.delayed, 1, job.id)
    await wire.close()
    await work()
    assert await job.result() == "ran"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ttl": timedelta(0)}, "ttl cannot be shorter than 1 ms, and 0:00:00 came"),
        ({"ttl": 5}, "ttl is a timedelta, and 5 came"),
        ({"retry_until": datetime(2030, 1, 1, tzinfo=UTC).replace(tzinfo=None)}, "retry_until: .* has no time zone"),
        ({"delay": timedelta(days=40_000)}, "delay can be 100 years at most"),
    ],
)
async def test_an_end_that_makes_no_sense_is_refused(app, options, words):
    """Before Redis is touched."""

    @app.handler
    async def never() -> None: ...

    with pytest.raises(BadArguments, match=words):
        await never.options(**options).enqueue()


async def test_a_job_is_not_tried_again_after_its_retry_until(app, work):
    """It ends dead, and says so."""

    @app.handler(retry=RetryPolicy(custom=lambda *_: timedelta(hours=1)))
    async def broken() -> None:
        raise ValueError("no")

    job = await broken.options(retry_until=timedelta(minutes=5), keep_result=KEPT).enqueue()
    await work()
    with pytest.raises(
        JobFailed, match=r"is dead: ValueError: no \[not tried again: that would be after retry_until\]"
    ):
        await job.result()


async def test_a_rate_limited_job_uses_no_attempt(app, work):
    """However often it is told to wait."""
    told = []

    @app.handler(max_attempts=1)
    async def calls() -> int:
        told.append(current_job().attempt)
        if len(told) < 4:
            raise RateLimited(0.001)
        return len(told)

    job = await calls.options(keep_result=KEPT).enqueue()
    await work()
    assert await job.result() == 4
    assert told == [1, 1, 1, 1]


async def test_a_job_can_be_cancelled_by_its_id_from_anywhere(app, work, eventually):
    """Waiting, delayed or running, whatever its queue."""
    began, release = asyncio.Event(), asyncio.Event()

    @app.handler
    async def endless() -> None:
        began.set()
        await release.wait()

    @app.handler(queue="mail")
    async def never() -> None: ...

    waiting = await never.options(keep_result=KEPT).enqueue()
    delayed = await never.options(delay=timedelta(hours=1), keep_result=KEPT).enqueue()
    running = await endless.options(keep_result=KEPT).enqueue()
    await work()
    await began.wait()
    assert await app.operator.cancel(waiting.id, "one") == "cancelled"
    assert await app.operator.cancel(delayed.id, "two") == "cancelled"
    assert await app.operator.cancel(running.id, "three") == "asked"
    for job, why in ((waiting, "one"), (delayed, "two"), (running, "three")):
        with pytest.raises(JobFailed, match=f"is cancelled: Cancelled: {why}"):
            await job.result()
    with pytest.raises(JobNotFound, match="no job 'nobody' waits or runs in default, mail"):
        await app.operator.cancel("nobody")


async def test_a_job_that_took_three_workers_with_it_wakes_who_waits_for_its_result(app, work):
    """The end comes from a worker that never ran it."""

    @app.handler
    async def poison() -> None: ...

    job = await poison.options(keep_result=KEPT).enqueue()
    partition = app.client.broker.partition("default")
    wire = partition.wire
    await partition.register("ghost")
    await partition.wait("ghost", 1, 1000, lambda: 0.0)
    keys = Keys("default")
    token = (await wire.call("HGET", keys.index, job.id)).decode()
    await wire.call("HSET", keys.index, job.id, f"{token}*4*3")
    await partition.bury(["ghost"])
    await wire.close()
    await work()
    with pytest.raises(JobFailed, match="is dead: CrashedWorker: 4 workers died"):
        await job.result()


async def test_a_job_that_cannot_be_read_is_dead_and_kept(app, work, eventually):
    """Nobody knows what it asked for; its letter shows what came."""
    partition = app.client.broker.partition("default")
    await partition.add("foreign", 1, [NewJob("a", lane_digit("normal"), b"not an envelope")])
    await work()

    async def is_dead() -> bool:
        return bool(await partition.wire.call("XLEN", Keys("default").dead))

    await eventually(is_dead)
    await partition.wire.close()


@pytest.mark.parametrize("kind", ["interrupted", "raises"])
async def test_the_wait_for_a_retry_counts_from_the_timeout_however_long_the_handler_takes_to_end(
    app, work, eventually, kind
):
    """It is over when the handler has let go, or soon after."""
    policy = RetryPolicy(custom=lambda *_: timedelta(minutes=1))

    @app.handler(timeout=SHORT, max_attempts=2, retry=policy)
    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            if kind == "raises":
                raise ValueError("at last") from None
            raise

    await slow_to_end.enqueue()
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.counters["retrying"] == 1, "it is tried again")
    wire = app.client.broker.wire()

    async def told() -> dict | None:
        entries = await wire.call("XRANGE", Keys("default").outbox, "-", "+")
        return next((orjson.loads(value) for _, fields in entries for value in fields if value[:1] == b"{"), None)

    record = await eventually(told, "it is told")
    assert record["d"] - record["f"] <= 60_000 - 300
    await wire.close()
