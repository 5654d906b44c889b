"""A worker: one process that runs jobs. It joins, runs, drains and leaves."""

from __future__ import annotations

from streamq.worker.service import Worker, main

__all__ = ["Worker", "main"]
