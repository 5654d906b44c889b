"""What became of jobs, read from `job_status`: for the API and the command line. Each query is served by an index."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.clock import from_ms
from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from streamq.mongo import Statuses

__all__ = ["ErrorGroup", "Errors", "Filter", "History", "JobStatus", "Page", "Round", "errors_of", "notes_told"]

READ_LIMIT_S = 2.0
COUNT_LIMIT_S = 30.0
GROUP_LIMIT_S = 4.0

_NEWEST_FIRST = (("enqueued_at", -1), ("_id", -1))
_LATEST_END_FIRST = (("finished_at", -1), ("_id", -1))
_LONG_FIELDS = ("result", "log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs to list; what is None or empty does not matter. Only fields that an index knows."""

    states: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    handler: str | None = None
    user: str | None = None
    error_type: str | None = None
    """Type of the error of the last attempt."""
    since: datetime | None = None
    """Enqueued then or later."""
    until: datetime | None = None
    """Enqueued before."""

    def takes(self, job: JobStatus, *, ended: bool = False) -> bool:
        """Tell whether a job is one of these; with `ended`, the times are those of its end."""
        at = job.finished_at if ended else job.enqueued_at
        return (
            (not self.states or job.state in self.states)
            and (not self.queues or job.queue in self.queues)
            and self._has_words(job)
            and (self.since is None or (at is not None and at >= self.since))
            and (self.until is None or (at is not None and at < self.until))
        )

    def _has_words(self, job: JobStatus) -> bool:
        pairs = (self.handler, job.handler), (self.user, job.user), (self.error_type, (job.error or {}).get("type"))
        return all(wanted is None or wanted == there for wanted, there in pairs)


class ErrorGroup(NamedTuple):
    """Dead jobs that died of the same."""

    handler: str
    queue: str
    type: str
    message: str
    """Of the newest of them."""
    fingerprint: str
    jobs: int
    users: int
    first_at: datetime | None
    last_at: datetime | None
    last_job: str


class Errors(NamedTuple):
    """What jobs died of."""

    groups: list[ErrorGroup]
    """The most frequent first."""
    counted: int
    """Jobs in all groups."""
    is_complete: bool
    """Whether all dead jobs were looked at."""


class Page(NamedTuple):
    """A part of a list."""

    jobs: list[JobStatus]
    after: tuple[datetime, str] | None
    """Where the next page begins; None on the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """The status of one job. Points in time are aware, in UTC; what is not known is None."""

    id: str
    state: str
    queue: str = ""
    handler: str = ""
    user: str | None = None
    attempt: int = 1
    """Number of the current or last attempt."""
    max_attempts: int = 0
    """0: as the handler says."""
    lane: str = ""
    lane_reason: str | None = None
    """Why the job counts as slow, in words; None for one that nobody knows to be slow."""
    parked: Mapping[str, Any] | None = None
    """Of a job that waits at a gate: `gate` in words, `since`, and `before`, how many others of the gate come first."""
    crashes: int = 0
    enqueued_at: datetime | None = None
    due_at: datetime | None = None
    started_at: datetime | None = None
    """Start of the current or last attempt."""
    finished_at: datetime | None = None
    wait_ms: int | None = None
    """From the enqueue to the start of the first attempt."""
    run_ms: int | None = None
    worker: str = ""
    error: Mapping[str, Any] | None = None
    """`type`, `message`, `traceback`, `fingerprint` of the last attempt."""
    result: Any = None
    result_error: str | None = None
    """Why there is no result although the job returned one."""
    occurrence: str | None = None
    schedule: str | None = None
    attempts: Sequence[Mapping[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Oldest first, the last 20."""
    progress: Mapping[str, Any] | None = None
    """`fraction` from 0 to 1, and `note`, as the handler of the last attempt told it."""
    log: Sequence[Mapping[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Lines that the handler of the last attempt told, each with `at` and `line`, oldest first; the last 100."""
    log_lines: int = 0
    """How many lines it told in all."""
    version: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the job was still to end when this was written."""
        return self.state in _LIVE


_LIVE = frozenset(state.value for state in State if not state.is_terminal)
_STATES = tuple(state.value for state in State)
_FIELDS = frozenset(known.name for known in fields(JobStatus))


class Round(NamedTuple):
    """What the reconciler last found in a queue."""

    queue: str
    at: datetime
    findings: Mapping[str, int]
    """By kind; see `streamq.recorder.KINDS`."""
    outbox_max: int
    """The most entries of the outbox."""


class History:
    """Questions about jobs.

    Every method raises `HistoryUnavailable` when MongoDB does not answer within a time that a person would wait.
    """

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    async def of_user(self, user: str, *, limit: int = 10) -> list[JobStatus]:
        """List the jobs of a user with their results, the one that was enqueued last first."""
        return await self._list({"user": user}, _NEWEST_FIRST, limit, without=("log",))

    async def recent(self, limit: int) -> list[JobStatus]:
        """List the jobs that were enqueued last, newest first."""
        return await self._list({}, _NEWEST_FIRST, limit)

    async def failed(self, limit: int) -> list[JobStatus]:
        """List the jobs that are dead, the one that died last first."""
        return await self._list({"state": State.DEAD.value}, _LATEST_END_FIRST, limit)

    async def job(self, job_id: str) -> JobStatus | None:
        """Find a job by its id."""
        found = await self._statuses.find({"_id": job_id}, limit=1, limit_s=READ_LIMIT_S)
        return status_of(found[0]) if found else None

    async def completed(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return those of these jobs that have completed, without their attempts."""
        query = {"_id": {"$in": list(job_ids)}, "state": State.COMPLETED.value}
        found = await self._statuses.find(query, without=("attempts", "log"), limit_s=READ_LIMIT_S)
        return {document["_id"]: status_of(document) for document in found}

    async def page(self, which: Filter, *, limit: int, after: tuple[datetime, str] | None = None) -> Page:
        """List jobs by the time of their enqueue, newest first.

        A page begins behind a job, not at a number, so that none is shown twice or left out when new ones come in.
        """
        query = _times(which, after)
        words = {"user": which.user, "handler": which.handler, "error.type": which.error_type}
        query |= {name: word for name, word in words.items() if word is not None}
        if which.states or which.queues:
            # The index of states begins with the queue: with all of them named, it can still give the order.
            queues = which.queues or await self._statuses.queues(limit_s=READ_LIMIT_S)
            query |= {"queue": {"$in": list(queues)}, "state": {"$in": list(which.states or _STATES)}}
        found = await self._list(query, _NEWEST_FIRST, limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        following = (last.enqueued_at, last.id) if last is not None and last.enqueued_at is not None else None
        return Page(found[:limit], following)

    async def errors(self, which: Filter, *, most: int) -> Errors:
        """Group dead jobs by what they died of. The times of the filter are those of their end.

        Args:
            which: Which jobs; the states do not matter.
            most: How many of the newest are looked at, before the filter leaves any out.
        """
        dead: dict[str, Any] = {"state": State.DEAD.value, **_span("finished_at", which)}
        words = {"handler": which.handler, "user": which.user, "error.type": which.error_type}
        left: dict[str, Any] = {name: word for name, word in words.items() if word is not None}
        if which.queues:
            left["queue"] = {"$in": list(which.queues)}
        newest: list[dict[str, Any]] = [{"$match": dead}, {"$sort": dict(_LATEST_END_FIRST)}, {"$limit": most}]
        found = await self._statuses.aggregate([*newest, {"$match": left}, *_BY_ERROR], limit_s=GROUP_LIMIT_S)
        looked = await self._statuses.aggregate([*newest, {"$count": "jobs"}], limit_s=GROUP_LIMIT_S)
        groups = [_group(document) for document in found]
        return Errors(groups, sum(group.jobs for group in groups), not looked or looked[0]["jobs"] < most)

    async def series(self, which: Filter, *, step_s: int) -> list[tuple[datetime, dict[str, int]]]:
        """Count jobs over time, by when they were enqueued and their state; steps without jobs are left out.

        Args:
            which: Queues and times; nothing else counts.
            step_s: The width of a step: 60, 3600 or 86400.
        """
        queues = which.queues or await self._statuses.queues(limit_s=READ_LIMIT_S)
        query = {"queue": {"$in": list(queues)}, "state": {"$in": list(_STATES)}, **_span("enqueued_at", which)}
        unit = {60: "minute", 3_600: "hour", 86_400: "day"}[step_s]
        by = {"at": {"$dateTrunc": {"date": "$enqueued_at", "unit": unit}}, "state": "$state"}
        pipeline = [{"$match": query}, {"$group": {"_id": by, "jobs": {"$sum": 1}}}, {"$sort": {"_id.at": 1}}]
        points: dict[datetime, dict[str, int]] = {}
        for document in await self._statuses.aggregate(pipeline, limit_s=GROUP_LIMIT_S):
            points.setdefault(document["_id"]["at"], {})[document["_id"]["state"]] = document["jobs"]
        return list(points.items())

    async def rounds(self) -> list[Round]:
        """Tell what the reconciler last found in each queue."""
        found = await self._statuses.rounds(limit_s=READ_LIMIT_S)
        return [Round(each["_id"], each["at"], each["findings"], each["outbox_max"]) for each in found]

    async def counts(self, queues: Sequence[str]) -> dict[str, dict[str, int]]:
        """Count the jobs of each queue by state, of these queues and of all others that have a status.

        It takes about half a second for each million of jobs: do not call it for every request.
        """
        known = await self._statuses.queues(limit_s=COUNT_LIMIT_S)
        return {queue: await self._counts_of(queue) for queue in dict.fromkeys([*queues, *known])}

    async def _counts_of(self, queue: str) -> dict[str, int]:
        return {
            state.value: await self._statuses.count({"queue": queue, "state": state.value}, limit_s=COUNT_LIMIT_S)
            for state in State
        }

    async def _list(
        self,
        query: dict[str, Any],
        sort: Sequence[tuple[str, int]],
        limit: int,
        without: Sequence[str] = _LONG_FIELDS,
    ) -> list[JobStatus]:
        found = await self._statuses.find(query, sort=sort, limit=limit, without=without, limit_s=READ_LIMIT_S)
        return [status_of(document) for document in found]


_BY_ERROR = (
    {
        "$group": {
            "_id": {
                "handler": "$handler",
                "queue": "$queue",
                "why": {"$ifNull": ["$error.fingerprint", "$error.type"]},
            },
            "jobs": {"$sum": 1},
            "users": {"$addToSet": "$user"},
            "error": {"$first": "$error"},
            "first_at": {"$min": "$finished_at"},
            "last_at": {"$max": "$finished_at"},
            "last_job": {"$first": "$_id"},
        }
    },
    {"$addFields": {"users": {"$size": "$users"}}},
    {"$sort": {"jobs": -1, "last_at": -1}},
    {"$limit": 1_000},
)


def _group(document: Mapping[str, Any]) -> ErrorGroup:
    error, kind = document.get("error") or {}, document["_id"]
    return ErrorGroup(
        handler=kind.get("handler") or "",
        queue=kind.get("queue") or "",
        jobs=document["jobs"],
        users=document["users"],
        first_at=document["first_at"],
        last_at=document["last_at"],
        last_job=document["last_job"],
        **_words(error),
    )


def _words(error: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(error.get(name) or "") for name in ("type", "message", "fingerprint")}


def errors_of(jobs: Sequence[JobStatus], *, is_complete: bool) -> Errors:
    """Group dead jobs, given newest first, as `History.errors` does."""
    groups: dict[tuple[str, str, str], list[JobStatus]] = {}
    for job in jobs:
        error = job.error or {}
        why = str(error.get("fingerprint") or error.get("type") or "")
        groups.setdefault((job.handler, job.queue, why), []).append(job)
    found = [_group_of(members) for members in groups.values()]
    return Errors(sorted(found, key=lambda group: group.jobs, reverse=True), len(jobs), is_complete)


def _group_of(jobs: Sequence[JobStatus]) -> ErrorGroup:
    newest = jobs[0]
    return ErrorGroup(
        handler=newest.handler,
        queue=newest.queue,
        jobs=len(jobs),
        users=len({job.user for job in jobs if job.user is not None}),
        first_at=jobs[-1].finished_at,
        last_at=newest.finished_at,
        last_job=newest.id,
        **_words(newest.error or {}),
    )


def _span(name: str, which: Filter) -> dict[str, Any]:
    span = {"$gte": which.since, "$lt": which.until}
    told = {sign: moment for sign, moment in span.items() if moment is not None}
    return {name: told} if told else {}


def _times(which: Filter, after: tuple[datetime, str] | None) -> dict[str, Any]:
    span: dict[str, Any] = {}
    if which.since is not None:
        span["$gte"] = which.since
    if which.until is not None:
        span["$lt"] = which.until
    if after is None:
        return {"enqueued_at": span} if span else {}
    enqueued_at, job_id = after
    behind = [{"enqueued_at": {"$lt": enqueued_at}}, {"enqueued_at": enqueued_at, "_id": {"$lt": job_id}}]
    # The first line says nothing new, but it is what bounds the walk through the index.
    return {"enqueued_at": {**span, "$lte": enqueued_at}, "$or": behind}


def notes_told(progress: Sequence[Any] | None, log: Iterable[Sequence[Any]], log_lines: int) -> dict[str, Any]:
    """Describe what a handler told of its job, in the fields of `JobStatus`; see `Notes.as_record`."""
    fields: dict[str, Any] = {}
    if progress is not None:
        fields["progress"] = {"fraction": progress[0], "note": progress[1]}
    if log_lines:
        fields |= {"log": [{"at": from_ms(at_ms), "line": line} for at_ms, line in log], "log_lines": log_lines}
    return fields


def status_of(document: Mapping[str, Any]) -> JobStatus:
    """Make a value of a document; fields of later versions are left out."""
    known: dict[str, Any] = {name: value for name, value in document.items() if name in _FIELDS}
    known.setdefault("state", "")
    return JobStatus(id=str(document["_id"]), **known)
