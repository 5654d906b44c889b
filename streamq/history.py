"""What became of jobs, read from `job_status`: for the API and the command line. Each query is served by an index."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from streamq.mongo import Statuses

__all__ = ["Filter", "History", "JobStatus", "Page"]

READ_LIMIT_S = 2.0
COUNT_LIMIT_S = 30.0

_NEWEST_FIRST = (("enqueued_at", -1), ("_id", -1))
_LATEST_END_FIRST = (("finished_at", -1), ("_id", -1))
_LONG_FIELDS = ("result",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs to list; what is None or empty does not matter. Only fields that an index knows."""

    states: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    user: str | None = None
    since: datetime | None = None
    """Enqueued then or later."""
    until: datetime | None = None
    """Enqueued before."""


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
    version: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the job was still to end when this was written."""
        return self.state in _LIVE


_LIVE = frozenset(state.value for state in State if not state.is_terminal)
_STATES = tuple(state.value for state in State)
_FIELDS = frozenset(known.name for known in fields(JobStatus))


class History:
    """Questions about jobs.

    Every method raises `HistoryUnavailable` when MongoDB does not answer within a time that a person would wait.
    """

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses

    async def of_user(self, user: str, *, limit: int = 10) -> list[JobStatus]:
        """List the jobs of a user, the one that was enqueued last first."""
        return await self._list({"user": user}, _NEWEST_FIRST, limit)

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

    async def page(self, which: Filter, *, limit: int, after: tuple[datetime, str] | None = None) -> Page:
        """List jobs by the time of their enqueue, newest first.

        A page begins behind a job, not at a number, so that none is shown twice or left out when new ones come in.
        """
        query = _times(which, after)
        if which.user is not None:
            query["user"] = which.user
        if which.states or which.queues:
            # The index of states begins with the queue: with all of them named, it can still give the order.
            queues = which.queues or await self._statuses.queues(limit_s=READ_LIMIT_S)
            query |= {"queue": {"$in": list(queues)}, "state": {"$in": list(which.states or _STATES)}}
        found = await self._list(query, _NEWEST_FIRST, limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        following = (last.enqueued_at, last.id) if last is not None and last.enqueued_at is not None else None
        return Page(found[:limit], following)

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

    async def _list(self, query: dict[str, Any], sort: Sequence[tuple[str, int]], limit: int) -> list[JobStatus]:
        found = await self._statuses.find(query, sort=sort, limit=limit, without=_LONG_FIELDS, limit_s=READ_LIMIT_S)
        return [status_of(document) for document in found]


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


def status_of(document: Mapping[str, Any]) -> JobStatus:
    """Make a value of a document; fields of later versions are left out."""
    known: dict[str, Any] = {name: value for name, value in document.items() if name in _FIELDS}
    known.setdefault("state", "")
    return JobStatus(id=str(document["_id"]), **known)
