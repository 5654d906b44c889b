"""Queues and workers: what there is, and orders to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import auditor_of, known_queue, or_503, stores_of
from streamq.api.parameters import LIMIT, bad, body, limit
from streamq.api.running import operation_json
from streamq.api.table import Operation, principal_of
from streamq.api.whole import crowd_of_all, together
from streamq.broker.inspection import Inspection
from streamq.clock import from_ms
from streamq.errors import PartlyDone, StreamQError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.api.running import Progress, Runner
    from streamq.api.stores import Stores
    from streamq.broker.crowd import GateSeen
    from streamq.broker.inspection import Counts, Pause, WorkerSeen
    from streamq.broker.orders import Orders

__all__ = ["OPERATIONS", "queues_json"]

MOST_PAUSE_S = 30 * 86_400
MOST_REASON = 500


class PauseOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `:pause`."""

    reason: Annotated[str, msgspec.Meta(max_length=MOST_REASON)] = ""
    for_s: Annotated[float, msgspec.Meta(ge=0, le=MOST_PAUSE_S)] = 0
    """0: until it is resumed."""


class PurgeOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `:purge`."""

    confirm: str
    """The name of the queue once more."""
    reason: Annotated[str, msgspec.Meta(max_length=MOST_REASON)] = "purged"
    """It becomes part of the status of the jobs."""


class UnblockOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What to let go: the jobs of a handler, or those with the key of a user."""

    kind: Literal["handler", "key"]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class BlockOrder(UnblockOrder, forbid_unknown_fields=True):
    """What to hold back: the jobs of a handler, or those with the key of a user."""

    reason: Annotated[str, msgspec.Meta(max_length=MOST_REASON)] = ""
    for_s: Annotated[float, msgspec.Meta(ge=0, le=MOST_PAUSE_S)] = 0
    """0: until it is lifted."""


async def list_queues(request: Request) -> Response:
    """List the queues and what they hold."""
    stores = stores_of(request)
    counts = await or_503(stores.counts(), "Redis")
    return Json({"items": queues_json(stores, counts)})


async def show_queue(request: Request) -> Response:
    """Tell what a queue holds, lane by lane, and why it is paused if it is.

    Of a queue that is divided its partitions are added up, the worst of their ages counts, and each is told besides. A
    partition can be asked for by its name, too, as `users:0`; so it is with all that is said to a queue.
    """
    stores, name = stores_of(request), known_queue(request, request.path_params["queue"])
    counts = await or_503(stores.counts(), "Redis")
    return Json(_whole_json(stores, name, counts))


async def show_gates(request: Request) -> Response:
    """Tell where jobs of a queue wait that may not start yet: limits, those first where most wait, and turns.

    There may be a limit for each user. All of up to 128 are looked at; of more, those of handlers, those of jobs drawn by
    chance, which finds where many wait, and the first ones by name.
    """
    stores, name, most = stores_of(request), known_queue(request, request.path_params["queue"]), limit(request)
    crowd = crowd_of_all(list((await or_503(stores.crowds(stores.parts(name)), "Redis")).values()))
    return Json(
        {
            "parked": crowd.parked,
            "gates": [_gate(gate) for gate in crowd.gates[:most]],
            "turns": [_turn(turn) for turn in crowd.turns[:most]],
            "keys_waiting": crowd.keys,
            "virtual_ms": crowd.virtual_ms,
            "mean_ms": crowd.mean_ms,
            "is_whole": crowd.is_whole,
        }
    )


def _gate(gate: GateSeen) -> dict[str, Any]:
    name, told = gate.name, gate._asdict()
    return {"kind": name.kind, "handler": name.handler, "user": name.key} | {
        field: told[field] for field in ("limit", "interval_ms", "running", "parked", "longest_ms", "opens_in_ms")
    }


def _turn(turn: GateSeen) -> dict[str, Any]:
    told = turn._asdict()
    fields = ("parked", "longest_ms", "virtual_ms", "weight")
    return {"user": turn.name.key} | {field: told[field] for field in fields}


async def pause_queue(request: Request) -> Response:
    """Let no worker start a job of a queue. Jobs that run are finished, and new ones are accepted."""
    stores, name = stores_of(request), known_queue(request, request.path_params["queue"])
    order = await body(request, PauseOrder)
    by = principal_of(request).name

    async def pause(orders: Orders) -> Pause | None:
        before = (await Inspection(orders.wire, orders.keys).counts()).pause
        await orders.pause(reason=order.reason, by=by, until_ms=await orders.until_ms(int(order.for_s * 1000)))
        return before

    async with _noted(request, "queue.pause", after={"reason": order.reason, "for_s": order.for_s}) as done:
        done.before = _first_of(await stores.order_all(name, pause))
    return await show_queue(request)


async def resume_queue(request: Request) -> Response:
    """Let workers start jobs of a queue again."""
    stores, name = stores_of(request), known_queue(request, request.path_params["queue"])

    async def resume(orders: Orders) -> Pause | None:
        before = (await Inspection(orders.wire, orders.keys).counts()).pause
        return before if await orders.resume() else None

    async with _noted(request, "queue.resume") as done:
        done.before = _first_of(await stores.order_all(name, resume))
        done.changed = done.before is not None
    return await show_queue(request)


async def block_jobs(request: Request) -> Response:
    """Let no worker start jobs of a handler, or those of one user; other jobs of the queue go on."""
    stores, name = stores_of(request), known_queue(request, request.path_params["queue"])
    order = await body(request, BlockOrder)
    by = principal_of(request).name

    async def block(orders: Orders) -> None:
        until_ms = await orders.until_ms(int(order.for_s * 1000))
        await orders.block(**{order.kind: order.name}, reason=order.reason, by=by, until_ms=until_ms)

    async with _noted(request, "queue.block", after=msgspec.to_builtins(order)):
        await stores.order_all(name, block)
    return await show_queue(request)


async def unblock_jobs(request: Request) -> Response:
    """Let workers start the jobs of a handler, or those of one user, again."""
    stores, name = stores_of(request), known_queue(request, request.path_params["queue"])
    order = await body(request, UnblockOrder)
    async with _noted(request, "queue.unblock") as done:
        done.before = msgspec.to_builtins(order)
        lifted = await stores.order_all(name, lambda orders: orders.unblock(**{order.kind: order.name}))
        done.changed = any(lifted)
    return await show_queue(request)


async def purge_queue(request: Request) -> Response:
    """Cancel every job of a queue that has not started: those that wait, are due later or are blocked.

    Jobs that run go on, dead letters stay, and so does what is enqueued meanwhile. The body repeats the name of the queue,
    since nothing brings the jobs back. It goes on after the answer, which tells where to look.
    """
    name, order = known_queue(request, request.path_params["queue"]), await body(request, PurgeOrder)
    if order.confirm != name:
        raise bad("body", f"confirm has to be the name of the queue, {name!r}, not {order.confirm!r:.80}")
    stores = stores_of(request)

    async def work(progress: Progress) -> None:
        ended: dict[str, int] = {}

        async def purge(orders: Orders) -> None:
            def count(so_far: int) -> None:
                ended[orders.keys.queue] = so_far
                progress.done = sum(ended.values())
                if progress.is_stopped:
                    raise _Stopped

            with contextlib.suppress(_Stopped):
                await orders.purge(reason=order.reason, on_progress=count)

        await stores.order_all(name, purge)
        if not progress.is_stopped:
            progress.total = progress.done

    runner: Runner = request.app.state.runner
    stored = await runner.start(request, "purge", {"queue": name}, work)
    return Json(operation_json(stored), 202, {"location": f"/v1/bulk/{stored['_id']}"})


class _Stopped(Exception):
    """Ends a purge between two calls."""


async def list_workers(request: Request) -> Response:
    """List the workers of all machines, by queue."""
    stores = stores_of(request)
    counts = await or_503(stores.counts(), "Redis")
    workers = [
        _worker(name, each, stores.dead_after_ms)
        for name, parts in stores.wholes.items()
        for each in together([counts[part] for part in parts]).workers
    ]
    return Json({"items": workers})


def _order(order: str, about: str) -> Callable[[Request], Awaitable[Response]]:
    async def give(request: Request) -> Response:
        name, stores = request.path_params["worker"], stores_of(request)
        queue = await _queue_of(request, name)
        # A worker of several queues reads the orders of each.
        await or_503(stores.order(queue, lambda orders: orders.tell(order, to=name)), "Redis")
        await auditor_of(request).note(request, f"worker.{order}", name)
        return Json({"id": name, "became": "told"}, 202)

    give.__name__, give.__doc__ = f"{order}_worker", about
    return give


async def _queue_of(request: Request, worker: str) -> str:
    """Return a queue that a worker works on.

    Raises:
        Problem: 404.
    """
    counts = await or_503(stores_of(request).counts(), "Redis")
    for queue, count in counts.items():
        if any(seen.name == worker and not seen.given_up for seen in count.workers):
            return queue
    raise Problem(404, f"no worker {worker!r:.80} is known here", kind="worker-unknown")


async def dump_worker(request: Request) -> Response:
    """Have a worker tell where all that it runs stands: within a second it is there, and in the worker's log."""
    name, stores = request.path_params["worker"], stores_of(request)
    queue = await _queue_of(request, name)
    await or_503(stores.view(queue, lambda view: view.forget_stacks(name)), "Redis")
    await or_503(stores.order(queue, lambda orders: orders.tell("dump", to=name)), "Redis")
    await auditor_of(request).note(request, "worker.dump", name)
    where = f"/v1/workers/{quote(name, safe='')}/dump"
    return Json({"id": name, "became": "told"}, 202, {"location": where, "retry-after": "1"})


async def show_dump(request: Request) -> Response:
    """Tell where everything in a worker stood when it was last asked, within the hour.

    Stacks show code and names of jobs and users, and no arguments. Child processes write theirs to the worker's log only.
    """
    name, stores = request.path_params["worker"], stores_of(request)
    for queue in stores.queues:
        if told := await or_503(stores.view(queue, lambda view: view.stacks(name)), "Redis"):
            at = iso(from_ms(told["at_ms"]))
            return Json({"worker": name, "at": at, "running": told["running"], "stacks": told["stacks"]})
    raise Problem(404, f"no worker {name!r:.80} has told within the hour", kind="dump-unknown")


_ORDERS = {
    "quiet": "Have a worker take no new jobs, and stay.",
    "resume": "Have a quiet worker take jobs again.",
    "stop": "Have a worker finish what it runs, and end.",
}

OPERATIONS = (
    Operation(
        method="GET", path="/v1/queues", run=list_queues, tag="queues", scope="jobs:read", answer=shapes.Queues
    ),
    Operation(
        method="POST", path="/v1/queues/{queue}:pause", run=pause_queue, tag="queues", scope="queues:write",
        body=PauseOrder, answer=shapes.Queue, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/queues/{queue}:resume", run=resume_queue, tag="queues", scope="queues:write",
        answer=shapes.Queue, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/queues/{queue}:block", run=block_jobs, tag="queues", scope="queues:write",
        body=BlockOrder, answer=shapes.Queue, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/queues/{queue}:unblock", run=unblock_jobs, tag="queues", scope="queues:write",
        body=UnblockOrder, answer=shapes.Queue, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/queues/{queue}:purge", run=purge_queue, tag="queues", scope="queues:write",
        body=PurgeOrder, answer=shapes.Operation, status=202, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/queues/{queue}", run=show_queue, tag="queues", scope="jobs:read",
        answer=shapes.Queue, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/queues/{queue}/gates", run=show_gates, tag="queues", scope="jobs:read",
        parameters=(LIMIT,), answer=shapes.Gates, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/workers", run=list_workers, tag="workers", scope="jobs:read", answer=shapes.Workers
    ),
    *(
        Operation(
            method="POST", path=f"/v1/workers/{{worker}}:{order}", run=_order(order, about), tag="workers",
            scope="workers:write", answer=shapes.Ordered, status=202, misses=(404,),
        )
        for order, about in _ORDERS.items()
    ),
    Operation(
        method="POST", path="/v1/workers/{worker}:dump", run=dump_worker, tag="workers", scope="workers:write",
        answer=shapes.Ordered, status=202, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/workers/{worker}/dump", run=show_dump, tag="workers", scope="workers:write",
        answer=shapes.Stacks, misses=(404,),
    ),
)  # fmt: skip


class _Done:
    """What came of an order."""

    before: Mapping[str, Any] | None = None
    """How things were."""
    changed = True
    """Whether it changed anything."""


@contextlib.asynccontextmanager
async def _noted(request: Request, action: str, after: Mapping[str, Any] | None = None) -> AsyncGenerator[_Done]:
    """Carry out an order to the queue of a request, and write down that it was, also if it was in a part of it only.

    Raises:
        Problem: 503.
    """
    name, note, done = request.path_params["queue"], auditor_of(request).note, _Done()
    try:
        yield done
    except PartlyDone as partly:
        told = {**(after or {}), "done": list(partly.done), "failed": list(partly.failed)}
        await note(request, action, name, before=done.before, after=told)
        await or_503(_raised(partly), "Redis")
    except StreamQError as error:
        await or_503(_raised(error), "Redis")
    if done.changed:
        await note(request, action, name, before=done.before, after=after)


def _first_of(pauses: Sequence[Pause | None]) -> dict[str, Any] | None:
    return next((pause._asdict() for pause in pauses if pause is not None), None)


async def _raised(error: StreamQError) -> None:
    raise error


def queues_json(stores: Stores, counts: Mapping[str, Counts]) -> list[dict[str, Any]]:
    """Write down what each queue holds."""
    return [_whole_json(stores, name, counts) for name in stores.wholes]


def _whole_json(stores: Stores, name: str, counts: Mapping[str, Counts]) -> dict[str, Any]:
    parts = stores.parts(name)
    told = queue_json(name, together([counts[part] for part in parts]), stores.dead_after_ms)
    several = parts if len(parts) > 1 else ()
    return told | {"partitions": [queue_json(part, counts[part], stores.dead_after_ms) for part in several]}


def queue_json(name: str, counts: Counts, dead_after_ms: int) -> dict[str, Any]:
    """Write down what a queue or a partition holds."""
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
        "parked": counts.parked,
        "paused": pause._asdict() if pause else None,
        "blocked": counts.blocked,
        "blocks": [block._asdict() for block in counts.blocks],
        "unknown": [each._asdict() for each in counts.unknown],
    }


def _worker(queue: str, worker: WorkerSeen, dead_after_ms: int) -> dict[str, Any]:
    state = "given_up" if worker.given_up else "alive" if worker.beat_age_ms <= dead_after_ms else "lost"
    beat_age_ms = None if worker.given_up else worker.beat_age_ms
    return {"name": worker.name, "queue": queue, "state": state, "held": worker.held, "beat_age_ms": beat_age_ms}
