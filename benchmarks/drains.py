"""How fast and at what cost waiting jobs are worked off, watched from outside the processes that do it."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import Child
from benchmarks.tally import Tallies
from benchmarks.waits import hold, wait_for_readers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cluster import RedisCluster
    from benchmarks.servers import RedisServer, ServerFigures

__all__ = ["Drained", "Start", "drain", "tallied"]

Start = Callable[[Any, Tallies], Child]
"""Starts a process that works jobs off, on a server or a cluster."""


@dataclass(frozen=True)
class Drained:
    """What happened between the end of the warm-up and the last jobs."""

    jobs: int
    seconds: float
    worker_cpu_s: tuple[float, ...]
    """Per process."""
    servers_cpu_s: tuple[float, ...]
    """Per server."""
    round_trips: int
    commands: int
    queued_s: float = 0.0
    """How long the workers and the servers together were ready to run and had no core."""

    @property
    def per_second(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def worker_us(self) -> float:
        """Processor time of the workers per job."""
        return sum(self.worker_cpu_s) / self.jobs * 1e6

    @property
    def redis_cpu_s(self) -> float:
        """Processor time of all servers."""
        return sum(self.servers_cpu_s)

    @property
    def redis_us(self) -> float:
        """Processor time of all servers per job."""
        return self.redis_cpu_s / self.jobs * 1e6


@dataclass(frozen=True)
class _Sample:
    at: float
    jobs: int
    worker_cpu_s: tuple[float, ...]
    servers_cpu_s: tuple[float, ...]
    queued_s: float
    figures: ServerFigures


@contextmanager
def tallied() -> Iterator[Tallies]:
    """Give a folder for tallies that is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="streamq-bench-") as folder:
        yield Tallies(Path(folder))


def drain(
    server: RedisServer | RedisCluster,
    starts: Sequence[Start],
    total: int,
    *,
    fill: Callable[[], object] | None = None,
    limit_s: float = 120,
    partitions: int = 1,
) -> Drained:
    """Start the processes on a server that holds `total` jobs, and measure the middle: from 10 % to 97 % done.

    Start and end of the processes, warm-up, and the tail when one of them has run dry are left out. That holds for one
    process. Of several, the first to be up may have done a good part before the next one comes; `fill` avoids it.

    Args:
        server: What they drain.
        starts: The processes.
        total: How many jobs there are.
        fill: Puts the jobs there while all processes (streamq's, at log level info) are up and hold still; None: they are
            there already.
        limit_s: How long it may take.
        partitions: How many their queue has.
    """
    with tallied() as tallies, ExitStack() as stack:
        children = [stack.enter_context(start(server, tallies)) for start in starts]
        if fill is not None:
            wait_for_readers(server, *children, partitions=partitions)
            for child in children:
                hold(child)
            fill()
            for child in children:
                child.process.send_signal(signal.SIGCONT)

        pause_s = _pauses()

        def reached(jobs: int) -> _Sample:
            until = time.monotonic() + limit_s
            while (done := tallies.total()) < jobs:
                if time.monotonic() > until:
                    raise TimeoutError(f"{done} of {total} jobs done in {limit_s} s:\n{children[0].output[-4000:]}")
                for child in children:
                    child.assert_alive()
                time.sleep(pause_s(done, jobs))
            return _Sample(
                time.monotonic(),
                tallies.total(),
                tuple(child.cpu.seconds() for child in children),
                tuple(clock.seconds() for clock in server.clocks),
                sum(clock.queued_seconds() for clock in (*server.clocks, *(child.cpu for child in children))),
                server.figures(),
            )

        first, last = reached(total // 10), reached(total * 97 // 100)
        reached(total)
    return Drained(
        jobs=last.jobs - first.jobs,
        seconds=last.at - first.at,
        worker_cpu_s=_spent(first.worker_cpu_s, last.worker_cpu_s),
        servers_cpu_s=_spent(first.servers_cpu_s, last.servers_cpu_s),
        round_trips=last.figures.replies - first.figures.replies - 6 * len(server.clocks),
        commands=last.figures.commands - first.figures.commands,
        queued_s=last.queued_s - first.queued_s,
    )


_LONGEST_PAUSE_S, _SHORTEST_PAUSE_S = 0.02, 0.001


def _pauses() -> Callable[[int, int], float]:
    """Return a function that says when to look again: seldom, as a look takes a core from those that are measured, but in time.

    It is told how many jobs are done, and at how many it wants to be there.
    """
    before, before_at = 0, time.monotonic()

    def pause_s(done: int, jobs: int) -> float:
        nonlocal before, before_at
        now = time.monotonic()
        per_second = (done - before) / max(now - before_at, 1e-6)
        before, before_at = done, now
        expected_s = (jobs - done) / per_second if per_second else 3 * _SHORTEST_PAUSE_S
        return max(_SHORTEST_PAUSE_S, min(_LONGEST_PAUSE_S, expected_s / 2))

    return pause_s


def _spent(before: tuple[float, ...], after: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(end - begin for begin, end in zip(before, after, strict=True))
