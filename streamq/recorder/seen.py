"""What can be seen in Redis of jobs that have not ended. The workers say nothing of it, so it costs them nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.keys import LANES
from streamq.recorder import documents

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamq.broker.inspection import Flight, Inspection
    from streamq.mongo import StatusWrite

__all__ = ["Seen"]

AT_REST_MS = 500
"""What is younger will mostly have ended by the next look, and is not worth a document of its own."""

LANE_PAGE = 500
FLIGHTS_PAGE = 1_000
DELAYED_PAGE = 500
MOST_DELAYED = 50_000


class Seen:
    """Looks at one partition again and again, and tells what is new."""

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._queue = inspection.keys.queue
        self._cursors = dict.fromkeys(LANES, b"0-0")
        self._flying = set[tuple[str, bytes, str]]()
        self._delayed_known = set[str]()
        self._delayed_round = set[str]()
        self._delayed_offset = 0

    async def look(self) -> list[StatusWrite]:
        """Return the statuses that were not seen before, one for each job. A few round trips, all bounded."""
        now_ms, flights = await self._inspection.flights(limit=FLIGHTS_PAGE, least_idle_ms=AT_REST_MS)
        held = [flight for flight in flights if not flight.is_handed_back]
        found = [*await self._delayed(), *await self._queued(now_ms - AT_REST_MS), *await self._running(held, now_ms)]
        # A job that is seen twice is further on the second time.
        return list({write.job_id: write for write in found}.values())

    def forget(self) -> None:
        """Begin anew: what was told last was not kept."""
        self._cursors = dict.fromkeys(LANES, b"0-0")
        self._flying.clear()
        self._delayed_known.clear()

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

    async def _delayed(self) -> list[StatusWrite]:
        """Go through the delayed jobs page by page, a page a look, and start anew at the end."""
        jobs = await self._inspection.delayed(limit=DELAYED_PAGE, offset=self._delayed_offset)
        self._delayed_round.update(job.job_id for job in jobs)
        fresh = [job for job in jobs if job.job_id not in self._delayed_known]
        self._delayed_known.update(job.job_id for job in jobs)
        self._delayed_offset += DELAYED_PAGE
        if len(jobs) < DELAYED_PAGE or self._delayed_offset >= MOST_DELAYED:
            self._delayed_known, self._delayed_round, self._delayed_offset = self._delayed_round, set[str](), 0
        return _only_known(documents.scheduled(self._queue, job) for job in fresh)


def _key(flight: Flight) -> tuple[str, bytes, str]:
    return flight.lane, flight.id, flight.worker


def _only_known(writes: Iterable[StatusWrite | None]) -> list[StatusWrite]:
    return [write for write in writes if write is not None]
