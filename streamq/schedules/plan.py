"""What is to be done about a schedule at a given moment: a function of what is stored, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamq.broker.fanout import FanOutState
    from streamq.schedules.occurrence import Occurrence, Schedule

__all__ = ["Plan", "looked_at", "plan"]

_LOOK_BACK = 64
"""How many of the last fire times are looked at; an older fan-out that is unfinished is past its deadline anyway."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, each part oldest first."""

    work: Sequence[Occurrence]
    """Begin these, or go on with them."""
    missed: Sequence[Occurrence]
    """The policy leaves these out; they were never begun."""
    given_up: Sequence[Occurrence]
    """The policy leaves these out; they were begun and are not finished, and their deadline has passed."""


def looked_at(schedule: Schedule, now_ms: int) -> list[Occurrence]:
    """Return the occurrences whose records `plan` needs, oldest first."""
    return schedule.latest(now_ms, max(_LOOK_BACK, schedule.entry.misfire_limit))


def plan(schedule: Schedule, now_ms: int, mark_ms: int, states: Mapping[Occurrence, FanOutState | None]) -> Plan:
    """Decide by the misfire policy.

    skip: what was not begun within the grace is left out. once: only the newest fire time is made up for. all: the
    newest `misfire_limit` are. A fan-out that was begun is gone on with until its deadline, whatever the policy.

    Args:
        schedule: The schedule.
        now_ms: The moment.
        mark_ms: Up to when everything is decided; only what was begun is looked at before it.
        states: How far each of `looked_at` is, oldest first; None: not begun.
    """
    unsettled = [
        occurrence
        for occurrence, state in states.items()
        if (occurrence.fire_ms > mark_ms if state is None else not state.end)
    ]
    work = _chosen(schedule, now_ms, unsettled, states)
    left = [occurrence for occurrence in unsettled if occurrence not in work]
    return Plan(
        [occurrence for occurrence in unsettled if occurrence in work],
        [occurrence for occurrence in left if states[occurrence] is None],
        [occurrence for occurrence in left if states[occurrence] is not None],
    )


def _chosen(
    schedule: Schedule, now_ms: int, unsettled: Sequence[Occurrence], states: Mapping[Occurrence, FanOutState | None]
) -> set[Occurrence]:
    running = {
        occurrence
        for occurrence in unsettled
        if (state := states[occurrence]) is not None and now_ms < schedule.deadline_ms(occurrence, state.begun_ms)
    }
    match schedule.entry.misfire:
        case "all":
            return running | set(unsettled[-schedule.entry.misfire_limit :])
        case "once":
            newest = list(states)[-1:]
            return running | (set(newest) & set(unsettled))
        case _:
            on_time = {
                occurrence
                for occurrence in unsettled
                if states[occurrence] is None and not schedule.is_late(occurrence, now_ms)
            }
            return running | on_time
