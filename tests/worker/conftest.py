"""A worker inside the test, with a real Redis."""

import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streamq import StreamQ
from streamq.broker.inspection import Inspection
from streamq.keys import Keys
from streamq.loading import load_app

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


@pytest.fixture
async def view(app: StreamQ) -> AsyncIterator[Inspection]:
    """What is seen of the queue from outside."""
    wire = app.client.broker.wire()
    yield Inspection(wire, Keys("default"))
    await wire.close()


@pytest.fixture
def borrowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], StreamQ]]:
    """Import the application of a file beside the tests from the test's folder, by the name that other processes use."""
    names = []

    def load(name: str) -> StreamQ:
        shutil.copy(Path(__file__).with_name(f"{name}.py"), tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        names.append(name)
        return load_app(f"{name}:app")

    yield load
    for name in names:
        sys.modules.pop(name, None)
