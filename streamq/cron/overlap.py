"""What to do about jobs of earlier occurrences that still wait or run when a schedule fires again."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from streamq.broker.orders import Orders

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from streamq.schedules.fanout import Desk
    from streamq.schedules.occurrence import Occurrence

__all__ = ["cancel_earlier", "earlier_lives"]

_LOOK_AGAIN_S = 0.25
_LONGEST_WAIT_S = 60.0
"""For handlers that were asked to stop. After it the new occurrence is begun all the same."""


async def earlier_lives(desk: Desk, occurrence: Occurrence) -> bool:
    """Tell whether a job of an earlier occurrence of the schedule waits or runs."""
    for share in desk.shares():
        async for _ in _earlier(share, occurrence):
            return True
    return False


async def cancel_earlier(desk: Desk, occurrence: Occurrence) -> int:
    """End the jobs of earlier occurrences, and wait for those that run to let go. Returns how many were told to end.

    A user whose job still ran would have its dedup key, and so no job of this occurrence.
    """
    return sum(await asyncio.gather(*(_cancel_earlier(share, occurrence) for share in desk.shares())))


async def _cancel_earlier(desk: Desk, occurrence: Occurrence) -> int:
    settings = desk.settings
    outbox_max = settings.outbox_max if settings.history else 0
    orders = Orders(desk.partition.wire, desk.partition.keys, outbox_max=outbox_max)
    reason = f"the next occurrence, {occurrence}, is due"
    asked: set[bytes] = set()
    ended = 0
    until = time.monotonic() + _LONGEST_WAIT_S
    while True:
        left = 0
        async for jobs in _earlier(desk, occurrence):
            fresh = [job for job in jobs if job[0] not in asked]
            verdicts = await desk.patience.call(partial(orders.cancel_many, fresh, reason=reason))
            asked |= {job_id for (job_id, _), verdict in zip(fresh, verdicts, strict=True) if verdict == b"ASKED"}
            ended += verdicts.count(b"CANCELLED")
            left += len(jobs) - verdicts.count(b"CANCELLED") - verdicts.count(b"GONE")
        if not left or time.monotonic() > until:
            return ended + len(asked)
        await desk.patience.pause(_LOOK_AGAIN_S)


async def _earlier(desk: Desk, occurrence: Occurrence) -> AsyncGenerator[list[tuple[bytes, bytes]]]:
    """Yield ids and tokens of living jobs of earlier occurrences, a few at a time."""
    cursor = b"0"
    now = _comparable(occurrence.stamp.encode())
    while True:
        cursor, jobs = await desk.patience.call(partial(desk.fanouts.living, occurrence.schedule, cursor))
        if earlier := [job for job in jobs if _comparable(job[0].split(b":", 2)[1]) < now]:
            yield earlier
        if cursor == b"0":
            return


def _comparable(stamp: bytes) -> bytes:
    """Write the fire time in an id with its seconds, so that text sorts as time does."""
    return stamp.partition(b"Z")[0].ljust(15, b"0")
