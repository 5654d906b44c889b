"""The two servers behind the API: Redis for what is live, MongoDB for what was. Either may be away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from streamq.access import TokenBook
from streamq.broker.inspection import Costs, Counts, DeadLetter, Inspection, Located
from streamq.broker.letters import LetterRecord, Letters
from streamq.broker.orders import Orders, came_of_all
from streamq.broker.outbox import Feed
from streamq.broker.server import Broker, Memory, memory_of
from streamq.clock import from_ms, utc_now
from streamq.codec import decode_envelope
from streamq.errors import (
    BadInput,
    DividedOtherwise,
    HistoryUnavailable,
    JobNotFound,
    JobRejected,
    StreamQError,
)
from streamq.history import History, JobStatus, notes_told
from streamq.keys import Keys, partition_names, queue_of
from streamq.lanes import reason_of
from streamq.ledger import Notary
from streamq.logs import event
from streamq.mongo import Audit, Ledger, Mongo, Operations, Statuses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from streamq.broker.crowd import Crowd
    from streamq.broker.partition import Partition
    from streamq.errors import QueueFull
    from streamq.queue import Draft
    from streamq.settings import Settings

__all__ = ["Breaker", "Stores", "Tally"]

REDIS_TIMEOUT_S = 2.0
CLOSE_WITHIN_S = 1.0
PROBE_EVERY_S = 0.5
TALLY_EVERY_S = 1.0
TALLY_SHARE = 0.05
"""Counting a large history may take at most this share of the time."""

_LAST_MS = 253_402_300_800_000  # the year 10000 is past what a datetime can say

_log = logging.getLogger(__name__)
C = TypeVar("C")
T = TypeVar("T")
P = ParamSpec("P")


class Breaker:
    """Asks a server. After a failure nobody asks any more, for all would wait in vain, until `probe` finds it back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._error: StreamQError | None = None

    @property
    def is_up(self) -> bool:
        """Whether the last question was answered."""
        return self._error is None

    async def ask(self, question: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Put a question.

        Raises:
            StreamQError: The server is away, or refuses us.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        return await self._ask(question, *args, **kwargs)

    async def probe(self, question: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Put a question to a server that is away, to see whether it still is."""
        if self._error is not None:
            with contextlib.suppress(StreamQError):
                await self._ask(question, *args, **kwargs)

    async def _ask(self, question: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            answer = await question(*args, **kwargs)
        except (BadInput, DividedOtherwise, JobNotFound, JobRejected):
            self._note(None)  # that is an answer
            raise
        except StreamQError as error:
            self._note(error)
            raise
        self._note(None)
        return answer

    def _note(self, error: StreamQError | None) -> None:
        if (error is None) != self.is_up:
            if error is None:
                event(_log, logging.INFO, "store.back", store=self._name)
            else:
                event(_log, logging.WARNING, "store.away", store=self._name, error=str(error))
        self._error = error


class Tally(NamedTuple):
    """Jobs by queue and state in the history, as of some moment."""

    counts: dict[str, dict[str, int]]
    as_of: datetime


class Stores:
    """Both servers, asked together."""

    def __init__(self, settings: Settings) -> None:
        self._broker = Broker(settings.redis_url, allow_eviction=True, timeout_s=REDIS_TIMEOUT_S)
        self._mongo = Mongo(settings.mongodb_url, settings.mongodb_database) if settings.history else None
        self._history = History(Statuses(self._mongo)) if self._mongo else None
        self._tokens = TokenBook(self._mongo) if self._mongo else None
        self._audit = Audit(self._mongo) if self._mongo else None
        self._operations = Operations(self._mongo) if self._mongo else None
        self._notary = Notary(settings.mongodb_url, settings.mongodb_database) if settings.history else None
        self._partitions = {name: self._broker.partition(name) for name in settings.partition_names}
        self._views = {name: Inspection(each.wire, each.keys) for name, each in self._partitions.items()}
        self.redis = Breaker("redis")
        self.mongodb = Breaker("mongodb")
        self.partitions_of = settings.partitions_of
        self._agreed: set[str] = set()
        """Queues that are known to have as many partitions as the settings say."""
        self.queues = settings.partition_names
        """The partitions of all queues; the only one of a queue is named as the queue."""
        self.wholes = {queue: partition_names(queue, settings.partitions_of(queue)) for queue in settings.queues}
        """The partitions of each queue."""
        self.dead_after_ms = settings.dead_after_ms
        self._outbox_max = settings.outbox_max if settings.history else 0
        self._tally: Tally | None = None
        self._tallied = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """Stop counting, and close all connections."""
        # pymongo may swallow the cancellation of an operation that is under way; closing its client ends that, too.
        self._closing.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_WITHIN_S)
        for partition in self._partitions.values():
            await partition.wire.close()
        if self._mongo:
            await self._mongo.close()
        if self._notary:
            await self._notary.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def counts(self) -> dict[str, Counts]:
        """Ask Redis what each partition holds."""
        counts = await asyncio.gather(*(self.redis.ask(view.counts) for view in self._views.values()))
        return dict(zip(self._views, counts, strict=True))

    def parts(self, name: str) -> tuple[str, ...]:
        """Name the partitions of a queue; of a partition itself that alone, and of what is neither none."""
        return self.wholes.get(name) or ((name,) if name in self._views else ())

    def queues_meant(self, names: Sequence[str]) -> tuple[str, ...]:
        """Name what the history may call these queues: their partitions, and themselves from before they were divided."""
        return tuple(dict.fromkeys(each for name in names for each in (*self.parts(name), name)))

    async def in_all(self, name: str, do: Callable[[str], Awaitable[T]]) -> list[T]:
        """Do something in each partition of a queue, and return what came of each.

        Raises:
            DividedOtherwise: It has another number of partitions than our settings say, and nothing was done.
            PartlyDone: Some partitions have done it and some have not.
            StreamQError: None has done it, as far as is known.
        """
        parts = self.parts(name)
        if name in self.wholes:
            await self._agree(name)
        became = await asyncio.gather(*(do(part) for part in parts), return_exceptions=True)
        return came_of_all(dict(zip(parts, became, strict=True)))

    async def memory(self) -> Memory | None:
        """Ask Redis how full it is; None if it cannot tell now."""
        with contextlib.suppress(StreamQError):
            return await self.redis.ask(memory_of, self._partition(self.queues[0]).wire)
        return None

    async def costs(self) -> dict[str, Costs]:
        """Ask Redis what each queue knows of run times; of those that cannot tell now, nothing."""
        with contextlib.suppress(StreamQError):
            return {queue: await self.redis.ask(view.costs, 0) for queue, view in self._views.items()}
        return {}

    async def crowds(self, queues: Sequence[str], *, handlers_only: bool = False) -> dict[str, Crowd]:
        """Ask Redis who has places at gates of these queues, and who waits there."""
        return {queue: await self.redis.ask(self._views[queue].crowd, handlers_only=handlers_only) for queue in queues}

    async def order_all(self, queue: str, order: Callable[[Orders], Awaitable[T]]) -> list[T]:
        """Have something done to each partition of a queue; see `in_all`."""
        return await self.in_all(queue, lambda part: self.order(part, order))

    async def view(self, queue: str, question: Callable[[Inspection], Awaitable[T]]) -> T:
        """Ask Redis about a queue."""
        return await self.redis.ask(question, self._views[queue])

    async def order(self, queue: str, order: Callable[[Orders], Awaitable[T]]) -> T:
        """Have something done to a queue."""
        partition = self._partition(queue)
        return await self.redis.ask(order, Orders(partition.wire, partition.keys, outbox_max=self._outbox_max))

    async def add(self, queue: str, add: Callable[[Partition], Awaitable[T]]) -> T:
        """Put jobs into a partition.

        Raises:
            DividedOtherwise: Its queue has another number of partitions than our settings say.
        """
        await self._agree(queue_of(queue))
        return await self.redis.ask(add, self._partition(queue))

    async def _agree(self, name: str) -> None:
        if name not in self._agreed:
            count = self.partitions_of(name)
            await self.redis.ask(self._partition(partition_names(name, count)[0]).agree, count)
            self._agreed.add(name)

    async def add_written(
        self, drafts: Sequence[Draft], add: Callable[[Sequence[Draft]], Awaitable[Sequence[str | QueueFull]]]
    ) -> Sequence[str | QueueFull]:
        """Write jobs down in MongoDB, then put them into their queue with `add`; see `Notary`."""
        if self._notary is None:
            raise HistoryUnavailable("history is switched off, and the ledger with it")
        if not self.mongodb.is_up:
            raise HistoryUnavailable("MongoDB is away")
        return await self._notary.enqueue(drafts, add)

    def _partition(self, name: str) -> Partition:
        """Return a partition by its name; the history may know of some that the settings do not."""
        if name not in self._partitions:
            self._partitions[name] = self._broker.partition(name)
        return self._partitions[name]

    def feed(self) -> Feed:
        """Make what tells of all that becomes of jobs, to be closed after use."""
        return Feed(self._broker.wire, {queue: Keys(queue) for queue in self.queues})

    async def letters(self, queue: str, question: Callable[[Letters], Awaitable[T]]) -> T:
        """Ask for, or do something to, the dead letters of a queue."""
        return await self.order(queue, lambda orders: question(Letters(orders.wire, orders)))

    @property
    def has_history(self) -> bool:
        """Whether statuses are kept at all."""
        return self._history is not None

    async def forget(self, job_id: str) -> None:
        """Delete the status of a job that has ended.

        It is struck out of the ledger before: who is there and has no status would be enqueued again.
        """
        if self._mongo is not None:
            ledger, statuses = Ledger(self._mongo), Statuses(self._mongo)
            await self.mongodb.ask(ledger.strike, [job_id])
            await self.mongodb.ask(statuses.forget, job_id)

    async def ask_history(self, question: Callable[[History], Awaitable[T]]) -> T:
        """Ask MongoDB."""
        return await self._ask_mongodb(self._history, question)

    async def ask_tokens(self, question: Callable[[TokenBook], Awaitable[T]]) -> T:
        """Ask MongoDB for tokens."""
        return await self._ask_mongodb(self._tokens, question)

    async def ask_audit(self, question: Callable[[Audit], Awaitable[T]]) -> T:
        """Ask MongoDB for who changed what."""
        return await self._ask_mongodb(self._audit, question)

    async def ask_operations(self, question: Callable[[Operations], Awaitable[T]]) -> T:
        """Ask MongoDB for orders that take long."""
        return await self._ask_mongodb(self._operations, question)

    async def _ask_mongodb(self, what: C | None, question: Callable[[C], Awaitable[T]]) -> T:
        if what is None:
            raise HistoryUnavailable("history is switched off, and MongoDB with it")
        return await self.mongodb.ask(question, what)

    async def live(self, job_id: str) -> JobStatus | None:
        """Ask Redis for a live job, whichever queue it is in."""
        for queue in self._views:
            if place := (await self.locate(queue, [job_id])).get(job_id):
                told = await self.redis.ask(self._views[queue].notes, job_id)
                notes = notes_told(told.get("p"), told.get("lg", ()), told.get("ln", 0))
                return replace(_of_place(queue, place), **notes)
        return None

    async def newest(self, limit: int) -> list[JobStatus]:
        """Ask Redis for the newest live jobs of all queues."""
        found: list[JobStatus] = []
        for queue, view in self._views.items():
            entries = await self.redis.ask(view.newest, limit)
            places = await self.locate(queue, [entry.job_id for entry in entries])
            found += [_of_place(queue, place) for place in places.values()]
        return sorted(found, key=_enqueued, reverse=True)[:limit]

    async def locate(self, queue: str, job_ids: Sequence[str]) -> dict[str, Located]:
        """Ask Redis where jobs of a queue are; those that are not live are left out."""
        view = self._views.get(queue)
        if view is None or not job_ids:
            return {}
        return await self.redis.ask(view.locate_many, job_ids)

    async def held_by(self, keys: Sequence[str]) -> list[JobStatus]:
        """Ask Redis for the live jobs that hold one of these dedup keys, in any queue."""
        found: list[JobStatus] = []
        for queue, view in self._views.items():
            places = await self.locate(queue, await self.redis.ask(view.holders, keys))
            found += [_of_place(queue, place) for place in places.values()]
        return found

    async def dead(self, limit: int) -> list[JobStatus]:
        """Ask Redis for the newest dead letters of all queues."""
        found: list[JobStatus] = []
        for queue, view in self._views.items():
            letters = await self.redis.ask(view.dead, limit)
            found += [_of_letter(queue, letter) for letter in letters]
        return sorted(found, key=_ended, reverse=True)[:limit]

    async def brought_up_to_date(self, jobs: Sequence[JobStatus]) -> list[JobStatus]:
        """Replace what the history says of live jobs by what Redis says."""
        live: dict[str, list[str]] = {}
        for job in jobs:
            if job.is_live:
                live.setdefault(job.queue, []).append(job.id)
        places: dict[str, Located] = {}
        for queue, ids in live.items():
            places |= await self.locate(queue, ids)
        return [_updated(job, places.get(job.id)) for job in jobs]

    async def tally(self) -> Tally | None:
        """Return the latest count of the history; None if MongoDB has not been there yet."""
        if self._history is not None and self._tally is None and self.mongodb.is_up:
            try:
                await asyncio.wait_for(self._tallied.wait(), timeout=REDIS_TIMEOUT_S)
            except TimeoutError:
                return None
        return self._tally

    def start(self) -> None:
        """Begin to count the history over and over, and to look for servers that are away."""
        self._tasks = [asyncio.create_task(self._keep_tally()), asyncio.create_task(self._keep_probing())]

    async def _keep_tally(self) -> None:
        """Count the history again and again, seldom enough to stay within `TALLY_SHARE` of the time."""
        while self._history is not None and not self._closing.is_set():
            began, pause_s = time.monotonic(), TALLY_EVERY_S
            with contextlib.suppress(StreamQError):  # the breaker has said so
                counts = await self.ask_history(lambda history: history.counts(self.queues))
                self._tally = Tally(counts, utc_now())
                pause_s = max(pause_s, (time.monotonic() - began) / TALLY_SHARE)
            self._tallied.set()
            await self._pause(pause_s)

    async def _keep_probing(self) -> None:
        while not self._closing.is_set():
            await self._pause(PROBE_EVERY_S)
            for view in self._views.values():
                await self.redis.probe(view.counts)
            if self._history is not None:
                await self.mongodb.probe(self._history.job, "")


def _of_place(queue: str, place: Located) -> JobStatus:
    fields: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):  # an envelope of a newer version is a live job all the same
        envelope = decode_envelope(place.envelope)
        fields = {"handler": envelope.handler, "user": envelope.key, "attempt": envelope.attempt}
        fields["max_attempts"] = envelope.max_attempts
    return JobStatus(
        id=place.job_id,
        state=place.state_at(fields.get("attempt", 1)),
        queue=queue,
        lane=place.lane,
        lane_reason=reason_of(place.why) or None,
        parked=_parked(place),
        enqueued_at=from_ms(place.enqueued_ms),
        due_at=from_ms(place.due_ms) if place.due_ms else None,
        worker=place.worker,
        **fields,
    )


def _parked(place: Located) -> dict[str, Any] | None:
    if place.gate is None:
        return None
    return {"gate": str(place.gate), "since": from_ms(place.parked_ms), "before": place.before}


def _of_letter(queue: str, letter: DeadLetter) -> JobStatus:
    """Tell what a dead letter says of its job; of one that nobody can read, what is certain."""
    record = LetterRecord.of(letter.record)
    error = record.error
    return JobStatus(
        id=letter.job_id,
        state="dead",
        queue=queue,
        handler=record.handler,
        user=record.key,
        attempt=record.attempt,
        max_attempts=record.max_attempts,
        crashes=record.crashes,
        enqueued_at=_moment(record.enqueued_ms),
        started_at=_moment(record.begun_ms),
        finished_at=_moment(record.finished_ms or int(letter.id.partition(b"-")[0])),
        lane=record.lane,
        error={
            "type": error.type or None,
            "message": error.message or None,
            "fingerprint": error.fingerprint or None,
        },
    )


def _moment(ms: int) -> datetime | None:
    return from_ms(ms) if 0 < ms < _LAST_MS else None


def _ended(job: JobStatus) -> tuple[float, str]:
    return (job.finished_at.timestamp() if job.finished_at else 0.0, job.id)


def _updated(job: JobStatus, place: Located | None) -> JobStatus:
    if place is None:
        return job
    now = _of_place(job.queue, place)
    started_at = job.started_at if now.state != "queued" else None
    return replace(
        job, state=now.state, attempt=now.attempt, lane=now.lane,
        lane_reason=now.lane_reason or job.lane_reason, parked=now.parked, due_at=now.due_at, started_at=started_at,
        worker=now.worker or job.worker,
    )  # fmt: skip


def _enqueued(job: JobStatus) -> tuple[float, str]:
    return (job.enqueued_at.timestamp() if job.enqueued_at else 0.0, job.id)
