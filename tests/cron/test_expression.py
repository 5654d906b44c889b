"""What a crontab expression means, and which are refused because two readers would differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from cronsim import CronSim
from hypothesis import given, settings, strategies as st

from streamq.errors import ConfigurationError
from streamq.schedules.expression import CronExpression
from streamq.schedules.timing import next_times

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("0 * * * *", "2026-11-23 01:00"),
        ("*/15 * * * *", "2026-11-23 00:15"),
        ("0 9 * * mon-fri", "2026-11-23 09:00"),
        ("0 0 * * SUN", "2026-11-29 00:00"),
        ("0 0 1,15 * *", "2026-12-01 00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
        ("30 4 * jan-mar *", "2027-01-01 04:30"),
        ("  5   4 * *   * ", "2026-11-23 04:05"),
    ],
)
def test_an_expression_fires_when_crontab_says(text, first):
    """Times are UTC unless a zone is given, and later than the moment asked about."""
    (fire,) = next_times(text, n=1, after=MONDAY)
    assert f"{fire:%Y-%m-%d %H:%M}" == first
    assert fire.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("0 0 * * 0", "gives weekdays by number", "'0 0 * * sun'"),
        ("0 0 * * 7", "gives weekdays by number", "'0 0 * * sun'"),
        ("0 0 * * 1-5", "gives weekdays by number", "'0 0 * * mon,tue,wed,thu,fri'"),
        ("0 0 * * */2", "gives weekdays by number", "sun mon tue"),
        ("0 0 * * fri#2", "gives weekdays by number", "sun mon tue"),
        ("0 0 1,15 * 5", "restricts the day of the month and the weekday", "two schedules"),
        ("0 0 */2 * fri", "restricts the day of the month and the weekday", "two schedules"),
        ("0 0 * * sun-tue", "cannot be scheduled", "list them"),
        ("0 0 * * fri-mon", "is not a crontab expression: Bad day-of-week", "list them"),
        ("0 0 30 2 *", "never fires", ""),
        ("0 0 31 4,6 *", "never fires", ""),
        ("0 0 32 * *", "never fires", ""),
        ("60 * * * *", "is not a crontab expression: Bad minute", "a field is"),
        ("0 0 L * *", "cannot be scheduled", "a field is"),
        ("*/90 * * * *", "cannot be scheduled", "smaller than the range"),
        ("*/0 * * * *", "is not a crontab expression", "smaller than the range"),
        ("0-0/5 * * * *", "to crontab and another time to APScheduler", "one by one"),
        ("* 1,0-0/1 * * *", "to crontab and another time to APScheduler", "one by one"),
        ("@hourly", "is a name of some crons", "'0 * * * *'"),
        ("* * * * * *", "has 6 fields", "every full hour"),
        ("", "has 0 fields", "every full hour"),
    ],
)
def test_what_would_be_read_differently_is_refused_with_what_to_write(text, message, hint):
    """A schedule that fires on the wrong day is worse than none."""
    with pytest.raises(ConfigurationError) as refused:
        CronExpression(text)
    assert message in str(refused.value)
    assert repr(text.strip()) in str(refused.value)
    assert hint in refused.value.hint


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "UTC+1"])
def test_an_unknown_zone_is_refused(zone):
    """It must not turn into the zone of the machine."""
    with pytest.raises(ConfigurationError, match="is not a time zone"):
        CronExpression("0 * * * *", zone)


def fires_on(text: str, zone: str, day: datetime) -> list[datetime]:
    """Return the fire times on a local day, in local time."""
    start = day.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    fires = islice(CronExpression(text, zone).after(start - timedelta(seconds=1)), 40)
    local = [fire.astimezone(ZoneInfo(zone)) for fire in fires]
    return [fire for fire in local if fire.date() == day.date()]


class Zone(NamedTuple):
    """A zone, the days on which its clocks change, a time that is skipped and one that comes twice."""

    name: str
    spring: datetime
    autumn: datetime
    skipped: str
    repeated: str

    @property
    def info(self) -> ZoneInfo:
        """The zone itself."""
        return ZoneInfo(self.name)


@pytest.fixture(
    params=[
        Zone("Europe/Berlin", datetime(2026, 3, 29), datetime(2026, 10, 25), "30 2 * * *", "30 2 * * *"),  # noqa: DTZ001
        Zone("America/New_York", datetime(2026, 3, 8), datetime(2026, 11, 1), "30 2 * * *", "30 1 * * *"),  # noqa: DTZ001
        # Here the clocks change by half an hour.
        Zone("Australia/Lord_Howe", datetime(2026, 10, 4), datetime(2026, 4, 5), "15 2 * * *", "45 1 * * *"),  # noqa: DTZ001
    ],
    ids=lambda zone: zone.name,
)
def zone(request) -> Zone:
    """Three zones, two of them of opposite halves of the world."""
    return request.param


class TestClockChanges:
    """Twice a year a local time is skipped or comes twice."""

    def test_an_hourly_schedule_goes_right_through(self, zone):
        """Every real hour once. Where the clocks change by half an hour, the full hour is half an hour off."""
        for day in (zone.spring, zone.autumn):
            start = day.replace(tzinfo=zone.info).astimezone(UTC)
            fires = list(islice(CronExpression("0 * * * *", zone.name).after(start), 26))
            gaps = {later - earlier for earlier, later in pairwise(fires)} - {timedelta(hours=1)}
            assert not gaps or (zone.name == "Australia/Lord_Howe" and len(gaps) == 1)

    def test_a_time_that_is_skipped_fires_once_after_the_gap(self, zone):
        """The day has its run all the same."""
        (fire,) = fires_on(zone.skipped, zone.name, zone.spring)
        before = (fire.astimezone(UTC) - timedelta(minutes=1)).astimezone(zone.info)
        assert (before.utcoffset() or timedelta()) < (fire.utcoffset() or timedelta())

    def test_a_time_that_comes_twice_fires_the_first_time(self, zone):
        """The day has one run, not two."""
        (fire,) = fires_on(zone.repeated, zone.name, zone.autumn)
        assert fire.fold == 0

    def test_asking_between_the_two_does_not_bring_the_first_again(self, zone):
        """A process that starts in the repeated hour must not fire what has fired."""
        expression = CronExpression(zone.repeated, zone.name)
        first = next(expression.after(zone.autumn.replace(tzinfo=zone.info).astimezone(UTC)))
        for minutes in range(0, 120, 5):
            moment = first + timedelta(minutes=minutes)
            assert next(expression.after(moment)) > moment


def test_the_latest_fire_times_are_found_however_far_apart():
    """A minutely schedule must not be counted through a century, a yearly one must not be missed."""
    now = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
    since = datetime(1926, 1, 1, tzinfo=UTC)
    assert CronExpression("* * * * *").latest(now, 2, since=since) == [now - timedelta(minutes=1), now]
    assert CronExpression("0 0 29 2 *").latest(now, 2, since=since)[0] == datetime(2020, 2, 29, tzinfo=UTC)
    assert CronExpression("0 * * * *").latest(now, 9, since=now - timedelta(hours=2)) == [
        datetime(2026, 11, 23, hour, tzinfo=UTC) for hour in (11, 12)
    ]


numbers = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12)}
days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


@st.composite
def field_of(draw: st.DrawFn, name: str) -> str:
    """Draw a field: a star, numbers, ranges and steps, and lists of them."""
    low, high = numbers[name]
    value = st.integers(low, high)
    one = st.one_of(
        st.just("*"),
        value.map(str),
        st.tuples(value, value).map(lambda pair: f"{min(pair)}-{max(pair)}"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
        st.tuples(value, value, st.integers(1, 9)).map(lambda t: f"{min(t[:2])}-{max(t[:2])}/{t[2]}"),
    )
    return ",".join(draw(st.lists(one, min_size=1, max_size=2)))


weekdays = st.one_of(st.just("*"), st.lists(st.sampled_from(days), min_size=1, max_size=3, unique=True).map(",".join))
expressions = st.builds(
    lambda *fields: " ".join(fields), field_of("minute"), field_of("hour"), field_of("day"), field_of("month"), weekdays
)


@settings(max_examples=150)
@given(expressions, st.datetimes(datetime(2024, 1, 1), datetime(2040, 1, 1)))  # noqa: DTZ001
def test_what_is_accepted_fires_at_the_same_times_for_crontab_for_us_and_for_apscheduler(text, moment):
    """Also at other times than those that were compared when it was accepted."""
    try:
        expression = CronExpression(text)
    except ConfigurationError as refused:
        assert text in str(refused)  # noqa: PT017 - most expressions are accepted
        return
    after = moment.replace(second=0, microsecond=0, tzinfo=UTC)
    ours = list(islice(expression.after(after), 8))
    assert ours == list(islice(CronSim(text, after), 8))
    trigger, previous, now = CronTrigger.from_crontab(text, UTC), None, after + timedelta(seconds=1)
    for fire in ours:
        previous = trigger.get_next_fire_time(previous, now)
        assert previous == fire
        now = fire + timedelta(seconds=1)
