"""Jobs: lists, one of them with all that is known, what they died of, and what may be done to one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from starlette.responses import Response

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import auditor_of, job_json, or_503, stores_of, told
from streamq.api.parameters import (
    CURSOR,
    FILTER,
    IF_MATCH,
    LIMIT,
    Parameter,
    after,
    bad,
    body,
    check_match,
    cursor,
    filter_of,
    limit,
    mark_of,
    matches,
    number,
    one_of,
)  # fmt: skip
from streamq.api.paths import ANYTHING
from streamq.api.table import LIMIT_S, Operation, users_seen
from streamq.broker.letters import Edits
from streamq.clock import from_ms, utc_now
from streamq.errors import JobNotFound, StreamQError, Unavailable
from streamq.history import Filter, JobStatus, errors_of
from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request

    from streamq.api.stores import Stores
    from streamq.broker.letters import Letter, Letters
    from streamq.broker.orders import Cancelled, Replayed
    from streamq.history import ErrorGroup, Errors

__all__ = ["JOB", "OPERATIONS", "whole", "with_etag"]

MOST_WAIT_S = 30
LOOK_EVERY_S = 0.2
MOST_DEAD = 10_000
MOST_LETTERS = 1_000
MOST_REASON = 500
MOST_POINTS = 1_500
ON_ITS_WAY = timedelta(seconds=60)
"""A dead letter that is older, and of which MongoDB knows nothing, is one whose status has expired."""
STEPS_S = {"minute": 60, "hour": 3_600, "day": 86_400}


Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
T = TypeVar("T")


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `:cancel`."""

    reason: Annotated[str, msgspec.Meta(max_length=MOST_REASON)] = ""


class RetryOrder(Reason, forbid_unknown_fields=True):
    """The body of `:retry`; what is left out stays as it was."""

    handler: Text | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    key: Text | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None


async def list_jobs(request: Request) -> Response:
    """List jobs, newest first.

    A page begins behind a job rather than at a number, so jobs that come in meanwhile neither repeat nor hide any.
    """
    which, most = _seen(request, filter_of(request)), limit(request)
    place = after(request, mark_of(which), tuple[datetime, str, str])
    stores, behind = stores_of(request), place[:2] if place else None
    page = await or_503(stores.ask_history(lambda history: history.page(which, limit=most, after=behind)), "MongoDB")
    jobs, is_stale = await _up_to_date(stores, page.jobs)
    following = cursor(mark_of(which), page.after[0].isoformat(), page.after[1]) if page.after else None
    links = {"link": f'<{request.url.include_query_params(cursor=following)}>; rel="next"'} if following else {}
    items = [job_json(job) for job in jobs]
    return Json({"items": items, "next": following, "stale": is_stale}, headers=links)


async def show_job(request: Request) -> Response:
    """Tell all about a job, alive or ended.

    Its ETag changes whenever anything about it does. With `wait` the answer comes once the job has ended or, with
    If-None-Match, once anything has changed; after that many seconds it comes as things are.
    """
    wait_s = number(request, "wait", low=0, high=MOST_WAIT_S, default=0)
    known = request.headers.get("if-none-match", "")
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + wait_s
    job, is_stale = await whole(request)
    while True:
        answer, etag = with_etag(job, is_stale=is_stale)
        is_same = matches(known, etag, weakly=True)
        if loop.time() >= ends_at or State(job.state).is_terminal or (known and not is_same):
            break
        job, is_stale = await _looked_again(request, ends_at)
    return Response(status_code=304, headers={"etag": etag}) if is_same else answer


async def _looked_again(request: Request, ends_at: float) -> tuple[JobStatus, bool]:
    """Look after a while. A job that was there a moment ago and is not has ended, and its status is on its way."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            return await whole(request)
        except Problem as problem:
            if problem.status != 404 or asyncio.get_running_loop().time() >= ends_at:
                raise


async def list_attempts(request: Request) -> Response:
    """List the attempts of a job that have ended, oldest first; the last 20 are kept."""
    job, is_stale = await whole(request)
    return Json({"items": told(list(job.attempts)), "stale": is_stale})


async def show_log(request: Request) -> Response:
    """Tell what the handler wrote about the job, oldest first; of a running job, until a moment ago."""
    job, is_stale = await whole(request)
    return Json({"items": told(list(job.log)), "lines": job.log_lines, "stale": is_stale})


async def cancel_job(request: Request) -> Response:
    """Cancel a job. One that runs is interrupted, and ends once its handler lets go."""
    job_id, reason = request.path_params["job_id"], await _reason(request)
    await _check_match(request)

    async def cancel(stores: Stores, queue: str) -> Cancelled:
        return await stores.order(queue, lambda orders: orders.cancel(job_id, reason=reason))

    became = await _in_its_queue(stores_of(request), cancel)
    await auditor_of(request).note(request, "job.cancel", job_id, after={"became": became, "reason": reason})
    return Json({"id": job_id, "became": became}, 202 if became == "asked" else 200)


async def retry_job(request: Request) -> Response:
    """Make a dead job run again, under its id and with all its attempts, with the code that the workers have now.

    What the body says instead of the old arguments counts. With other arguments or another handler it is another job:
    its dedup key does not fit it any more, and is dropped.
    """
    job_id, order = request.path_params["job_id"], await body(request, RetryOrder)
    given = {name: getattr(order, name) for name in Edits.__struct_fields__}
    await _check_match(request)
    edits = Edits(**given) if any(value is not None for value in given.values()) else None

    async def replay(letters: Letters) -> tuple[Replayed, str]:
        return await letters.replay_one(await letters.find(job_id), edits)

    became, holder = await _in_its_queue(stores_of(request), lambda stores, queue: stores.letters(queue, replay))
    if became == "held":
        raise Problem(409, f"job {holder} holds its dedup key", kind="dedup-held", held_by=holder)
    if became != "replayed":
        raise Problem(409, "the job was retried or deleted meanwhile", kind="job-moved")
    # Arguments may be private; that they were changed is not.
    after = {"reason": order.reason, "changed": [name for name, value in given.items() if value is not None]}
    await auditor_of(request).note(request, "job.retry", job_id, before={"state": "dead"}, after=after)
    return Json({"id": job_id, "became": became})


async def delete_job(request: Request) -> Response:
    """Delete what is kept of a job that has ended: its status, and its dead letter if it died.

    One that has not ended is to be cancelled first. A repeat after an interruption deletes the rest.
    """
    job_id, stores = request.path_params["job_id"], stores_of(request)
    await _check_match(request)
    if await or_503(stores.live(job_id), "Redis") is not None:
        raise Problem(409, "the job has not ended; cancel it first", kind="job-alive")
    known = await _of_history(stores, job_id)
    letters = await _letters_of(stores, job_id)
    if known is None and not letters:
        raise Problem(404, "no such job is known; its status may have expired", kind="job-unknown")
    if (known is not None and not State(known.state).is_terminal) or (known is None and _is_fresh(letters)):
        # Else the recorder would bring it back a moment later.
        detail = "the job has ended, and its status is on its way to MongoDB; try again"
        raise Problem(409, detail, kind="job-moved", headers={"retry-after": "2"})
    for queue, letter in letters:
        await or_503(stores.order(queue, lambda orders, letter=letter: orders.delete_letters([letter.id])), "Redis")  # type: ignore[misc]
    if known is not None:
        await or_503(stores.forget(job_id), "MongoDB")
    state = known.state if known is not None else State.DEAD.value
    await auditor_of(request).note(request, "job.delete", job_id, before={"state": state})
    return Response(status_code=204)


async def _of_history(stores: Stores, job_id: str) -> JobStatus | None:
    if not stores.has_history:
        return None
    return await or_503(stores.ask_history(lambda history: history.job(job_id)), "MongoDB")


async def _letters_of(stores: Stores, job_id: str) -> list[tuple[str, Letter]]:
    """Find the dead letter of a job, whichever queue it is in."""
    found: list[tuple[str, Letter]] = []
    for queue in stores.queues:
        with contextlib.suppress(JobNotFound):
            try:
                found.append((queue, await stores.letters(queue, lambda letters: letters.find(job_id))))
            except Unavailable:
                raise Problem(503, "Redis is away", kind="store-away", headers={"retry-after": "2"}) from None
    return found


def _is_fresh(letters: Sequence[tuple[str, Letter]]) -> bool:
    return any(utc_now() - from_ms(letter.died_ms) < ON_ITS_WAY for _, letter in letters)


async def _check_match(request: Request) -> None:
    """Hold an If-Match against the job as it is now, if there is one.

    What happens to the job between this look and the order, the order itself finds out: it is done to a job in the state
    that it needs, or not at all.

    Raises:
        Problem: 404, 412.
    """
    if "if-match" in request.headers:
        job, is_stale = await whole(request)
        check_match(request, with_etag(job, is_stale=is_stale)[1])


async def _in_its_queue(stores: Stores, do: Callable[[Stores, str], Awaitable[T]]) -> T:
    """Do something to a job, whichever queue it is in.

    Raises:
        Problem: 404 if it is in none.
    """
    for queue in stores.queues:
        try:
            return await or_503(do(stores, queue), "Redis")
        except Problem as problem:
            if problem.status != 404:
                raise
    raise Problem(404, "no such job is there", kind="job-unknown")


async def list_errors(request: Request) -> Response:
    """Group dead jobs by what they died of, the most frequent first.

    Jobs with the same fingerprint died at the same place. `since` and `until` are of their end here. The newest 10,000
    are looked at; while MongoDB is away, the newest 1,000 of each queue that Redis keeps.
    """
    which, most, stores = filter_of(request), limit(request), stores_of(request)
    try:
        found = await stores.ask_history(lambda history: history.errors(which, most=MOST_DEAD))
        is_stale = False
    except StreamQError:
        found = await or_503(_errors_of_letters(stores, which), "Redis")
        is_stale = True
    items = [_group_json(group) for group in found.groups[:most]]
    return Json({"items": items, "counted": found.counted, "is_complete": found.is_complete, "stale": is_stale})


async def show_series(request: Request) -> Response:
    """Count jobs over time, by when they were enqueued and what has become of them since."""
    step_s = STEPS_S[one_of(request, "step", tuple(STEPS_S), "minute")]
    which = filter_of(request)
    until = which.until or datetime.now(UTC)
    try:
        since = which.since or until - timedelta(seconds=step_s * 60)
    except OverflowError:
        raise bad("until", "until is too early") from None
    if not timedelta(0) < until - since <= timedelta(seconds=step_s * MOST_POINTS):
        raise bad("since", f"since is before until, and at most {MOST_POINTS} steps before it")
    wanted = dataclasses.replace(which, since=since, until=until)
    stores = stores_of(request)
    points = await or_503(stores.ask_history(lambda history: history.series(wanted, step_s=step_s)), "MongoDB")
    items = [{"at": iso(at), "jobs": jobs} for at, jobs in points]
    return Json({"step_s": step_s, "points": items}, headers={"cache-control": "private, max-age=5"})


JOB = f"/v1/jobs/{{job_id:{ANYTHING}}}"
_SINCE_UNTIL = tuple(each for each in FILTER if each.name in ("queue", "since", "until"))

OPERATIONS = (
    Operation(
        method="GET", path="/v1/jobs", run=list_jobs, tag="jobs", scope="jobs:read", by_user=True,
        parameters=(*FILTER, LIMIT, CURSOR), answer=shapes.JobPage,
    ),
    Operation(
        method="GET", path=f"{JOB}/attempts", run=list_attempts, tag="jobs", scope="jobs:read", by_user=True,
        answer=shapes.Attempts, misses=(404,),
    ),
    Operation(
        method="GET", path=f"{JOB}/log", run=show_log, tag="jobs", scope="jobs:read", by_user=True,
        answer=shapes.Log, misses=(404,),
    ),
    Operation(
        method="POST", path=f"{JOB}:cancel", run=cancel_job, tag="jobs", scope="jobs:write", body=Reason,
        headers=(IF_MATCH,), answer=shapes.Ordered, also=(202,), misses=(404, 412),
    ),
    Operation(
        method="POST", path=f"{JOB}:retry", run=retry_job, tag="jobs", scope="jobs:write", body=RetryOrder,
        headers=(IF_MATCH,), answer=shapes.Ordered, misses=(404, 409, 412),
    ),
    Operation(
        method="DELETE", path=JOB, run=delete_job, tag="jobs", scope="jobs:write", headers=(IF_MATCH,), status=204,
        misses=(404, 409, 412),
    ),
    Operation(
        method="GET", path=JOB, run=show_job, tag="jobs", scope="jobs:read", by_user=True, answer=shapes.Job,
        parameters=(
            Parameter(
                "wait", "Wait for its end, so many seconds at most.",
                {"type": "integer", "minimum": 0, "maximum": MOST_WAIT_S, "default": 0},
            ),
        ),
        headers=(Parameter("If-None-Match", "The ETag that is known already.", {"type": "string"}),),
        also=(304,), misses=(404,), limit_s=MOST_WAIT_S + LIMIT_S,
    ),
    Operation(
        method="GET", path="/v1/errors", run=list_errors, tag="jobs", scope="jobs:read",
        parameters=(*FILTER[1:], LIMIT), answer=shapes.ErrorGroups,
    ),
    Operation(
        method="GET", path="/v1/stats/series", run=show_series, tag="queues", scope="jobs:read",
        parameters=(
            *_SINCE_UNTIL,
            Parameter("step", "The width of a point.", {"type": "string", "enum": list(STEPS_S), "default": "minute"}),
        ),
        answer=shapes.Series,
    ),
)  # fmt: skip


# What comes in


def _seen(request: Request, which: Filter) -> Filter:
    """Narrow a filter down to what the caller may see."""
    users = users_seen(request)
    if users is None or which.user in users:
        return which
    if which.user is None and len(users) == 1:
        return dataclasses.replace(which, user=next(iter(users)))
    raise bad("user", "say which of your users is meant")


async def _reason(request: Request) -> str:
    return (await body(request, Reason)).reason


# What is known


async def whole(request: Request) -> tuple[JobStatus, bool]:
    """Find a job, and tell whether a server that might know more is away.

    Raises:
        Problem: 404, also if it is a job of another user than the caller may see.
    """
    stores, job_id = stores_of(request), request.path_params["job_id"]
    known, live = None, None
    is_away = False
    # In this order: a job that ends in between is in the history, or about to be.
    try:
        live = await stores.live(job_id)
    except StreamQError:
        is_away = True
    try:
        known = await stores.ask_history(lambda history: history.job(job_id))
    except StreamQError:
        is_away = True
    job, users = _joined(known, live), users_seen(request)
    if job is not None and (users is None or job.user in users):
        return job, is_away
    if job is None and is_away:
        raise Problem(503, "the server that would know this job is away", kind="store-away")
    raise Problem(404, "no such job is known; its status may have expired", kind="job-unknown")


def _joined(known: JobStatus | None, live: JobStatus | None) -> JobStatus | None:
    """Put what lives before what was, and keep what only the history knows."""
    if known is None or live is None:
        return live or known
    kept = ("wait_ms", "error", "attempts", "crashes", "version", "occurrence", "schedule")
    return dataclasses.replace(live, **{name: getattr(known, name) for name in kept})


def with_etag(job: JobStatus, *, is_stale: bool) -> tuple[Response, str]:
    """Write down a job, with an ETag that changes whenever anything about it does."""
    answer = Json({**job_json(job), "stale": is_stale})
    etag = f'"{hashlib.sha256(answer.body).hexdigest()[:24]}"'
    is_final = State(job.state).is_terminal and not is_stale
    answer.headers.update({"etag": etag, "cache-control": "private, max-age=60" if is_final else "private, no-cache"})
    return answer, etag


async def _up_to_date(stores: Stores, jobs: Sequence[JobStatus]) -> tuple[Sequence[JobStatus], bool]:
    try:
        return await stores.brought_up_to_date(jobs), False
    except StreamQError:
        return jobs, True


async def _errors_of_letters(stores: Stores, which: Filter) -> Errors:
    """Group what Redis keeps of dead jobs, for as long as MongoDB is away."""
    jobs = await stores.dead(MOST_LETTERS)
    return errors_of([job for job in jobs if which.takes(job, ended=True)], is_complete=len(jobs) < MOST_LETTERS)


def _group_json(group: ErrorGroup) -> dict[str, Any]:
    return {name: told(value) for name, value in group._asdict().items()}
