"""Enqueueing by hand: one user, those of a file, or all, as jobs of the hour that runs.

The jobs have the ids that the hour's own fan-out gives them: who has a job of this hour that waits or runs gets none.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.broker.partition import CallRepeated
from streamq.errors import BadInput
from streamq.keys import partition_for, queue_of
from streamq.schedules.book import resolve
from streamq.schedules.desks import desks
from streamq.schedules.firing import current, fire_now
from streamq.schedules.jobs import JobMaker
from streamq.schedules.pages import id_of, plain_user
from streamq.schedules.userfile import BadLines, read_users

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamq.app import StreamQ
    from streamq.broker.partition import NewJob
    from streamq.schedules.fanout import Desk
    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.schedules.pages import User
    from streamq.settings import Settings

__all__ = ["Enqueued", "manual_enqueue"]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What enqueueing by hand came to; the counts make up all users that were named."""

    occurrence: Occurrence
    added: int
    duplicates: int
    """Users whose job of another hour, or from elsewhere, still waits or runs."""
    present: int
    """Users whose job of this very hour still waits or runs, and those named twice."""

    def __str__(self) -> str:
        return f"{self.occurrence}: {self.added} added, {self.duplicates} duplicates, {self.present} already present"


async def manual_enqueue(
    settings: Settings,
    app: StreamQ,
    schedule: str,
    *,
    users: Sequence[Any] | None = None,
    file: Path | None = None,
) -> Enqueued:
    """Enqueue jobs of a schedule's current occurrence by hand. Redis being away is waited for.

    A user whose job of this occurrence has ended gets a new one under the same id; all users together (neither `users`
    nor `file`) are fired as the hour fires them, so that a finished occurrence adds nothing.

    Args:
        settings: Where Redis is.
        app: The application.
        schedule: The name of the schedule.
        users: The ids; nothing is enqueued unless every one is good.
        file: CSV or NDJSON of ids; nothing is enqueued unless every line is good.

    Raises:
        BadInput: An id or a line is not good; nothing was enqueued, and the message names it.
        ConfigurationError: There is no such schedule, or it or Redis cannot be used.
        PageFailed: With all users: the page function failed.
    """
    if users is None and file is None:
        (fired,) = await fire_now(settings, app, schedule=schedule)
        state = fired.state
        before = state.users - state.refused - state.duplicates - fired.added_here
        return Enqueued(fired.occurrence, fired.added_here, state.duplicates, before)
    (wanted,), _ = await resolve(app, settings, schedule)
    named = read_users(file) if file is not None else [(0, user) for user in users or ()]
    async with desks(settings, asyncio.Event()) as bureau:
        desk = bureau.desk(wanted.entry.handler.queue)
        await desk.patience.call(desk.observe)
        occurrence = current(wanted, desk.now_ms())
        maker = JobMaker(wanted, occurrence, desk.now_ms(), max_payload_bytes=settings.max_payload_bytes, spread=False)
        return await _enqueued(desk, wanted, occurrence, maker, _checked(named, maker, file))


def _checked(named: Sequence[tuple[int, Any]], maker: JobMaker, file: Path | None) -> list[User]:
    """Return the ids if every one can have a job."""
    users: list[User] = []
    bad = BadLines(file) if file is not None else None
    for number, value in named:
        user = plain_user(value)
        _, refused = maker.make([user], 0)
        if not refused:
            users.append(user)
        elif bad is None:
            raise BadInput(f"nothing was enqueued: {refused[0]}")
        else:
            bad.add(number, refused[0])
    if bad is not None:
        bad.check()
    return users


async def _enqueued(
    desk: Desk, schedule: Schedule, occurrence: Occurrence, maker: JobMaker, users: list[User]
) -> Enqueued:
    producer = f"manual:{schedule.name}:{secrets.token_hex(8)}"
    results: list[str] = []
    for share, theirs in _divided(desk, users):
        for number, start in enumerate(range(0, len(theirs), desk.call_size), 1):
            jobs, _ = maker.make(theirs[start : start + desk.call_size], desk.now_ms())
            results += await _call(share, producer, number, jobs)
    duplicates = sum(1 for result in results if result[0] in "dr")
    return Enqueued(occurrence, results.count("n"), duplicates, results.count("p"))


def _divided(desk: Desk, users: list[User]) -> list[tuple[Desk, list[User]]]:
    """Give each partition its users."""
    shares = desk.shares()
    if len(shares) == 1:
        return [(desk, users)]
    queue = queue_of(desk.partition.keys.queue)
    theirs: dict[str, list[User]] = {share.partition.keys.queue: [] for share in shares}
    for user in users:
        theirs[partition_for(queue, str(id_of(user)), len(shares))].append(user)
    return [(share, theirs[share.partition.keys.queue]) for share in shares]


async def _call(desk: Desk, producer: str, number: int, jobs: list[NewJob]) -> Sequence[str]:
    """Make a numbered call, as often as it takes for a reply to come."""
    try:
        added = await desk.patience.call(
            lambda: desk.partition.add(producer, number, jobs, max_depth=desk.settings.max_depth)
        )
    except CallRepeated as repeated:
        return repeated.results.split("\n") if repeated.results else "n" * len(jobs)
    return added.results
