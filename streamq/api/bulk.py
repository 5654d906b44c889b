"""The same order to many jobs: retry, cancel or delete all that a filter leaves."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from streamq.api import shapes
from streamq.api.answers import Json, Problem
from streamq.api.desk import auditor_of, or_503, stores_of
from streamq.api.parameters import bad, body
from streamq.api.running import operation_json
from streamq.api.table import Operation
from streamq.broker.letters import Wanted
from streamq.clock import to_ms
from streamq.errors import JobNotFound
from streamq.history import Filter
from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.api.running import Progress, Runner
    from streamq.api.stores import Stores
    from streamq.broker.letters import Letters, Progress as Done

__all__ = ["OPERATIONS"]

PAGE = 200
MOST_JOBS = 1_000_000
_LIVE = tuple(state.value for state in State if not state.is_terminal)

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Which(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which jobs, in the words of `GET /v1/jobs`; of dead ones the times are those of their end."""

    queue: str | None = None
    handler: str | None = None
    user: str | None = None
    error_type: str | None = None
    fingerprint: str | None = None
    """As `GET /v1/errors` tells it."""
    since: Moment | None = None
    until: Moment | None = None


class BulkOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What to do to which jobs."""

    action: Literal["retry", "cancel", "delete"]
    """`retry` and `delete` are for dead jobs, `cancel` for those that have not ended."""
    filter: Which
    """An empty one means all."""
    per_s: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 0
    """How many a second at most; 0: as fast as it goes."""
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


async def begin_bulk(request: Request) -> Response:
    """Do the same to all jobs that a filter leaves. It goes on after the answer, which tells where to look."""
    order, stores = await body(request, BulkOrder), stores_of(request)
    if order.filter.queue is not None and not stores.parts(order.filter.queue):
        raise bad("filter", f"no queue {order.filter.queue!r:.80} is known here")
    if order.filter.fingerprint is not None and order.filter.error_type is not None:
        raise bad("filter", "name a fingerprint or an error_type, one of the two")
    if order.action == "cancel" and order.filter.fingerprint is not None:
        raise bad("filter", "jobs that have not ended have no fingerprint")
    runner: Runner = request.app.state.runner
    which = msgspec.to_builtins(order.filter)
    stored = await runner.start(
        request, order.action, which, lambda progress: _WORK[order.action](stores, order, progress)
    )
    where = f"/v1/bulk/{stored['_id']}"
    return Json(operation_json(stored), 202, {"location": where})


async def show_bulk(request: Request) -> Response:
    """Tell how far an order to many jobs is."""
    return Json(operation_json(await _found(request)))


async def stop_bulk(request: Request) -> Response:
    """Stop an order to many jobs at its next step; what is done stays done."""
    stored = await _found(request)
    runner: Runner = request.app.state.runner
    runner.stop(stored["_id"])
    stop = {"stop": True}
    changed = await or_503(stores_of(request).ask_operations(lambda each: each.change(stored["_id"], stop)), "MongoDB")
    await auditor_of(request).note(request, "bulk.stop", stored["_id"])
    return Json(operation_json(changed or stored), 202)


OPERATIONS = (
    Operation(
        method="POST", path="/v1/bulk", run=begin_bulk, tag="bulk", scope="jobs:write", body=BulkOrder,
        answer=shapes.Operation, status=202,
    ),
    Operation(
        method="POST", path="/v1/bulk/{operation_id}:stop", run=stop_bulk, tag="bulk", scope="jobs:write",
        answer=shapes.Operation, status=202, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/bulk/{operation_id}", run=show_bulk, tag="bulk", scope="jobs:read",
        answer=shapes.Operation, misses=(404,),
    ),
)  # fmt: skip


async def _found(request: Request) -> dict[str, Any]:
    operation_id = request.path_params["operation_id"].encode("utf-8", "replace").decode()
    found = await or_503(stores_of(request).ask_operations(lambda each: each.find(operation_id)), "MongoDB")
    if found is None:
        raise Problem(404, "no such order is known", kind="operation-unknown")
    return found


def _filter(stores: Stores, which: Which, states: Sequence[str]) -> Filter:
    return Filter(
        states=tuple(states),
        queues=stores.queues_meant([which.queue]) if which.queue is not None else (),
        handler=which.handler,
        user=which.user,
        error_type=which.error_type,
        since=which.since,
        until=which.until,
    )


async def _retry(stores: Stores, order: BulkOrder, progress: Progress) -> None:
    async def replay(letters: Letters, count: Callable[[Done], None]) -> None:
        rate = order.per_s or None
        await letters.replay(
            _wanted(order.filter), rate=rate, on_progress=count, should_stop=lambda: progress.is_stopped
        )

    await _letters(stores, order, progress, replay)


async def _delete(stores: Stores, order: BulkOrder, progress: Progress) -> None:
    async def delete(letters: Letters, count: Callable[[Done], None]) -> None:
        await letters.delete(_wanted(order.filter), on_progress=count, should_stop=lambda: progress.is_stopped)

    await _letters(stores, order, progress, delete)


async def _letters(
    stores: Stores,
    order: BulkOrder,
    progress: Progress,
    do: Callable[[Letters, Callable[[Done], None]], Awaitable[None]],
) -> None:
    """Do something to the dead letters that are meant, queue by queue."""
    done = refused = 0
    for queue in stores.parts(order.filter.queue) if order.filter.queue is not None else stores.queues:

        def count(told: Done, before: tuple[int, int] = (done, refused)) -> None:
            gone = told.became["replayed"] + told.became["deleted"]
            progress.done, progress.refused = before[0] + gone, before[1] + told.matched - gone

        await stores.letters(queue, lambda letters, count=count: do(letters, count))  # type: ignore[misc]
        done, refused = progress.done, progress.refused
    if not progress.is_stopped:
        progress.total = done + refused


def _wanted(which: Which) -> Wanted:
    return Wanted(
        handler=which.handler,
        key=which.user,
        error=which.fingerprint if which.fingerprint is not None else which.error_type,
        since_ms=max(0, to_ms(which.since)) if which.since is not None else 0,
        until_ms=max(1, to_ms(which.until) - 1) if which.until is not None else 0,
    )


async def _cancel(stores: Stores, order: BulkOrder, progress: Progress) -> None:
    """Cancel what the history knows to be alive: what was enqueued in the last two seconds may not be among it."""
    jobs = await _alive(stores, _filter(stores, order.filter, _LIVE), progress)
    progress.total = len(jobs)
    for queue, job_id in jobs:
        if progress.is_stopped:
            return
        try:
            await stores.order(queue, lambda orders, job_id=job_id: orders.cancel(job_id, reason=order.reason))  # type: ignore[misc]
            progress.step(is_done=True)
        except JobNotFound:
            progress.step(is_done=False)
        await _pace(order, progress)


async def _alive(stores: Stores, which: Filter, progress: Progress) -> list[tuple[str, str]]:
    jobs: list[tuple[str, str]] = []
    place: tuple[datetime, str] | None = None
    while len(jobs) < MOST_JOBS and not progress.is_stopped:
        page = await stores.ask_history(lambda history, place=place: history.page(which, limit=PAGE, after=place))  # type: ignore[misc]
        jobs += [(job.queue, job.id) for job in page.jobs]
        place = page.after
        if place is None:
            break
    return jobs


async def _pace(order: BulkOrder, progress: Progress) -> None:
    await progress.pause(1 / order.per_s if order.per_s else 0)


_WORK: dict[str, Callable[[Stores, BulkOrder, Progress], Awaitable[None]]] = {
    "retry": _retry,
    "cancel": _cancel,
    "delete": _delete,
}
