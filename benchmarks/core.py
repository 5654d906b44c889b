"""The queue core: `python -m benchmarks.core [--json] [--quick]`.

Each ratio compares streamq, with index, outbox, fences and the recorder's entries on, with a bare loop of redis-py
that keeps no promise (`benchmarks.raw`), in the same round on the same server.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from benchmarks import app, raw
from benchmarks.drains import Drained, drain, tallied
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, percentile, ratios, run
from benchmarks.processes import Child, run_to_json
from benchmarks.servers import RedisServer
from benchmarks.waits import wait_for_readers, wait_for_values, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.tally import Tallies

__all__ = ["main"]

CONCURRENCY = 100
"""As many as raw reads at once."""

SLOW_US = 2_000
"""From how long on Redis logs a command: a log of nearly all of them is a load of its own."""

CAPPED = (b"outbox", b"dead", b"control")

NOTES = [
    "both sides: redis-py asyncio, uvloop, hiredis, TCP loopback, one private server with persistence off",
    "raw: XREADGROUP COUNT 100, body awaited in place, XACK and XDEL in one pipeline per batch; one await xadd after "
    "another, or pipelines of 100",
    "a job carries a 120-byte argument on both sides; a drain is measured from 10 % to 97 % of its jobs",
    "processor times are those of the processes alone; the machine may be shared, so trust ratios and µs, not rates",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("core", parts, arguments)


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    return [
        Part(
            ["drain_noop_ratio", "drain_noop_c3_ratio", "worker_cpu_us_per_job", "redis_cpu_us_per_job",
             "round_trips_per_job"],
            partial(_drains, rounds=scale.pick(5, 3), total=scale.pick(100_000, 20_000)),
            quick_s=14,
        ),
        Part(
            ["enqueue_many_ratio", "enqueue_many_dedup_ratio", "enqueue_concurrent_ratio", "enqueue_one_ratio"],
            partial(_enqueues, rounds=scale.pick(5, 3), scale=scale),
            quick_s=9,
        ),
        Part(
            ["idle_latency_p50_ratio", "idle_latency_p99_ms"],
            partial(_latency, rounds=scale.pick(5, 2), count=scale.pick(1_000, 100)),
            quick_s=6,
        ),
        Part(
            ["delayed_late_p99_ms"],
            partial(_delayed, rounds=scale.pick(3, 1), count=scale.pick(2_000, 300)),
            quick_s=4,
        ),
        Part(
            ["bytes_per_queued_job", "bytes_per_finished_job"],
            partial(_bytes, rounds=scale.pick(3, 2), total=scale.pick(100_000, 10_000)),
            quick_s=8,
        ),
        Part(
            ["million_due_max_call_ms"],
            partial(_million_due, rounds=scale.pick(3, 1), total=scale.pick(1_000_000, 100_000)),
            quick_s=7,
        ),
    ]  # fmt: skip


def _server(report: Report) -> RedisServer:
    server = RedisServer()
    report.notes = NOTES
    return server


def _produce(server: RedisServer, mode: str, **sizes: Any) -> Any:
    return run_to_json(
        "-m", "benchmarks.producers", mode, server.url, json.dumps(sizes), environment=app.environment(server.url)
    )


# Drains.


def raw_worker(loop: str, server: RedisServer, tallies: Tallies) -> Child:
    """Start a consumer of plain redis-py."""
    return Child("-m", "benchmarks.raw", loop, server.url, environment=tallies.environment)


def _drain_raw(server: RedisServer, total: int) -> Drained:
    raw.fill(server.url, total)
    return drain(server, [partial(raw_worker, "drain")], total)


def _drain_ours(server: RedisServer, total: int, *, concurrency: int) -> Drained:
    _produce(server, "fill", count=total)
    return drain(server, [app.worker(concurrency)], total)


def _drains(report: Report, *, rounds: int, total: int) -> None:
    sides = {
        "raw": _drain_raw,
        "best": partial(_drain_ours, concurrency=CONCURRENCY),
        "c3": partial(_drain_ours, concurrency=3),
    }
    found: dict[str, list[Drained]] = {name: [] for name in sides}
    names = list(sides)
    with _server(report) as server:
        report.server = server.version
        for number in report.rounds(rounds):
            random.Random(number).shuffle(names)
            for name in names:
                server.flush()
                found[name].append(sides[name](server, total))
    rates = {name: [each.per_second for each in drains] for name, drains in found.items()}
    size = f"{total:,} jobs, one process, concurrency"
    best = found["best"]
    report.add(
        "drain_noop_ratio", ratios(rates["best"], rates["raw"]), "x raw", at_least(0.6), f"{size} {CONCURRENCY}",
        detail={
            "jobs_per_second": median(rates["best"]),
            "raw_jobs_per_second": median(rates["raw"]),
            "raw_worker_cpu_us": median([each.worker_us for each in found["raw"]]),
            "raw_redis_cpu_us": median([each.redis_us for each in found["raw"]]),
        },
    )  # fmt: skip
    report.add(
        "drain_noop_c3_ratio", ratios(rates["c3"], rates["raw"]), "x raw", at_least(0.25), f"{size} 3",
        detail={
            "jobs_per_second": median(rates["c3"]),
            "worker_cpu_us": median([each.worker_us for each in found["c3"]]),
            "redis_cpu_us": median([each.redis_us for each in found["c3"]]),
            "round_trips": median([each.round_trips / each.jobs for each in found["c3"]]),
        },
    )  # fmt: skip
    size = f"{size} {CONCURRENCY}"
    report.add("worker_cpu_us_per_job", [each.worker_us for each in best], "µs", at_most(20), size)
    report.add("redis_cpu_us_per_job", [each.redis_us for each in best], "µs", at_most(12), size)
    report.add(
        "round_trips_per_job", [each.round_trips / each.jobs for each in best], "", at_most(0.05), size,
        detail={"commands_per_job": median([each.commands / each.jobs for each in best])},
    )  # fmt: skip


# Producing.


def _enqueues(report: Report, *, rounds: int, scale: Scale) -> None:
    one, some, many = scale.pick(8_000, 1_600), scale.pick(32_000, 8_000), scale.pick(102_400, 20_480)
    sizes = {"raw_one": one, "one": one, "concurrent": some, "raw_pipelines": many, "many": many, "many_dedup": many}
    with _server(report) as server:
        report.server = server.version
        found = _produce(server, "race", rounds=rounds, sizes=sizes)
    rates = {name: [each["per_second"] for each in way] for name, way in found.items()}
    for name, way, against, bar in (
        ("enqueue_many_ratio", "many", "raw_pipelines", 2.0),
        ("enqueue_many_dedup_ratio", "many_dedup", "raw_pipelines", 1.5),
        ("enqueue_concurrent_ratio", "concurrent", "raw_one", 4.0),
        ("enqueue_one_ratio", "one", "raw_one", 1.0),
    ):
        detail = {
            "jobs_per_second": median(rates[way]),
            "raw_jobs_per_second": median(rates[against]),
            "producer_cpu_us": median([each["cpu_us"] for each in found[way]]),
            "raw_producer_cpu_us": median([each["cpu_us"] for each in found[against]]),
        }
        unit = "x raw pipelines" if against == "raw_pipelines" else "x raw one by one"
        size = f"{sizes[way]:,} jobs from one process"
        report.add(name, ratios(rates[way], rates[against]), unit, at_least(bar), size, detail=detail)


# Latency.


def _latency(report: Report, *, rounds: int, count: int) -> None:
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    with _server(report) as server:
        report.server = server.version
        for _ in report.rounds(rounds):
            server.flush()
            with (
                tallied() as our_tallies,
                tallied() as raw_tallies,
                raw_worker("latency", server, raw_tallies) as raw_child,
                app.worker(3)(server, our_tallies) as child,
            ):
                wait_for_readers(server, child, raw_child)
                _produce(server, "pings", count=count)
                ours.append(_milliseconds(our_tallies, count, child))
                theirs.append(_milliseconds(raw_tallies, count, raw_child))
    size = f"{count:,} jobs of each side in turn to an idle worker, 4 to 12 ms apart"
    p50s = [median(each) for each in ours]
    raw_p50s = [median(each) for each in theirs]
    report.add(
        "idle_latency_p50_ratio", ratios(p50s, raw_p50s), "x raw", at_most(1.3), size,
        detail={"p50_ms": median(p50s), "raw_p50_ms": median(raw_p50s)},
    )  # fmt: skip
    report.add(
        "idle_latency_p99_ms", [percentile(each, 99) for each in ours], "ms", at_most(5), size,
        detail={
            "p90_ms": median([percentile(each, 90) for each in ours]),
            "max_ms": max(max(each) for each in ours),
            "raw_p99_ms": median([percentile(each, 99) for each in theirs]),
            "raw_max_ms": max(max(each) for each in theirs),
        },
    )  # fmt: skip


def _milliseconds(tallies: Tallies, count: int, child: Child, *, per_ms: float = 1e6) -> list[float]:
    """Return what the handlers noted; the first tenth is for warming up."""
    return [value / per_ms for value in wait_for_values(tallies, count, child)[count // 10 :]]


def _delayed(report: Report, *, rounds: int, count: int) -> None:
    late: list[float] = []
    early, worst = 0, 0.0
    with _server(report) as server:
        report.server = server.version
        for _ in report.rounds(rounds):
            server.flush()
            with tallied() as tallies, app.worker(10)(server, tallies) as child:
                wait_for_readers(server, child)
                _produce(server, "delays", count=count, shortest_ms=200, longest_ms=1_500)
                found = _milliseconds(tallies, count, child, per_ms=1e3)
            late.append(percentile(found, 99))
            early += sum(each < 0 for each in found)
            worst = max(worst, *found)
    report.add(
        "delayed_late_p99_ms", late, "ms", at_most(5), f"{count:,} jobs, each due in 0.2 to 1.5 s, one worker",
        holds=early == 0, detail={"early": early, "max_ms": worst},
    )  # fmt: skip


# Memory.


def _bytes(report: Report, *, rounds: int, total: int) -> None:
    queued, remains = [], []
    with _server(report) as server:
        report.server = server.version
        server.flush()
        _produce(server, "fill", count=total)
        for _ in range(rounds):
            server.flush()
            before = server.figures().memory
            _produce(server, "fill", count=total)
            queued.append((server.figures().memory - before) / total)
        # What remains once for all (workers, groups) is no cost per job: count from the first drain to the next ones.
        server.flush()
        for _ in range(rounds + 1):
            _produce(server, "fill", count=total)
            _work_off(server)
            remains.append(_remaining(server))
    report.add("bytes_per_queued_job", queued, "bytes", at_most(350), f"{total:,} jobs with a 120-byte argument")
    finished = [(after[0] - before[0]) / total for before, after in pairwise(remains)]
    streams = [streams / total for _, streams in remains]
    report.add(
        "bytes_per_finished_job", finished, "bytes", at_most(0.5), f"{total:,} jobs a round, after one to warm up",
        detail={"bytes_in_capped_streams_per_job_until_recorded": median(streams)},
    )  # fmt: skip


def _work_off(server: RedisServer) -> None:
    """Run all jobs, and let the worker say goodbye when the last one is settled."""
    index = f"{{sq:{app.QUEUE}:0}}:index"
    with tallied() as tallies, server.client() as client, app.worker(CONCURRENCY)(server, tallies) as child:
        wait_until(lambda: not client.hlen(index), "all jobs are settled", child)
        child.stop()


def _remaining(server: RedisServer) -> tuple[int, int]:
    """Return the memory in use without the capped streams, and theirs; the streams are gone afterwards."""
    with_streams = server.figures().memory
    with server.client() as client:
        capped = [key for key in client.scan_iter(count=1000) if key.rpartition(b":")[2] in CAPPED]
        if capped:
            client.delete(*capped)
    without = server.figures().memory
    return without, with_streams - without


def _million_due(report: Report, *, rounds: int, total: int) -> None:
    longest, most, over, calls, fills = [], [], 0, 0, []
    with _server(report) as server:
        report.server = server.version
        for _ in report.rounds(rounds):
            server.flush()
            with server.client() as client:
                client.config_set("slowlog-log-slower-than", SLOW_US)  # each entry costs the server memory and time
                client.config_set("slowlog-max-len", 1_000_000)
                client.slowlog_reset()
                fills.append(_produce(server, "fill", count=total, delay_ms=1)["per_second"])
                drain(server, [app.worker(CONCURRENCY)], total, limit_s=300)
                slow = [
                    entry["duration"] / 1000
                    for entry in client.slowlog_get(-1)
                    if entry["command"].split()[:1] in ([b"EVALSHA"], [b"EVAL"])
                ]
                stats = client.info("commandstats")
            made = sum(
                int(stats[f"cmdstat_{name}"]["calls"]) for name in ("eval", "evalsha") if f"cmdstat_{name}" in stats
            )
            calls += made
            longest.append(max(slow, default=SLOW_US / 1000))
            most.append(min(sorted(slow, reverse=True)[: made // 1_000 + 1], default=SLOW_US / 1000))
            over += sum(each > 5 for each in slow)
    report.add(
        "million_due_max_call_ms", longest, "ms", at_most(5), f"{total:,} delayed jobs, all due when the worker starts",
        detail={"script_calls": calls, "calls_above_5_ms": over, "p99_9_ms": median(most), "enqueued_per_second": median(fills)},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
