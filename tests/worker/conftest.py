"""A worker inside the test, with a real Redis."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streamq import StreamQ

KEPT = timedelta(seconds=60)


@pytest.fixture
def spans(monkeypatch):
    """Set up OpenTelemetry as an application does, for one test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def app(redis_url: str) -> AsyncIterator[StreamQ]:
    """Give an application of its own, without handlers."""
    made = StreamQ(redis_url=redis_url, worker_concurrency=4, dead_after_ms=2_000, beat_ms=100, grace_ms=2_000)
    yield made
    await made.close()
