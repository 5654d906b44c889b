"""The worker: `python -m benchmarks.worker [--json] [--quick]`.

How near a worker comes to what its slots allow, whether a long job holds short ones up, and what a second process adds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import app, raw
from benchmarks.drains import Drained, drain, tallied
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, percentile, ratios, run
from benchmarks.processes import Child, run_to_json
from benchmarks.servers import RedisServer
from benchmarks.waits import wait_for_readers, wait_for_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.tally import Tallies

__all__ = ["main"]

SLOTS = 100
IDEAL_PER_S = SLOTS / app.IO_JOB_S

NOTES = [
    "both sides: redis-py asyncio, uvloop, hiredis, TCP loopback, one private server with persistence off",
    "the ideal is slots over run time: 100 / 50 ms = 2,000 jobs a second; the first 10 % of the jobs are left out",
    "bare loop: redis-py, a task per job, reads into free slots, acks what has ended in one pipeline; it promises nothing",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("worker", parts, arguments)


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    slots = {"rounds": scale.pick(5, 2), "total": scale.pick(20_000, 4_000)}
    return [
        Part(["io_ideal_ratio"], partial(_io, **slots), quick_s=15),
        Part(["thread_ideal_ratio"], partial(_threads, **slots), quick_s=9),
        Part(
            ["head_of_line_max_ms"],
            partial(_head_of_line, rounds=scale.pick(5, 2), long_s=scale.pick(10.0, 3.0)),
            quick_s=10,
        ),
        Part(
            ["two_process_ratio"],
            partial(_two_processes, rounds=scale.pick(5, 3), total=scale.pick(100_000, 40_000)),
            quick_s=14,
        ),
    ]


def _fill(server: RedisServer, handler: str, count: int) -> Any:
    sizes = json.dumps({"count": count, "handler": handler})
    line = ("-m", "benchmarks.producers", "fill", server.url, sizes)
    return run_to_json(*line, environment=app.environment(server.url))


def _full_slots(server: RedisServer, start: Callable[[RedisServer, Tallies], Child], total: int) -> float:
    """Work jobs of 50 ms off; return how many a second.

    Jobs end in waves of a hundred. So the time is taken from the end of one hundredth job to that of another: the worker
    notes these moments itself.
    """
    with tallied() as tallies, start(server, tallies) as child:
        until = time.monotonic() + 60 + total / 200
        while tallies.total() < total:
            child.assert_alive()
            if time.monotonic() > until:
                raise TimeoutError(f"{tallies.total()} of {total} jobs done:\n{child.output[-4000:]}")
            time.sleep(0.02)
        (pid,) = tallies.counts()
        marks = tallies.marks_ns(pid)
    first, last = total // 10 // SLOTS * SLOTS, total // SLOTS * SLOTS
    return (last - first) / (marks[last] - marks[first]) * 1e9


def _bare_loop(server: RedisServer, tallies: Tallies) -> Child:
    return Child("-m", "benchmarks.raw", "tasks", server.url, environment=tallies.environment)


def _io(report: Report, *, rounds: int, total: int) -> None:
    ours, bare = [], []
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            sides = [_io_ours, _io_bare]
            for side in sides if number % 2 else reversed(sides):
                server.flush()
                rate = side(server, total)
                (ours if side is _io_ours else bare).append(rate)
    against_bare = ratios(ours, bare)
    report.add(
        "io_ideal_ratio", [rate / IDEAL_PER_S for rate in ours], "x ideal", at_least(0.97),
        f"{total:,} jobs of 50 ms at concurrency 100 in one process",
        holds=median(ours) >= median(bare),
        detail={
            "jobs_per_second": median(ours),
            "bare_loop_jobs_per_second": median(bare),
            "against_bare_loop": median(against_bare),
            "bare_loop_ideal_ratio": median(bare) / IDEAL_PER_S,
        },
    )  # fmt: skip


def _io_ours(server: RedisServer, total: int) -> float:
    _fill(server, "io", total)
    return _full_slots(server, app.worker(SLOTS), total)


def _io_bare(server: RedisServer, total: int) -> float:
    raw.fill(server.url, total)
    return _full_slots(server, _bare_loop, total)


def _threads(report: Report, *, rounds: int, total: int) -> None:
    rates = []
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for _ in report.rounds(rounds):
            server.flush()
            _fill(server, "io_in_thread", total)
            rates.append(_full_slots(server, app.worker(SLOTS), total))
    report.add(
        "thread_ideal_ratio", [rate / IDEAL_PER_S for rate in rates], "x ideal", at_least(0.9),
        f"{total:,} plain functions of 50 ms on 100 threads of one process",
        detail={"jobs_per_second": median(rates)},
    )  # fmt: skip


# Head of line.

BURST, PAUSE_S = 10, 0.1


def _head_of_line(report: Report, *, rounds: int, long_s: float) -> None:
    """Two workers with one slot each. Bursts of 1 ms jobs, and in the middle of one a long job.

    The bursts before it have taught the workers that jobs are short, so that they read ahead if they ever do.
    """
    worst, medians = [], []
    bursts = int(long_s * 0.9 / PAUSE_S)
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for _ in report.rounds(rounds):
            server.flush()
            with tallied() as tallies, app.worker(1)(server, tallies) as one, app.worker(1)(server, tallies) as other:
                wait_for_readers(server, one, other)
                waits = _bursts(server.url, bursts, long_s)
                found = [ns / 1e6 for ns in wait_for_values(tallies, waits, one)]
            worst.append(max(found))
            medians.append(percentile(found, 50))
    report.add(
        "head_of_line_max_ms", worst, "ms", at_most(50),
        f"two workers with one slot each, one held for {long_s:g} s; {bursts * BURST:,} jobs of 1 ms in bursts of {BURST}",
        detail={"p50_ms": median(medians), "worst_of_all_rounds_ms": max(worst)},
    )  # fmt: skip


def _bursts(url: str, bursts: int, long_s: float) -> int:
    """Send the jobs; return how many short ones."""
    sizes = json.dumps({"bursts": bursts, "size": BURST, "pause_s": PAUSE_S, "long_s": long_s})
    line = ("-m", "benchmarks.producers", "bursts", url, sizes)
    return int(run_to_json(*line, environment=app.environment(url))["short"])


# Two processes.


def _two_processes(report: Report, *, rounds: int, total: int) -> None:
    found: dict[int, list[Drained]] = {1: [], 2: []}
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            for processes in (1, 2) if number % 2 else (2, 1):
                server.flush()
                workers = [app.worker(SLOTS, log_level="info")] * processes
                found[processes].append(drain(server, workers, total, fill=partial(_fill, server, "noop", total)))
    one, two = ([each.per_second for each in found[processes]] for processes in (1, 2))
    report.add(
        "two_process_ratio", ratios(two, one), "x one process", at_least(1.2),
        f"{total:,} no-op jobs, concurrency {SLOTS} each, {os.cpu_count()} cores shared with Redis",
        detail={
            "one_jobs_per_second": median(one),
            "two_jobs_per_second": median(two),
            "limit": median([_limit(each) for each in found[1]]),
            **_split("one", found[1]),
            **_split("two", found[2]),
        },
    )  # fmt: skip


def _limit(one: Drained) -> float:
    """Return the most that more processes could add: all cores are busy, or the server, which has one thread, is."""
    cores = os.cpu_count() or 1
    job_us = one.worker_us + one.redis_us
    return min(cores / job_us, 1 / one.redis_us) * 1e6 / one.per_second


def _split(name: str, drains: Sequence[Drained]) -> dict[str, float]:
    """Say how the processor time of a second was split, in cores."""
    return {
        f"{name}_worker_cores": median([sum(each.worker_cpu_s) / each.seconds for each in drains]),
        f"{name}_redis_cores": median([each.redis_cpu_s / each.seconds for each in drains]),
        f"{name}_waiting_for_a_core": median([each.queued_s / each.seconds for each in drains]),
    }


if __name__ == "__main__":
    sys.exit(main())
