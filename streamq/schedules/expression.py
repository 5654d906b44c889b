"""Crontab expressions: which are accepted, and at which moments they fire.

One rule for what an expression means, cronsim's, which is Debian's cron. APScheduler wakes us and reads some crontab
expressions differently; those are refused here, so that no schedule fires on a day that its author did not mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger
from cronsim import CronSim, CronSimError

from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CronExpression"]

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * sun",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_STEP_OF_STAR = re.compile(r"\*/\d+")
_NUMBER = re.compile(r"\d+")
_COMPARED = 60
"""How many fire times of an expression are compared between the two libraries."""
_COMPARED_FROM = datetime(2026, 1, 1, tzinfo=UTC)
_FIRST_WINDOW = timedelta(hours=48)


@dataclass(frozen=True)
class CronExpression:
    """A crontab expression in a time zone, checked when it is made.

    Raises:
        ConfigurationError: It is not five fields, can never fire, would be read in two ways, or the zone is not known.
            The message says what to write instead.
    """

    text: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        _ = self.zone
        _check_fields(self.text)
        _check_meaning(self.text)

    @cached_property
    def zone(self) -> ZoneInfo:
        """The time zone in which the fields are read."""
        try:
            return ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigurationError(
                f"{self.timezone!r} is not a time zone", hint="use a name such as UTC or Europe/Berlin"
            ) from None

    def trigger(self, zone: ZoneInfo) -> Any:
        """Make APScheduler's trigger, which wakes at about these times; what fires is decided by `after`."""
        return _trigger(self.text, zone)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the fire times later than an aware moment, in UTC, rising, without end.

        A fixed time that the clocks skip in spring fires once, right after the gap; one that comes twice in autumn
        fires the first time only. Expressions whose minute or hour begins with a star follow the real hours.
        """
        last = moment
        for local in CronSim(self.text, moment.astimezone(self.zone)):
            fire = local.astimezone(UTC)
            if fire > last:  # in the repeated hour of autumn, and after a gap, a time may come again
                last = fire
                yield fire

    def latest(self, until: datetime, count: int, *, since: datetime) -> list[datetime]:
        """Return the last `count` fire times later than `since` and not later than `until`, oldest first."""
        window = _FIRST_WINDOW
        while True:
            start = max(since, until - window)
            found = self._between(start, until)
            if len(found) >= count or start == since:
                return found[-count:]
            window *= 4

    def _between(self, start: datetime, until: datetime) -> list[datetime]:
        found: list[datetime] = []
        for fire in self.after(start):
            if fire > until:
                break
            found.append(fire)
        return found


def _check_fields(text: str) -> None:
    """Refuse by its looks what is not five fields, or what the two libraries would read differently."""
    if alias := _ALIASES.get(text.strip().lower()):
        raise ConfigurationError(f"{text.strip()!r} is a name of some crons", hint=f"write {alias!r}")
    fields = text.split()
    if len(fields) != 5:
        raise ConfigurationError(
            f"{text!r} has {len(fields)} fields; a crontab expression has five: minute hour day month weekday",
            hint="for example '0 * * * *', every full hour",
        )
    day, weekday = fields[2], fields[4]
    if day != "*" and weekday != "*":
        raise ConfigurationError(
            f"{text!r} restricts the day of the month and the weekday: crontab fires on either, APScheduler on both",
            hint="make two schedules, one for the days of the month and one for the weekdays",
        )

    if _NUMBER.search(weekday):
        raise ConfigurationError(
            f"{text!r} gives weekdays by number, which crontab and APScheduler count from different days",
            hint=f"name them: {_with_names(fields)!r}"
            if _with_names(fields)
            else "name them: sun mon tue wed thu fri sat",
        )


def _with_names(fields: list[str]) -> str:
    """Write the expression with named weekdays, if its weekdays are plain numbers, lists and ranges."""
    weekday = fields[4]
    if not re.fullmatch(r"[0-7](-[0-7])?(,[0-7](-[0-7])?)*", weekday):
        return ""
    days: list[int] = []
    for part in weekday.split(","):
        first, _, last = part.partition("-")
        days += range(int(first), int(last or first) + 1)
    names = ",".join(dict.fromkeys(_WEEKDAYS[day % 7] for day in days))
    return " ".join([*fields[:4], names])


def _check_meaning(text: str) -> None:
    """Refuse what either library cannot read, what never fires, and what they would fire at different times.

    The hours are compared for themselves, too: what fires each minute shows nothing of them in its first fire times.
    """
    _, *others = text.split()
    for part in (text, " ".join(["0", *others])):
        _compare(part, text)


def _compare(part: str, text: str) -> None:
    meant = _crontab_times(part)
    try:
        trigger = _trigger(part, UTC)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} cannot be scheduled: {error}", hint=_hint(text)) from None
    previous, now = None, _COMPARED_FROM + timedelta(microseconds=1)
    for fire in meant:
        previous = trigger.get_next_fire_time(previous, now)
        if previous != fire:
            raise ConfigurationError(
                f"{text!r} means {fire:%a %Y-%m-%d %H:%M} to crontab and another time to APScheduler",
                hint="list the values one by one",
            )
        now = fire + timedelta(microseconds=1)


def _trigger(text: str, zone: tzinfo) -> Any:
    maker: Any = CronTrigger  # APScheduler 3 has no types
    return maker.from_crontab(text, timezone=zone)


def _crontab_times(text: str) -> list[datetime]:
    try:
        meant = list(islice(CronSim(text, _COMPARED_FROM), _COMPARED))
    except CronSimError as error:
        if str(error) == "Bad day-of-month" and re.fullmatch(r"[\d,/-]+", text.split()[2]):
            raise ConfigurationError(
                f"{text!r} never fires: there is no such day in that month, or no such day at all"
            ) from None
        raise ConfigurationError(f"{text!r} is not a crontab expression: {error}", hint=_hint(text)) from None
    if not meant:
        raise ConfigurationError(f"{text!r} never fires: no month has that day")
    return meant


def _hint(text: str) -> str:
    if "-" in text.split()[4]:
        return "a range of weekdays runs from mon to sun; list them: sat,sun,mon"
    if _STEP_OF_STAR.search(text):
        return "a step must be smaller than the range that it counts through"
    return "a field is *, a number, a name of a month or weekday, a range a-b, a list a,b or a step */n"
