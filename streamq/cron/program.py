"""What `streamq cron` does: run the role, fire by hand, or tell when schedules fire."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress as Bar,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from streamq.app import StreamQ
from streamq.cron.minder import Minder
from streamq.cron.service import run
from streamq.schedules.book import resolve
from streamq.schedules.desks import desks, wanted_schedules
from streamq.schedules.firing import current, fire_now
from streamq.schedules.pages import PageFailed
from streamq.schedules.patience import Stopped
from streamq.schedules.shadow import dry_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from streamq.broker.fanout import FanOutState
    from streamq.schedules.fanout import Desk
    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.settings import Settings

__all__ = ["main"]

T = TypeVar("T")

_UNFINISHED = 75


def main(  # noqa: PLR0913 - the command line's options
    settings: Settings,
    app: StreamQ | str,
    *,
    now: bool = False,
    schedule: str | None = None,
    list_next: int = 0,
    dry_run: bool = False,
    once: bool = False,
) -> int:
    """Run `streamq cron` and return its exit code.

    Args:
        settings: Where Redis is, and how much a queue may hold.
        app: The application, or its `module:attribute`.
        now: Fire the current occurrence of each schedule, print what became of it, and end.
        schedule: With `now`, `once` or `list_next`: only this schedule.
        list_next: Print so many next fire times of each schedule, and end.
        dry_run: With `now`: read the pages and count the users, and write nothing.
        once: Do what is due and what was missed, and end.

    Raises:
        StreamQError: What the command line reports with its `exit_code`.
    """
    application = _application(app)
    if list_next:
        return _list(application, schedule, list_next)
    if dry_run:
        return _run(lambda stop: _count(settings, application, stop, schedule))
    if now:
        return _run(lambda stop: _fire(settings, application, stop, schedule))
    if once:
        return _run(lambda stop: _once(settings, application, stop, schedule))
    return _run(lambda stop: _serve(settings, application, stop))


def _application(app: StreamQ | str) -> StreamQ:
    if isinstance(app, StreamQ):
        return app
    from streamq.loading import load_app  # only a path needs it

    return load_app(app)


def _run(work: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Run with the first TERM or INT as an orderly stop; a second INT ends the process as usual."""

    async def guarded() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, loop, stop)
        return await work(stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


def _stop(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    stop.set()
    loop.remove_signal_handler(signal.SIGINT)


async def _serve(settings: Settings, app: StreamQ, stop: asyncio.Event) -> int:
    await run(settings, app, stop)
    return 0


async def _once(settings: Settings, app: StreamQ, stop: asyncio.Event, name: str | None) -> int:
    schedules, phase = await resolve(app, settings, name)
    with contextlib.suppress(Stopped):
        async with desks(settings, stop) as bureau:
            bureau.phase = phase
            for schedule in schedules if phase.is_enabled and not phase.is_shadow else ():
                await Minder(schedule, bureau.desk(schedule.entry.handler.queue)).check()
    return 0


async def _fire(settings: Settings, app: StreamQ, stop: asyncio.Event, name: str | None) -> int:
    with _bar() as (begin, show):
        fired = await fire_now(settings, app, schedule=name, stop=stop, on_progress=show, on_begin=begin)
    for one in fired:
        _print(str(one))
    if stop.is_set() or not all(one.state.end for one in fired):
        return _UNFINISHED
    return PageFailed.exit_code if any(one.state.refused for one in fired) else 0


@contextlib.contextmanager
def _bar() -> Any:
    """Show on a terminal how many users are enqueued, of as many as the occurrence before had; elsewhere nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None, None
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True) as bar:
        line = bar.add_task("waiting for Redis", total=None)

        def begin(occurrence: Occurrence, expected: int) -> None:
            bar.reset(line, total=expected or None, description=str(occurrence))

        def show(occurrence: Occurrence, state: FanOutState) -> None:
            spent_s = max((state.at_ms - state.begun_ms) / 1000, 0.001)
            text = f"{occurrence}: {state.users:,} users, {state.users / spent_s:,.0f} a second"
            bar.update(line, description=text, completed=state.users)

        yield begin, show


async def _count(settings: Settings, app: StreamQ, stop: asyncio.Event, name: str | None) -> int:
    """Read every page of the current occurrence of each schedule, and write nothing."""
    schedules, phase = await resolve(app, settings, name)
    try:
        async with desks(settings, stop) as bureau:
            bureau.phase = phase
            for schedule in schedules:
                desk = bureau.desk(schedule.entry.handler.queue)
                await desk.patience.call(desk.observe)
                occurrence = current(schedule, desk.now_ms())
                users, pages = await _counted(schedule, occurrence, desk)
                _print(f"{occurrence}: would enqueue {users} users in {pages} pages (dry run)")
    except Stopped:
        return _UNFINISHED
    return 0


async def _counted(schedule: Schedule, occurrence: Occurrence, desk: Desk) -> tuple[int, int]:
    users, pages = 0, 0
    async for page in dry_pages(schedule, occurrence, desk):
        users, pages = users + len(page.users), pages + 1
    return users, pages


def _list(app: StreamQ, name: str | None, count: int, out: TextIO | None = None) -> int:
    for schedule in wanted_schedules(app, name):
        timing = schedule.timing
        _print(f"{schedule.name}  {timing.text}  {timing.timezone}  ->  {schedule.entry.handler.name}", out)
        for fire in islice(timing.after(datetime.now(UTC)), count):
            local = fire.astimezone(timing.zone)
            beside = "" if timing.timezone == "UTC" else f"  {local:%a %Y-%m-%d %H:%M %Z}"
            _print(f"  {fire:%a %Y-%m-%d %H:%M} UTC{beside}", out)
    return 0


def _print(text: str, out: TextIO | None = None) -> None:
    (out or sys.stdout).write(text + "\n")
