"""The four original routes, in the shapes and words of the system that streamq replaces. Pure but for `Desk`.

Its words differ from ours: a job is waiting, active, delayed, completed or failed there. Both are told.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from streamq.api.answers import Problem, iso
from streamq.api.whole import together
from streamq.errors import StreamQError
from streamq.keys import queue_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from streamq.api.stores import Stores, Tally
    from streamq.broker.inspection import Counts
    from streamq.history import JobStatus

__all__ = ["Desk"]

WORDS = {
    "scheduled": "delayed",
    "queued": "waiting",
    "running": "active",
    "retrying": "delayed",
    "completed": "completed",
    "dead": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}
"""Our states in the original's words."""

HISTORY_OF_A_USER = 10
LOOKED_THROUGH = 500
"""How many of the newest live jobs are looked through for a user's while MongoDB is away."""

T = TypeVar("T")


class Desk:
    """Answers the four questions from whichever servers are there."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def stats(self) -> dict[str, Any]:
        """Count the jobs of all queues and of each."""
        live, tally = await asyncio.gather(_maybe(self._stores.counts()), self._stores.tally())
        if live is None and (tally is None or not self._stores.mongodb.is_up):
            raise _both_away()
        past = _by_queue(tally)
        held = (
            {name: together([live[part] for part in parts]) for name, parts in self._stores.wholes.items()}
            if live
            else {}
        )
        queues = {
            name: _queue_stats(
                held.get(name), past.get(name, {}) if past is not None else None, self._stores.dead_after_ms
            )
            for name in dict.fromkeys([*self._stores.wholes, *(past or ())])
        }
        return {
            **_sum(queues.values()),
            "queues": queues,
            "countedAt": iso_ms(tally),
            "stale": live is None or tally is None or not self._stores.mongodb.is_up,
        }

    async def user(self, user: str) -> dict[str, Any]:
        """Tell the latest job of a user, and those before it."""
        known = await _maybe(self._stores.ask_history(lambda history: history.of_user(user, limit=HISTORY_OF_A_USER)))
        live = await _maybe(self._live_of(user, known))
        if live is None and known is None:
            raise _both_away()
        jobs = _newest_first([*(live or ()), *(known or ())])
        if not jobs and (live is None or known is None):
            away = "MongoDB" if known is None else "Redis"
            raise Problem(503, f"nothing is known of this user while {away} is away", kind="store-away")
        if not jobs:
            raise Problem(404, "no job of this user is known", kind="user-unknown")
        latest, *earlier = jobs
        return {
            "userId": user,
            **_job(latest if latest.state == "completed" else replace(latest, result=None)),
            "history": [{**_job(job), "result": None} for job in earlier],
            "stale": live is None or known is None,
        }

    async def recent(self, limit: int) -> dict[str, Any]:
        """List the jobs that were enqueued last."""
        known = await _maybe(self._stores.ask_history(lambda history: history.recent(limit)))
        live = await _maybe(self._newest(limit, known))
        if live is None and known is None:
            raise _both_away()
        jobs = _newest_first([*(live or ()), *(known or ())])[:limit]
        return {"jobs": [_job(job) for job in jobs], "limit": limit, "stale": live is None or known is None}

    async def failed(self, limit: int) -> dict[str, Any]:
        """List the jobs that died last. While MongoDB is away, what Redis keeps of them."""
        known = await _maybe(self._stores.ask_history(lambda history: history.failed(limit)))
        if known is not None:
            return {"jobs": [_job(job) for job in known], "limit": limit, "stale": False}
        letters = await _maybe(self._stores.dead(limit))
        if letters is None:
            raise _both_away()
        return {"jobs": [_job(job) for job in letters], "limit": limit, "stale": True}

    async def _live_of(self, user: str, known: Sequence[JobStatus] | None) -> list[JobStatus]:
        if known is None:
            newest = await self._stores.newest(LOOKED_THROUGH)
            return [job for job in newest if job.user == user]
        # A job that was enqueued a moment ago is not in the history yet, but holds the dedup key of its handler.
        keys = dict.fromkeys([user, *(f"{job.handler}:{user}" for job in known if job.handler)])
        held = await self._stores.held_by(list(keys))
        return [*(job for job in held if job.user == user), *await self._stores.brought_up_to_date(known)]

    async def _newest(self, limit: int, known: Sequence[JobStatus] | None) -> list[JobStatus]:
        return [*await self._stores.newest(limit), *await self._stores.brought_up_to_date(known or ())]


def iso_ms(tally: Tally | None) -> str | None:
    """Write when the history was counted."""
    return iso(tally.as_of) if tally else None


async def _maybe(answer: Awaitable[T]) -> T | None:
    """Return the answer of a server, or None if it is away."""
    try:
        return await answer
    except StreamQError:
        return None


def _both_away() -> Problem:
    return Problem(503, "neither Redis nor MongoDB can be reached", kind="stores-away", headers={"retry-after": "2"})


def _newest_first(jobs: Sequence[JobStatus]) -> list[JobStatus]:
    """Sort by enqueue time; of several views of a job the first counts, filled up from the others."""
    seen: dict[str, JobStatus] = {}
    for job in jobs:
        known = seen.get(job.id)
        seen[job.id] = job if known is None else replace(known, attempts=known.attempts or job.attempts)
    return sorted(seen.values(), key=_enqueued, reverse=True)


def _enqueued(job: JobStatus) -> tuple[float, str]:
    return (job.enqueued_at.timestamp() if job.enqueued_at else 0.0, job.id)


def _by_queue(tally: Tally | None) -> dict[str, Counter[str]] | None:
    """Count the history by queue and state; the partitions of a queue are one."""
    if tally is None:
        return None
    past: dict[str, Counter[str]] = {}
    for name, states in tally.counts.items():
        past.setdefault(queue_of(name), Counter()).update(states)
    return past


def _queue_stats(live: Counts | None, counted: Mapping[str, int] | None, dead_after_ms: int) -> dict[str, Any]:
    """Count one queue: what lives by Redis if it is there, what has ended by the history."""
    past = counted or {}
    stats: dict[str, Any] = {
        "waiting": past.get("queued", 0),
        "active": past.get("running", 0),
        "delayed": past.get("scheduled", 0) + past.get("retrying", 0),
        "completed": past.get("completed", 0) if counted is not None else None,
        "failed": past.get("dead", 0) if counted is not None else None,
        "paused": 0,
        "isPaused": False,
    }
    if live is not None:
        stats |= _live_stats(live, dead_after_ms)
        # The letters that Redis keeps are the newest failures: the least that can be said.
        stats["failed"] = live.dead if counted is None else stats["failed"]
    return stats


def _live_stats(live: Counts, dead_after_ms: int) -> dict[str, Any]:
    pause = live.pause
    return {
        "waiting": live.waiting,
        "active": live.in_flight,
        "delayed": live.delayed,
        "paused": live.waiting if pause else 0,
        "isPaused": pause is not None,
        **({"pausedBecause": pause.reason, "pausedBy": pause.by} if pause else {}),
        "oldestWaitMs": live.oldest_wait_ms,
        "workers": live.workers_alive(dead_after_ms),
        "lanes": {name: lane._asdict() for name, lane in live.lanes.items() if any(lane)},
    }


def _sum(queues: Any) -> dict[str, int | None]:
    """Add up the queues; a number that is not known for one is not known for all."""
    total: dict[str, int | None] = {}
    stats = list(queues)
    for word in ("waiting", "active", "delayed", "completed", "failed", "paused"):
        numbers = [queue[word] for queue in stats]
        total[word] = None if None in numbers else sum(numbers)
    return total


def _job(job: JobStatus) -> dict[str, Any]:
    """Write a job as the original's collection had it, and our own words beside."""
    error = job.error or {}
    return {
        "jobId": job.id,
        "userId": job.user,
        "jobName": job.handler,
        "queue": queue_of(job.queue),
        "status": WORDS.get(job.state, job.state),
        "state": job.state,
        "attempts": _attempts_made(job),
        "maxAttempts": job.max_attempts or None,
        "enqueuedAt": iso(job.enqueued_at),
        "scheduledFor": iso(job.due_at),
        "startedAt": iso(job.started_at),
        "completedAt": iso(job.finished_at),
        "waitMs": job.wait_ms,
        "durationMs": job.run_ms,
        "worker": job.worker or None,
        "error": error.get("message"),
        "errorType": error.get("type"),
        "result": job.result,
        "resultError": job.result_error,
        "occurrence": job.occurrence,
        "attemptLog": [_attempt(attempt) for attempt in job.attempts],
    }


def _attempts_made(job: JobStatus) -> int:
    """Count the attempts that have begun."""
    return job.attempt - 1 if job.state in ("queued", "scheduled") else job.attempt


def _attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    error: Mapping[str, Any] = attempt.get("error") or {}
    return {
        "attempt": attempt.get("number"),
        "status": WORDS.get(attempt.get("state", ""), attempt.get("state")),
        "startedAt": iso(attempt.get("started_at")),
        "finishedAt": iso(attempt.get("finished_at")),
        "worker": attempt.get("worker"),
        "error": error.get("message"),
        "errorType": error.get("type"),
    }
