"""A worker inside the test, with a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streamq import StreamQ
from streamq.worker import Worker

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
    made = StreamQ(redis_url=redis_url, worker_concurrency=4, dead_after_ms=500, beat_ms=100, grace_ms=2_000)
    yield made
    await made.close()


@pytest.fixture
async def work(app: StreamQ) -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    """Start workers of the application; they are stopped after the test, and must end well."""
    started: list[tuple[Worker, asyncio.Task[int]]] = []

    async def start(**kwargs: Any) -> Worker:
        chosen = kwargs.pop("app", app)
        worker = Worker(chosen, kwargs.pop("settings", chosen.settings), **kwargs)
        started.append((worker, asyncio.create_task(worker.run())))
        return worker

    yield start
    for worker, _ in started:
        worker.force()
    for _, task in started:
        assert await task in (0, 130)
