"""What can be seen in Redis of jobs that have not ended. The workers say nothing of it, so it costs them nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.keys import LANES
from streamq.recorder import documents

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamq.broker.inspection import Delayed, Flight, Inspection
    from streamq.mongo import StatusWrite

__all__ = ["Seen"]

AT_REST_MS = 500
"""What is younger will mostly have ended by the next look, and is not worth a document of its own."""

LANE_PAGE = 500
FLIGHTS_PAGE = 1_000
WAITING_PAGE = 500
MOST_WAITING = 50_000
"""How far a round through what is due later, or waits at gates, goes."""


class Seen:
    """Looks at one partition again and again, and tells what is new."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._queue = inspection.keys.queue
        self._cursors = dict.fromkeys(LANES, b"0-0")
        self._flying = set[tuple[str, bytes, str]]()
        self._delayed, self._parked = _Round(), _Round()
        self._parked_after = b""

    async def look(self) -> list[StatusWrite]:
        """Return the statuses that were not seen before, one for each job. A few round trips, all bounded."""
        now_ms, flights = await self._inspection.flights(limit=FLIGHTS_PAGE, least_idle_ms=AT_REST_MS)
        held = [flight for flight in flights if not flight.is_handed_back]
        found = [*await self._put_by(), *await self._queued(now_ms - AT_REST_MS), *await self._running(held, now_ms)]
        # A job that is seen twice is further on the second time.
        return list({write.job_id: write for write in found}.values())

    def forget(self) -> None:
        """Begin anew: what was told last was not kept."""
        self._cursors = dict.fromkeys(LANES, b"0-0")
        self._flying.clear()
        self._delayed, self._parked = _Round(), _Round()
        self._parked_after = b""

    async def _running(self, flights: list[Flight], now_ms: int) -> list[StatusWrite]:
        fresh = [flight for flight in flights if _key(flight) not in self._flying]
        entries = await self._inspection.entries(fresh)
        self._flying = {_key(flight) for flight in flights}
        return _only_known(
            documents.running(self._queue, entry, flight, now_ms)
            for entry, flight in zip(entries, fresh, strict=True)
            if entry is not None
        )

    async def _queued(self, until_ms: int) -> list[StatusWrite]:
        found: list[StatusWrite] = []
        for lane in LANES:
            entries = await self._inspection.tail(lane, self._cursors[lane], limit=LANE_PAGE, until_ms=until_ms)
            if entries:
                self._cursors[lane] = entries[-1].id
                found += _only_known(documents.queued(self._queue, entry) for entry in entries)
        return found

    async def _put_by(self) -> list[StatusWrite]:
        """Go through the jobs that are due later, and through those at gates, page by page: a page of each a look."""
        delayed = await self._inspection.delayed(limit=WAITING_PAGE, offset=self._delayed.looked_at)
        fresh = self._delayed.fresh(delayed, is_last=len(delayed) < WAITING_PAGE)
        parked, after = await self._inspection.parked(limit=WAITING_PAGE, after=self._parked_after)
        waiting = self._parked.fresh(parked, is_last=not after)
        self._parked_after = after if self._parked.looked_at else b""
        return _only_known(
            [
                *(documents.scheduled(self._queue, job) for job in fresh),
                *(documents.parked(self._queue, job) for job in waiting),
            ]
        )


class _Round:
    """A way through many jobs, page by page, again and again; it tells those that the round before had not."""

    def __init__(self) -> None:
        self._known = set[str]()
        self._met = set[str]()
        self.looked_at = 0
        """How many places this round has looked at; 0: the next page is the first of a new one."""

    def fresh(self, page: list[Delayed], *, is_last: bool) -> list[Delayed]:
        """Take the next page, and return of it what is new."""
        fresh = [job for job in page if job.job_id not in self._known]
        ids = {job.job_id for job in page}
        self._met |= ids
        self._known |= ids
        self.looked_at += WAITING_PAGE
        if is_last or self.looked_at >= MOST_WAITING:
            self._known, self._met, self.looked_at = self._met, set[str](), 0
        return fresh


def _key(flight: Flight) -> tuple[str, bytes, str]:
    return flight.lane, flight.id, flight.worker


def _only_known(writes: Iterable[StatusWrite | None]) -> list[StatusWrite]:
    return [write for write in writes if write is not None]
