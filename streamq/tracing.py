"""Spans and metrics by OpenTelemetry's messaging conventions, and the trace that travels with a job.

An application that wants them has set up OpenTelemetry, and then its API is loaded and has a provider: of spans, of metrics,
or of both. Without that nothing is imported here, and nothing is done. The conventions are still in development: their
names stand here and nowhere else. See https://opentelemetry.io/docs/specs/semconv/messaging/.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["Processing", "Sending", "carried", "is_asked_for", "is_on", "join", "processing", "sending"]

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"
SYSTEM = "streamq"
_IS_NAMED = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
"""Whether the environment names a provider, which is then made when it is first asked for."""
_IS_METER_NAMED = "OTEL_PYTHON_METER_PROVIDER" in os.environ
LINKED_AFTER_S = 300
"""A job that waited for longer is no part of the trace that made it; it is only linked to it."""


DURATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Ends of buckets that the conventions advise."""


def is_on() -> bool:
    """Tell whether the application has set up spans."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    # redis-py loads the API for itself; asking it costs 3 µs a job, and this what a look costs.
    if trace is None or (getattr(trace, "_TRACER_PROVIDER", trace) is None and not _IS_NAMED):
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _is_measured() -> bool:
    """Tell whether the application has set up metrics."""
    metrics: Any = sys.modules.get("opentelemetry.metrics._internal")
    if metrics is None or (getattr(metrics, "_METER_PROVIDER", metrics) is None and not _IS_METER_NAMED):
        return False
    return metrics.get_meter_provider() is not getattr(metrics, "_PROXY_METER_PROVIDER", None)


def is_asked_for() -> bool:
    """Tell whether the application has set up spans or metrics."""
    return is_on() or _is_measured()


class _Instruments(NamedTuple):
    """What is measured, made once for each provider."""

    provider: Any
    sent: Any
    operation_s: Any
    consumed: Any
    process_s: Any


_instruments: _Instruments | None = None


def _measures() -> _Instruments | None:
    """Return the instruments; None when nobody measures."""
    global _instruments
    if not _is_measured():
        return None
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    if _instruments is None or _instruments.provider is not provider:
        meter = metrics.get_meter("streamq", schema_url=SCHEMA)

        def duration(name: str, about: str) -> Any:
            return meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=DURATIONS_S)

        _instruments = _Instruments(
            provider,
            meter.create_counter("messaging.client.sent.messages", "{message}", "Jobs sent to Redis."),
            duration("messaging.client.operation.duration", "How long sending took."),
            meter.create_counter("messaging.client.consumed.messages", "{message}", "Jobs given to a handler."),
            duration("messaging.process.duration", "How long runs took."),
        )
    return _instruments


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
    """A span around an enqueue, and its figures; or neither, when nobody asks for them."""

    __slots__ = ("_begun_at", "_handler", "_queue", "_scope", "_sent", "_span")

    def __init__(self, queue: str, handler: str) -> None:
        self._queue = queue
        self._handler = handler
        self._scope: Any = None
        self._span: Any = None
        self._sent = 0
        self._begun_at = 0.0

    def __enter__(self) -> Sending:
        from opentelemetry.trace import SpanKind

        attributes = _attributes("send", self._queue) | {"streamq.handler.name": self._handler}
        self._scope = _tracer().start_as_current_span(
            f"send {self._queue}", kind=SpanKind.PRODUCER, attributes=attributes, set_status_on_exception=False
        )
        self._span = self._scope.__enter__()
        self._begun_at = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        took_s = time.perf_counter() - self._begun_at
        if error is not None:
            _fail(self._span, error)
        self._scope.__exit__(kind, error, trace)
        if (measures := _measures()) is not None:
            attributes = _attributes("send", self._queue) | _failure(type(error).__qualname__ if error else "")
            measures.operation_s.record(took_s, attributes)
            if self._sent:
                measures.sent.add(self._sent, attributes)

    def one(self, job: Any) -> Any:
        """Note the job that was accepted, and return it."""
        self._span.set_attribute("messaging.message.id", job.id)
        self._sent = 1
        return job

    def many(self, jobs: Any) -> Any:
        """Note how many jobs were sent, and return them."""
        self._span.set_attribute("messaging.batch.message_count", len(jobs))
        self._sent = sum(1 for job in jobs if job.status != "refused")
        return jobs


class _NotSending(Sending):
    """What is done when nobody asks for spans or metrics: nothing."""

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
    return Sending(queue, handler) if is_asked_for() else _NOT_SENDING


class Processing:
    """What a span around a run knows."""

    def __init__(self, span: Any) -> None:
        self._span = span
        self.error = ""
        """The type of what the run failed with."""

    def fail(self, error: BaseException) -> None:
        """Say that the run failed."""
        self.error = type(error).__qualname__
        _fail(self._span, error)

    def fail_as(self, kind: str, message: str, traceback: str) -> None:
        """Say that the run failed in another process, and of what."""
        self.error = kind
        told = {"exception.type": kind, "exception.message": message, "exception.stacktrace": traceback}
        self._span.add_event("exception", told)
        _mark(self._span, kind)


@contextmanager
def processing(
    queue: str, job_id: str, headers: Mapping[str, str], *, is_linked: bool, about: Mapping[str, Any]
) -> Generator[Processing]:
    """Make a span `process <queue>` around a run, and measure it.

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
    begun_at = time.perf_counter()
    with _tracer().start_as_current_span(
        f"process {queue}",
        context=Context() if is_linked else made_in,
        kind=trace.SpanKind.CONSUMER,
        links=[trace.Link(made_by)] if made_by.is_valid else [],
        attributes=_attributes("process", queue) | {"messaging.message.id": job_id} | dict(about),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        processed = Processing(span)
        try:
            yield processed
        finally:
            if (measures := _measures()) is not None:
                attributes = _attributes("process", queue) | _failure(processed.error)
                measures.consumed.add(1, attributes)
                measures.process_s.record(time.perf_counter() - begun_at, attributes)


def join(headers: Mapping[str, str]) -> None:
    """Let all spans that are made in this context from now on belong to the trace of these headers."""
    from opentelemetry import context

    context.attach(_propagator().extract(headers, context.Context()))


def _attributes(operation: str, queue: str) -> dict[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
    }


def _failure(kind: str) -> dict[str, str]:
    return {"error.type": kind} if kind else {}


def _fail(span: Any, error: BaseException) -> None:
    span.record_exception(error)
    _mark(span, type(error).__qualname__)


def _mark(span: Any, kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))
