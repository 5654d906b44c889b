"""streamq beside what a user would pick instead: `python -m benchmarks.peers [--systems ...] [--scenarios ...] [--json]`.

Each system runs in an environment of its own, pinned and made by this program at its first run, with the same jobs on the
same server, in rounds whose order is shuffled; each figure has its ratio to the bare loop of redis-py in the same round.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
from rich.console import Console

from benchmarks import crash
from benchmarks.drains import Drained, drain, tallied
from benchmarks.harness import Bar, Part, Report, Scale, at_least, median, percentile, ratios, run
from benchmarks.kept import Unlike, keep, kept_document
from benchmarks.plots import folder_of_plots, plot_peers
from benchmarks.processes import Child, run_to_json
from benchmarks.servers import APPEND_ONLY, RedisServer
from benchmarks.systems import SYSTEMS, System
from benchmarks.systems.environments import NotToBeHad, command_of, make
from benchmarks.visits import SLOTS, hours_of, load_of
from benchmarks.waits import wait_for_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.tally import Tallies

__all__ = ["main"]

QUICK = ("raw", "streamq", "ardiq", "bullmq-node", "dramatiq")
"""The fastest of each kind: Rust core, Node, Python."""

NOTES = [
    "one Redis of the benchmark's own, persistence off except where a scenario says so, TCP loopback, uvloop where it is asyncio",
    "a job carries a text of 120 bytes; a drain is measured from 10 % to 97 % of its jobs, after the workers have started",
    "systems differ in what they promise: see `promises`; raw promises nothing",
    "fairness is measured in more detail by `python -m benchmarks.fairness`",
]

PromisedBar = tuple[str, str, float]
BARS: tuple[PromisedBar, ...] = (
    ("drain_vs_raw", "raw", 0.6),
    ("drain_vs_bullmq_node", "bullmq-node", 2.5),
    ("drain_vs_ardiq", "ardiq", 4.0),
    ("drain_vs_chasquimq", "chasquimq", 1.7),
)
BEST_PYTHON_BAR = 8.0

Rates = dict[str, list[float]]


# ---- the two sides of a system


def worker(system: System, concurrency: int, setting: str, server: RedisServer, tallies: Tallies) -> Child:
    """Start a worker of a system."""
    return Child(
        "work",
        server.url,
        json.dumps({"concurrency": concurrency, "setting": setting}),
        environment={**tallies.environment, "PYTHONWARNINGS": "ignore"},
        program=command_of(system),
    )


def produce(system: System, server: RedisServer, mode: str, **sizes: Any) -> dict[str, Any]:
    """Run the producing side of a system to its end."""
    found: dict[str, Any] = run_to_json(mode, server.url, json.dumps(sizes), program=command_of(system), wait_s=1200)
    return found


def starts(system: System, processes: int = 1, concurrency: int = 0) -> list[Callable[..., Child]]:
    """Return what starts so many workers."""
    return [partial(worker, system, concurrency or system.concurrency, "default")] * processes


# ---- scenarios


class Race:
    """One scenario: all systems in every round, in an order that changes."""

    def __init__(self, report: Report, systems: Sequence[System], *, rounds: int) -> None:
        self.report = report
        self.systems = list(systems)
        self.rounds = rounds

    def run(self, measure: Callable[[System], float]) -> Rates:
        """Measure every system in every round; one that fails is left out and named."""
        found: Rates = {system.name: [] for system in self.systems}
        for number in self.report.rounds(self.rounds):
            order = [system for system in self.systems if system.name in found]
            random.Random(number).shuffle(order)
            for system in order:
                try:
                    found[system.name].append(measure(system))
                except (RuntimeError, TimeoutError, OSError, redis.RedisError) as error:
                    self.report.notes.append(f"{system.name} failed: {str(error).strip().splitlines()[-1][:200]}")
                    del found[system.name]
        return found

    def tell(self, scenario: str, found: Rates, unit: str, size: str, **details: dict[str, dict[str, Any]]) -> None:
        """Add a figure a system, with its ratio to the bare loop of the same round."""
        base = found.get("raw")
        for name, values in found.items():
            detail = dict(details.get("detail", {}).get(name, {}))
            if base is not None and len(base) == len(values):
                detail["ratio_to_raw"] = median(ratios(values, base))
            self.report.add(f"{scenario}.{name}", values, unit, None, size, detail=detail)


def _enqueue(race: Race, mode: str, *, seconds: float, size: int = 120) -> None:
    cpu: dict[str, dict[str, Any]] = {}
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            found = produce(system, server, mode, seconds=seconds, size=size)
            cpu[system.name] = {"producer_cpu_us": found["cpu_us"]}
            return float(found["per_second"])

        found = race.run(measure)
    label = f"enqueue_{mode}" if size == 120 else f"enqueue_{mode}_{size}"
    race.tell(label, found, "jobs/s", f"for {seconds:g} s, {size} bytes", detail=cpu)


def _drain(
    race: Race, scenario: str, *, seconds: float, processes: int = 1, size: int = 120, settings: Sequence[str] = ()
) -> None:
    costs: dict[str, list[Drained]] = {}
    with RedisServer(*settings) as server:

        def measure(system: System) -> float:
            count = max(150, int(system.expected * seconds))
            server.flush()
            produce(system, server, "fill", count=count, size=size)
            drained = drain(server, starts(system, processes), count, limit_s=120)
            costs.setdefault(system.name, []).append(drained)
            return drained.per_second

        found = race.run(measure)
    detail = {name: _cost(each) for name, each in costs.items()}
    race.tell(
        scenario, found, "jobs/s", f"about {seconds:g} s of work, {processes} process(es), {size} bytes", detail=detail
    )
    if scenario == "drain_noop":
        _add_bars(race.report, found)


def _cost(drains: Sequence[Drained]) -> dict[str, Any]:
    return {
        "worker_cpu_us": median([each.worker_us for each in drains]),
        "redis_cpu_us": median([each.redis_us for each in drains]),
        "commands_per_job": median([each.commands / each.jobs for each in drains]),
        "jobs": drains[0].jobs,
    }


def _add_bars(report: Report, found: Rates) -> None:
    """Compare round by round with those that the bars name."""
    ours = found.get("streamq")
    if not ours:
        return
    rivals = [(name, [rival], limit) for name, rival, limit in BARS]
    pythons = [
        system.name for system in SYSTEMS.values() if system.is_python and not (system.is_limit or system.is_ours)
    ]
    rivals.append(("drain_vs_best_python", pythons, BEST_PYTHON_BAR))
    for name, names, limit in rivals:
        measured = {rival: found[rival] for rival in names if len(found.get(rival, [])) == len(ours)}
        if measured:
            best = max(measured, key=lambda rival: median(measured[rival]))
            bar: Bar = at_least(limit)
            report.add(name, ratios(ours, measured[best]), f"x {best}", bar, "no-op drain, one process, same rounds")


def _io(race: Race, *, count: int) -> None:
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            jobs = count // 40 if system.is_serial else count
            produce(system, server, "fill", count=jobs, job="io")
            return drain(server, starts(system, concurrency=100), jobs, limit_s=120).per_second

        found = race.run(measure)
    race.tell("io_50ms", found, "jobs/s", f"{count:,} jobs that wait 50 ms, concurrency 100: 2,000 is the ideal")


def _cpu(race: Race, *, count: int) -> None:
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            produce(system, server, "fill", count=count, job="cpu")
            return drain(server, starts(system), count, limit_s=120).per_second

        found = race.run(measure)
    race.tell("cpu_1ms", found, "jobs/s", f"{count:,} jobs that compute for 1 ms, one process: 1,000 is the ideal")


def _latency(race: Race, *, count: int) -> None:
    seen: dict[str, dict[str, Any]] = {}
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            with tallied() as tallies, starts(system)[0](server, tallies) as child:
                produce(system, server, "fill", count=1, job="clock", words="0")
                wait_for_values(tallies, 1, child)
                produce(system, server, "pings", count=count, per_second=50)
                found = [value / 1e6 for value in wait_for_values(tallies, count + 1, child)[1 + count // 10 :]]
            seen[system.name] = {f"p{percent}": percentile(found, percent) for percent in (95, 99)} | {
                "max": max(found)
            }
            return median(found)

        found = race.run(measure)
    race.tell("idle_latency_ms", found, "ms p50", f"{count} jobs at 50 a second, from when each was due", detail=seen)


def _delayed(race: Race, *, count: int) -> None:
    seen: dict[str, dict[str, Any]] = {}
    race.systems = [system for system in race.systems if not system.is_limit and system.name != "taskiq"]  # no delays
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            with tallied() as tallies, starts(system)[0](server, tallies) as child:
                produce(system, server, "delays", count=count, shortest_s=1, longest_s=2)
                found = [value / 1e6 for value in wait_for_values(tallies, count, child)]
            seen[system.name] = {"p50": median(found), "early": sum(late < 0 for late in found)}
            return percentile(found, 99)

        found = race.run(measure)
    race.tell("delayed_late_ms", found, "ms p99", f"{count} jobs, each due in 1 to 2 s", detail=seen)


def _memory(race: Race) -> None:
    left: dict[str, dict[str, Any]] = {}
    with RedisServer() as server:

        def measure(system: System) -> float:
            count = min(20_000, max(300, system.expected))
            server.flush()
            produce(system, server, "fill", count=10)
            before = server.figures().memory
            produce(system, server, "fill", count=count)
            waiting = server.figures().memory - before
            drain(server, starts(system), count + 10, limit_s=120)
            with server.client() as client:
                left[system.name] = {"left_per_finished_job": _left(server, count), "keys_left": client.dbsize()}
            return waiting / count

        found = race.run(measure)
    race.tell("bytes_per_waiting_job", found, "bytes", "as Redis counts its memory, 120 bytes of argument", detail=left)


def _left(server: RedisServer, count: int) -> float:
    with server.client() as client:
        return sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter(count=1000)) / count


def _backlog(race: Race, *, count: int) -> None:
    """Whether the rate holds when very many wait: only systems that run that many in about two minutes."""
    race.systems = [system for system in race.systems if system.expected * 130 >= count]
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            produce(system, server, "fill", count=count)
            return drain(server, starts(system), count, limit_s=600).per_second

        found = race.run(measure)
    race.tell(f"backlog_{count}", found, "jobs/s", f"{count:,} jobs wait when the worker starts")


def _fairness(race: Race, *, users: int) -> None:
    """Let fast users and slow ones come twice, as each hour, and see how long the fast ones wait the second time."""
    seen: dict[str, dict[str, Any]] = {}
    race.systems = [system for system in race.systems if not system.is_ours or system.name == "streamq"]  # all the same
    visits, fast, slow = load_of(users, 3.0, 0)
    with RedisServer() as server:

        def measure(system: System) -> float:
            server.flush()
            hour = hours_of(partial(worker, system), partial(produce, system), server, visits, hours=2)
            seen[system.name] = {"slow_p99_s": hour.p99(slow), "took_s": hour.took_s}
            return hour.p99(fast)

        found = race.run(measure)
    size = f"{users} users of 3 and 300 ms, {SLOTS} slots, the second hour; one slot where a worker has only one"
    race.tell("fast_users_wait_s", found, "s p99", size, detail=seen)


def _crash(report: Report, systems: Sequence[System], *, setting: str, limit_s: float) -> None:
    """Kill a worker of every system at once: they only wait, so they do not disturb each other."""
    chosen = [system for system in systems if not system.is_limit and (setting == "default" or system.settings)]
    with ThreadPoolExecutor(len(chosen) or 1) as pool:
        measured = list(
            pool.map(
                lambda system: crash.measure(
                    partial(worker, system), partial(produce, system), 1 if system.is_serial else 8, setting, limit_s
                ),
                chosen,
            )
        )
    for system, found in zip(chosen, measured, strict=True):
        report.add(
            f"crash_{setting}_restart_s.{system.name}", [found.last_s], "s", None,
            f"{found.jobs} jobs in flight on the worker that was killed; waited {limit_s:g} s",
            detail={"restarted": found.restarted, "lost": found.jobs - found.restarted, "doubled": found.doubled,
                    "setting": system.settings.get(setting, "as it comes")},
        )  # fmt: skip


# ---- the program


def parts(chosen: argparse.Namespace, scale: Scale) -> list[Part]:
    """List the scenarios that were asked for."""
    names = chosen.systems or (QUICK if scale.quick else tuple(SYSTEMS))
    systems = [SYSTEMS[name] for name in names]
    rounds = chosen.rounds or scale.pick(5, 2)
    seconds = scale.pick(1.5, 0.35)

    def race(step: Callable[..., None], **sizes: Any) -> Callable[[Report], None]:
        return lambda report: step(Race(report, systems, rounds=min(rounds, sizes.pop("rounds", rounds))), **sizes)

    every: dict[str, tuple[Callable[[Report], None], float]] = {
        "drain_noop": (race(_drain, scenario="drain_noop", seconds=seconds), 22),
        "enqueue_one": (race(_enqueue, mode="one", seconds=scale.pick(1.0, 0.2)), 6),
        "enqueue_concurrent": (race(_enqueue, mode="concurrent", seconds=scale.pick(1.0, 0.2)), 6),
        "enqueue_many": (race(_enqueue, mode="many", seconds=scale.pick(1.0, 0.2)), 6),
        "drain_noop_2": (race(_drain, scenario="drain_noop_2", seconds=seconds, processes=2), 0),
        "io_50ms": (race(_io, count=scale.pick(2_000, 200)), 0),
        "cpu_1ms": (race(_cpu, count=scale.pick(500, 100)), 0),
        "idle_latency": (race(_latency, count=scale.pick(200, 20)), 0),
        "delayed": (race(_delayed, count=scale.pick(300, 20), rounds=3), 0),
        "payload_256": (race(_drain, scenario="drain_256", seconds=seconds / 2, size=256), 0),
        "payload_4096": (race(_drain, scenario="drain_4096", seconds=seconds / 2, size=4_096), 0),
        "payload_65536": (race(_drain, scenario="drain_65536", seconds=seconds / 20, size=65_536), 0),
        "aof": (race(_drain, scenario="drain_aof", seconds=seconds, settings=APPEND_ONLY), 0),
        "memory": (race(_memory, rounds=1), 0),
        "backlog_1000000": (race(_backlog, count=1_000_000, rounds=1), 0),
        "backlog_5000000": (race(_backlog, count=5_000_000, rounds=1), 0),
        "fairness": (race(_fairness, users=scale.pick(120, 60)), 0),
        "crash_default": (partial(_crash, systems=systems, setting="default", limit_s=chosen.crash_limit), 0),
        "crash_fast": (partial(_crash, systems=systems, setting="fast", limit_s=chosen.crash_limit), 0),
    }
    wanted = chosen.scenarios or [name for name, (_, quick_s) in every.items() if quick_s or not scale.quick]
    return [Part([name], _named(name, every[name][0]), quick_s=every[name][1] or 10) for name in wanted]


def _named(scenario: str, step: Callable[[Report], None]) -> Callable[[Report], None]:
    """Note which figures a scenario gave, and when."""

    def measure(report: Report) -> None:
        before, noted = len(report.results), len(report.notes)
        told = report.extra.setdefault("scenarios", {})[scenario] = {
            "figures": [scenario]
        }  # as it is called if it fails
        step(report)
        told["figures"] = [result.name for result in report.results[before:]]
        told["notes"] = report.notes[noted:]
        told["measured_at"] = datetime.now(UTC).isoformat(timespec="seconds")

    return measure


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    options.add_argument("--scenarios", nargs="+", metavar="NAME", help="which to run; all, unless named")
    options.add_argument("--rounds", type=int, metavar="N", help="5, or 2 with --quick, unless given")
    options.add_argument("--crash-limit", type=float, default=75, metavar="S", help="wait so long for a restart")
    options.add_argument(
        "--into", type=kept_document, metavar="FILE", help="keep it there, beside the scenarios that are"
    )
    options.add_argument("--plot", type=folder_of_plots, metavar="FOLDER", help="draw the figures into SVG files there")
    return options


def _make_environments(names: Sequence[str]) -> list[str]:
    """Make what is missing, and return the names of those that can run here."""
    console = Console(stderr=True)
    with RedisServer() as server:
        told, version = server.version, server.redis_version
    ready = []
    for name in names:
        needed = SYSTEMS[name].needs_redis
        if version < needed:
            NOTES.append(
                f"{name} is not measured: it needs Redis {needed[0]}.{needed[1]}, and this is {told}; "
                "STREAMQ_BENCH_REDIS names another server"
            )
            continue
        try:
            with console.status(f"environment of {name}"):
                make(SYSTEMS[name])
            ready.append(name)
        except NotToBeHad as error:
            NOTES.append(f"not to be had: {error}")
    return ready


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    options = _options()
    chosen, rest = options.parse_known_args(arguments)
    with RedisServer() as server:
        chosen.server = server.version
    chosen.systems = _make_environments(chosen.systems or (QUICK if "--quick" in rest else tuple(SYSTEMS)))
    return run("peers", partial(parts, chosen), rest, options=options, finish=partial(_finish, chosen))


def _finish(chosen: argparse.Namespace, report: Report) -> None:
    report.notes = [*NOTES, *report.notes]
    report.server = chosen.server
    report.extra["promises"] = {
        name: {"ack": SYSTEMS[name].ack, "result": SYSTEMS[name].result, "left": SYSTEMS[name].left,
               "requirements": SYSTEMS[name].requirements or "as streamq"}
        for name in chosen.systems
    }  # fmt: skip
    for scenario in report.extra["scenarios"].values():
        scenario["cores_kept_busy_by_others"] = round(report.other_load, 2)
    document = report.as_json()
    if chosen.into is not None:
        try:
            document = keep(chosen.into, document)
        except Unlike as error:
            report.notes.append(f"not kept: {error}")
    if chosen.plot is not None:
        plot_peers(document, chosen.plot)


if __name__ == "__main__":
    sys.exit(main())
