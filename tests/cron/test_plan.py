"""What is done about what was missed: each policy gives exactly what it says."""

from __future__ import annotations

from datetime import timedelta

import pytest

from streamq.broker.fanout import FanOutState
from streamq.schedules.occurrence import checked
from streamq.schedules.plan import looked_at, plan
from tests.cron.conftest import NOON, Listing, entry_of, ms

DONE = FanOutState(end="done", pages=1)


def hours(occurrences):
    """Return the hours of occurrences."""
    return [occurrence.stamp[9:11] for occurrence in occurrences]


def planned(misfire="once", *, minutes=0.0, mark=9, begun=(), done=(), **options):
    """Plan at noon and some minutes; everything up to the hour `mark` is decided."""
    schedule = checked(entry_of(Listing([]), misfire=misfire, **options))
    now_ms = ms(NOON + timedelta(minutes=minutes))
    states = {}
    for occurrence in looked_at(schedule, now_ms):
        hour = int(occurrence.stamp[9:11]) if occurrence.fire_ms > ms(NOON - timedelta(hours=12)) else -1
        begun_state = FanOutState(begun_ms=occurrence.fire_ms)
        states[occurrence] = DONE if hour in done else begun_state if hour in begun else None
    result = plan(schedule, now_ms, ms(NOON.replace(hour=mark)), states)
    return hours(result.work), hours(result.missed), hours(result.given_up)


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_on_time_it_fires_whatever_the_policy(misfire):
    """A minute late is on time."""
    assert planned(misfire, mark=11, minutes=1) == (["12"], [], [])


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_nothing_is_done_where_all_is_decided_or_finished(misfire):
    """A check between two fire times."""
    assert planned(misfire, mark=12, minutes=30) == ([], [], [])
    assert planned(misfire, mark=11, minutes=30, done=[12]) == ([], [], [])


@pytest.mark.parametrize(
    ("misfire", "minutes", "work", "missed"),
    [
        ("skip", 2, ["12"], ["10", "11"]),
        ("skip", 30, [], ["10", "11", "12"]),
        ("once", 2, ["12"], ["10", "11"]),
        ("once", 30, ["12"], ["10", "11"]),
        ("all", 30, ["10", "11", "12"], []),
    ],
)
def test_three_hours_of_silence(misfire, minutes, work, missed):
    """All processes were down from half past nine."""
    assert planned(misfire, minutes=minutes) == (work, missed, [])


def test_all_has_a_limit():
    """A week of silence must not become a week of work."""
    assert planned("all", misfire_limit=2) == (["11", "12"], ["10"], [])


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_what_was_begun_is_gone_on_with_until_its_deadline(misfire):
    """The policy is about what was not begun."""
    assert planned(misfire, mark=11, minutes=50, begun=[12]) == (["12"], [], [])
    assert planned(misfire, mark=12, minutes=50, begun=[12]) == (["12"], [], [])


@pytest.mark.parametrize(("misfire", "work"), [("skip", []), ("once", ["12"]), ("all", ["10", "12"])])
def test_what_was_begun_and_is_past_its_deadline_is_left_to_the_policy(misfire, work):
    """Its jobs would end unrun, and its users have a newer hour."""
    given_up = ["10"] if misfire != "all" else []
    missed = ["12"] if misfire == "skip" else []
    assert planned(misfire, mark=9, minutes=30, begun=[10], done=[11]) == (work, missed, given_up)
