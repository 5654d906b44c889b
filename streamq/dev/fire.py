"""Fires a schedule now, beside its hours: the same fan-out as the hour's, under a name that no hour has."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.schedules.desks import desks
from streamq.schedules.divided import fan_out
from streamq.schedules.firing import current
from streamq.schedules.occurrence import Occurrence, checked

if TYPE_CHECKING:
    from streamq.app import CronEntry
    from streamq.settings import Settings

__all__ = ["Fired", "fire"]


@dataclass(frozen=True)
class _Extra(Occurrence):
    """An occurrence between two: a second one of the same hour makes jobs of its own."""

    run: str

    @property
    def stamp(self) -> str:
        """The fire time before it, and what tells this run from others."""
        return f"{super().stamp}.{self.run}"


@dataclass(frozen=True, slots=True)
class Fired:
    """What came of it."""

    occurrence: str
    users: tuple[str, ...]
    """In the order of the pages."""
    duplicates: int
    """Users whose job of an earlier occurrence still waits or runs; it stands in for the new one."""
    refused: int
    """Users that cannot have a job."""


async def fire(entry: CronEntry, settings: Settings) -> Fired:
    """Enqueue a job for every user of a schedule, and return when all are enqueued.

    Raises:
        PageFailed: The page function did not give a page. The users before it have their jobs.
        ConfigurationError: The schedule cannot be used.
    """
    users: dict[str, None] = {}

    async def noting(cursor: str | None) -> Any:
        """Call the page function, plain or async, and keep who is on the page, if it is one."""
        page = entry.page(cursor) if inspect.iscoroutinefunction(entry.page) else asyncio.to_thread(entry.page, cursor)
        given: Any = await page
        users.update(dict.fromkeys(map(str, _ids(given))))
        return given

    schedule = checked(dataclasses.replace(entry, page=noting))
    async with desks(settings, asyncio.Event()) as bureau:
        desk = bureau.desk(entry.handler.queue)
        await desk.observe()
        occurrence = _Extra(entry.name, current(schedule, desk.now_ms()).fire_ms, secrets.token_hex(3))
        state = await fan_out(schedule, occurrence, desk).run()
    return Fired(occurrence.name, tuple(users), state.duplicates, state.refused)


def _ids(page: Any) -> list[Any]:
    """Return who is on a page, if it is one; the fan-out complains of one that is not."""
    match page:
        case (list(), _):
            return [*page[0]]
        case _:
            return []
