"""streamq with the result of every job kept for five minutes, as most peers do."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.systems.streamq import call_of, open, work
from streamq.app import Handler, StreamQ

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["later", "many", "one", "open", "work"]

KEPT = timedelta(minutes=5)


def _handler(app: StreamQ, job: str) -> Handler[..., Any]:
    return app.handler_named(job).options(keep_result=KEPT)


async def one(app: StreamQ, job: str, argument: str) -> None:
    """Enqueue one job."""
    await _handler(app, job).enqueue(*call_of(job, argument))


async def many(app: StreamQ, job: str, arguments: Sequence[str]) -> None:
    """Enqueue many jobs."""
    await _handler(app, job).enqueue_many([call_of(job, argument) for argument in arguments])


async def later(app: StreamQ, job: str, argument: str, delay_s: float) -> None:
    """Enqueue a delayed job."""
    await _handler(app, job).options(delay=timedelta(seconds=delay_s)).enqueue(*call_of(job, argument))
