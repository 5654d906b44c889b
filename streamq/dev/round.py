"""One round of a schedule, now: it fires, impatient users ask again, and each user's job is waited for.

What is told of it comes from `job_status` in MongoDB and from what the queue answered; nothing is assumed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from streamq.broker.inspection import Inspection
from streamq.broker.outbox import version_of
from streamq.broker.server import Broker
from streamq.clock import from_ms
from streamq.codec import decode_envelope
from streamq.dev.fire import fire
from streamq.dev.report import ENDED, Ended, Report, first_of_each
from streamq.errors import Unavailable
from streamq.keys import Keys, partition_names
from streamq.mongo import Mongo, Statuses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamq.app import CronEntry, StreamQ
    from streamq.dev.screen import Progress, Screen
    from streamq.queue import Job

__all__ = ["Round"]

_LOOK_EVERY_S = 0.2
_REST = 5
"""Looking takes at most one part in so many of the time."""
_EMPTY_LOOKS = 5
"""So many looks in a row must find nothing left to do before a job without an end counts as lost."""
_SETTLED_WITHIN_MS = 3_600_000
"""How long before its settling a job may have finished: so far back MongoDB looks."""
_CLICK_SHARE, _MOST_CLICKS = 0.02, 100
_COUNT_LIMIT_S = 30
_UNREAD = ("result", "expires_at")


class Round:
    """One firing of one schedule, and the wait for its end."""

    def __init__(self, app: StreamQ, entry: CronEntry, screen: Screen, users: Mapping[str, str] | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            app: Whose schedule it is; its settings say where the servers are.
            entry: The schedule.
            screen: Where to show progress.
            users: Every user who is to get a job, to the group whose times are told together; None for whomever the
                schedule finds, in one group.
        """
        settings = app.settings
        self._app = app
        self._entry = entry
        self._screen = screen
        self._users = users
        self._mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
        self._statuses = Statuses(self._mongo)
        self._broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
        self._wire = self._broker.wire()
        queue = entry.handler.queue
        self._partitions = partition_names(queue, settings.partitions_of(queue))
        self._views = [Inspection(self._wire, Keys(name)) for name in self._partitions]
        self.done = 0
        """How many users' jobs have ended so far."""

    async def run(self, *, clicks: bool = False) -> Report:
        """Fire, and return when every job has ended, or is nowhere any more.

        Args:
            clicks: Whether some users ask again at once.
        """
        begun_s = time.monotonic()
        fired_ms = (await self._views[0].counts()).now_ms
        fired = await fire(self._entry, self._app.settings)
        users = self._users if self._users is not None else dict.fromkeys(fired.users, "all")
        answers = await self._click(len(users)) if clicks else []
        with self._screen.bar(f"refreshing {len(users):,} users") as show:
            jobs = await self._wait(users, self._query(fired_ms), show)
        refused = fired.duplicates + sum(not answer.is_new for answer in answers)
        return Report(users, jobs, refused, len(answers), time.monotonic() - begun_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()
        await self._broker.close()
        await self._app.close()
        await self._mongo.close()

    async def _click(self, users: int) -> list[Job]:
        """Enqueue again for those at the end of the queue, whose jobs will still be waiting."""
        most = min(max(1, round(users * _CLICK_SHARE)), _MOST_CLICKS)
        handler = self._app.handler_named(self._entry.handler.name)
        waiting = [decode_envelope(entry.envelope) for view in self._views for entry in await view.newest(most)][:most]
        return [await handler.enqueue(*job.args) for job in waiting if job.handler == self._entry.handler.name]

    def _query(self, fired_ms: int) -> dict[str, Any]:
        """Say which jobs count: also one of an earlier occurrence that this one found in the queue.

        That is one that was settled since, by the server's clock; it may have finished before.
        """
        return {
            "queue": {"$in": list(self._partitions)},
            "state": {"$in": ENDED},
            "handler": self._entry.handler.name,
            "finished_at": {"$gte": from_ms(fired_ms - _SETTLED_WITHIN_MS)},
            "version": {"$gte": version_of(f"{fired_ms}-0")},
        }

    async def _wait(self, users: Mapping[str, str], query: dict[str, Any], show: Progress) -> dict[str, Ended]:
        """Look until every user's job has ended, or nothing is left that could end."""
        empty_looks, is_away = 0, False
        while True:
            begun_s = time.monotonic()
            try:
                empty_looks = empty_looks + 1 if await self._has_nothing_left() else 0
                self.done = await self._statuses.count(query, limit_s=_COUNT_LIMIT_S)
                show(min(self.done, len(users)), len(users))
                if self.done >= len(users) or empty_looks >= _EMPTY_LOOKS:
                    # Counted by job so far; a user may have two.
                    jobs = first_of_each(users, await self._ended(query))
                    if len(jobs) == len(users) or empty_looks >= _EMPTY_LOOKS:
                        return jobs
                is_away = False
            except Unavailable as error:  # the workers wait for it as well, and so do the jobs
                if not is_away:
                    self._screen.say(f"waiting: {error}")
                is_away = True
            await asyncio.sleep(max(_LOOK_EVERY_S, _REST * (time.monotonic() - begun_s)))

    async def _ended(self, query: dict[str, Any]) -> list[Ended]:
        found = await self._statuses.find(query, sort=[("finished_at", 1)], without=_UNREAD)
        return [Ended.of(document) for document in found]

    async def _has_nothing_left(self) -> bool:
        """Whether the queue holds no job, and the history has caught up with it."""
        counts = [await view.counts() for view in self._views]
        return all(each.jobs == 0 and each.outbox == 0 for each in counts)
