"""Enqueueing over HTTP, by a handler's name, one job or many, and what handlers there are."""

from __future__ import annotations

import hashlib
import inspect
import secrets
import typing
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from streamq.api import shapes
from streamq.api.answers import Json, Problem
from streamq.api.calls import Call
from streamq.api.desk import application_of, auditor_of, divided_otherwise, or_503, stores_of
from streamq.api.parameters import Parameter, bad, body
from streamq.api.table import Operation, principal_of
from streamq.broker.partition import BATCH
from streamq.clock import utc_now
from streamq.errors import DividedOtherwise, HistoryUnavailable, JobRejected, Unavailable
from streamq.keys import partition_names
from streamq.options import Options
from streamq.queue import draft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.queue import Draft
    from streamq.registry import HandlerSpec

__all__ = ["OPERATIONS"]

MOST_JOBS = 1_000
MOST_KEY = 255
LATEST_S = 10 * 365 * 86_400
MOST_ATTEMPTS = 1_000

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class NewJob(msgspec.Struct, forbid_unknown_fields=True):
    """A job to enqueue. What is left out is as the handler says."""

    handler: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    key: Text | None = None
    """The user or tenant that the job belongs to."""
    dedup: Text | None = None
    """While a job with this key lives, that one is the answer."""
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=LATEST_S)] | None = None
    at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """When it is due; instead of `delay_s`."""
    priority: Literal["high", "normal", "low"] | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=MOST_ATTEMPTS)] | None = None
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=LATEST_S)] | None = None
    """It is not started later than this from now."""
    ledger: bool = False
    """Written to a majority of MongoDB's servers first: should Redis lose it, it is enqueued again."""


class NewJobs(msgspec.Struct, forbid_unknown_fields=True):
    """Jobs to enqueue."""

    jobs: Annotated[list[NewJob], msgspec.Meta(min_length=1, max_length=MOST_JOBS)]


async def enqueue(request: Request) -> Response:
    """Enqueue a job of a handler.

    With the header Idempotency-Key, a repeat within a day makes no second job and gets the same answer, whatever became
    of the job: the key decides its id. The same key with another body is refused.
    """
    order = await body(request, NewJob)
    said, app = _Said(request, order), application_of(request)
    item = _draft(request, order, said.job_id())
    call = Call(said.producer(), said.fingerprint(), app.settings.max_depth)
    (result,) = await or_503(call.make(stores_of(request), [item]), said.server(item))
    if not isinstance(result, str):
        raise Problem(507, str(result), kind="queue-full", headers={"retry-after": "5"})
    job = _accepted(item, result)
    if not call.is_repeat:
        after = {"handler": item.handler, "status": job["status"]}
        await auditor_of(request).note(request, "job.enqueue", job["id"], after=after)
    return Json(job, 201, {"location": f"/v1/jobs/{quote(job['id'], safe='')}"})


async def enqueue_many(request: Request) -> Response:
    """Enqueue up to 1,000 jobs of any handlers; what became of each is told, in their order.

    One that cannot be is refused, and the others are enqueued. `unknown`: a server went away meanwhile. With the header
    Idempotency-Key a repeat within a day makes no job twice, and brings those in whose fate was unknown.
    """
    order = await body(request, NewJobs)
    said = _Said(request, order)
    told: list[dict[str, Any]] = [{}] * len(order.jobs)
    audited: Counter[str] = Counter()
    for first in range(0, len(order.jobs), BATCH):
        for places, items in _groups(request, order, said, told, first):
            await _enqueue_group(request, said, places, items, told, audited)
    counts = Counter(each["status"] if each["error"] else "accepted" for each in told)
    if counts["unknown"] == len(told):
        raise Problem(503, told[0]["error"]["detail"], kind="store-away", headers={"retry-after": "2"})
    if audited.total():
        after = {"handlers": dict(audited), "refused": counts["refused"], "unknown": counts["unknown"]}
        await auditor_of(request).note(request, "job.enqueue_many", "", count=audited.total(), after=after)
    return Json({"items": told, **{name: counts[name] for name in ("accepted", "refused", "unknown")}})


async def list_handlers(request: Request) -> Response:
    """List the handlers of the application, each with the JSON schema of its arguments."""
    return Json({"items": [_handler(spec) for spec in application_of(request).registry]})


_IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "Makes repeats harmless; at most 255 visible characters.",
    {"type": "string", "minLength": 1, "maxLength": MOST_KEY, "pattern": "^[!-~]+$"},
)

OPERATIONS = (
    Operation(
        method="POST", path="/v1/jobs", run=enqueue, tag="jobs", scope="jobs:write", body=NewJob,
        headers=(_IDEMPOTENCY_KEY,), answer=shapes.Accepted, status=201, misses=(404, 507),
    ),
    Operation(
        method="POST", path="/v1/jobs:batch", run=enqueue_many, tag="jobs", scope="jobs:write", body=NewJobs,
        headers=(_IDEMPOTENCY_KEY,), answer=shapes.AcceptedMany, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/handlers", run=list_handlers, tag="handlers", scope="jobs:read",
        answer=shapes.Handlers, misses=(404,),
    ),
)  # fmt: skip


class _Said:
    """Who ordered what under which key: the names of jobs and calls come from it, so that a repeat finds them."""

    def __init__(self, request: Request, order: NewJob | NewJobs) -> None:
        principal, key = principal_of(request), _key(request)
        whole = f"{principal.token_id}\n{principal.name}\n{key}"
        self._name = hashlib.sha256(whole.encode()).hexdigest() if key else ""
        self._order = hashlib.sha256(msgspec.json.encode(order, order="deterministic")).hexdigest()[:32] if key else ""
        self._once = secrets.token_hex(16)

    def job_id(self, place: int | None = None) -> str | None:
        """Make the id of a job; None: any new one is as good."""
        part = "" if place is None else f"-{place}"
        return f"api-{self._name[:32]}{part}" if self._name else None

    def producer(self, places: Sequence[int] = ()) -> str:
        """Name the producer of a call."""
        part = f":{places[0]}" if places else ""
        return f"api:{self._name[:40] or self._once}{part}"

    def fingerprint(self, places: Sequence[int] = ()) -> str:
        """Tell what is in a call: what was ordered, and which jobs of it."""
        if not self._order or not places:
            return self._order
        return hashlib.sha256(f"{self._order}{list(places)}".encode()).hexdigest()[:32]

    @staticmethod
    def server(item: Draft) -> str:
        """Name who was away if somebody was."""
        return "Redis or MongoDB" if item.ledger else "Redis"


def _groups(
    request: Request, order: NewJobs, said: _Said, told: list[dict[str, Any]], first: int
) -> list[tuple[list[int], list[Draft]]]:
    """Check a part of the jobs. Returns those that can be, by what one call may hold; why others cannot goes into `told`."""
    groups: dict[tuple[str, bool], tuple[list[int], list[Draft]]] = {}
    for place in range(first, min(first + BATCH, len(order.jobs))):
        try:
            item = _draft(request, order.jobs[place], said.job_id(place))
        except Problem as refusal:
            told[place] = _refused(order.jobs[place].handler, refusal)
            continue
        places, items = groups.setdefault((item.queue, item.ledger), ([], []))
        places.append(place)
        items.append(item)
    return list(groups.values())


async def _enqueue_group(
    request: Request,
    said: _Said,
    places: list[int],
    items: list[Draft],
    told: list[dict[str, Any]],
    audited: Counter[str],
) -> None:
    call = Call(said.producer(places), said.fingerprint(places), application_of(request).settings.max_depth)
    try:
        results = await call.make(stores_of(request), items)
    except Unavailable as away:
        # Without MongoDB nothing was enqueued; without Redis nobody knows.
        is_known = isinstance(away, HistoryUnavailable)
        problem = Problem(503, f"{'MongoDB' if is_known else 'Redis'} is away", kind="store-away")
        for place, item in zip(places, items, strict=True):
            refused = _refused(item.handler, problem, "refused" if is_known else "unknown")
            told[place] = {**refused, "queue": item.queue, "id": said.job_id(place)}
        return
    except DividedOtherwise as wrong:
        for place, item in zip(places, items, strict=True):
            told[place] = {**_refused(item.handler, divided_otherwise(wrong)), "queue": item.queue}
        return
    for place, item, result in zip(places, items, results, strict=True):
        if isinstance(result, str):
            told[place] = {**_accepted(item, result), "error": None}
            audited[item.handler] += not call.is_repeat
        else:
            told[place] = {**_refused(item.handler, Problem(507, str(result), kind="queue-full")), "queue": item.queue}


def _accepted(item: Draft, result: str) -> dict[str, Any]:
    job = item.as_job(result)
    return {"id": job.id, "handler": job.handler, "queue": job.queue, "status": job.status}


def _refused(handler: str, problem: Problem, status: str = "refused") -> dict[str, Any]:
    error = {"type": f"urn:streamq:problem:{problem.kind}", "status": problem.status, "detail": problem.detail}
    return {"id": None, "handler": handler, "queue": None, "status": status, "error": error}


def _key(request: Request) -> str:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return ""
    key = given[0]
    if len(given) > 1 or not 0 < len(key) <= MOST_KEY or not all("!" <= char <= "~" for char in key):
        raise bad("Idempotency-Key", f"Idempotency-Key is one text of 1 to {MOST_KEY} visible ASCII characters")
    return key


def _draft(request: Request, order: NewJob, job_id: str | None) -> Draft:
    """Check a job.

    Raises:
        Problem: 422; it cannot be.
    """
    app = application_of(request)
    spec = app.registry.find(order.handler)
    if spec is None:
        known = ", ".join(sorted(each.name for each in app.registry))
        raise bad("handler", f"no handler is named {order.handler!r:.80}; there are {known}")
    partitions = app.settings.partitions_of(spec.queue)
    if not set(partition_names(spec.queue, partitions)) <= set(stores_of(request).queues):
        raise bad("handler", f"its queue {spec.queue!r} is none of this API's")
    options = Options(
        key=order.key,
        dedup=order.dedup,
        delay=timedelta(seconds=order.delay_s) if order.delay_s is not None else None,
        at=order.at,
        priority=order.priority,
        max_attempts=order.max_attempts,
        deadline=utc_now() + timedelta(seconds=order.deadline_s) if order.deadline_s is not None else None,
        ledger=order.ledger,
        id=job_id,
    )
    try:
        return draft(
            spec, tuple(order.args), order.kwargs, options, max_payload_bytes=app.settings.max_payload_bytes,
            partitions=partitions,
        )  # fmt: skip
    except JobRejected as refused:
        raise bad("body", str(refused)) from None


def _handler(spec: HandlerSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "queue": spec.queue,
        "max_attempts": spec.max_attempts,
        "timeout_s": spec.timeout.total_seconds() if spec.timeout else None,
        "priority": spec.priority,
        "key": spec.key,
        "dedup": list(spec.dedup.by) if spec.dedup else [],
        "description": inspect.getdoc(spec.function) or "",
        "arguments": _schema(spec),
    }


def _schema(spec: HandlerSpec) -> dict[str, Any]:
    """Describe the arguments of a handler; one whose annotation means nothing to JSON may be anything."""
    parameters: Sequence[inspect.Parameter] = list(spec.signature.parameters.values())
    hints = _hints(spec)
    return {
        "type": "object",
        "properties": {each.name: _kind(hints.get(each.name, Any)) for each in parameters},
        "required": [each.name for each in parameters if each.default is each.empty],
        "additionalProperties": False,
    }


def _hints(spec: HandlerSpec) -> dict[str, Any]:
    try:
        return typing.get_type_hints(spec.function, include_extras=True)
    except Exception:  # noqa: BLE001 - whatever the user's annotations do when they are evaluated
        return {}


def _kind(hint: Any) -> dict[str, Any]:
    try:
        return msgspec.json.schema(hint)
    except (TypeError, RecursionError):
        return {}
