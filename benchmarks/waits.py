"""Waiting for a named condition, with the last words of whoever should have brought it about."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.cluster import RedisCluster
    from benchmarks.processes import Child
    from benchmarks.servers import RedisServer
    from benchmarks.tally import Tallies

__all__ = ["hold", "wait_for_readers", "wait_for_values", "wait_until"]


def wait_until(is_true: Callable[[], bool], what: str, *children: Child, limit_s: float = 30) -> None:
    """Look again and again until something is true.

    Raises:
        TimeoutError: It did not become true.
        RuntimeError: One of the programs has ended meanwhile.
    """
    until = time.monotonic() + limit_s
    while not is_true():
        for child in children:
            child.assert_alive()
        if time.monotonic() > until:
            words = "\n".join(child.output[-3000:] for child in children)
            raise TimeoutError(f"waited {limit_s:g} s in vain: {what}\n{words}")
        time.sleep(0.01)


def wait_for_readers(
    server: RedisServer | RedisCluster, *children: Child, limit_s: float = 20, partitions: int = 1
) -> None:
    """Wait until so many clients are blocked in a read: each program is in as many as its queue has partitions."""
    wait_until(
        lambda: server.blocked_clients() >= len(children) * partitions,
        "the workers wait for jobs",
        *children,
        limit_s=limit_s,
    )


def hold(worker: Child) -> None:
    """Have a worker of streamq, whose log level is info, start nothing until it gets SIGCONT."""
    worker.process.send_signal(signal.SIGTSTP)
    wait_until(lambda: "worker.quiet" in worker.output, "the worker is quiet", worker)


def wait_for_values(tallies: Tallies, count: int, *children: Child) -> list[int]:
    """Collect what the handlers noted, when all jobs have run."""
    wait_until(lambda: tallies.noted() >= count, f"{count} jobs have run", *children)
    return tallies.values()
