"""streamq: a job queue on Redis Streams, with per-user status in MongoDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamq.app import Handler, StreamQ
    from streamq.context import JobContext, current_job
    from streamq.dedup import Dedup
    from streamq.depends import Depends
    from streamq.job import Cancel, Fail, RateLimited, Retry, Snooze
    from streamq.options import Options
    from streamq.queue import Job
    from streamq.retry import Never, RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "Cancel", "Dedup", "Depends", "Fail", "Handler", "Job", "JobContext", "Never", "Options", "RateLimited", "Retry", "RetryPolicy", "Snooze", "StreamQ",
    "current_job",
]  # fmt: skip

_HOME = {
    "Cancel": "job", "Dedup": "dedup", "Depends": "depends", "Fail": "job", "Handler": "app", "Job": "queue", "JobContext": "context", "Never": "retry",
    "Options": "options", "RateLimited": "job", "Retry": "job", "RetryPolicy": "retry", "Snooze": "job", "StreamQ": "app",
    "current_job": "context",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `streamq --help` needs none of them."""
    if name not in _HOME:
        raise AttributeError(f"module 'streamq' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"streamq.{_HOME[name]}"), name)
