"""Intervals, a start, an end, a limit and jitter: each a function of what is written, the same for every process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given, strategies as st

from streamq.errors import ConfigurationError
from streamq.schedules.occurrence import Occurrence, checked
from streamq.schedules.timing import Interval, Timing, next_times
from tests.cron.conftest import NOON, Listing, entry_of, ms

LONG_AGO = NOON - timedelta(days=4000)


def test_words_are_english_wherever_the_machine_is(monkeypatch):
    """Also where no locale is set, as in a container."""
    monkeypatch.setattr("locale.getlocale", lambda *_: (None, None))
    assert Timing.of("30 2 * * mon").words == "At 02:30, only on Monday"
    monkeypatch.setattr("locale.getlocale", lambda *_: ("de_DE", "UTF-8"))
    assert Timing.of("30 2 * * mon").words == "At 02:30, only on Monday"


@pytest.mark.parametrize(
    ("text", "words", "first", "second"),
    [
        ("every 15m", "Every 15 minutes", "12:15:00", "12:30:00"),
        ("Every 2 hours", "Every 2 hours", "14:00:00", "16:00:00"),
        ("every 90 s", "Every 90 seconds", "12:01:30", "12:03:00"),
        ("every 1 day", "Every day", "00:00:00", "00:00:00"),
        ("0 * * * *", "Every hour", "13:00:00", "14:00:00"),
        ("30 2 * * mon", "At 02:30, only on Monday", "02:30:00", "02:30:00"),
    ],
)
def test_a_rule_says_in_words_when_it_fires(text, words, first, second):
    timing = Timing.of(text)
    assert timing.words == words
    assert [f"{fire:%H:%M:%S}" for fire in islice(timing.after(NOON), 2)] == [first, second]
    assert list(islice(timing.after(NOON), 2)) == next_times(text, n=2, after=NOON)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("every", {}, "'every' is not an interval"),
        ("every 5 parsecs", {}, "is not an interval"),
        ("every 5s", {}, "an interval is 10 seconds to 366 days"),
        ("every 99999999w", {}, "an interval is 10 seconds to 366 days"),
        ("every 15m", {"timezone": "Europe/Berlin"}, "a time zone .'Europe/Berlin'. has no say"),
        ("0 * * * *", {"limit": 3}, "a limit counts from a start"),
        ("0 * * * *", {"limit": 0, "start": NOON}, "limit is a number from 1 to 100,000, and 0 came"),
        ("0 * * * *", {"start": datetime(2026, 1, 1)}, "start 2026-01-01T00:00:00 has no time zone"),  # noqa: DTZ001
        ("0 * * * *", {"start": NOON, "end": NOON - timedelta(hours=1)}, "has no fire time before its end"),
    ],
)
def test_what_cannot_fire_is_refused_with_the_reason(text, options, message):
    with pytest.raises(ConfigurationError, match=message):
        Timing.of(text, **options)


def test_nothing_fires_before_the_start_or_after_the_end():
    timing = Timing.of("0 * * * *", start=NOON, end=NOON + timedelta(hours=2))
    hours = [NOON, NOON + timedelta(hours=1), NOON + timedelta(hours=2)]
    assert list(timing.after(LONG_AGO)) == hours
    assert timing.latest(NOON + timedelta(days=9), 9, since=LONG_AGO) == hours
    assert timing.latest(NOON - timedelta(seconds=1), 9, since=LONG_AGO) == []


def test_a_limit_counts_fire_times_from_the_start():
    """Whoever looks, and whenever: nothing is counted anywhere."""
    timing = Timing.of("every 15m", start=NOON + timedelta(minutes=1), limit=3)
    assert [f"{fire:%H:%M}" for fire in timing.after(LONG_AGO)] == ["12:01", "12:16", "12:31"]
    assert timing.end == NOON + timedelta(minutes=31)


@given(
    st.integers(10, 100_000).map(lambda seconds: timedelta(seconds=seconds)),
    st.datetimes(datetime(2024, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_looking_back_and_looking_forward_see_the_same_intervals(period, moment):
    interval = Interval(period, NOON)
    back = interval.latest(moment, 3, since=LONG_AGO)
    assert list(islice(interval.after(back[0]), 2)) == back[1:]
    assert back[-1] <= moment < next(interval.after(moment))


class TestJitter:
    """Each occurrence is begun late, by how much stands in its name."""

    schedule = checked(entry_of(Listing([]), jitter=timedelta(minutes=20)))

    def test_every_process_agrees_on_the_delay_and_it_differs_by_occurrence(self):
        due = [self.schedule.due_ms(Occurrence("hourly", ms(NOON + timedelta(hours=n)))) for n in range(24)]
        late = [moment - ms(NOON + timedelta(hours=n)) for n, moment in enumerate(due)]
        again = checked(entry_of(Listing([]), jitter=timedelta(minutes=20)))
        assert due == [again.due_ms(Occurrence("hourly", ms(NOON + timedelta(hours=n)))) for n in range(24)]
        assert all(0 <= each < 1_200_000 for each in late)
        assert max(late) - min(late) > 600_000

    def test_an_occurrence_is_not_seen_before_it_is_due(self):
        noon = Occurrence("hourly", ms(NOON))
        due_ms = self.schedule.due_ms(noon)
        assert self.schedule.latest(due_ms - 1)[-1].fire_ms == ms(NOON - timedelta(hours=1))
        assert self.schedule.next(due_ms - 1) == noon
        assert self.schedule.latest(due_ms)[-1] == noon
        assert self.schedule.next(due_ms).fire_ms == ms(NOON + timedelta(hours=1))

    def test_a_delay_beyond_the_next_fire_time_is_refused(self):
        with pytest.raises(ConfigurationError, match="schedule 'hourly': with a jitter of 1:00:00 it could fire after"):
            checked(entry_of(Listing([]), jitter=timedelta(hours=1)))


async def test_a_schedule_that_is_over_rests(office, clock):
    """It fires as often as it may, and no process spins on it."""
    clock.move(minutes=-30)
    schedule = office.schedule(Listing(["a"]), start=NOON, limit=2, dedup=(), misfire="all")
    minder = office.minder(schedule)
    for _ in range(6):
        await minder.check()
        clock.move(hours=1)
    assert {name.split(":")[1] for name in await office.jobs()} == {"20261123T1200Z", "20261123T1300Z"}
    assert schedule.next(clock()) is None


async def test_an_interval_shorter_than_a_minute_has_seconds_in_its_ids(office, clock):
    clock.move(seconds=-5)
    minder = office.minder(office.schedule(Listing(["a"]), "every 30s", dedup=(), misfire="all"))
    for _ in range(4):
        await minder.check()
        clock.move(seconds=30)
    stamps = {name.split(":")[1] for name in await office.jobs()}
    assert stamps == {"20261123T1200Z", "20261123T120030Z", "20261123T1201Z"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": "both"}, "overlap is queue, skip or cancel, not 'both'"),
        ({"alarm_share": 0.0}, "alarm_share is a share of the period, over 0 to 1, and 0.0 came"),
        ({"stale_after": 0}, "stale_after counts periods from 1, and 0 came"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=f"schedule 'hourly': {message}"):
        checked(entry_of(Listing([]), **options))
