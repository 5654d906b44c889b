"""When a schedule fires: a crontab expression or an interval, between a start and an end.

Every fire time follows from what is written alone, so any number of processes agree on all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from apscheduler.triggers.interval import IntervalTrigger
from cron_descriptor import Options, get_description

from streamq.errors import ConfigurationError
from streamq.schedules.expression import CronExpression

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Interval", "Timing", "next_times"]

_EVERY = re.compile(r"every\s+(\d{1,9})\s*(s|m|h|d|w|sec\w*|min\w*|hours?|days?|weeks?)", re.IGNORECASE)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SHORTEST = timedelta(seconds=10)
_LONGEST = timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = timedelta(microseconds=1)
_MOST_FIRES = 100_000


@dataclass(frozen=True)
class Interval:
    """Fire times that are equally far apart, counted from an anchor."""

    period: timedelta
    anchor: datetime = _EPOCH

    def trigger(self, zone: ZoneInfo) -> Any:
        """Make APScheduler's trigger, which wakes at these times."""
        maker: Any = IntervalTrigger  # APScheduler 3 has no types
        return maker(seconds=int(self.period.total_seconds()), start_date=self.anchor, timezone=zone)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the fire times later than an aware moment, in UTC, rising, without end."""
        fire = self.anchor + ((moment - self.anchor) // self.period + 1) * self.period
        while True:
            yield fire
            fire += self.period

    def latest(self, until: datetime, count: int, *, since: datetime) -> list[datetime]:
        """Return the last `count` fire times later than `since` and not later than `until`, oldest first."""
        newest = self.anchor + ((until - self.anchor) // self.period) * self.period
        fires = [newest - number * self.period for number in range(count)]
        return [fire for fire in reversed(fires) if fire > since]


@dataclass(frozen=True)
class Timing:
    """When a schedule fires, checked. Make it with `Timing.of`."""

    text: str
    timezone: str
    rule: CronExpression | Interval
    start: datetime | None = None
    end: datetime | None = None
    """No fire time is later."""

    @classmethod
    def of(
        cls,
        text: str,
        timezone: str = "UTC",
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int | None = None,
    ) -> Timing:
        """Read and check.

        Args:
            text: A crontab expression, or `every 15m` with s, m, h, d or w.
            timezone: In which a crontab expression is read.
            start: No fire time is earlier; an interval is counted from it.
            end: No fire time is later.
            limit: After so many fire times from the start it is over.

        Raises:
            ConfigurationError: It cannot fire, or not in one way only; the message says why, and what to write instead.
        """
        for name, moment in (("start", start), ("end", end)):
            if moment is not None and moment.tzinfo is None:
                raise ConfigurationError(
                    f"{name} {moment.isoformat()} has no time zone", hint="write it as in UTC: ...Z"
                )
        rule = _rule(text, timezone, start)
        if limit is not None:
            end = _end_by_limit(rule, start, end, limit)
        timing = cls(" ".join(text.split()), timezone, rule, start, end)
        if end is not None and next(timing.after(start - _MOMENT if start else end - _LONGEST * 10), None) is None:
            raise ConfigurationError(f"{text!r} has no fire time before its end, {end:%Y-%m-%d %H:%M} UTC")
        return timing

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which the fields of a crontab expression are read."""
        return ZoneInfo(self.timezone)

    @property
    def signature(self) -> str:
        """What it says, in one line: with another signature it is another schedule."""
        bounds = "".join(
            f"|{moment.astimezone(UTC).isoformat()}" if moment else "|" for moment in (self.start, self.end)
        )
        return f"{self.text}|{self.timezone}" + (bounds if self.start or self.end else "")

    @property
    def words(self) -> str:
        """The rule in English, as in `Every 15 minutes`."""
        if isinstance(self.rule, Interval):
            return _interval_words(self.rule.period)
        # Said at once: left alone it looks for the locale of the machine, and warns where there is none.
        return str(get_description(self.text, Options(use_24hour_time_format=True, locale_code="en_US")))

    def trigger(self) -> Any:
        """Make APScheduler's trigger, which wakes at about these times; what fires is decided by `after`."""
        return self.rule.trigger(self.zone)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the fire times later than an aware moment, in UTC, rising, up to the end."""
        begin = moment if self.start is None else max(moment, self.start - _MOMENT)
        for fire in self.rule.after(begin):
            if self.end is not None and fire > self.end:
                return
            yield fire

    def latest(self, until: datetime, count: int, *, since: datetime) -> list[datetime]:
        """Return the last `count` fire times later than `since` and not later than `until`, oldest first."""
        last = until if self.end is None else min(until, self.end)
        first = since if self.start is None else max(since, self.start - _MOMENT)
        return self.rule.latest(last, count, since=first) if first < last else []

    def period(self, fire: datetime) -> timedelta:
        """Return the time from a fire time to the next one, as if there was no end."""
        return next(self.rule.after(fire)) - fire


def next_times(expression: str, timezone: str = "UTC", n: int = 5, after: datetime | None = None) -> list[datetime]:
    """Return the next `n` fire times after an aware moment (now), in UTC.

    Raises:
        ConfigurationError: The expression or the zone cannot be used.
    """
    moment = after if after is not None else datetime.now(UTC)
    return list(islice(Timing.of(expression, timezone).after(moment), n))


def _rule(text: str, timezone: str, start: datetime | None) -> CronExpression | Interval:
    if not text.strip().lower().startswith("every"):
        return CronExpression(text, timezone)
    found = _EVERY.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(
            f"{text!r} is not an interval", hint="write a number and a unit: every 15m, every 2 hours"
        )
    period = timedelta(**{_UNITS[found[2][0].lower()]: int(found[1])})
    if not _SHORTEST <= period <= _LONGEST:
        raise ConfigurationError(f"{text!r}: an interval is 10 seconds to 366 days")
    if timezone != "UTC":
        raise ConfigurationError(f"{text!r} is an interval, and a time zone ({timezone!r}) has no say in it")
    anchor = _EPOCH if start is None else start.astimezone(UTC).replace(microsecond=0)
    return Interval(period, anchor)


def _end_by_limit(
    rule: CronExpression | Interval, start: datetime | None, end: datetime | None, limit: int
) -> datetime:
    if start is None:
        raise ConfigurationError("a limit counts from a start, and there is none", hint="give it a start")
    if not 1 <= limit <= _MOST_FIRES:
        raise ConfigurationError(f"limit is a number from 1 to {_MOST_FIRES:,}, and {limit} came")
    last = next(islice(rule.after(start - _MOMENT), limit - 1, None))
    return last if end is None else min(last, end)


def _interval_words(period: timedelta) -> str:
    for unit in ("weeks", "days", "hours", "minutes", "seconds"):
        one = timedelta(**{unit: 1})
        if period % one == timedelta(0):
            count = period // one
            return f"Every {count} {unit}" if count > 1 else f"Every {unit[:-1]}"
    raise AssertionError(period)  # intervals are whole seconds
