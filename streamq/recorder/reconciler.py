"""The reconciler: compares what MongoDB says of a partition with what Redis holds, and repairs or reports.

Nothing is judged by one look. A job leaves the index of Redis in the same script that puts its end into the outbox. So
one that was missing there, and is still said to live after everything in the outbox up to then was written, is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.broker.inspection import Inspection
from streamq.broker.outbox import recorder_name
from streamq.broker.partition import BATCH, NewJob
from streamq.broker.repairs import Repairs
from streamq.clock import to_ms, utc_now
from streamq.job import State
from streamq.keys import LANES
from streamq.mongo import StatusWrite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from datetime import datetime

    from streamq.broker.inspection import Counts
    from streamq.broker.partition import Partition
    from streamq.mongo import Ledger, LedgerEntry, Statuses
    from streamq.settings import Settings

__all__ = ["KINDS", "Finding", "Mode", "Reconciler"]

KINDS = {
    "lost": "MongoDB says that they live, and Redis does not know them",
    "reenqueued": "Redis had lost them, and the ledger has them: enqueued again",
    "superseded": "of the ledger and lost, and another job has their dedup key now",
    "orphaned": "in the index of Redis and nowhere else",
    "stranded": "kept behind a job that does not live any more, or at a gate that does not know them",
    "unheld": "said to have a place at a gate, or to wait there, and do not",
    "dangling": "dedup keys whose job has ended",
    "dead_workers": "names of workers that are gone",
    "stuck": "held by a worker that does not renew them",
    "overdue": "due for more than a minute, and workers live",
}
"""What is looked for, and in words."""

SETTLED_AFTER = timedelta(seconds=60)
"""Younger jobs are left alone: a producer may still be at it."""

PAGE, MOST, SUSPECTS = 512, 20_480, 10_000
GONE_AFTER_MS = 86_400_000
OVERDUE_MS = 60_000
_VERSION_SHIFT = 20
_LIVE = tuple(state.value for state in State if not state.is_terminal)


class Mode(IntEnum):
    """What may be written."""

    LOOK = 0
    MEND = 1
    """What restores a promise and loses nothing: every minute, by itself."""
    REPAIR = 2
    """Also what a person has to want: calling lost jobs dead, taking deliveries from silent workers."""


class Finding(NamedTuple):
    """What was found of one kind."""

    kind: str
    names: list[str]
    """Ids of jobs, or names."""
    repaired: bool


@dataclass
class _Suspects:
    """What was missing at an earlier look, each with the server's time after that look, in ms."""

    since: dict[str, int] = field(default_factory=dict[str, int])
    added: int = 0
    """How many are new since this was set to 0."""

    def add(self, names: Iterable[str], now_ms: int) -> None:
        for name in names:
            if name not in self.since and len(self.since) < SUSPECTS:
                self.since[name] = now_ms
                self.added += 1

    def ripe(self, written_until_ms: int) -> list[str]:
        """Return those of whom everything that was reported before they were missing has been written since."""
        return [name for name, since_ms in self.since.items() if since_ms < written_until_ms]

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.since.pop(name, None)


class Reconciler:
    """Reconciles one partition, round by round; what it suspects it remembers from one to the next."""

    def __init__(self, partition: Partition, statuses: Statuses, ledger: Ledger, settings: Settings) -> None:
        self.queue = partition.keys.queue
        self._wire = partition.wire
        self._view = Inspection(partition.wire, partition.keys)
        self._repairs = Repairs(partition, f"reconciler:{recorder_name()}")
        self._statuses = statuses
        self._ledger = ledger
        self._settings = settings
        self._suspects = _Suspects()
        self._absent = _Suspects()
        """Jobs of the ledger that Redis does not know."""
        self._walk = _Walk(statuses, self.queue)

    @property
    def is_suspicious(self) -> bool:
        """Whether the last look found something missing for the first time: another one soon would tell more."""
        return bool(self._suspects.added or self._absent.added)

    async def can_judge(self) -> bool:
        """Tell whether what was missing at the last look can be judged: the history is that far."""
        written_until_ms = _written_until_ms(await self._view.counts())
        since = [*self._suspects.since.values(), *self._absent.since.values()]
        return all(since_ms < written_until_ms for since_ms in since)

    async def close(self) -> None:
        """Close the connection to Redis."""
        await self._wire.close()

    async def leads(self, ttl_ms: int) -> bool:
        """Tell whether this reconciler should do the next round."""
        return await self._repairs.leads(ttl_ms)

    async def round(self, mode: Mode, *, most: int = MOST) -> list[Finding]:
        """Look once at everything, or at the next `most` of it. Returns what was found, and what was done."""
        counts = await self._view.counts()
        self._suspects.added = self._absent.added = 0
        ledgered = await self._ledgered(counts, mode, most)
        found = [
            *ledgered,
            *await self._lost(counts, mode, most, {name for finding in ledgered for name in finding.names}),
            *await self._of_redis(counts, mode, most),
        ]
        findings = [finding for finding in found if finding.names]
        if mode > Mode.LOOK:
            told = {finding.kind: len(finding.names) for finding in findings}
            found_of_each = {kind: told.get(kind, 0) for kind in KINDS}
            await self._statuses.note_round(self.queue, found_of_each, self._settings.outbox_max)
        return findings

    # MongoDB against Redis.

    async def _lost(self, counts: Counts, mode: Mode, most: int, ledgered: set[str]) -> list[Finding]:
        """Find statuses of jobs that live, of which Redis knows nothing, and the ledger neither."""
        ripe = self._suspects.ripe(_written_until_ms(counts))
        lost: dict[str, dict[str, Any]] = {}
        for first in range(0, len(ripe), PAGE):
            batch = ripe[first : first + PAGE]
            said = {name: each for name, each in (await self._statuses.of(batch)).items() if each["state"] in _LIVE}
            missing = await self._missing(list(said))
            lost |= {name: said[name] for name in missing - ledgered}
            self._suspects.drop(set(batch) - missing)
        is_repaired = mode is Mode.REPAIR
        if is_repaired and lost:
            await self._statuses.write([self._dead(each) for each in lost.values()])
            self._suspects.drop(lost)
        for documents in [page async for page in self._walk.pages(most)]:
            missing = await self._missing([each["_id"] for each in documents])
            self._suspects.add(missing, await self._now_ms())
        return [Finding("lost", sorted(lost), is_repaired)]

    def _dead(self, document: dict[str, Any]) -> StatusWrite:
        """Make the end of a job that nobody can run. Should it turn up after all, what it reports then counts."""
        now = utc_now()
        reason = "Redis does not know this job any more: it was lost, or its end was"
        fields = {
            "queue": self.queue,
            "state": State.DEAD.value,
            "attempt": document.get("attempt", 1),
            "enqueued_at": document["enqueued_at"],
            "finished_at": now,
            "expires_at": now + timedelta(milliseconds=self._settings.keep_dead_ms),
            "error": {"type": "Lost", "message": reason, "traceback": "", "fingerprint": "lost"},
        }
        version = max(document["version"] + 1, self._suspects.since[document["_id"]] << _VERSION_SHIFT)
        return StatusWrite(document["_id"], version, False, fields, [])

    # The ledger against Redis.

    async def _ledgered(self, counts: Counts, mode: Mode, most: int) -> list[Finding]:
        """Strike out jobs that have ended, and enqueue those again that Redis lost."""
        again: list[str] = []
        superseded: list[str] = []
        after = ""
        ripe = set(self._absent.ripe(_written_until_ms(counts)))
        for _ in range(max(1, most // PAGE)):
            entries = await self._ledger.page(self.queue, after=after, limit=PAGE, older_than=SETTLED_AFTER)
            if not entries:
                break
            after = entries[-1].id
            lost = await self._absentees({entry.id: entry for entry in entries}, ripe, mode)
            for first in range(0, len(lost), BATCH):
                await self._again(lost[first : first + BATCH], mode, again, superseded)
        done = mode > Mode.LOOK
        return [Finding("reenqueued", again, done), Finding("superseded", superseded, done)]

    async def _absentees(self, entries: dict[str, LedgerEntry], ripe: set[str], mode: Mode) -> list[LedgerEntry]:
        """Return the jobs that have not ended and that Redis has not known for two looks."""
        missing = await self._missing(list(entries))
        now_ms = await self._now_ms()
        ended = {name for name, each in (await self._statuses.of(list(missing))).items() if each["state"] not in _LIVE}
        if mode > Mode.LOOK:
            await self._ledger.strike(list(ended))
        self._absent.drop(set(entries) - missing | ended)
        self._absent.add(missing - ended, now_ms)
        return [entries[name] for name in sorted(missing - ended) if name in ripe]

    async def _again(self, entries: Sequence[LedgerEntry], mode: Mode, again: list[str], superseded: list[str]) -> None:
        if mode is Mode.LOOK:
            again += [entry.id for entry in entries]
            return
        # Two reconcilers may both think that they lead: whoever marks the entry first enqueues it.
        mine = [entry for entry in entries if await self._ledger.claim(entry.id, every=SETTLED_AFTER)]
        if not mine:
            return
        results = dict(
            zip([entry.id for entry in mine], await self._repairs.enqueue([_job(each) for each in mine]), strict=True)
        )
        again += [name for name, result in results.items() if result == "n"]
        others = [name for name, result in results.items() if result[0] in "dr"]
        await self._ledger.strike(others)
        superseded += others
        self._absent.drop(results)

    # Redis against itself.

    async def _of_redis(self, counts: Counts, mode: Mode, most: int) -> list[Finding]:
        does_mend = mode > Mode.LOOK
        mended = await self._repairs.mend(await self._repairs.indexed(most), repair=does_mend)
        gated = await self._repairs.gates(repair=does_mend, most=most)
        tidied = await self._repairs.tidy(idle_ms=GONE_AFTER_MS, repair=does_mend, most=most)
        silent_ms = 2 * self._settings.lease_ms
        _, flights = await self._view.flights(limit=PAGE, least_idle_ms=silent_ms)
        held = [flight for flight in flights if not flight.is_handed_back]
        entries = await self._view.entries(held[:PAGE])
        stuck = [entry.job_id for entry in entries if entry is not None]
        if stuck and mode is Mode.REPAIR:
            await self._repairs.sweep(self._settings.lease_ms)
        overdue = await self._overdue(counts)
        return [
            Finding("orphaned", mended.orphaned, does_mend),
            Finding("stranded", mended.stranded, does_mend),
            Finding("unheld", gated, does_mend),
            Finding("dangling", tidied.dedup_keys, does_mend),
            Finding("dead_workers", tidied.workers, does_mend),
            Finding("stuck", stuck, mode is Mode.REPAIR),
            Finding("overdue", overdue, False),
        ]

    async def _overdue(self, counts: Counts) -> list[str]:
        """List jobs that somebody should have promoted long ago; a worker's every beat does it."""
        due_ms = counts.next_due_ms
        is_late = due_ms is not None and due_ms < counts.now_ms - OVERDUE_MS
        if not is_late or not counts.workers_alive(self._settings.dead_after_ms):
            return []
        delayed = await self._view.delayed(limit=BATCH)
        return [job.job_id for job in delayed if job.due_ms < counts.now_ms - OVERDUE_MS]

    async def _missing(self, job_ids: Sequence[str]) -> set[str]:
        located = await self._view.locate_many(job_ids)
        return {name for name in job_ids if name not in located}

    async def _now_ms(self) -> int:
        seconds, micros = await self._wire.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


class _Walk:
    """Goes through the statuses of jobs that are to end, page by page, and starts anew at the end."""

    def __init__(self, statuses: Statuses, queue: str) -> None:
        self._statuses = statuses
        self._queue = queue
        self._state = 0
        self._after: tuple[datetime, str] | None = None

    async def pages(self, most: int) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the next pages, until about `most` were seen or all of them."""
        before = utc_now() - SETTLED_AFTER
        begun_in, is_whole = self._state, self._after is None
        while most > 0:
            page = await self._statuses.live(
                self._queue, _LIVE[self._state], after=self._after, before=before, limit=PAGE
            )
            most -= max(1, len(page))
            if page:
                self._after = (page[-1]["enqueued_at"], page[-1]["_id"])
                yield page
            if len(page) < PAGE:
                self._state, self._after = (self._state + 1) % len(_LIVE), None
                if self._state == begun_in and is_whole:
                    return
                is_whole = is_whole or self._state == begun_in


def _written_until_ms(counts: Counts) -> int:
    """Tell up to when everything that workers reported is in MongoDB."""
    return counts.now_ms - counts.outbox_age_ms


def _job(entry: LedgerEntry) -> NewJob:
    at_ms = to_ms(entry.due_at) if entry.due_at is not None else 0
    digit = LANES.index(entry.lane) + 1
    return NewJob(entry.id, digit, entry.envelope, dedup=entry.dedup, scope=entry.scope, at_ms=at_ms)
