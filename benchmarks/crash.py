"""What a `kill -9` of a worker costs: when its jobs start again on another one, how many never do, how many twice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.drains import tallied
from benchmarks.servers import RedisServer
from benchmarks.tally import Journal, JournalLine
from benchmarks.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.processes import Child

__all__ = ["Crashed", "measure"]

JOB_MS = 2_000


@dataclass(frozen=True)
class Crashed:
    """What became of the jobs that were in flight on the worker that was killed."""

    jobs: int
    restarted: int
    doubled: int
    """Jobs that started more than once after the kill."""
    last_s: float
    """From the kill until the last of those that did start again; the limit, if none did."""


def measure(
    work: Callable[..., Child], produce: Callable[..., Any], jobs: int, setting: str, limit_s: float
) -> Crashed:
    """Let one worker take jobs, start a second one, kill the first, and wait."""
    with RedisServer() as server, tallied() as tallies:
        journal = Journal(tallies.folder)
        with work(jobs, setting, server, tallies) as first:
            produce(server, "fill", count=jobs, job="long", words=str(JOB_MS))
            wait_until(lambda: len(_started(journal)) >= jobs, "the jobs run", first, limit_s=60)
            with work(jobs, setting, server, tallies) as second:
                time.sleep(JOB_MS / 1000 / 4)  # the second is there when the first dies, as in a fleet
                killed_ns = time.monotonic_ns()
                first.kill()
                return _watch(journal, second, jobs, killed_ns, limit_s)


def _started(journal: Journal, since_ns: int = 0) -> list[JournalLine]:
    return [line for line in journal.lines() if line.what == "start" and line.at_ns > since_ns]


def _watch(journal: Journal, second: Child, jobs: int, killed_ns: int, limit_s: float) -> Crashed:
    until = time.monotonic() + limit_s
    while len({line.name for line in _started(journal, killed_ns)}) < jobs and time.monotonic() < until:
        second.assert_alive()
        time.sleep(0.02)
    again = _started(journal, killed_ns)
    names = {line.name for line in again}
    last_s = (max(line.at_ns for line in again) - killed_ns) / 1e9 if again else limit_s
    return Crashed(jobs, len(names), len(again) - len(names), last_s)
