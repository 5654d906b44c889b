"""Spans: one for each enqueue and each run, in one trace; and nothing at all without OpenTelemetry."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal as metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import SpanKind, StatusCode

from streamq import Cancel, RetryPolicy, StreamQ, current_job, tracing
from streamq.errors import BadArguments
from streamq.settings import Settings
from streamq.worker.service import Worker


@pytest.fixture
def figures(monkeypatch):
    """Set up OpenTelemetry's metrics, without spans; gives the points of each metric."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "_METER_PROVIDER", provider)

    def points():
        [of_streamq] = [
            scope
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == "streamq"
        ]
        assert of_streamq.scope.schema_url == tracing.SCHEMA
        return {metric.name: (metric.unit, list(metric.data.data_points)) for metric in of_streamq.metrics}

    yield points
    provider.shutdown()


@pytest.fixture
async def app(redis_url, queue_name):
    """An application with handlers of every kind; `seen` is what they saw of their trace."""
    app = StreamQ(Settings(redis_url=redis_url, queues=(queue_name,), history=False))
    app.seen = []

    def see():
        app.seen.append(trace.get_current_span().get_span_context())

    @app.handler(queue=queue_name, name="fine", key="user_id")
    async def fine(user_id: str) -> None:
        see()

    @app.handler(queue=queue_name, name="plain")
    def plain() -> None:
        see()

    @app.handler(queue=queue_name, name="fails", max_attempts=2, retry=RetryPolicy(base=timedelta(0)))
    async def fails() -> None:
        see()
        app.headers = current_job().headers
        raise ValueError("no")

    @app.handler(queue=queue_name, name="cancels")
    async def cancels() -> None:
        raise Cancel("not needed")

    app.fine, app.plain, app.fails, app.cancels = fine, plain, fails, cancels
    yield app
    await app.close()


async def worked(app, eventually, ended):
    """Run a worker until so many runs have ended."""
    worker = Worker(app, app.settings)
    running = asyncio.create_task(worker.run())
    await eventually(lambda: worker.slots and sum(worker.slots.counters.values()) >= ended, "the jobs have run")
    worker.drain()
    await running


def named(spans, name):
    """Return the spans of a name, in the order of their end."""
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_a_run_is_in_the_trace_that_enqueued_it(app, spans, queue_name, eventually):
    """So that a request can be followed through the queue."""
    with trace.get_tracer("test").start_as_current_span("request") as request:
        job = await app.fine.enqueue("u1")
    await worked(app, eventually, 1)
    [sent], [ran] = named(spans, f"send {queue_name}"), named(spans, f"process {queue_name}")
    assert (sent.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert sent.parent.span_id == request.get_span_context().span_id
    assert ran.context.trace_id == sent.context.trace_id == app.seen[0].trace_id
    assert ran.parent.span_id == sent.context.span_id
    assert [link.context.span_id for link in ran.links] == [sent.context.span_id]
    assert app.seen[0].span_id == ran.context.span_id, "a handler's own spans are its children"
    for span, operation in ((sent, "send"), (ran, "process")):
        assert {
            "messaging.system": "streamq", "messaging.operation.type": operation, "messaging.operation.name": operation,
            "messaging.destination.name": queue_name, "messaging.message.id": job.id, "streamq.handler.name": "fine",
        }.items() <= dict(span.attributes).items()  # fmt: skip
    assert ran.attributes["streamq.job.attempt"] == 1
    assert ran.attributes["streamq.job.redelivered"] is False
    assert ran.instrumentation_scope.schema_url == tracing.SCHEMA
    assert ran.status.status_code is StatusCode.UNSET


async def test_the_trace_stays_through_retries_and_failures_are_told(app, spans, queue_name, eventually):
    """Each attempt is a span of its own."""
    await app.fails.enqueue()
    await worked(app, eventually, 2)
    [sent], ran = named(spans, f"send {queue_name}"), named(spans, f"process {queue_name}")
    assert [span.attributes["streamq.job.attempt"] for span in ran] == [1, 2]
    assert {span.context.trace_id for span in ran} == {sent.context.trace_id}
    assert {span.parent.span_id for span in ran} == {sent.context.span_id}
    assert app.headers["traceparent"].split("-")[2] == f"{sent.context.span_id:016x}"
    for span in ran:
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "ValueError")
        assert [event.name for event in span.events] == ["exception"]


async def test_a_plain_function_has_its_span_in_its_thread(app, spans, queue_name, eventually):
    """Context does not cross threads by itself."""
    await app.plain.enqueue()
    await worked(app, eventually, 1)
    [ran] = named(spans, f"process {queue_name}")
    assert app.seen[0].span_id == ran.context.span_id


async def test_what_a_handler_asked_for_is_no_failure(app, spans, queue_name, eventually):
    """A cancelled job is what somebody wanted."""
    await app.cancels.enqueue()
    await worked(app, eventually, 1)
    [ran] = named(spans, f"process {queue_name}")
    assert ran.status.status_code is StatusCode.UNSET


async def test_a_job_of_a_schedule_or_one_that_waited_long_is_only_linked(app, spans, queue_name, eventually):
    """A trace of an hour with ten thousand runs is of no use."""
    await app.fine.options(occurrence="hourly:2026-01-01T00:00:00Z").enqueue("u1")
    await worked(app, eventually, 1)
    [sent], [ran] = named(spans, f"send {queue_name}"), named(spans, f"process {queue_name}")
    assert ran.parent is None
    assert ran.context.trace_id != sent.context.trace_id
    assert [link.context.span_id for link in ran.links] == [sent.context.span_id]


async def test_many_jobs_are_one_span_that_counts_them_and_all_carry_it(app, spans, queue_name, eventually):
    """One span for each of a million would be the costliest part."""
    await app.fine.enqueue_many(["u1", "u2", "u3"])
    await worked(app, eventually, 3)
    [sent], ran = named(spans, f"send {queue_name}"), named(spans, f"process {queue_name}")
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert {span.parent.span_id for span in ran} == {sent.context.span_id}
    assert len(ran) == 3


async def test_a_trace_that_the_caller_gives_wins(app, spans, queue_name, eventually):
    """It may come from a system that has its own."""
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await app.fine.options(headers={"traceparent": given, "tenant": "a"}).enqueue("u1")
    await worked(app, eventually, 1)
    [ran] = named(spans, f"process {queue_name}")
    assert f"{ran.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"


async def test_a_refused_enqueue_is_a_failed_span(app, spans, queue_name):
    """Nothing was written."""
    with pytest.raises(BadArguments, match="fine"):
        await app.fine.enqueue()
    [sent] = named(spans, f"send {queue_name}")
    assert (sent.status.status_code, sent.attributes["error.type"]) == (StatusCode.ERROR, "BadArguments")


def test_code_without_an_event_loop_has_spans_as_well(app, spans, queue_name):
    """Django and Flask are where traces begin."""
    job = app.fine.enqueue_sync("u1")
    [sent] = named(spans, f"send {queue_name}")
    assert sent.attributes["messaging.message.id"] == job.id
    app.run_sync(app.close)


async def test_sends_and_runs_are_measured_by_the_conventions_also_without_spans(app, figures, queue_name, eventually):
    """One provider or the other, or both: that is the application's choice."""
    assert not tracing.is_on()
    await app.fine.enqueue("u1")
    await app.fine.enqueue_many(["u2", "u3"])
    await app.fails.enqueue()
    with pytest.raises(BadArguments):
        await app.fine.enqueue()
    await worked(app, eventually, 5)
    found = figures()
    unit, sent = found["messaging.client.sent.messages"]
    common = {"messaging.system": "streamq", "messaging.destination.name": queue_name}
    sending = common | {"messaging.operation.type": "send", "messaging.operation.name": "send"}
    assert (unit, [(point.value, dict(point.attributes)) for point in sent]) == ("{message}", [(4, sending)])
    unit, operations = found["messaging.client.operation.duration"]
    assert unit == "s"
    assert {point.attributes.get("error.type"): point.count for point in operations} == {None: 3, "BadArguments": 1}
    assert operations[0].explicit_bounds == tracing.DURATIONS_S
    unit, runs = found["messaging.process.duration"]
    assert unit == "s"
    assert {point.attributes.get("error.type"): point.count for point in runs} == {None: 3, "ValueError": 2}
    assert common.items() <= dict(runs[0].attributes).items()
    _, consumed = found["messaging.client.consumed.messages"]
    assert sum(point.value for point in consumed) == 5
    assert not app.seen[0].is_valid, "there are no spans"


async def test_without_a_provider_there_are_no_spans_and_no_headers(app, eventually):
    """A feature that is off costs nothing."""
    assert not tracing.is_on()
    item = app.fine.draft("u1")
    assert b'"t":' not in item.envelope
    await app.fine.enqueue("u1")
    await worked(app, eventually, 1)
    assert not app.seen[0].is_valid


def test_everything_works_without_the_package():
    """It is optional. Where it is installed redis-py imports it, which makes no spans."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None; import streamq; from streamq.worker import service;"
        "from streamq import tracing; assert not tracing.is_on(); assert 'opentelemetry.trace' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
