"""The API in streamq's own words: jobs, queues, workers. Changes within /v1 only ever add."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import orjson
from starlette.responses import Response
from starlette.routing import Route

from streamq.api.answers import Json, Problem, iso
from streamq.api.paths import ANYTHING
from streamq.errors import StreamQError
from streamq.history import Filter, JobStatus
from streamq.job import State
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from starlette.requests import Request

    from streamq.api.stores import Stores
    from streamq.broker.inspection import Counts, WorkerSeen

__all__ = ["ROUTES"]

DEFAULT_LIMIT, MOST = 50, 200
MOST_BODY_BYTES = 16_384
MOST_PAUSE_S = 30 * 86_400
_PARAMETERS = frozenset({"state", "queue", "user", "since", "until", "limit", "cursor"})

_log = logging.getLogger(__name__)
T = TypeVar("T")


class PauseOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `:pause`."""

    reason: str = ""
    for_s: float = 0
    """0: until it is resumed."""


async def _jobs(request: Request) -> Response:
    """List jobs, newest first."""
    which, limit = _filter(request), _limit(request)
    after = _after(request, which)
    stores = _stores(request)
    page = await _or_503(stores.ask_history(lambda history: history.page(which, limit=limit, after=after)), "MongoDB")
    jobs, is_stale = await _up_to_date(stores, page.jobs)
    following = _cursor(which, page.after) if page.after else None
    links = {"link": f'<{request.url.include_query_params(cursor=following)}>; rel="next"'} if following else {}
    return Json({"items": [_job(job) for job in jobs], "next": following, "stale": is_stale}, headers=links)


async def _one_job(request: Request) -> Response:
    """Tell all about a job. Its ETag changes whenever anything about it does."""
    stores, job_id = _stores(request), request.path_params["job_id"]
    known, live = None, None
    errors: list[StreamQError] = []
    try:
        known = await stores.ask_history(lambda history: history.job(job_id))
    except StreamQError as error:
        errors.append(error)
    try:
        live = await stores.live(job_id)
    except StreamQError as error:
        errors.append(error)
    job = _joined(known, live)
    if job is None and errors:
        raise Problem(503, "the server that would know this job is away", kind="store-away")
    if job is None:
        raise Problem(404, "no such job is known; its status may have expired", kind="job-unknown")
    answer = Json({**_job(job), "stale": bool(errors)})
    etag = f'"{hashlib.sha256(answer.body).hexdigest()[:24]}"'
    answer.headers.update({"etag": etag, "cache-control": "no-cache"})
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": etag})
    return answer


async def _queues(request: Request) -> Response:
    """List the queues."""
    stores = _stores(request)
    counts = await _or_503(stores.counts(), "Redis")
    return Json({"items": [_queue(name, each, stores.dead_after_ms) for name, each in counts.items()]})


async def _one_queue(request: Request) -> Response:
    """Tell what a queue holds."""
    stores, name = _stores(request), _queue_name(request)
    counts = await _or_503(stores.counts(), "Redis")
    return Json(_queue(name, counts[name], stores.dead_after_ms))


async def _pause(request: Request) -> Response:
    """Let no worker start a job of a queue."""
    stores, name = _stores(request), _queue_name(request)
    order = await _body(request, PauseOrder)
    if not 0 <= order.for_s <= MOST_PAUSE_S or len(order.reason) > 500:
        raise _bad("body", f"for_s is 0 to {MOST_PAUSE_S}, and reason at most 500 characters")
    await _or_503(stores.pause(name, reason=order.reason, by="api", for_ms=int(order.for_s * 1000)), "Redis")
    event(_log, logging.WARNING, "queue.paused", queue=name, reason=order.reason, for_s=order.for_s)
    return await _one_queue(request)


async def _resume(request: Request) -> Response:
    """Let workers start jobs of a queue again."""
    name = _queue_name(request)
    if await _or_503(_stores(request).resume(name), "Redis"):
        event(_log, logging.WARNING, "queue.resumed", queue=name)
    return await _one_queue(request)


async def _workers(request: Request) -> Response:
    """List the workers of all queues."""
    stores = _stores(request)
    counts = await _or_503(stores.counts(), "Redis")
    workers = [_worker(name, each, stores.dead_after_ms) for name, count in counts.items() for each in count.workers]
    return Json({"items": workers})


ROUTES = [
    Route("/v1/jobs", _jobs),
    Route(f"/v1/jobs/{{job_id:{ANYTHING}}}", _one_job),
    Route("/v1/queues", _queues),
    Route("/v1/queues/{queue}:pause", _pause, methods=["POST"]),
    Route("/v1/queues/{queue}:resume", _resume, methods=["POST"]),
    Route("/v1/queues/{queue}", _one_queue),
    Route("/v1/workers", _workers),
]


# What comes in


def _stores(request: Request) -> Stores:
    stores: Stores = request.app.state.stores
    return stores


def _queue_name(request: Request) -> str:
    name: str = request.path_params["queue"]
    if name not in _stores(request).queues:
        raise Problem(404, f"no queue {name!r:.80} is known here", kind="queue-unknown")
    return name


def _bad(parameter: str, detail: str) -> Problem:
    return Problem(422, detail, kind="bad-parameter", errors=[{"parameter": parameter, "detail": detail}])


def _only(request: Request, name: str) -> str | None:
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise _bad(name, f"{name} is given {len(given)} times")
    return given[0] if given else None


def _filter(request: Request) -> Filter:
    if unknown := next((name for name in request.query_params if name not in _PARAMETERS), None):
        raise _bad(unknown[:80], f"{unknown!r:.80} is no parameter; there are {', '.join(sorted(_PARAMETERS))}")
    states = _list(request, "state")
    if wrong := next((state for state in states if state not in set(State)), None):
        raise _bad("state", f"{wrong!r:.80} is no state; there are {', '.join(State)}")
    return Filter(
        states=states,
        queues=_list(request, "queue"),
        user=_only(request, "user"),
        since=_moment(request, "since"),
        until=_moment(request, "until"),
    )


def _list(request: Request, name: str) -> tuple[str, ...]:
    given = _only(request, name)
    values = tuple(sorted({value for value in given.split(",") if value})) if given else ()
    if len(values) > 20:
        raise _bad(name, f"at most 20 values of {name} at once")
    return values


def _moment(request: Request, name: str) -> datetime | None:
    given = _only(request, name)
    if given is None:
        return None
    try:
        # A plus sign that nobody encoded arrives as a space.
        moment = datetime.fromisoformat(given.replace(" ", "+") if "T" in given else given)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _bad(name, f"{name} is a time such as 2026-01-31T12:00:00Z, not {given!r:.40}") from None


def _limit(request: Request) -> int:
    given = _only(request, "limit")
    if given is None:
        return DEFAULT_LIMIT
    if not (given.isascii() and given.isdigit() and len(given) < 5 and 1 <= int(given) <= MOST):
        raise _bad("limit", f"limit is a whole number from 1 to {MOST}, not {given!r:.40}")
    return int(given)


def _cursor(which: Filter, after: tuple[datetime, str]) -> str:
    packed = orjson.dumps([after[0].isoformat(), after[1], _mark(which)])
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _after(request: Request, which: Filter) -> tuple[datetime, str] | None:
    given = _only(request, "cursor")
    if given is None:
        return None
    try:
        raw = base64.b64decode(given.encode() + b"=" * (-len(given) % 4), altchars=b"-_", validate=True)
        moment, job_id, mark = msgspec.json.decode(raw, type=tuple[datetime, str, str])
    except (ValueError, binascii.Error):
        raise _bad("cursor", "the cursor is none that was given out here") from None
    if mark != _mark(which):
        raise _bad("cursor", "the cursor is of a list with another filter; begin without one")
    if moment.tzinfo is None:
        raise _bad("cursor", "the cursor is none that was given out here")
    return moment, job_id


def _mark(which: Filter) -> str:
    """Tell filters apart, in few characters."""
    return hashlib.sha256(repr(dataclasses.astuple(which)).encode("utf-8", "replace")).hexdigest()[:12]


async def _body(request: Request, kind: type[T]) -> T:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MOST_BODY_BYTES:
            raise Problem(413, f"the body may have at most {MOST_BODY_BYTES} bytes", kind="body-too-large")
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (ValueError, RecursionError) as error:
        raise _bad("body", f"the body does not fit: {str(error)[:200]}") from None


async def _or_503(answer: Awaitable[T], server: str) -> T:
    try:
        return await answer
    except StreamQError:
        raise Problem(503, f"{server} is away", kind="store-away", headers={"retry-after": "2"}) from None


# What goes out


async def _up_to_date(stores: Stores, jobs: Sequence[JobStatus]) -> tuple[Sequence[JobStatus], bool]:
    try:
        return await stores.brought_up_to_date(jobs), False
    except StreamQError:
        return jobs, True


def _joined(known: JobStatus | None, live: JobStatus | None) -> JobStatus | None:
    """Put what lives before what was, and keep what only the history knows."""
    if known is None or live is None:
        return live or known
    told = ("wait_ms", "error", "attempts", "crashes", "version", "occurrence", "schedule")
    return dataclasses.replace(live, **{name: getattr(known, name) for name in told})


def _job(job: JobStatus) -> dict[str, Any]:
    return {field.name: _told(getattr(job, field.name)) for field in dataclasses.fields(job)}


def _told(value: Any) -> Any:
    """Write points in time, also those within an attempt."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, list):
        attempts: list[Any] = value
        return [_attempt(attempt) for attempt in attempts]
    return value


def _attempt(attempt: Any) -> Any:
    if not isinstance(attempt, dict):
        return attempt
    pairs = cast("dict[str, Any]", attempt)
    return {name: iso(value) if isinstance(value, datetime) else value for name, value in pairs.items()}


def _queue(name: str, counts: Counts, dead_after_ms: int) -> dict[str, Any]:
    pause = counts.pause
    lanes: Mapping[str, Any] = counts.lanes
    return {
        "name": name,
        "waiting": counts.waiting,
        "running": counts.in_flight,
        "scheduled": counts.delayed,
        "dead": counts.dead,
        "oldest_wait_ms": counts.oldest_wait_ms,
        "next_due_ms": counts.next_due_ms,
        "workers": counts.workers_alive(dead_after_ms),
        "lanes": {lane: held._asdict() for lane, held in lanes.items() if any(held)},
        "outbox": counts.outbox,
        "outbox_age_ms": counts.outbox_age_ms,
        "paused": pause._asdict() if pause else None,
    }


def _worker(queue: str, worker: WorkerSeen, dead_after_ms: int) -> dict[str, Any]:
    state = "given_up" if worker.given_up else "alive" if worker.beat_age_ms <= dead_after_ms else "lost"
    beat_age_ms = None if worker.given_up else worker.beat_age_ms
    return {"name": worker.name, "queue": queue, "state": state, "held": worker.held, "beat_age_ms": beat_age_ms}
