"""Slow users and fast ones: `python -m benchmarks.fairness [--json] [--quick] [--plot FOLDER]`.

Every hour each user's data is refreshed, one job per user, and some take a hundred times longer. How long does a fast
user wait for the start of the job? The same load goes through streamq with lanes off, which is FIFO, through streamq
with lanes on, and through other queues, on one server, one after another. Run times are scaled down, as are the beats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import app, peers
from benchmarks.drains import Drained, drain, tallied
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, percentile, ratios, run
from benchmarks.plots import folder_of_plots, plot_fairness
from benchmarks.processes import Child, run_to_json
from benchmarks.servers import RedisServer
from benchmarks.systems import SYSTEMS
from benchmarks.systems.environments import make
from benchmarks.visits import (
    SLOTS,
    SLOW_IN_TEN,
    TIMES_SLOWER,
    Hour,
    JournalReader,
    Visit,
    hours_of,
    listed,
    load_of,
    watched,
)
from benchmarks.waits import wait_for_readers, wait_until
from streamq.broker.fanout import FanOuts
from streamq.broker.server import Broker
from streamq.lanes import cost_field
from streamq.seeding import seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.tally import Tallies

__all__ = ["main"]

PARETO_SLOTS = 64
BEAT_MS = 100
PEERS = {"arq": 200, "dramatiq": 1_000, "saq": 1_000, "taskiq": 1_000}
"""Systems to how many users they get; arq starts as many jobs as it has slots each half second."""

NOTES = [
    f"{SLOTS} slots in one process; {SLOW_IN_TEN * 10} % of the users are {TIMES_SLOWER} times slower, in random order; "
    "a job awaits a sleep of its length",
    "wait: from the moment before the first job is enqueued to the start of the handler; every system gets the same "
    "jobs in the same order",
    f"streamq: STREAMQ_BEAT_MS={BEAT_MS}, as run times are scaled down as well; FIFO is the same with STREAMQ_LANES=false",
    "other queues: their own defaults, and streamq's FIFO with the same jobs just before; they enqueue one by one where "
    "they have no call for many",
    f"arq looks for jobs each half second and starts at most {SLOTS} then, so it gets {PEERS['arq']} users",
    "the learned hour is the second one with the same users; a first hour starts with an empty server",
]


Waits = dict[str, tuple[list[float], list[float]]]
"""System to the waits of its fast and of its slow users, in s, for the picture."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--plot", type=folder_of_plots, metavar="FOLDER", help="draw who starts when into fairness.svg there"
    )
    chosen, rest = options.parse_known_args(arguments)
    waits: Waits = {}

    def finish(_report: Report) -> None:
        if chosen.plot is not None:
            plot_fairness(waits, chosen.plot)

    return run("fairness", partial(parts, waits), rest, options=options, finish=finish)


def parts(waits: Waits, scale: Scale) -> list[Part]:
    """List what is measured."""
    users, fast_ms = scale.pick(1_000, 300), scale.pick(4.0, 3.0)
    return [
        Part(
            ["fast_p99_vs_fifo", "makespan_vs_fifo", "slow_p99_vs_fifo", "first_hour_p99_vs_fifo",
             "first_hour_hint_p99_vs_fifo"],
            partial(_users, waits=waits, rounds=scale.pick(3, 1), users=users, fast_ms=fast_ms),
            quick_s=17,
        ),
        Part(
            ["pareto_fast_p99_vs_fifo"],
            partial(_pareto, rounds=scale.pick(3, 1), users=10_000),
            quick_s=14,
        ),
        Part(
            ["lanes_throughput_ratio"],
            partial(_throughput, rounds=scale.pick(5, 2), total=scale.pick(100_000, 15_000)),
            quick_s=5,
        ),
        Part(
            ["small_keys_p99_vs_alone"],
            partial(_small_keys, rounds=scale.pick(3, 1), many=scale.pick(100_000, 10_000)),
            quick_s=7,
        ),
        Part(
            ["gates_throughput_ratio"],
            partial(_gates, rounds=scale.pick(5, 2), total=scale.pick(100_000, 15_000)),
            quick_s=6,
        ),
        *(() if scale.quick else [
            Part(["whole_page_makespan_vs_calls"], partial(_longest_first, rounds=3, users=10_000, least_ms=10.0), quick_s=0),
        ]),
        *(
            Part(
                [f"{system}_fast_p99_vs_fifo"],
                # A smaller load has no place in the same picture.
                partial(_peer, waits=waits if number == users else {}, system=system, users=number, fast_ms=fast_ms),
                quick_s=0,
            )
            for system, number in (() if scale.quick else PEERS.items())
        ),
    ]  # fmt: skip


# One run of a load.


def _hour(server: RedisServer, visits: Sequence[Visit], slots: int, **settings: str) -> Hour:
    """Put the visits into a queue whose worker waits, and see when each starts and when all have ended."""
    with tallied() as tallies, _worker(slots, settings)(server, tallies) as child:
        wait_for_readers(server, child)
        hour = watched(tallies.folder, visits, _enqueue(server, visits), child, {each.user for each in visits})
        child.stop(wait_s=60)
    return hour


def _worker(slots: int, settings: dict[str, str]) -> Callable[[RedisServer, Tallies], Child]:
    return app.worker(slots, beat_ms=str(BEAT_MS), **settings)


def _enqueue(server: RedisServer, visits: Sequence[Visit]) -> int:
    """Enqueue visits with streamq. Returns the monotonic time just before the first, in ns."""
    with listed(visits) as file:
        told = run_to_json(
            "-m", "benchmarks.producers", "visits", server.url, json.dumps({"file": file}),
            environment=app.environment(server.url),
        )  # fmt: skip
    return int(told["began_ns"])


# 1,000 users, 20 % of them a hundred times slower.


def _without_hints(visits: Sequence[Visit]) -> list[Visit]:
    return [each._replace(hint=None) for each in visits]


def _users(report: Report, *, waits: Waits, rounds: int, users: int, fast_ms: float) -> None:
    found: dict[str, list[Hour]] = {name: [] for name in ("fifo", "first", "learned", "hinted")}
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            hinted, fast, slow = load_of(users, fast_ms, number)
            visits = _without_hints(hinted)
            server.flush()
            found["fifo"].append(_hour(server, visits, SLOTS, lanes="false"))
            server.flush()
            found["first"].append(_hour(server, visits, SLOTS, burst_slots=str(SLOTS)))
            found["learned"].append(_hour(server, visits, SLOTS))
            server.flush()
            found["hinted"].append(_hour(server, hinted, SLOTS))
    fifo, learned = found["fifo"], found["learned"]
    waits |= {"streamq, FIFO": fifo[-1].sides(fast, slow), "streamq": learned[-1].sides(fast, slow)}
    size = _size(users, fast_ms)
    _compare(report, "fast_p99_vs_fifo", (learned, fifo), 0.1, fast, size)
    took, fifo_took = ([each.took_s for each in side] for side in (learned, fifo))
    report.add(
        "makespan_vs_fifo", ratios(took, fifo_took), "x FIFO", at_most(1.03), size,
        detail={"s": median(took), "fifo_s": median(fifo_took)},
    )  # fmt: skip
    _compare(report, "slow_p99_vs_fifo", (learned, fifo), 1.1, slow, size)
    _compare(report, "first_hour_p99_vs_fifo", (found["first"], fifo), 0.55, fast, f"{size}, {SLOTS} burst slots")
    size = f"{size}, hints off by up to a half"
    _compare(report, "first_hour_hint_p99_vs_fifo", (found["hinted"], fifo), 0.1, fast, size)


def _size(users: int, fast_ms: float) -> str:
    return f"{users:,} users, {fast_ms:g} and {fast_ms * TIMES_SLOWER:g} ms, {SLOTS} slots"


def _compare(
    report: Report, name: str, sides: tuple[Sequence[Hour], Sequence[Hour]], limit: float, who: Sequence[str], size: str
) -> None:
    """Add how long some users waited, ours to FIFO's."""
    ours, fifo = ([hour.p99(who) for hour in side] for side in sides)
    detail = {"p99_wait_s": median(ours), "fifo_p99_wait_s": median(fifo)}
    report.add(name, ratios(ours, fifo), "x FIFO", at_most(limit), size, detail=detail)


# A heavy tail.


def _pareto(report: Report, *, rounds: int, users: int) -> None:
    """Give each user the run time of a quantile, so that all rounds have the same work. The seed of what is known.

    A quick run has as many users: of fewer there is less of the tail, and less of it for FIFO to wait for. By a simulation of
    the same slots and shares the ratio is 0.40 for 4,000 users, 0.38 for 7,000 and 0.37 for 10,000.
    """
    times = _heavy_tail(users, 10.0)
    ours, fifo = list[float](), list[float]()
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            visits = [Visit(f"u{place}", ms) for place, ms in enumerate(times)]
            random.Random(number).shuffle(visits)
            fast = [f"u{place}" for place in range(users - users * 8 // 10, users)]
            for side, lanes in ((fifo, "false"), (ours, "true")):
                server.flush()
                if lanes == "true":
                    asyncio.run(_know(server, visits))
                side.append(_until_fast_ones_ended(server, visits, fast, lanes).p99(fast))
    report.add(
        "pareto_fast_p99_vs_fifo", ratios(ours, fifo), "x FIFO", at_most(0.4),
        f"{users:,} users, Pareto 1.2 from 10 ms, {PARETO_SLOTS} slots, the faster 80 %",
        detail={"p99_wait_s": median(ours), "fifo_p99_wait_s": median(fifo)},
    )  # fmt: skip


def _until_fast_ones_ended(server: RedisServer, visits: Sequence[Visit], fast: list[str], lanes: str) -> Hour:
    """Leave out the tail: the slowest user alone takes longer than all others together."""
    with tallied() as tallies, _worker(PARETO_SLOTS, {"lanes": lanes})(server, tallies) as child:
        wait_for_readers(server, child)
        return watched(tallies.folder, visits, _enqueue(server, visits), child, set(fast))


def _heavy_tail(users: int, least_ms: float) -> list[float]:
    """Return the quantiles of a Pareto distribution, so that all rounds have the same work; the longest first."""
    return [least_ms * ((place + 0.5) / users) ** (-1 / 1.2) for place in range(users)]


def _longest_first(report: Report, *, rounds: int, users: int, least_ms: float) -> None:
    """Enqueue users who are known in the order of a page that is sorted whole, and call by call of 128, as `add` does."""
    whole, calls = list[float](), list[float]()
    times = _heavy_tail(users, least_ms)
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            visits = [Visit(f"u{place}", ms) for place, ms in enumerate(times)]
            random.Random(number).shuffle(visits)
            for side in (calls, whole):
                server.flush()
                means = asyncio.run(_know(server, visits))
                page = sorted(visits, key=lambda each: -means.get(each.user, 0)) if side is whole else visits
                side.append(_hour(server, page, PARETO_SLOTS).took_s)
    report.add(
        "whole_page_makespan_vs_calls", ratios(whole, calls), "x by calls", None,
        f"{users:,} users, Pareto 1.2 from {least_ms:g} ms, {PARETO_SLOTS} slots, all known; the longest takes {times[0] / 1000:.1f} s",
        detail={"s": median(whole), "by_calls_s": median(calls)},
    )  # fmt: skip


async def _know(server: RedisServer, visits: Sequence[Visit]) -> dict[str, int]:
    """Tell the partition what an earlier hour would have taught it. Returns who is slow, and their mean ms."""
    broker = Broker(server.url)
    partition = broker.partition(app.QUEUE)
    await seed(partition, {cost_field("visit", each.user): each.ms for each in visits})
    means = await FanOuts(partition).slow_means("visit")
    await partition.wire.close()
    await broker.close()
    return means


# One key with very many jobs.


def _small_keys(report: Report, *, rounds: int, many: int) -> None:
    """Put the jobs of one key in place, then those of a hundred others; compare with these alone."""
    small = [(f"u{key}", 5.0, f"u{key}-{number}") for number in range(10) for key in range(100)]
    large = [("large", 5.0, f"large-{number}") for number in range(many)]
    beside, alone = list[float](), list[float]()
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for _ in report.rounds(rounds):
            for side, ahead in ((alone, []), (beside, large)):
                server.flush()
                side.append(_completed_p99(server, ahead, small))
    report.add(
        "small_keys_p99_vs_alone", ratios(beside, alone), "x alone", at_most(3),
        f"a key with {many:,} jobs, and then 100 keys with 10 jobs each; 5 ms, {SLOTS} slots, fair=True",
        detail={"p99_s": median(beside), "alone_p99_s": median(alone)},
    )  # fmt: skip


def _completed_p99(
    server: RedisServer, ahead: list[tuple[str, float, str]], jobs: list[tuple[str, float, str]]
) -> float:
    """Return the 99th percentile of the times from the first enqueue of the jobs to their ends, in s."""
    with tallied() as tallies:
        if ahead:
            _take_turns(server, ahead)
        with _worker(SLOTS, {})(server, tallies) as child:
            wait_for_readers(server, child) if not ahead else wait_until(
                (tallies.folder / "journal").exists, "the worker works", child
            )
            began_ns = _take_turns(server, jobs)
            starts, ends = dict[str, int](), dict[str, int]()
            read = JournalReader(tallies.folder / "journal", starts, ends)

            def is_over() -> bool:
                read()
                return all(name in ends for _, _, name in jobs)

            wait_until(is_over, "the jobs of the small keys have ended", child, limit_s=240)
    return percentile([(ends[name] - began_ns) / 1e9 for _, _, name in jobs], 99)


def _take_turns(server: RedisServer, jobs: list[tuple[str, float, str]]) -> int:
    with listed(jobs) as file:
        told = run_to_json(
            "-m", "benchmarks.producers", "turns", server.url, json.dumps({"file": file}),
            environment=app.environment(server.url),
        )  # fmt: skip
    return int(told["began_ns"])


# What it costs.


def _throughput(report: Report, *, rounds: int, total: int) -> None:
    rates: dict[str, list[float]] = {"true": [], "false": []}
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            sides = list(rates)
            random.Random(number).shuffle(sides)
            for lanes in sides:
                rates[lanes].append(_drained(server, "keyed", total, lanes=lanes).per_second)
    report.add(
        "lanes_throughput_ratio", ratios(rates["true"], rates["false"]), "x lanes off", at_least(0.9),
        f"{total:,} no-op jobs, each of a user of its own, one process, concurrency 100",
        detail={"jobs_per_second": median(rates["true"]), "off_jobs_per_second": median(rates["false"])},
    )  # fmt: skip


def _drained(server: RedisServer, handler: str, total: int, **settings: str) -> Drained:
    server.flush()
    run_to_json(
        "-m", "benchmarks.producers", "fill", server.url, json.dumps({"count": total, "handler": handler}),
        environment=app.environment(server.url, **settings),
    )  # fmt: skip
    return drain(server, [app.worker(100, **settings)], total)


def _gates(report: Report, *, rounds: int, total: int) -> None:
    found: dict[str, list[Drained]] = {"gated": [], "keyed": []}
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            sides = list(found)
            random.Random(number).shuffle(sides)
            for handler in sides:
                found[handler].append(_drained(server, handler, total))
    ours, plain = ([each.per_second for each in found[name]] for name in ("gated", "keyed"))
    report.add(
        "gates_throughput_ratio", ratios(ours, plain), "x no gate", at_least(0.7),
        f"{total:,} no-op jobs, each of a user of its own, concurrency_per_key=1, one process, concurrency 100",
        detail={
            "jobs_per_second": median(ours), "ungated_jobs_per_second": median(plain),
            "redis_us": median([each.redis_us for each in found["gated"]]),
            "ungated_redis_us": median([each.redis_us for each in found["keyed"]]),
            "worker_us": median([each.worker_us for each in found["gated"]]),
            "ungated_worker_us": median([each.worker_us for each in found["keyed"]]),
        },
    )  # fmt: skip


# Others.


def _peer(report: Report, *, waits: Waits, system: str, users: int, fast_ms: float) -> None:
    """Measure another queue beside streamq's FIFO; there is no bar for it."""
    other = SYSTEMS[system]
    make(other)
    visits, fast, slow = load_of(users, fast_ms, 0)
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        fifo = _hour(server, _without_hints(visits), SLOTS, lanes="false")
        server.flush()
        theirs = hours_of(partial(peers.worker, other), partial(peers.produce, other), server, visits)
    waits[system] = theirs.sides(fast, slow)
    report.add(
        f"{system}_fast_p99_vs_fifo", [theirs.p99(fast) / fifo.p99(fast)], "x FIFO", None,
        f"{_size(users, fast_ms)}, {other.requirements[0] if other.requirements else 'its own defaults'}",
        detail={
            "p99_wait_s": theirs.p99(fast), "fifo_p99_wait_s": fifo.p99(fast), "slow_p99_wait_s": theirs.p99(slow),
            "fifo_slow_p99_wait_s": fifo.p99(slow), "s": theirs.took_s, "fifo_s": fifo.took_s,
        },
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
