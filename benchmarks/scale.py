"""Does a job cost the same at a million users as at a thousand, and does `streamq plan` say what it costs?

`python -m benchmarks.scale [--json] [--quick]`: the hour of so many users, enqueued with their dedup keys and worked off by
one process, at each size; then what the model of `streamq.sizing` says for it. And: what do jobs cost when their queue is
divided over the masters of a Redis Cluster, against one server?
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import app
from benchmarks.cluster import RedisCluster
from benchmarks.drains import Drained, drain
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, ratios, run
from benchmarks.processes import run_to_json
from benchmarks.servers import RedisServer
from streamq.sizing import FIGURES, Load, needs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

CONCURRENCY = 100
ARGUMENT_BYTES = 120
MASTERS = 3
PARTITIONS = 6
"""Of the queue `bench` each of three masters has two."""


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
    of_a_job = hours[1:]
    _fit(report, "worker_us", [each.worker_us for each in of_a_job])
    _fit(report, "enqueue_us", [each.producer_us for each in of_a_job])
    _fit(report, "redis_us", [each.redis_us for each in of_a_job])
    _fit(report, "job_bytes", [each.bytes_per_job - ARGUMENT_BYTES for each in of_a_job])


def _fit(report: Report, name: str, values: Sequence[float]) -> None:
    """Say what a figure of `streamq.sizing` would be by this run, and what it is."""
    unit = "bytes" if name.endswith("bytes") else "us"
    report.add(f"fit_{name}", values, unit, None, "for `streamq.sizing`", detail={"is": getattr(FIGURES, name)})


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


# Partitions over masters.


def _masters(report: Report, *, rounds: int, total: int) -> None:
    """Work jobs off that lie on one server, on one in partitions, and in partitions over masters, by one process and by two."""
    with RedisServer() as server, RedisCluster(MASTERS) as cluster:
        report.server = server.version
        sides = {"one": (server, 1), "divided": (server, PARTITIONS), "masters": (cluster, PARTITIONS)}
        found: dict[tuple[str, int], list[Drained]] = {(name, workers): [] for name in sides for workers in (1, 2)}
        turns = list(found)
        for number in report.rounds(rounds):
            random.Random(number).shuffle(turns)
            for name, workers in turns:
                found[name, workers].append(_noops(*sides[name], workers, total))
    for workers, figure in ((1, "partitions_per_cpu_ratio"), (2, "partitions_per_cpu_ratio_2_workers")):
        processes = "one worker process" if workers == 1 else "two worker processes"
        size = f"{total:,} no-op jobs in {PARTITIONS} partitions over {MASTERS} masters, {processes}"
        drains = {name: found[name, workers] for name in sides}
        report.add(
            figure, ratios(_per_cpu_s(drains["masters"]), _per_cpu_s(drains["one"])), "x one server", at_least(0.8),
            f"{size} at concurrency {CONCURRENCY}, {os.cpu_count()} cores shared with Redis",
            detail={
                "divided_on_one_server": median(ratios(_per_cpu_s(drains["divided"]), _per_cpu_s(drains["one"]))),
                "room_of_masters": median(ratios(_busiest_us(drains["one"]), _busiest_us(drains["masters"]))),
                **{key: value for name in sides for key, value in _costs(name, drains[name]).items()},
            },
        )  # fmt: skip
    pairs = list(zip(found["masters", 1], found["one", 1], strict=True))
    _fit(report, "divided_worker_us", [masters.worker_us - one.worker_us for masters, one in pairs])
    _fit(report, "divided_redis_us", [masters.redis_us - one.redis_us for masters, one in pairs])


def _noops(server: RedisServer | RedisCluster, partitions: int, workers: int, total: int) -> Drained:
    server.flush()
    settings = {"partitions": f"{app.QUEUE}={partitions}", "log_level": "info"}
    line = ("-m", "benchmarks.producers", "fill", "redis://", json.dumps({"count": total}))
    fill = partial(run_to_json, *line, environment=app.environment(server.url, **settings))
    starts = [app.worker(CONCURRENCY, **settings)] * workers
    return drain(server, starts, total, fill=fill, partitions=partitions)


def _per_cpu_s(drains: Sequence[Drained]) -> list[float]:
    """Return how many jobs a second of processor time does, the workers' and the servers' together."""
    return [1e6 / (each.worker_us + each.redis_us) for each in drains]


def _busiest_us(drains: Sequence[Drained]) -> list[float]:
    """Return how long the server that has most to do is busy per job: its inverse is what the servers can do at the most."""
    return [max(each.servers_cpu_s) / each.jobs * 1e6 for each in drains]


def _costs(name: str, drains: Sequence[Drained]) -> dict[str, float | list[float]]:
    each_server = zip(*([cpu_s / each.jobs * 1e6 for cpu_s in each.servers_cpu_s] for each in drains), strict=True)
    return {
        f"{name}_jobs_per_second": median([each.per_second for each in drains]),
        f"{name}_jobs_per_cpu_s": median(_per_cpu_s(drains)),
        f"{name}_worker_us": median([each.worker_us for each in drains]),
        f"{name}_redis_us": [median(values) for values in each_server],
        f"{name}_commands_per_job": median([each.commands / each.jobs for each in drains]),
    }


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    sizes = scale.pick((1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000))
    names = ["rate_at_largest_vs_smallest", "plan_redis_cpu_error", "plan_worker_cpu_error", "plan_memory_error"]
    masters = {"rounds": scale.pick(5, 2), "total": scale.pick(100_000, 40_000)}
    return [
        Part(names, partial(_hours, sizes=sizes), quick_s=28),
        Part(
            ["partitions_per_cpu_ratio", "partitions_per_cpu_ratio_2_workers"], partial(_masters, **masters), quick_s=22
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("scale", parts, arguments)


if __name__ == "__main__":
    sys.exit(main())
