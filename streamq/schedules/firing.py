"""Firing by hand: the current occurrence of a schedule, now. One that is finished is left as it is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from streamq.clock import from_ms
from streamq.errors import ConfigurationError
from streamq.logs import event
from streamq.schedules.book import resolve
from streamq.schedules.desks import desks
from streamq.schedules.divided import fan_out
from streamq.schedules.patience import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.app import StreamQ
    from streamq.broker.fanout import FanOutState
    from streamq.schedules.fanout import Desk
    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.schedules.phase import Phase
    from streamq.settings import Settings

__all__ = ["Fired", "current", "fire_now", "tell_finished"]

_log = logging.getLogger("streamq.cron")


@dataclass(frozen=True, slots=True)
class Fired:
    """What firing a schedule by hand came to."""

    occurrence: Occurrence
    state: FanOutState
    """For all processes that worked on it; `end` is empty if it is not finished."""
    was_finished: bool
    """Whether it was finished before, so that nothing was added now."""
    added_here: int

    def __str__(self) -> str:
        state = self.state
        counts = f"{state.added} added, {state.duplicates} duplicates, {state.present} already present"
        if state.refused:
            counts += f", {state.refused} refused"
        if self.was_finished:
            return f"{self.occurrence}: nothing added, it was {state.end} at {from_ms(state.at_ms):%H:%M:%S} UTC ({counts})"
        if not state.end:
            return f"{self.occurrence}: stopped after {state.users} users ({counts}); run it again to go on"
        return f"{self.occurrence}: {counts}"


async def fire_now(
    settings: Settings,
    app: StreamQ,
    *,
    schedule: str | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[Occurrence, FanOutState], object] | None = None,
    on_begin: Callable[[Occurrence, int], object] | None = None,
) -> list[Fired]:
    """Fire the current occurrence of each schedule, or of one, now. One that is finished is left as it is.

    Args:
        settings: Where Redis is, and how much a queue may hold.
        app: The application.
        schedule: The name of the only schedule to fire.
        stop: Set to stop at the next call; what is left is gone on with when it is fired again.
        on_progress: Told of each occurrence after each call.
        on_begin: Told of each occurrence before its first call, with how many users the one before had; 0: not known.

    Raises:
        ConfigurationError: There is no such schedule, or one of them, or Redis, cannot be used.
        PageFailed: A page function failed. What was enqueued before stays; firing again goes on from there.
    """
    stopping = stop or asyncio.Event()
    fired: list[Fired] = []
    schedules, phase = await resolve(app, settings, schedule)
    _check_phase(phase)
    try:
        async with desks(settings, stopping) as bureau:
            bureau.phase = phase
            for wanted in schedules:
                desk = bureau.desk(wanted.entry.handler.queue)
                await desk.patience.call(desk.observe)
                if on_begin is not None:
                    on_begin(current(wanted, desk.now_ms()), await _expected(wanted, desk))
                fired.append(await _fire_one(wanted, desk, on_progress))
    except Stopped:
        pass
    finally:
        for wanted in schedules:
            await _close_pages(wanted)
    return fired


async def _expected(schedule: Schedule, desk: Desk) -> int:
    """Return how many users the occurrence before had, if its fan-out was finished."""
    for earlier in schedule.latest(desk.now_ms(), 2)[:-1]:
        record = await desk.patience.call(partial(desk.fanouts.record, earlier.producer))
        if record is not None and record.state.end == "done":
            return record.state.users
    return 0


async def _close_pages(schedule: Schedule) -> None:
    """Close what the page function of a stored schedule has opened: it was made for this one call."""
    close = getattr(schedule.entry.page, "close", None)
    if schedule.entry.made_at is not None and close is not None:
        await close()


def _check_phase(phase: Phase) -> None:
    if not phase.is_enabled:
        raise ConfigurationError(
            "nothing fires while background_jobs.enabled is false", hint="streamq rollout status shows what says so"
        )
    if phase.is_shadow:
        raise ConfigurationError(
            "streamq is a shadow of the old system: it makes no jobs", hint="streamq cron --dry-run counts the users"
        )


async def _fire_one(
    schedule: Schedule, desk: Desk, on_progress: Callable[[Occurrence, FanOutState], object] | None
) -> Fired:
    occurrence = current(schedule, desk.now_ms())
    fanout = fan_out(
        schedule, occurrence, desk, on_progress=(lambda state: on_progress(occurrence, state)) if on_progress else None
    )
    state = await fanout.run()
    if state.end and not fanout.was_finished:
        tell_finished(occurrence, state)
    return Fired(occurrence, state, fanout.was_finished, fanout.added_here)


def current(schedule: Schedule, now_ms: int) -> Occurrence:
    """Return the occurrence whose hour runs.

    Raises:
        ConfigurationError: The schedule has not begun.
    """
    latest = schedule.latest(now_ms)
    if not latest:
        following = schedule.next(now_ms)
        begins = f"it fires first at {from_ms(following.fire_ms):%Y-%m-%d %H:%M} UTC" if following else "it never fires"
        raise ConfigurationError(f"schedule {schedule.name!r} has no occurrence yet: {begins}")
    return latest[-1]


def tell_finished(occurrence: Occurrence, state: FanOutState) -> None:
    """Log that every user of an occurrence has a job."""
    event(
        _log, logging.INFO, "cron.finished", schedule=occurrence.schedule, occurrence=occurrence.stamp,
        added=state.added, duplicates=state.duplicates, present=state.present, refused=state.refused,
        pages=state.pages, seconds=round((state.at_ms - state.begun_ms) / 1000, 1),
    )  # fmt: skip
