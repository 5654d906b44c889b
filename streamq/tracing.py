"""Spans by OpenTelemetry's messaging conventions, and the trace that travels with a job.

An application that wants spans has set up OpenTelemetry, and then its API is loaded and has a provider. Without that nothing
is imported here, and nothing is done. The conventions are still in development: their names stand here
and nowhere else. See https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["Processing", "Sending", "carried", "is_on", "processing", "sending"]

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"
SYSTEM = "streamq"
_IS_NAMED = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
"""Whether the environment names a provider, which is then made when it is first asked for."""
LINKED_AFTER_S = 300
"""A job that waited for longer is no part of the trace that made it; it is only linked to it."""


def is_on() -> bool:
    """Tell whether the application has set up spans."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    # redis-py loads the API for itself; asking it costs 3 µs a job, and this what a look costs.
    if trace is None or (getattr(trace, "_TRACER_PROVIDER", trace) is None and not _IS_NAMED):
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _tracer() -> Any:
    from opentelemetry import trace

    return trace.get_tracer("streamq", schema_url=SCHEMA)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def carried(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Add `traceparent` and `tracestate` of the present span to a job's headers; those that are given stay."""
    found: dict[str, str] = {}
    _propagator().inject(found)
    return found | dict(headers or {})


class Sending:
    """A span around an enqueue; or none, when there are no spans."""

    __slots__ = ("_handler", "_queue", "_scope", "_span")

    def __init__(self, queue: str, handler: str) -> None:
        self._queue = queue
        self._handler = handler
        self._scope: Any = None
        self._span: Any = None

    def __enter__(self) -> Sending:
        from opentelemetry.trace import SpanKind

        attributes = _attributes("send", self._queue) | {"streamq.handler.name": self._handler}
        self._scope = _tracer().start_as_current_span(
            f"send {self._queue}", kind=SpanKind.PRODUCER, attributes=attributes, set_status_on_exception=False
        )
        self._span = self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            _fail(self._span, error)
        self._scope.__exit__(kind, error, trace)

    def one(self, job: Any) -> Any:
        """Note the job that was accepted, and return it."""
        self._span.set_attribute("messaging.message.id", job.id)
        return job

    def many(self, jobs: Any) -> Any:
        """Note how many jobs were sent, and return them."""
        self._span.set_attribute("messaging.batch.message_count", len(jobs))
        return jobs


class _NotSending(Sending):
    """What is done without spans: nothing."""

    __slots__ = ()

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        return

    def one(self, job: Any) -> Any:
        return job

    def many(self, jobs: Any) -> Any:
        return jobs


_NOT_SENDING = _NotSending("", "")


def sending(queue: str, handler: str) -> Sending:
    """Make a span `send <queue>` around an enqueue; drafts that are made inside carry it."""
    return Sending(queue, handler) if is_on() else _NOT_SENDING


class Processing:
    """What a span around a run knows."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def fail(self, error: BaseException) -> None:
        """Say that the run failed."""
        _fail(self._span, error)


@contextmanager
def processing(
    queue: str, job_id: str, headers: Mapping[str, str], *, is_linked: bool, about: Mapping[str, Any]
) -> Generator[Processing]:
    """Make a span `process <queue>` around a run.

    Args:
        queue: Where the job came from.
        job_id: Its id.
        headers: Of its envelope, with the trace that made it, if any.
        is_linked: Whether the run only refers to that trace; else it is a part of it, and refers to it as well.
        about: More attributes.
    """
    from opentelemetry import trace
    from opentelemetry.context import Context

    made_in = _propagator().extract(headers, Context())
    made_by = trace.get_current_span(made_in).get_span_context()
    with _tracer().start_as_current_span(
        f"process {queue}",
        context=Context() if is_linked else made_in,
        kind=trace.SpanKind.CONSUMER,
        links=[trace.Link(made_by)] if made_by.is_valid else [],
        attributes=_attributes("process", queue) | {"messaging.message.id": job_id} | dict(about),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield Processing(span)


def _attributes(operation: str, queue: str) -> dict[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
    }


def _fail(span: Any, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__qualname__)
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
