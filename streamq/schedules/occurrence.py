"""Schedules, checked, and their occurrences: what one is called, what its jobs are called, and until when they may run.

Every name here is made from the schedule, the fire time and the user alone. That is what makes any number of processes
that work on one occurrence make the same jobs.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote

from streamq.broker.fanout import FANOUT_PREFIX
from streamq.clock import from_ms, to_ms
from streamq.errors import BadArguments, ConfigurationError
from streamq.schedules.expression import CronExpression

if TYPE_CHECKING:
    from streamq.app import CronEntry, StreamQ

__all__ = ["Misfire", "Occurrence", "Schedule", "checked", "schedules_of", "user_word"]

Misfire = Literal["skip", "once", "all"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LONGEST_WORD = 360
"""With the longest schedule name and the fire time, a job id stays under its 512 characters."""
_KEEP_AT_LEAST = timedelta(hours=48)
_A_CENTURY = timedelta(days=36_525)


@dataclass(frozen=True)
class Occurrence:
    """One fire time of a schedule."""

    schedule: str
    fire_ms: int

    @property
    def stamp(self) -> str:
        """The fire time as it stands in ids: `20260301T1200Z`."""
        return from_ms(self.fire_ms).strftime("%Y%m%dT%H%MZ")

    @property
    def name(self) -> str:
        """`schedule:20260301T1200Z`, as it stands in the envelopes of its jobs."""
        return f"{self.schedule}:{self.stamp}"

    @property
    def producer(self) -> str:
        """The producer whose numbered calls are the pages of this fan-out."""
        return f"{FANOUT_PREFIX}{self.name}"

    def job_id(self, user: str) -> str:
        """Return the id of the job that this occurrence makes for a user."""
        return f"{self.name}:{user_word(user)}"

    def __str__(self) -> str:
        return f"{self.schedule} of {from_ms(self.fire_ms):%Y-%m-%d %H:%M} UTC"


def user_word(user: str) -> str:
    """Write a user so that it can stand in an id: percent-encoded, or a digest where that would be too long."""
    if user.isascii() and user.isalnum():
        return user
    word = quote(user, safe="")
    if len(word) > _LONGEST_WORD:
        return "~" + hashlib.sha256(user.encode()).hexdigest()
    return word


@dataclass(frozen=True)
class Schedule:
    """A schedule that was checked, with what follows from its expression. Make it with `checked`."""

    entry: CronEntry
    expression: CronExpression

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def mark(self) -> str:
        """The producer whose number is the second up to which this schedule is decided."""
        return f"{FANOUT_PREFIX}{self.name}"

    @cached_property
    def signature(self) -> str:
        """What is stored with the mark: a changed expression is a new schedule."""
        return f"{self.expression.text}|{self.expression.timezone}"

    @cached_property
    def scatter_ms(self) -> int:
        """Over how long the jobs of an occurrence are spread; 0: they are not."""
        return to_ms(self.entry.scatter) if self.entry.scatter else 0

    @property
    def grace_ms(self) -> int:
        """How late an occurrence may be begun without counting as missed."""
        return to_ms(self.entry.grace)

    def occurrence(self, fire: datetime) -> Occurrence:
        """Return the occurrence of a fire time."""
        return Occurrence(self.name, to_ms(fire))

    def latest(self, now_ms: int, count: int = 1) -> list[Occurrence]:
        """Return the last occurrences not later than a moment, oldest first."""
        now = from_ms(now_ms)
        return [self.occurrence(fire) for fire in self.expression.latest(now, count, since=now - _A_CENTURY)]

    def next(self, after_ms: int) -> Occurrence:
        """Return the first occurrence later than a moment."""
        return self.occurrence(next(self.expression.after(from_ms(after_ms))))

    def period_ms(self, occurrence: Occurrence) -> int:
        """Return the time from this fire time to the next one."""
        return self.next(occurrence.fire_ms).fire_ms - occurrence.fire_ms

    def base_ms(self, occurrence: Occurrence, begun_ms: int) -> int:
        """Return the moment from which a deadline and a spread count: the fire time, or when a missed one was begun."""
        return begun_ms if begun_ms - occurrence.fire_ms > self.grace_ms else occurrence.fire_ms

    def deadline_ms(self, occurrence: Occurrence, begun_ms: int) -> int:
        """Return when its jobs may no longer be started.

        The next fire time, or what the schedule says. An occurrence that is made up for late gets the same time,
        counted from when it was begun: a deadline that has passed would end every job unrun.
        """
        deadline = self.entry.deadline
        allowed_ms = to_ms(deadline) if deadline is not None else self.period_ms(occurrence)
        return self.base_ms(occurrence, begun_ms) + allowed_ms

    def keep_ms(self, occurrence: Occurrence) -> int:
        """Return for how long the record of a fan-out is kept: past the next occurrence, so that none runs twice."""
        return max(to_ms(_KEEP_AT_LEAST), 2 * self.period_ms(occurrence))

    def spread_ms(self, user: str) -> int:
        """Return this user's place within the spread, the same in every occurrence."""
        return zlib.crc32(user.encode()) * self.scatter_ms >> 32


def schedules_of(app: StreamQ) -> dict[str, Schedule]:
    """Return the schedules of an application by name, each checked.

    Raises:
        ConfigurationError: One of them cannot be used; the message names it.
    """
    return {name: checked(entry) for name, entry in app.cron_entries.items()}


def checked(entry: CronEntry) -> Schedule:
    """Check a schedule.

    Raises:
        ConfigurationError: Something about it cannot work; the message names the schedule and says what.
    """
    where = f"schedule {entry.name!r}"
    if not _NAME.fullmatch(entry.name):
        raise ConfigurationError(f"{where}: a name is 1 to 64 letters, digits, '_', '.' or '-'")
    try:
        expression = CronExpression(entry.expression, entry.timezone)
        entry.handler.check_arguments(("user",), {})
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}", hint=error.hint) from None
    except BadArguments as error:
        raise ConfigurationError(
            f"{where}: its handler cannot be called with a user alone: {error}",
            hint="give every argument but the first a default",
        ) from None
    if entry.misfire not in get_args(Misfire):
        raise ConfigurationError(f"{where}: misfire is skip, once or all, not {entry.misfire!r}")
    if entry.misfire_limit < 1:
        raise ConfigurationError(f"{where}: misfire_limit counts from 1, and {entry.misfire_limit} came")
    _check_page_function(entry, where)
    _check_durations(entry, expression, where)
    return Schedule(entry, expression)


def _check_page_function(entry: CronEntry, where: str) -> None:
    if inspect.isasyncgenfunction(entry.page) or inspect.isgeneratorfunction(entry.page):
        raise ConfigurationError(
            f"{where}: its page function yields; it must return (ids of one page, cursor of the next or None)"
        )
    try:
        inspect.signature(entry.page).bind(None)
    except TypeError as error:
        raise ConfigurationError(f"{where}: its page function must take the cursor alone: {error}") from None


def _check_durations(entry: CronEntry, expression: CronExpression, where: str) -> None:
    for name in ("scatter", "deadline", "grace", "page_timeout"):
        value = getattr(entry, name)
        if value is not None and (not isinstance(value, timedelta) or value < timedelta(0)):
            raise ConfigurationError(f"{where}: {name} is a timedelta that is not negative, and {value!r} came")
    if entry.scatter is None:
        return
    fires = expression.after(datetime(2026, 1, 1, tzinfo=UTC))
    times = [next(fires) for _ in range(10)]
    shortest = min(later - earlier for earlier, later in pairwise(times))
    limit = entry.deadline if entry.deadline is not None else shortest
    if entry.scatter >= limit:
        raise ConfigurationError(
            f"{where}: jobs spread over {entry.scatter} would outlive their deadline, {limit} after the fire time"
        )
