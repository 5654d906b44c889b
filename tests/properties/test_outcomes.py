"""From what a handler does to an outcome, and from that to what Redis is told: whatever comes together."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import orjson
import pytest
from hypothesis import given, strategies as st

from streamq.codec import decode_envelope, encode_envelope
from streamq.job import (
    CRASH_LIMIT,
    SUCCESSORS,
    Cancel,
    Cancelled,
    Completed,
    Dead,
    Delivery,
    Envelope,
    Expired,
    Fail,
    Failure,
    Limited,
    Parked,
    RateLimited,
    Retry,
    Retrying,
    Snooze,
    Snoozed,
    State,
    latest_start_ms,
)
from streamq.registry import HandlerSpec
from streamq.retry import Never, RetryPolicy
from streamq.worker.run import ProcessDied, RunningJob, run
from streamq.worker.settle import reported, settle

BEGUN_MS = 1_000_000
MINUTE = timedelta(minutes=1)
moments = st.sampled_from([0, BEGUN_MS - 1, BEGUN_MS + 1_000, BEGUN_MS + 59_000, BEGUN_MS + 3_600_000])
errors = st.sampled_from(
    [
        ValueError("no"), KeyError("fixed"), TypeError("never"), Retry(), Retry(MINUTE), Snooze(MINUTE), RateLimited(60),
        RateLimited(), Cancel("c"), Fail("f"), SystemExit(1), asyncio.CancelledError(), StopAsyncIteration(),
    ]
)  # fmt: skip
POLICY = RetryPolicy(on={KeyError: MINUTE, TypeError: Never})


def running(
    envelope: Envelope, error: BaseException, *, policy: RetryPolicy = POLICY, enqueued_ms: int = BEGUN_MS
) -> RunningJob:
    """A job that has just begun, and is going to raise."""

    async def call(_: RunningJob) -> None:
        raise error

    delivery = Delivery(2, b"21-1", b"a", encode_envelope(envelope), enqueued_ms, 0.0)
    delivery.envelope = envelope
    spec = HandlerSpec("greet", lambda: None, max_attempts=5, retry=policy)
    return RunningJob(delivery, envelope, spec, call, BEGUN_MS, asyncio.get_running_loop().time())


def outcome_of(envelope: Envelope, error: BaseException, **options):
    """Run such a job."""

    async def begin():
        return await run(running(envelope, error, **options))

    return asyncio.run(begin())


@given(
    error=errors,
    attempt=st.integers(1, 7),
    max_attempts=st.integers(0, 5),
    deadline=moments,
    ttl=moments,
    until=moments,
)
def test_no_attempt_is_made_after_the_last_one_or_after_the_deadline(
    error, attempt, max_attempts, deadline, ttl, until
):
    """Whatever was raised; and nothing that a handler raises is lost."""
    envelope = Envelope(
        "greet", attempt=attempt, max_attempts=max_attempts, deadline_ms=deadline, ttl_ms=ttl, retry_until_ms=until
    )
    outcome = outcome_of(envelope, error)
    limit = latest_start_ms(envelope, BEGUN_MS)
    match outcome:
        case Retrying(delay_ms=delay_ms):
            assert attempt < (max_attempts or 5)
            assert not limit or BEGUN_MS + delay_ms <= limit
            assert not until or BEGUN_MS + delay_ms <= until
            assert not isinstance(error, TypeError | Fail | Cancel)
        case Snoozed(delay_ms=delay_ms):
            assert isinstance(error, Snooze | RateLimited)
            assert not limit or BEGUN_MS + delay_ms <= limit
        case Expired():
            assert isinstance(error, Snooze | RateLimited)
            assert limit
        case Cancelled():
            assert isinstance(error, Cancel)
        case Dead(failure=failure):
            assert failure.type == type(error).__qualname__
        case _:
            pytest.fail(f"{error!r} came to {outcome!r}")


@given(
    outcome=st.sampled_from(
        [Completed({"a": 1}), Retrying(0, Failure("E", "m")), Retrying(9, Failure("E", "m")), Snoozed(0), Snoozed(9), Parked("h:x"), Limited(), Dead(Failure("E", "m")), Cancelled("why"), Expired()]
    ),
    starts=st.integers(0, 99),
    attempt=st.integers(1, 9),
    keep=st.sampled_from([0, 1000]),
    dedup=st.sampled_from([None, "k"]),
)  # fmt: skip
def test_each_outcome_is_told_once_and_leads_where_the_table_of_states_says(outcome, starts, attempt, keep, dedup):
    """Either the job ends and gives up all that it holds, or it goes back and its fence rises."""
    envelope = Envelope("greet", starts=starts, attempt=attempt, keep_result_ms=keep, dedup=dedup)
    delivery = Delivery(2, b"21-1", b"a", encode_envelope(envelope), BEGUN_MS, 0.0)
    delivery.envelope = envelope
    item = settle(delivery, outcome, BEGUN_MS, BEGUN_MS + 5)
    assert item is not None
    report = reported([item])
    assert bool(report.settled) is not bool(report.requeued)
    if report.settled:
        state = State(orjson.loads(report.settled[2])["s"])
        assert state.is_terminal
        assert state in SUCCESSORS[State.RUNNING]
        assert bool(report.dedups) is (dedup is not None)
        assert bool(report.results) is bool(keep)
        assert bool(report.letters) is (state is State.DEAD)
    else:
        again = decode_envelope(report.requeued[5])
        assert again.starts == starts + 1
        assert again.attempt == attempt + isinstance(outcome, Retrying)
        assert bool(report.requeued[6]) is isinstance(outcome, Retrying)


@pytest.mark.parametrize(
    ("limits", "enqueued_ms", "words"),
    [
        ({"deadline_ms": BEGUN_MS + 1_000}, BEGUN_MS, "no [not tried again: that would be after its deadline]"),
        ({"ttl_ms": 1_000}, BEGUN_MS, "no [not tried again: that would be after its deadline]"),
        ({"retry_until_ms": BEGUN_MS + 1_000}, BEGUN_MS, "no [not tried again: that would be after retry_until]"),
        ({}, BEGUN_MS - 3_600_000, "no [not tried again: that would be after the time for which its handler retries]"),
    ],
)
def test_a_job_that_would_be_tried_again_too_late_ends_with_what_went_wrong(limits, enqueued_ms, words):
    """Not later, as expired, with nothing to look at."""
    policy = RetryPolicy(custom=lambda *_: MINUTE, until=timedelta(hours=1))
    outcome = outcome_of(Envelope("greet", **limits), ValueError("no"), policy=policy, enqueued_ms=enqueued_ms)
    assert isinstance(outcome, Dead)
    assert outcome.failure.message == words


@pytest.mark.parametrize("given_", [MINUTE, 60, "60", " 60 "], ids=repr)
def test_a_rate_limited_job_waits_as_long_as_it_was_told_and_a_little_longer(given_):
    """Never shorter; and those that were refused together do not come together."""
    waits = {outcome_of(Envelope("greet", attempt=5), RateLimited(given_)).delay_ms for _ in range(50)}
    assert len(waits) > 5
    assert min(waits) >= 60_000
    assert max(waits) <= 66_000


@pytest.mark.parametrize(("seconds", "ms"), [(0.0015, 2), (1.1, 1_100), (60, 60_000)])
def test_seconds_that_are_no_whole_milliseconds_are_rounded_up(seconds, ms):
    """The start is no earlier than the other side asked for; and a float's last digits make it no later."""
    assert RateLimited(seconds).delay_ms == ms


def test_a_date_is_a_retry_after_too():
    """RFC 9110 has both."""
    at = datetime.now(UTC) + timedelta(hours=1)
    outcome = outcome_of(Envelope("greet"), RateLimited(format_datetime(at, usegmt=True)))
    assert 3_590_000 < outcome.delay_ms <= 3_600_000 + 10_000


@pytest.mark.parametrize("given_", [None, "soon", "", "-5", "Wed, 99 Oct 2015 07:28:00 GMT", "9" * 40], ids=repr)
def test_without_a_time_that_can_be_read_a_job_waits_as_long_as_its_back_off_at_most_would(given_):
    """What another server got wrong is no fault of the job's."""
    policy = RetryPolicy(base=timedelta(seconds=8))
    assert 16_000 <= outcome_of(Envelope("greet", attempt=2), RateLimited(given_), policy=policy).delay_ms <= 17_600


@pytest.mark.parametrize("given_", [True, -1, float("nan"), float("inf"), [], b"60"], ids=repr)
def test_what_is_no_time_at_all_is_a_mistake_in_the_handler(given_):
    """And says what it wanted."""
    with pytest.raises(TypeError, match="RateLimited takes a timedelta, seconds, or the text of a Retry-After header"):
        RateLimited(given_)


def test_a_date_that_has_passed_is_now():
    """Not an hour ago."""
    assert RateLimited("Wed, 21 Oct 2015 07:28:00 GMT").delay_ms == 0
    assert RateLimited("Wed, 21 Oct 2015 07:28:00 -0000").delay_ms == 0


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["no worker", "a worker", "two workers"])
def test_a_record_counts_as_many_crashes_as_the_error_of_the_job_says(workers):
    """Whether its workers died or processes under them: what a new life of the job begins with, no crash is left out."""
    envelope, told = Envelope("greet"), []

    async def end() -> Dead:
        nonlocal envelope
        for crashes in (workers, 0, 0):
            job = running(envelope, ProcessDied("exit 3"))
            job.delivery.crashes = crashes
            outcome = await run(job)
            settled = settle(job.delivery, outcome, BEGUN_MS, BEGUN_MS + 5)
            told.append(orjson.loads(settled.record)["c"])
            if isinstance(outcome, Dead):
                return outcome
            envelope = decode_envelope(settled.requeue[3])
        pytest.fail("it would crash for ever")

    dead = asyncio.run(end())
    assert told == list(range(workers + 1, CRASH_LIMIT + 1))
    assert dead.failure.message == f"{CRASH_LIMIT} processes died while they ran this job; exit 3"


def test_a_crash_that_is_not_tried_again_is_counted_all_the_same():
    policy = RetryPolicy(on={ProcessDied: Never})

    async def end():
        job = running(Envelope("greet"), ProcessDied("exit 3"), policy=policy)
        return settle(job.delivery, await run(job), BEGUN_MS, BEGUN_MS + 5)

    record = orjson.loads(asyncio.run(end()).record)
    assert (record["s"], record["c"], record["x"]["m"]) == ("dead", 1, "exit 3")
