"""How long a parent waits before the next start, with time wound by hand."""

from __future__ import annotations

from hypothesis import given, strategies as st

from streamq.parent import Pace
from streamq.parent.slot import Backoff

PATIENT = Pace(deaths=100)


def test_the_wait_doubles_from_half_a_second_to_thirty():
    """A child that cannot start must not eat the machine."""
    backoff = Backoff(PATIENT)
    waits = [backoff.after(float(n), 0.1, is_fit=False) for n in range(8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_life_clears_what_came_before():
    """Its troubles are over."""
    backoff = Backoff(PATIENT)
    assert [backoff.after(float(n), 0.1, is_fit=False) for n in range(3)] == [0.5, 1, 2]
    assert backoff.after(100.0, 60.0, is_fit=False) == 0.5


def test_the_fifth_death_within_a_minute_is_the_last():
    """The next start would end like the others."""
    backoff = Backoff(Pace())
    assert [backoff.after(n * 10.0, 0.1, is_fit=False) for n in range(5)][3:] == [4, None]


def test_five_deaths_over_more_than_a_minute_are_borne():
    """A machine may have a bad hour."""
    backoff = Backoff(Pace())
    assert None not in [backoff.after(n * 20.0, 0.1, is_fit=False) for n in range(50)]


def test_a_child_that_was_ready_is_started_again_at_once_the_first_time():
    """Its work waits."""
    backoff = Backoff(Pace())
    assert [backoff.after(float(n), 1.0, is_fit=True) for n in range(4)] == [0, 1, 2, 4]
    assert backoff.after(20.0, 10.0, is_fit=True) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=2000))
def test_the_wait_is_never_above_thirty_seconds_however_long_it_goes_on(lives):
    """Nor does the doubling overflow."""
    backoff, now_s = Backoff(PATIENT), 0.0
    for lived_s, was_ready in lives:
        now_s += lived_s + 1
        assert 0 <= (backoff.after(now_s, lived_s, is_fit=was_ready) or 0) <= 30


def test_a_child_that_was_ready_is_never_given_up():
    """A poison job is limited at the job."""
    backoff = Backoff(Pace())
    assert None not in [backoff.after(n * 0.01, 0.01, is_fit=True) for n in range(1000)]
