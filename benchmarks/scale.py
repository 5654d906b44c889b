"""Does a job cost the same at a million users as at a thousand, and does `streamq plan` say what it costs?

`python -m benchmarks.scale [--json] [--quick]`: the hour of so many users, enqueued with their dedup keys and worked off by
one process, at each size; then what the model of `streamq.sizing` says for it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import app
from benchmarks.drains import drain
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, run
from benchmarks.processes import run_to_json
from benchmarks.servers import RedisServer
from streamq.sizing import FIGURES, Load, needs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

CONCURRENCY = 100
ARGUMENT_BYTES = 120


@dataclass(frozen=True)
class Hour:
    """What the jobs of so many users took."""

    users: int
    enqueue_s: float
    producer_us: float
    redis_enqueue_us: float
    redis_work_us: float
    worker_us: float
    per_second: float
    bytes_per_job: float

    @property
    def redis_us(self) -> float:
        """Processor time of Redis per job, from enqueue to settled."""
        return self.redis_enqueue_us + self.redis_work_us


def hour(server: RedisServer, users: int) -> Hour:
    """Enqueue a job for each user and work them off."""
    server.flush()
    before, cpu = server.figures().memory, server.cpu.seconds()
    sizes = json.dumps({"count": users})
    produced = run_to_json(
        "-m", "benchmarks.producers", "users", server.url, sizes, environment=app.environment(server.url)
    )
    spent, memory = server.cpu.seconds() - cpu, server.figures().memory - before
    drained = drain(server, [app.worker(CONCURRENCY)], users, limit_s=600)
    return Hour(
        users=users,
        enqueue_s=users / produced["per_second"],
        producer_us=produced["cpu_us"],
        redis_enqueue_us=spent / users * 1e6,
        redis_work_us=drained.redis_us,
        worker_us=drained.worker_us,
        per_second=drained.per_second,
        bytes_per_job=memory / users,
    )


def _hours(report: Report, sizes: Sequence[int]) -> None:
    hours: list[Hour] = []
    with RedisServer() as server:
        report.server = server.version
        hour(server, 1_000)  # warms up files and caches
        for users in sizes:
            hours.append(hour(server, users))
            _tell(report, hours[-1])
    largest = f"{sizes[-1]:,} users against {sizes[0]:,}"
    rates = [each.per_second for each in hours]
    report.add("rate_at_largest_vs_smallest", [rates[-1] / rates[0]], "x", at_least(0.8), largest)
    for name, errors in _errors(hours).items():
        size = ", ".join(f"{each.users:,}" for each in hours[1:]) + " users; the largest difference of the model"
        report.add(name, [max(errors)], "", at_most(0.25), size, detail={"median": median(errors)})


def _tell(report: Report, found: Hour) -> None:
    size = f"{found.users:,} users, one worker process at concurrency {CONCURRENCY}"
    report.add(
        f"jobs_per_second.{found.users}", [found.per_second], "jobs/s", None, size,
        detail={
            "worker_us": found.worker_us, "redis_us": found.redis_us, "producer_us": found.producer_us,
            "redis_enqueue_us": found.redis_enqueue_us, "enqueue_s": found.enqueue_s, "bytes_per_job": found.bytes_per_job,
        },
    )  # fmt: skip


def _errors(hours: Sequence[Hour]) -> dict[str, list[float]]:
    """Return how far the model is off, as a part of what was measured; of few jobs, what is once for all is most."""
    found: dict[str, list[float]] = {"plan_redis_cpu_error": [], "plan_worker_cpu_error": [], "plan_memory_error": []}
    for each in hours[1:]:
        needs = needs_of(Load(each.users, run_s=0.0, payload_bytes=ARGUMENT_BYTES))
        redis_us = needs.redis_core_share * 3600 / each.users * 1e6
        found["plan_redis_cpu_error"].append(abs(redis_us / each.redis_us - 1))
        found["plan_worker_cpu_error"].append(abs(FIGURES.worker_us / each.worker_us - 1))
        found["plan_memory_error"].append(abs(needs.redis_mb * 1e6 / each.users / each.bytes_per_job - 1))
    return found


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    sizes = scale.pick((1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000))
    names = ["rate_at_largest_vs_smallest", "plan_redis_cpu_error", "plan_worker_cpu_error", "plan_memory_error"]
    return [Part(names, partial(_hours, sizes=sizes), quick_s=30)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("scale", parts, arguments)


if __name__ == "__main__":
    sys.exit(main())
