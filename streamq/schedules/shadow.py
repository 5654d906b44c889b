"""Occurrences as dry runs: who would get a job, how long that takes, and what the old system did meanwhile."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from streamq.broker.fanout import FanOutState
from streamq.clock import from_ms, utc_now
from streamq.logs import event
from streamq.mongo import FlagStore, Legacy, ShadowStore
from streamq.schedules.pages import MOST_USERS, Pages, id_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from streamq.mongo import Mongo
    from streamq.schedules.fanout import Desk
    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.schedules.pages import Page

__all__ = ["Shadow", "dry_pages"]

_log = logging.getLogger("streamq.cron")

_MOST_SAMPLES = 20


async def dry_pages(schedule: Schedule, occurrence: Occurrence, desk: Desk) -> AsyncGenerator[Page]:
    """Yield the pages of an occurrence as a fan-out would read them; nothing is written to Redis.

    Raises:
        PageFailed: The page function did not give one.
    """
    # With pages that are never too large for a call, none is stored.
    pages = Pages(schedule, occurrence, desk.fanouts, desk.patience, largest=MOST_USERS, admits=desk.phase().filter)
    state = FanOutState()
    try:
        while not state.is_at_end:
            page, _ = await pages.at(state)
            yield page
            anchor = pages.check_following(state, page)
            state = FanOutState(cursor=page.following, pages=state.pages + 1, anchor=anchor)
    finally:
        await pages.close()


class Shadow:
    """Runs occurrences dry, and compares them."""

    def __init__(self, mongo: Mongo) -> None:
        self._store = ShadowStore(mongo)
        self._flags = FlagStore(mongo)

    async def run(self, schedule: Schedule, occurrence: Occurrence, desk: Desk) -> None:
        """Read the users of an occurrence, and keep who they are for two days. A repeat begins anew.

        Raises:
            PageFailed: The page function did not give a page.
            HistoryUnavailable: MongoDB is away.
        """
        begun, count, number = time.monotonic(), 0, 0
        late_s = (desk.now_ms() - occurrence.fire_ms) / 1000
        await self._store.begin(occurrence.name)
        async for page in dry_pages(schedule, occurrence, desk):
            users = [id_of(user) for user in page.users if not isinstance(user, dict)]
            await self._store.add_page(occurrence.name, number, users)
            count, number = count + len(users), number + 1
        took_s = time.monotonic() - begun
        fields = {
            "schedule": schedule.name, "fire_at": from_ms(occurrence.fire_ms), "users": count, "pages": number,
            "late_s": round(late_s, 3), "took_s": round(took_s, 3), "ran_at": utc_now(),
        }  # fmt: skip
        await self._store.report(occurrence.name, fields)
        event(_log, logging.INFO, "cron.shadow", schedule=schedule.name, occurrence=occurrence.stamp, users=count)

    async def compare(self, schedule: Schedule, occurrence: Occurrence) -> dict[str, Any]:
        """Compare an occurrence that was run dry with what the old system did from its fire time to the next one.

        Returns:
            The report, which is stored as well. `agrees` says whether both have the same users.

        Raises:
            HistoryUnavailable: MongoDB is away.
        """
        legacy = Legacy(**(await self._flags.get()).get("legacy", {}))
        ours = {str(user) async for user in self._store.users(occurrence.name)}
        since, until = from_ms(occurrence.fire_ms), from_ms(occurrence.fire_ms + schedule.period_ms(occurrence))
        theirs, missing, samples = 0, 0, list[str]()
        earliest, latest = until, since
        async for user, first, last in self._store.legacy_users(legacy, since, until):
            theirs += 1
            earliest, latest = min(earliest, first), max(latest, last)
            if user in ours:
                ours.remove(user)
            else:
                missing += 1
                samples += [user] if len(samples) < _MOST_SAMPLES else []
        fields: dict[str, Any] = {
            "legacy": {
                "users": theirs,
                "late_s": (earliest - since).total_seconds() if theirs else None,
                "took_s": (latest - earliest).total_seconds() if theirs else None,
            },
            "only_here": len(ours), "only_here_samples": sorted(ours)[:_MOST_SAMPLES],
            "only_there": missing, "only_there_samples": sorted(samples),
            "agrees": not ours and not missing, "compared_at": utc_now(),
        }  # fmt: skip
        await self._store.report(occurrence.name, fields)
        event(
            _log, logging.INFO if fields["agrees"] else logging.WARNING, "cron.compared", schedule=schedule.name,
            occurrence=occurrence.stamp, only_here=len(ours), only_there=missing,
        )  # fmt: skip
        return fields

    async def waiting(self, schedule: Schedule, occurrence: Occurrence) -> bool:
        """Tell whether an occurrence was run dry and not compared yet."""
        known = await self._store.reports(schedule.name, limit=48)
        return any(each["_id"] == occurrence.name and "compared_at" not in each for each in known)
