"""Enqueueing over HTTP, by a handler's name, and what handlers there are."""

from __future__ import annotations

import hashlib
import inspect
import secrets
import typing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import msgspec

from streamq.api import shapes
from streamq.api.answers import Json, Problem
from streamq.api.desk import application_of, auditor_of, or_503, stores_of
from streamq.api.parameters import Parameter, bad, body
from streamq.api.table import Operation, principal_of
from streamq.broker.partition import CallRepeated
from streamq.clock import utc_now
from streamq.errors import BrokerUnavailable, JobRejected
from streamq.options import Options
from streamq.queue import draft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.broker.partition import Partition
    from streamq.queue import Draft
    from streamq.registry import HandlerSpec

__all__ = ["OPERATIONS"]

TRIES = 3
MOST_KEY = 255
KEY_KEPT_MS = 86_400_000
CALL_KEPT_MS = 60_000
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


async def enqueue(request: Request) -> Response:
    """Enqueue a job of a handler.

    With the header Idempotency-Key, a repeat within a day makes no second job and gets the same answer, whatever became
    of the job: the key decides its id. The same key with another body is refused.
    """
    order = await body(request, NewJob)
    key = _key(request)
    app = application_of(request)
    spec = app.registry.find(order.handler)
    if spec is None:
        known = ", ".join(sorted(each.name for each in app.registry))
        raise bad("handler", f"no handler is named {order.handler!r:.80}; there are {known}")
    stores = stores_of(request)
    if spec.queue not in stores.queues:
        raise bad("handler", f"its queue {spec.queue!r} is none of this API's")
    principal = principal_of(request)
    name = hashlib.sha256(f"{principal.token_id}\n{principal.name}\n{key}".encode()).hexdigest() if key else ""
    item = _draft(spec, order, f"api-{name[:32]}" if key else None, app.settings.max_payload_bytes)
    call = _Call(f"api:{name[:40] or secrets.token_hex(16)}", item, _fingerprint(order) if key else "")
    result = await or_503(
        stores.add(spec.queue, lambda partition: call.make(partition, app.settings.max_depth)), "Redis"
    )
    job = item.as_job(result, app.client)
    if not call.is_repeat:
        await auditor_of(request).note(
            request, "job.enqueue", job.id, after={"handler": spec.name, "status": job.status}
        )
    told = {"id": job.id, "handler": spec.name, "queue": spec.queue, "status": job.status}
    return Json(told, 201, {"location": f"/v1/jobs/{quote(job.id, safe='')}"})


async def list_handlers(request: Request) -> Response:
    """List the handlers of the application, each with the JSON schema of its arguments."""
    return Json({"items": [_handler(spec) for spec in application_of(request).registry]})


OPERATIONS = (
    Operation(
        method="POST", path="/v1/jobs", run=enqueue, tag="jobs", scope="jobs:write", body=NewJob,
        headers=(
            Parameter(
                "Idempotency-Key", "Makes repeats harmless; at most 255 visible characters.",
                {"type": "string", "minLength": 1, "maxLength": MOST_KEY, "pattern": "^[!-~]+$"},
            ),
        ),
        answer=shapes.Accepted, status=201, misses=(404, 507),
    ),
    Operation(
        method="GET", path="/v1/handlers", run=list_handlers, tag="handlers", scope="jobs:read",
        answer=shapes.Handlers, misses=(404,),
    ),
)  # fmt: skip


class _Call:
    """One numbered call of a producer that makes no other: repeating it adds nothing, and tells what the first one did."""

    def __init__(self, producer: str, item: Draft, fingerprint: str) -> None:
        self._producer = producer
        self._item = item
        self._fingerprint = fingerprint
        self.is_repeat = False

    async def make(self, partition: Partition, max_depth: int) -> str:
        """Make the call, and again while no reply comes. Returns the result, as in `Added`."""
        for attempt in range(1, TRIES + 1):
            try:
                return await self._make(partition, max_depth)
            except BrokerUnavailable:
                if attempt == TRIES:
                    raise
        raise AssertionError

    async def _make(self, partition: Partition, max_depth: int) -> str:
        keep_ms = KEY_KEPT_MS if self._fingerprint else CALL_KEPT_MS
        try:
            added = await partition.add(
                self._producer, 1, [self._item], cursor=self._fingerprint, keep_ms=keep_ms, max_depth=max_depth
            )
        except CallRepeated as repeated:
            if repeated.cursor != self._fingerprint:
                detail = "this Idempotency-Key was used with another body"
                raise Problem(422, detail, kind="idempotency-key-reused", errors=[{"detail": detail}]) from None
            self.is_repeat = True
            return repeated.results or "n"
        return added.results[0]


def _key(request: Request) -> str:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return ""
    key = given[0]
    if len(given) > 1 or not 0 < len(key) <= MOST_KEY or not all("!" <= char <= "~" for char in key):
        raise bad("Idempotency-Key", f"Idempotency-Key is one text of 1 to {MOST_KEY} visible ASCII characters")
    return key


def _draft(spec: HandlerSpec, order: NewJob, job_id: str | None, max_payload_bytes: int) -> Draft:
    options = Options(
        key=order.key,
        dedup=order.dedup,
        delay=timedelta(seconds=order.delay_s) if order.delay_s is not None else None,
        at=order.at,
        priority=order.priority,
        max_attempts=order.max_attempts,
        deadline=utc_now() + timedelta(seconds=order.deadline_s) if order.deadline_s is not None else None,
        id=job_id,
    )
    try:
        return draft(spec, tuple(order.args), order.kwargs, options, max_payload_bytes=max_payload_bytes)
    except JobRejected as refused:
        raise bad("body", str(refused)) from None


def _fingerprint(order: NewJob) -> str:
    return hashlib.sha256(msgspec.json.encode(order, order="deterministic")).hexdigest()[:32]


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
