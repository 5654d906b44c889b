"""How a schedule is: when it fired last, how far that fan-out is, and whether somebody has to be told.

A function of what is stored, so that a command, a probe and a metric say the same, also when no cron process is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from streamq.clock import from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamq.broker.fanout import FanOutRecord, FanOuts, FanOutState
    from streamq.schedules.book import Listed
    from streamq.schedules.occurrence import Occurrence, Schedule

__all__ = ["MOST_STALE", "Alarm", "AlarmKind", "Condition", "condition_of", "look"]

AlarmKind = Literal["not_fired", "unfinished", "stale_users"]

MOST_STALE = 10_000
"""Users that were not refreshed are counted up to here; that is enough for an alarm."""
_LOOKED_AT = 3


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something about a schedule that a person has to know."""

    kind: AlarmKind
    schedule: str
    occurrence: str
    """The fire time that it is about, as it stands in ids."""
    text: str


@dataclass(frozen=True, slots=True)
class Condition:
    """How a schedule is at a moment."""

    schedule: str
    state: Literal["waiting", "firing", "paused", "alarm"]
    next_ms: int | None
    """When it fires next; None: never."""
    fired_ms: int | None = None
    """The newest fire time that was begun, of the last few."""
    users: int = 0
    """Of that fan-out, handled so far."""
    expected: int = 0
    """How many users the finished fan-out before had; 0: not known."""
    is_finished: bool = True
    is_watched: bool = True
    """Whether a cron process has ever looked after it, as it is written now."""
    alarms: Sequence[Alarm] = field(default_factory=tuple[Alarm, ...])

    @property
    def progress(self) -> float | None:
        """How much of the fan-out is done, 0 to 1, by the size of the one before; None: not known."""
        if self.is_finished:
            return 1.0 if self.fired_ms is not None else None
        return min(self.users / self.expected, 0.99) if self.expected else None


async def look(listed: Listed, fanouts: FanOuts, *, stale_users: int = 0) -> Condition | None:
    """Ask how a schedule is; None: it cannot be used."""
    schedule = listed.schedule
    if schedule is None:
        return None
    now_ms = await fanouts.server_ms()
    occurrences = schedule.latest(now_ms, _LOOKED_AT)
    names = [schedule.mark, *(occurrence.producer for occurrence in occurrences)]
    mark, *records = await fanouts.records(names)
    states = {each: record.state if record else None for each, record in zip(occurrences, records, strict=True)}
    return condition_of(
        schedule, now_ms, _mark_ms(schedule, mark), states, is_paused=listed.pause is not None, stale_users=stale_users
    )


def _mark_ms(schedule: Schedule, mark: FanOutRecord | None) -> int | None:
    return mark.number * 1000 if mark is not None and mark.cursor == schedule.signature else None


def condition_of(
    schedule: Schedule,
    now_ms: int,
    mark_ms: int | None,
    states: Mapping[Occurrence, FanOutState | None],
    *,
    is_paused: bool = False,
    stale_users: int = 0,
) -> Condition:
    """Judge a schedule.

    Args:
        schedule: The schedule.
        now_ms: The moment.
        mark_ms: Up to when it is decided; None: no cron process has looked after it.
        states: How far each of the last occurrences is, oldest first; None: not begun.
        is_paused: Whether an operator has paused it: then it raises no alarm.
        stale_users: Users whose jobs have not been completed for too long.
    """
    begun = [(occurrence, state) for occurrence, state in states.items() if state is not None]
    finished = [state.users for _, state in begun if state.end == "done"]
    alarms = () if is_paused else tuple(_alarms(schedule, now_ms, mark_ms, states, stale_users))
    following = schedule.next(now_ms)
    last, state = begun[-1] if begun else (None, None)
    is_finished = state is None or bool(state.end)
    word: Literal["waiting", "firing", "paused", "alarm"] = "waiting" if is_finished else "firing"
    return Condition(
        schedule.name,
        "paused" if is_paused else "alarm" if alarms else word,
        following.fire_ms if following is not None else None,
        last.fire_ms if last is not None else None,
        state.users if state is not None else 0,
        finished[-1] if finished else 0,
        is_finished,
        mark_ms is not None,
        alarms,
    )


def _alarms(
    schedule: Schedule,
    now_ms: int,
    mark_ms: int | None,
    states: Mapping[Occurrence, FanOutState | None],
    stale_users: int,
) -> list[Alarm]:
    if not states:
        return []
    newest = list(states)[-1]
    found: list[Alarm] = []
    if why := _not_fired(schedule, now_ms, mark_ms, newest, states[newest]):
        found.append(Alarm("not_fired", schedule.name, newest.stamp, f"schedule {newest} was not fired: {why}"))
    for occurrence, state in states.items():
        if state is not None and (
            why := _unfinished(schedule, now_ms, occurrence, state, is_newest=occurrence == newest)
        ):
            text = f"the fan-out of {occurrence} {why}, after {state.users:,} users"
            found.append(Alarm("unfinished", schedule.name, occurrence.stamp, text))
    if stale_users:
        periods = schedule.entry.stale_after
        users = f"{stale_users:,}" if stale_users < MOST_STALE else f"{MOST_STALE:,} or more"
        text = f"schedule {schedule.name!r}: {users} users have not been refreshed for {periods} periods"
        found.append(Alarm("stale_users", schedule.name, newest.stamp, text))
    return found


def _not_fired(
    schedule: Schedule, now_ms: int, mark_ms: int | None, newest: Occurrence, state: FanOutState | None
) -> str:
    """Say why the newest fire time was not begun; empty: it was, or need not have been."""
    if state is not None or not schedule.is_late(newest, now_ms):
        return ""
    if mark_ms is None or mark_ms > newest.fire_ms:
        return ""  # the schedule is newer than that fire time, or was paused then
    if mark_ms == newest.fire_ms:
        return "it was missed, and the policy does not make up for it"
    return f"no cron process has looked after the schedule since {from_ms(mark_ms):%Y-%m-%d %H:%M} UTC"


def _unfinished(schedule: Schedule, now_ms: int, occurrence: Occurrence, state: FanOutState, *, is_newest: bool) -> str:
    if state.end:
        return "was given up" if state.end == "given up" and is_newest else ""
    share = schedule.entry.alarm_share
    begun_ms = schedule.base_ms(occurrence, state.begun_ms)
    return "is unfinished" if now_ms - begun_ms > share * schedule.period_ms(occurrence) else ""
