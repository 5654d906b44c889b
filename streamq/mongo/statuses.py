"""The collection `job_status`: how a status gets there so that no older one ever replaces a newer one.

Two kinds of status meet here. A *recorded* one comes from the outbox, whose ids order everything that was recorded. A
*seen* one (queued, running, scheduled) was noticed in Redis in passing; it is ordered by an entry of another stream. So
between the two kinds the attempt decides first: what was recorded of an attempt is final against what was seen of it,
even after the server's clock was set back.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bson.binary import Binary
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from streamq.clock import utc_now
from streamq.errors import HistoryUnavailable
from streamq.job import State
from streamq.logs import event
from streamq.mongo.client import UNENCODABLE, Document, Mongo, is_passing, plain
from streamq.mongo.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

__all__ = ["ATTEMPTS_KEPT", "SEEN_STATES", "Refreshed", "StatusWrite", "Statuses", "Written"]

SEEN_STATES = ("queued", "running", "scheduled")
ATTEMPTS_KEPT = 20

_ENDED = tuple(state.value for state in State if state.is_terminal)
_DUPLICATE_KEY = 11000
_QUARANTINED_BYTES = 1_000_000

# Without it the planner tries out other indexes for each single update, at ten times the cost.
_BY_ID = "_id_"

_LONG = ("attempts", "error", "result")

# What may be left of an earlier status and is no longer true.
_CLEARED_BY_RECORDED = (
    "due_at",
    "error",
    "expires_at",
    "finished_at",
    "log",
    "log_lines",
    "progress",
    "result",
    "result_error",
    "run_ms",
)
_CLEARED_BY_SEEN = ("due_at", "expires_at", "finished_at", "result", "result_error", "run_ms")


class StatusWrite(NamedTuple):
    """What is to be known of a job from now on."""

    job_id: str
    version: int
    is_seen: bool
    fields: Document
    """As in `job_status`, without `_id`, `version` and `attempts`. What is absent here and no longer true is cleared."""
    attempts: list[Document]
    """The attempts that this status adds, oldest first, each with the version of its own record."""
    raw: bytes = b""
    """The record as it came, kept if MongoDB refuses the document."""


@dataclass(slots=True)
class Written:
    """What became of a batch."""

    inserted: int = 0
    updated: int = 0
    stale: int = 0
    """Something newer was there already."""
    quarantined: int = 0
    refused: list[tuple[StatusWrite, str]] = field(default_factory=list[tuple[StatusWrite, str]])


_ALIVE = [state.value for state in State if not state.is_terminal]
_NOT_COMPLETED = [state.value for state in State if state is not State.COMPLETED]
_USERS_AT_ONCE = 1_000


class Refreshed(NamedTuple):
    """Within what time the users of a schedule should have had a job that completed."""

    schedule: str
    queue: str
    now: datetime
    period: timedelta
    periods: int

    @property
    def since(self) -> datetime:
        """When a job should have completed at the latest."""
        return self.now - self.periods * self.period

    @property
    def first(self) -> datetime:
        """When the jobs that count were enqueued at the earliest."""
        return self.since - self.period

    @property
    def last(self) -> datetime:
        """When a job that should have completed by now was enqueued at the latest; the newest ones have just begun."""
        return self.now - self.period if self.periods > 1 else self.now

    def is_stale(self, jobs: Sequence[Document]) -> bool:
        """Tell by the jobs of a user; one who has left, and so has no newer jobs, is not."""
        enqueued = [job["enqueued_at"] for job in jobs]
        goes_on = max(enqueued) >= self.since or any(job["state"] in _ALIVE for job in jobs)
        is_fresh = any(job["state"] == "completed" and job["finished_at"] >= self.since for job in jobs)
        return min(enqueued) < self.since and goes_on and not is_fresh

    def oldest(self, jobs: Sequence[Document]) -> str | None:
        """Return the id of the oldest job that should have completed and has not."""
        waited = [job for job in jobs if job["state"] != "completed" and job["enqueued_at"] <= self.last]
        return min(((job["enqueued_at"], job["_id"]) for job in waited), default=(None, None))[1]


class Statuses:
    """The collections of status documents and of those that were refused."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._jobs = mongo.collection("job_status")
        self._quarantine = mongo.collection("quarantine")
        self._rounds = mongo.collection("reconciler")
        self._log = logging.getLogger(__name__)

    async def prepare(self) -> None:
        """Create what is not there: collections, indexes, the view. Safe to repeat, and for several at once.

        Raises:
            ConfigurationError: An index of that name exists with another definition.
        """
        await Schema(self._mongo).prepare()

    async def write(self, writes: Sequence[StatusWrite]) -> Written:
        """Store statuses, at most one for each job. When it returns all are on disk; repeating it changes nothing.

        A document that MongoDB refuses goes to `quarantine`, and what is certain of it is stored in its place.

        Raises:
            HistoryUnavailable: Some may be stored and some not; repeat the whole.
        """
        done = Written()
        await self._divide(writes, done)
        refused, done.refused = done.refused, []
        for write, reason in refused:
            await self.put_aside(write.job_id, write.version, write.raw, reason)
            done.quarantined += 1
        if reduced := [_reduced(write, reason) for write, reason in refused]:
            await self._divide(reduced, Written())
        return done

    async def put_aside(self, job_id: str, version: int, raw: bytes, reason: str) -> None:
        """Keep a record that cannot become a status, so that it can be looked at. Repeating it changes nothing."""
        document = {
            "job": job_id,
            "version": version,
            "reason": reason[:2000],
            "record": Binary(raw[:_QUARANTINED_BYTES]),
            "at": utc_now(),
        }
        event(self._log, logging.ERROR, "status.quarantined", job=job_id, reason=reason[:200])
        try:
            with self._mongo.translated():
                await self._quarantine.replace_one({"_id": f"{job_id}@{version}"}, document, upsert=True)
        except OperationFailure as error:
            raise HistoryUnavailable(f"MongoDB at {self._mongo.where} takes no quarantine: {error}") from error

    async def find(
        self,
        query: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        without: Iterable[str] = (),
        limit_s: float = 10,
    ) -> list[Document]:
        """Read status documents; `limit` 0 reads all."""
        with self._mongo.translated(), self._mongo.patience(limit_s):
            cursor = self._jobs.find(query, dict.fromkeys(without, 0) or None, limit=limit)
            found = await (cursor.sort(list(sort)) if sort else cursor).to_list()
        for document in found:  # all else in it is ours, and walking through it costs a third of a list
            if "result" in document:
                document["result"] = plain(document["result"])
        return found

    async def live(
        self, queue: str, state: str, *, after: tuple[datetime, str] | None, before: datetime, limit: int
    ) -> list[Document]:
        """List jobs of a queue that are to end, oldest first, behind one of them; only what tells them apart.

        Args:
            queue: Whose jobs.
            state: One that is not terminal.
            after: Enqueue time and id of the last one already known.
            before: Only what was enqueued before.
            limit: The most.
        """
        span: Document = {"$lt": before}
        query: Document = {"queue": queue, "state": state, "enqueued_at": span}
        if after is not None:
            span["$gte"] = after[0]
            query["$or"] = [{"enqueued_at": {"$gt": after[0]}}, {"enqueued_at": after[0], "_id": {"$gt": after[1]}}]
        return await self.find(query, sort=(("enqueued_at", 1), ("_id", 1)), limit=limit, without=_LONG)

    async def of(self, job_ids: Sequence[str]) -> dict[str, Document]:
        """Return the statuses of these jobs, without what may be long in them."""
        found = await self.find({"_id": {"$in": list(job_ids)}}, without=_LONG)
        return {document["_id"]: document for document in found}

    async def note_round(self, queue: str, findings: Mapping[str, int], outbox_max: int) -> None:
        """Keep what the reconciler found last in a queue, by kind, and how much the outbox may hold."""
        with self._mongo.translated():
            await self._rounds.replace_one(
                {"_id": queue}, {"at": utc_now(), "findings": dict(findings), "outbox_max": outbox_max}, upsert=True
            )

    async def rounds(self, *, limit_s: float) -> list[Document]:
        """Return what the reconciler found last, one document for each queue (`_id`)."""
        with self._mongo.translated(), self._mongo.patience(limit_s):
            return await self._rounds.find().to_list()

    async def count(self, query: Document, *, limit_s: float) -> int:
        """Count status documents."""
        with self._mongo.translated(), self._mongo.patience(limit_s):
            return await self._jobs.count_documents(query)

    async def aggregate(self, pipeline: Sequence[Document], *, limit_s: float) -> list[Document]:
        """Run a pipeline over the status documents."""
        with self._mongo.translated(), self._mongo.patience(limit_s):
            found = await (await self._jobs.aggregate(list(pipeline))).to_list()
        return [plain(document) for document in found]

    async def queues(self, *, limit_s: float) -> list[str]:
        """List the queues that there are statuses of."""
        with self._mongo.translated(), self._mongo.patience(limit_s):
            return [str(queue) for queue in await self._jobs.distinct("queue")]

    async def stale_users(self, wanted: Refreshed, *, most: int, limit_s: float) -> int:
        """Count users who have had jobs of a schedule for so many periods, and none that completed.

        Whoever is stale has a job of those occurrences that has not completed, and few have: those are read along an
        index, oldest first, and looked at a thousand users at a time. So time and memory follow what fails, not the users.

        Args:
            wanted: Of which schedule, and for how long.
            most: Counting ends there.
            limit_s: How long it may take in all.

        Raises:
            HistoryUnavailable: MongoDB is away, too slow, or has not got streamq's indexes.
        """
        count = 0
        query = {
            "queue": wanted.queue, "state": {"$in": _NOT_COMPLETED}, "schedule": wanted.schedule, "user": {"$exists": True},
            "enqueued_at": {"$gte": wanted.first, "$lte": wanted.last},
        }  # fmt: skip
        try:
            with self._mongo.translated(), self._mongo.patience(limit_s):
                found = self._jobs.find(query, {"user": 1}, batch_size=_USERS_AT_ONCE)
                found = found.sort([("enqueued_at", 1), ("_id", 1)]).hint("by_queue_and_state")
                while count < most and (jobs := await found.to_list(_USERS_AT_ONCE)):
                    count += await self._stale_among({job["_id"]: job["user"] for job in jobs}, wanted)
        except OperationFailure as error:
            raise HistoryUnavailable(f"MongoDB at {self._mongo.where} cannot count stale users: {error}") from error
        return min(count, most)

    async def _stale_among(self, jobs: Mapping[str, str], wanted: Refreshed) -> int:
        """Count the stale users among those of some jobs, each at the oldest of its jobs that has not completed."""
        users = list(set(jobs.values()))
        query = {"user": {"$in": users}, "enqueued_at": {"$gte": wanted.first}, "schedule": wanted.schedule}
        wants = {"user": 1, "state": 1, "enqueued_at": 1, "finished_at": 1}
        theirs: dict[str, list[Document]] = {user: [] for user in users}
        for job in await self._jobs.find(query, wants).hint("by_user").to_list():
            theirs[job["user"]].append(job)
        return sum(1 for each in theirs.values() if wanted.is_stale(each) and wanted.oldest(each) in jobs)

    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Return which of these jobs there is a status of."""
        with self._mongo.translated():
            found = await self._jobs.find({"_id": {"$in": list(job_ids)}}, {"_id": 1}).to_list()
        return {str(each["_id"]) for each in found}

    async def forget(self, job_id: str) -> bool:
        """Delete the status of a job that has ended. Returns whether there was one."""
        with self._mongo.translated():
            done = await self._jobs.delete_one({"_id": job_id, "state": {"$in": list(_ENDED)}})
        return done.deleted_count == 1

    async def _divide(self, writes: Sequence[StatusWrite], done: Written) -> None:
        """Write a batch; if it is refused as a whole, find what is to blame by halves."""
        try:
            await self._write(writes, done)
        except HistoryUnavailable:
            raise
        except (OperationFailure, *UNENCODABLE) as error:
            if len(writes) == 1:
                done.refused.append((writes[0], str(error)))
                return
            middle = len(writes) // 2
            await self._divide(writes[:middle], done)
            await self._divide(writes[middle:], done)

    async def _write(self, writes: Sequence[StatusWrite], done: Written) -> None:
        """Insert what is new and update what exists.

        A look beforehand costs far less than an insert that is refused. What appears in between is found out all the same.
        """
        there = await self._existing([write.job_id for write in writes])
        new = [write for write in writes if write.job_id not in there]
        refused_before = len(done.refused)
        overtaken = await self._bulk([InsertOne(_document(write)) for write in new], new, done)
        done.inserted += len(new) - len(overtaken) - (len(done.refused) - refused_before)
        known = [write for write in writes if write.job_id in there] + overtaken
        if known:
            await self._renew(known, done)

    async def _renew(self, known: Sequence[StatusWrite], done: Written) -> None:
        several = [write for write in known if len(write.attempts) > 1]
        await self._bulk([_forget_attempts(write) for write in several], several, done)
        refused_before = len(done.refused)
        stale = await self._bulk([_update(write) for write in known], known, done)
        done.updated += len(known) - len(stale) - (len(done.refused) - refused_before)
        done.stale += len(stale)
        missed = [(write, attempt) for write in stale for attempt in write.attempts]
        await self._bulk([_late_attempt(*pair) for pair in missed], [write for write, _ in missed], done)

    async def _existing(self, job_ids: Sequence[str]) -> set[str]:
        """Tell which of these jobs have a status; answered by the index alone."""
        with self._mongo.translated():
            found = await self._jobs.find(
                {"_id": {"$in": list(job_ids)}}, {"_id": 1}, batch_size=len(job_ids)
            ).to_list()
        return {document["_id"] for document in found}

    async def _bulk(
        self,
        operations: Sequence[InsertOne[Document] | UpdateOne],
        writes: Sequence[StatusWrite],
        done: Written,
    ) -> list[StatusWrite]:
        """Run operations, one for each write. Returns the writes whose document was there already."""
        if not operations:
            return []
        try:
            with self._mongo.translated():
                await self._jobs.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            return self._sort_out(error.details, writes, done)
        return []

    def _sort_out(self, details: Mapping[str, Any], writes: Sequence[StatusWrite], done: Written) -> list[StatusWrite]:
        if concern := details.get("writeConcernErrors"):
            raise HistoryUnavailable(f"MongoDB at {self._mongo.where} cannot confirm writes: {concern[0]['errmsg']}")
        there: list[StatusWrite] = []
        for failure in details["writeErrors"]:
            index: int = failure["index"]
            write = writes[index]
            if failure["code"] == _DUPLICATE_KEY:
                there.append(write)
            elif is_passing(failure["code"]):
                raise HistoryUnavailable(f"MongoDB at {self._mongo.where} cannot write now: {failure['errmsg']}")
            else:
                done.refused.append((write, failure["errmsg"]))
        return there


def _document(write: StatusWrite) -> Document:
    kept = write.attempts[-ATTEMPTS_KEPT:]
    return {"_id": write.job_id, **write.fields, "attempts": kept, "version": write.version}


def _guard(write: StatusWrite) -> Document:
    """Match the job's document if this status may replace what is there; see the top of this file."""
    version, attempt = write.version, write.fields.get("attempt", 1)
    same_life = {"enqueued_at": write.fields.get("enqueued_at")}
    if not write.is_seen:
        overrules = {"state": {"$in": SEEN_STATES}, "attempt": {"$lte": attempt}, **same_life}
        return {"_id": write.job_id, "$or": [{"version": {"$lt": version}}, overrules]}
    settled = {"state": {"$nin": SEEN_STATES}, "attempt": {"$gte": attempt}, **same_life}
    # A job has one lane entry while it waits and while it runs, so running may replace what has the same version.
    older = {"$lte": version} if write.fields["state"] == "running" else {"$lt": version}
    return {"_id": write.job_id, "version": older, "$nor": [settled]}


def _update(write: StatusWrite) -> UpdateOne:
    cleared = _CLEARED_BY_SEEN if write.is_seen else _CLEARED_BY_RECORDED
    gone = {name: "" for name in cleared if name not in write.fields}
    change: Document = {"$set": {**write.fields, "version": write.version}, "$unset": gone}
    if write.attempts:
        change["$push"] = {"attempts": _appended(write.attempts)}
    # With a document there that the guard does not match, the upsert is refused as a duplicate: that is how a stale
    # status shows itself. A document that expired since the insert was tried is made anew.
    return UpdateOne(_guard(write), change, upsert=True, hint=_BY_ID)


def _forget_attempts(write: StatusWrite) -> UpdateOne:
    """Take out attempts that were stored before and come again, together with later ones."""
    versions = [attempt["version"] for attempt in write.attempts]
    return UpdateOne({"_id": write.job_id}, {"$pull": {"attempts": {"version": {"$in": versions}}}})


def _late_attempt(write: StatusWrite, attempt: Document) -> UpdateOne:
    """Add an attempt to a job whose later attempt was stored first."""
    missing = {"_id": write.job_id, "attempts.version": {"$ne": attempt["version"]}}
    return UpdateOne(missing, {"$push": {"attempts": _appended([attempt])}})


def _appended(attempts: Sequence[Document]) -> Document:
    return {"$each": list(attempts), "$sort": {"version": 1}, "$slice": -ATTEMPTS_KEPT}


def _reduced(write: StatusWrite, reason: str) -> StatusWrite:
    """Keep of a refused document what cannot have been the cause."""
    certain = ("attempt", "enqueued_at", "expires_at", "finished_at", "queue", "started_at", "state")
    fields = {name: write.fields[name] for name in certain if name in write.fields}
    return write._replace(fields={**fields, "result_error": f"refused by MongoDB: {reason[:200]}"}, attempts=[])
