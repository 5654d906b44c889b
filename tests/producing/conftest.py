"""Applications that produce jobs on a real Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from streamq import StreamQ

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@pytest.fixture
async def app(redis_url: str) -> AsyncIterator[StreamQ]:
    """Give an application of its own, without handlers."""
    made = StreamQ(redis_url=redis_url, worker_concurrency=4, dead_after_ms=2_000, beat_ms=100, grace_ms=2_000)
    yield made
    await forget_holders(made)
    await made.close()
    await asyncio.get_running_loop().run_in_executor(None, made.close_sync)


async def forget_holders(app: StreamQ) -> None:
    """Remove the dedup keys of jobs that were never run: that they lie there is right."""
    wire = app.client.broker.wire()
    for key in await wire.call("KEYS", "*:dedup:*"):
        await wire.call("DEL", key)
    await wire.close()


@pytest.fixture
async def redis(app: StreamQ) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Say commands to the server."""
    wire = app.client.broker.wire()
    yield wire.call
    await wire.close()
