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
from streamq.schedules.timing import Timing

if TYPE_CHECKING:
    from streamq.app import CronEntry, StreamQ

__all__ = ["Misfire", "Occurrence", "Overlap", "Schedule", "checked", "schedules_of", "user_word"]

Misfire = Literal["skip", "once", "all"]
Overlap = Literal["queue", "skip", "cancel"]

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
        """The fire time as it stands in ids: `20260301T1200Z`, with seconds where an interval has them."""
        seconds = "%S" if self.fire_ms % 60_000 else ""
        return from_ms(self.fire_ms).strftime(f"%Y%m%dT%H%M{seconds}Z")

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
    timing: Timing

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
        """What is stored with the mark: a changed rule, or a schedule that was removed and made again, is a new one."""
        made = self.entry.made_at
        return self.timing.signature + (f"|made {made.isoformat()}" if made else "")

    @cached_property
    def jitter_ms(self) -> int:
        """By how much a fire time is late at most, for the sake of whoever else works at full hours; 0: by nothing."""
        return to_ms(self.entry.jitter) if self.entry.jitter else 0

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

    def due_ms(self, occurrence: Occurrence) -> int:
        """Return when an occurrence is begun: at its fire time, or that much later that its name says."""
        return occurrence.fire_ms + (zlib.crc32(occurrence.name.encode()) * self.jitter_ms >> 32)

    def latest(self, now_ms: int, count: int = 1) -> list[Occurrence]:
        """Return the last occurrences that are due at a moment, oldest first; fewer, or none, soon after the start."""
        now = from_ms(now_ms)
        fires = self.timing.latest(now, count + 1, since=now - _A_CENTURY)
        return [due for due in map(self.occurrence, fires) if self.due_ms(due) <= now_ms][-count:]

    def next(self, now_ms: int) -> Occurrence | None:
        """Return the first occurrence that is due later than a moment; None after the end."""
        now = from_ms(now_ms)
        for occurrence in map(self.occurrence, self.timing.latest(now, 1, since=now - _A_CENTURY)):
            if self.due_ms(occurrence) > now_ms:
                return occurrence
        following = next(self.timing.after(now), None)
        return self.occurrence(following) if following is not None else None

    def period_ms(self, occurrence: Occurrence) -> int:
        """Return the time from this fire time to the next one."""
        return to_ms(self.timing.period(from_ms(occurrence.fire_ms)))

    def is_late(self, occurrence: Occurrence, begun_ms: int) -> bool:
        """Tell whether an occurrence that is begun then counts as missed and made up for."""
        return begun_ms - self.due_ms(occurrence) > self.grace_ms

    def base_ms(self, occurrence: Occurrence, begun_ms: int) -> int:
        """Return the moment from which a deadline and a spread count: the fire time, or when a missed one was begun."""
        return begun_ms if self.is_late(occurrence, begun_ms) else occurrence.fire_ms

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
        timing = Timing.of(entry.expression, entry.timezone, start=entry.start, end=entry.end, limit=entry.limit)
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
    if entry.overlap not in get_args(Overlap):
        raise ConfigurationError(f"{where}: overlap is queue, skip or cancel, not {entry.overlap!r}")
    if entry.misfire_limit < 1:
        raise ConfigurationError(f"{where}: misfire_limit counts from 1, and {entry.misfire_limit} came")
    _check_page_function(entry, where)
    _check_durations(entry, timing, where)
    return Schedule(entry, timing)


def _check_page_function(entry: CronEntry, where: str) -> None:
    if inspect.isasyncgenfunction(entry.page) or inspect.isgeneratorfunction(entry.page):
        raise ConfigurationError(
            f"{where}: its page function yields; it must return (ids of one page, cursor of the next or None)"
        )
    try:
        inspect.signature(entry.page).bind(None)
    except TypeError as error:
        raise ConfigurationError(f"{where}: its page function must take the cursor alone: {error}") from None


def _check_durations(entry: CronEntry, timing: Timing, where: str) -> None:
    for name in ("scatter", "deadline", "grace", "page_timeout", "jitter"):
        value = getattr(entry, name)
        if value is not None and (not isinstance(value, timedelta) or value < timedelta(0)):
            raise ConfigurationError(f"{where}: {name} is a timedelta that is not negative, and {value!r} came")
    shortest = _shortest_period(timing)
    limit = entry.deadline if entry.deadline is not None else shortest
    late = entry.jitter or timedelta(0)
    if late and late >= shortest:
        raise ConfigurationError(
            f"{where}: with a jitter of {late} it could fire after its next fire time, {shortest} later"
        )
    if entry.scatter is not None and late + entry.scatter >= limit:
        raise ConfigurationError(
            f"{where}: jobs spread over {late + entry.scatter} would outlive their deadline, {limit} after the fire time"
        )
    if not 0 < entry.alarm_share <= 1:
        raise ConfigurationError(
            f"{where}: alarm_share is a share of the period, over 0 to 1, and {entry.alarm_share} came"
        )
    if entry.stale_after < 1:
        raise ConfigurationError(f"{where}: stale_after counts periods from 1, and {entry.stale_after} came")


def _shortest_period(timing: Timing) -> timedelta:
    """Return the shortest time between fire times, of the first ten."""
    fires = timing.rule.after(datetime(2026, 1, 1, tzinfo=UTC))
    times = [next(fires) for _ in range(10)]
    return min(later - earlier for earlier, later in pairwise(times))
