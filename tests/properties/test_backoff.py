"""When a failed job runs again: the bounds of the back-off, whatever the policy."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from streamq.clock import to_ms
from streamq.errors import ConfigurationError
from streamq.retry import Never, RetryPolicy

durations = st.timedeltas(timedelta(0), timedelta(days=365))
attempts = st.integers(1, 10_000)
ERROR = ValueError("no")


@given(base=durations, cap=durations, attempt=attempts)
def test_a_wait_lies_between_nothing_and_the_doubled_base_and_never_above_the_cap(base, cap, attempt):
    """Full jitter: the whole range, so that those that failed together do not come together."""
    policy = RetryPolicy(base=base, cap=cap)
    wait = policy.delay_ms(attempt, ERROR)
    assert wait is not None
    assert 0 <= wait <= policy.ceiling_ms(attempt) <= to_ms(cap)
    assert policy.ceiling_ms(attempt) <= to_ms(base) << min(attempt - 1, 64)


@given(base=durations, cap=durations, attempt=attempts)
def test_no_attempt_may_wait_shorter_than_the_one_before(base, cap, attempt):
    """At most, that is: the ceiling rises to the cap and stays there."""
    policy = RetryPolicy(base=base, cap=cap)
    assert policy.ceiling_ms(attempt) <= policy.ceiling_ms(attempt + 1)


def test_the_whole_range_is_drawn_from():
    """Of a thousand waits, some are in each tenth of it."""
    policy = RetryPolicy(base=timedelta(seconds=10))
    tenths = {(policy.delay_ms(1, ERROR) or 0) // 1001 for _ in range(1000)}
    assert tenths == set(range(10))


@given(given_delay=st.timedeltas(), attempt=attempts)
def test_a_function_of_ones_own_decides_and_cannot_go_back_in_time(given_delay, attempt):
    """It gets the attempt that failed and the exception."""
    seen = []

    def custom(number: int, error: BaseException) -> timedelta:
        seen.append((number, error))
        return given_delay

    wait = RetryPolicy(custom=custom).delay_ms(attempt, ERROR)
    assert wait == max(0, to_ms(given_delay))
    assert seen == [(attempt, ERROR)]


def test_a_function_of_ones_own_may_say_that_it_is_enough():
    """Without an exception class for it."""
    policy = RetryPolicy(custom=lambda attempt, _: None if attempt > 2 else timedelta(seconds=1))
    assert [policy.delay_ms(attempt, ERROR) for attempt in (1, 2, 3)] == [1000, 1000, None]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("k"), 5000),
        (LookupError("l"), None),
        (IndexError("i"), None),
        (TimeoutError("t"), 0),
        (UnicodeError("u"), 7000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_most_particular_rule_for_an_exception_counts(error, expected):
    """A fixed delay, an end, or a policy of its own."""
    policy = RetryPolicy(
        on={
            KeyError: timedelta(seconds=5),
            LookupError: Never,
            OSError: RetryPolicy(base=timedelta(0)),
            ValueError: RetryPolicy(custom=lambda *_: timedelta(seconds=7)),
        }
    )
    assert policy.delay_ms(1, error) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": timedelta(-1)}, "cannot be negative"),
        ({"cap": timedelta(-1)}, "cannot be negative"),
        ({"until": timedelta(0)}, "until is how long after its enqueue a job is retried, and 0:00:00 came"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options, words):
    """When it is written down, not when a job fails."""
    with pytest.raises(ConfigurationError, match=words):
        RetryPolicy(**options)
