"""Slow users and fast ones: `python -m benchmarks.fairness [--json] [--quick] [--plot FILE.svg]`.

Every hour each user's data is refreshed, one job per user, and some take a hundred times longer. How long does a fast
user wait for the start of the job? The same load goes through streamq with lanes off, which is FIFO, through streamq
with lanes on, and through other queues, on one server, one after another. Run times are scaled down, as are the beats.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import app, peers
from benchmarks.drains import Drained, drain, tallied
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, percentile, ratios, run
from benchmarks.processes import Child, run_to_json
from benchmarks.servers import RedisServer
from benchmarks.systems import SYSTEMS, System
from benchmarks.systems.environments import make
from benchmarks.waits import wait_for_readers, wait_until
from streamq.broker.server import Broker
from streamq.lanes import cost_field
from streamq.seeding import seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.tally import Tallies

__all__ = ["main"]

SLOTS, PARETO_SLOTS = 6, 64
SLOW_IN_TEN = 2
TIMES_SLOWER = 100
BEAT_MS = 100
PEERS = ("arq", "dramatiq", "saq", "taskiq")

NOTES = [
    f"{SLOTS} slots in one process; {SLOW_IN_TEN * 10} % of the users are {TIMES_SLOWER} times slower, in random order; "
    "a job awaits a sleep of its length",
    "wait: from the moment before the first job is enqueued to the start of the handler; every system gets the same "
    "jobs in the same order",
    f"streamq: STREAMQ_BEAT_MS={BEAT_MS}, as run times are scaled down as well; FIFO is the same with STREAMQ_LANES=false",
    "other queues: their own defaults; they enqueue one by one where they have no call for many",
    "the learned hour is the second one with the same users; a first hour starts with an empty server",
]


class Visit(NamedTuple):
    """One job: a user's data is refreshed."""

    user: str
    ms: float
    """How long it takes."""
    hint: float | None = None
    """What the producer believes."""


@dataclass(frozen=True)
class Hour:
    """What one run of a load came to."""

    waits_s: dict[str, float]
    """User to the time from the first enqueue to the start."""
    took_s: float
    """To the end of the last job that was awaited."""

    def p99(self, users: Sequence[str]) -> float:
        """Return the 99th percentile of the waits of some users."""
        return percentile([self.waits_s[user] for user in users], 99)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    picture = _taken(arguments, "--plot")
    code = run("fairness", parts, arguments)
    if picture:
        from benchmarks.fairness_plot import draw

        draw(HOURS, Path(picture))
    return code


HOURS: dict[str, tuple[list[float], list[float]]] = {}
"""System to the waits of fast and of slow users, in s, for the picture."""


def _taken(arguments: list[str], name: str) -> str:
    """Take an option and its value out of the arguments."""
    if name not in arguments:
        return ""
    place = arguments.index(name)
    if place + 1 == len(arguments):
        sys.exit(f"{name} needs the name of a file")
    arguments.pop(place)
    return arguments.pop(place)


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    users, fast_ms = scale.pick(1_000, 400), scale.pick(4.0, 3.0)
    return [
        Part(
            ["fast_p99_vs_fifo", "makespan_vs_fifo", "slow_p99_vs_fifo", "first_hour_p99_vs_fifo",
             "first_hour_hint_p99_vs_fifo"],
            partial(_users, rounds=scale.pick(3, 1), users=users, fast_ms=fast_ms),
            quick_s=25,
        ),
        Part(
            ["pareto_fast_p99_vs_fifo"],
            partial(_pareto, rounds=scale.pick(3, 1), users=scale.pick(10_000, 4_000)),
            quick_s=12,
        ),
        Part(
            ["lanes_throughput_ratio"],
            partial(_throughput, rounds=scale.pick(5, 2), total=scale.pick(100_000, 20_000)),
            quick_s=8,
        ),
        Part(
            ["gates_throughput_ratio"],
            partial(_gates, rounds=scale.pick(5, 2), total=scale.pick(100_000, 20_000)),
            quick_s=8,
        ),
        *(
            Part(
                [f"{system}_fast_p99_vs_fifo"],
                partial(_peer, system=system, users=users, fast_ms=fast_ms),
                quick_s=0,
            )
            for system in (PEERS if not scale.quick else ())
        ),
    ]  # fmt: skip


# One run of a load.


def _hour(server: RedisServer, visits: Sequence[Visit], slots: int, **settings: str) -> Hour:
    """Put the visits into a queue whose worker waits, and see when each starts and when all have ended."""
    with tallied() as tallies, _worker(slots, settings)(server, tallies) as child:
        wait_for_readers(server, child)
        hour = _watched(tallies.folder, visits, _enqueue(server, visits), child, {each.user for each in visits})
        child.stop(wait_s=60)
    return hour


def _worker(slots: int, settings: dict[str, str]) -> Callable[[RedisServer, Tallies], Child]:
    return app.worker(slots, beat_ms=str(BEAT_MS), **settings)


def _enqueue(server: RedisServer, visits: Sequence[Visit]) -> int:
    """Enqueue visits with streamq. Returns the monotonic time just before the first, in ns."""
    with _listed(visits) as file:
        told = run_to_json(
            "-m", "benchmarks.producers", "visits", server.url, json.dumps({"file": file}),
            environment=app.environment(server.url),
        )  # fmt: skip
    return int(told["began_ns"])


@contextmanager
def _listed(rows: Sequence[object]) -> Iterator[str]:
    """Write down what is to be enqueued."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(rows, file)
        file.flush()
        yield file.name


def _watched(folder: Path, visits: Sequence[Visit], began_ns: int, child: Child, awaited: set[str]) -> Hour:
    """Read what the handlers write down until the visits of some users have ended."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    read = _Reader(folder / "journal", starts, ends)

    def is_over() -> bool:
        read()
        return awaited <= ends.keys()

    wait_until(is_over, f"{len(visits)} visits have ended", child, limit_s=240)
    waits = {user: (at_ns - began_ns) / 1e9 for user, at_ns in starts.items()}
    return Hour(waits, (max(ends.values()) - began_ns) / 1e9)


class _Reader:
    """Reads what the handlers have written since the last look."""

    def __init__(self, file: Path, starts: dict[str, int], ends: dict[str, int]) -> None:
        self._file = file
        self._kinds = {"start": starts, "end": ends}
        self._read = 0

    def __call__(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as opened:
            opened.seek(self._read)
            new = opened.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            what, user, _pid, at_ns, _attempt = line.split(" ")
            self._kinds[what].setdefault(user, int(at_ns))


# 1,000 users, 20 % of them a hundred times slower.


def _load(users: int, fast_ms: float, seed_of_dice: int) -> tuple[list[Visit], list[str], list[str]]:
    """Return the visits in random order, who is fast, and who is slow. Hints are off by up to a half."""
    dice = random.Random(seed_of_dice)
    visits = []
    for number in range(users):
        ms = fast_ms * (TIMES_SLOWER if number % 10 < SLOW_IN_TEN else 1)
        visits.append(Visit(f"u{number}", ms, round(1000 * ms * dice.uniform(0.5, 1.5), 1)))
    dice.shuffle(visits)
    slow = [each.user for each in visits if each.ms > fast_ms]
    fast = [each.user for each in visits if each.ms == fast_ms]
    return visits, fast, slow


def _without_hints(visits: Sequence[Visit]) -> list[Visit]:
    return [each._replace(hint=None) for each in visits]


def _users(report: Report, *, rounds: int, users: int, fast_ms: float) -> None:
    found: dict[str, list[Hour]] = {name: [] for name in ("fifo", "first", "learned", "hinted")}
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            visits, fast, slow = _load(users, fast_ms, number)
            plain = _without_hints(visits)
            server.flush()
            found["fifo"].append(_hour(server, plain, SLOTS, lanes="false"))
            server.flush()
            found["first"].append(_hour(server, plain, SLOTS, burst_slots=str(SLOTS)))
            found["learned"].append(_hour(server, plain, SLOTS))
            server.flush()
            found["hinted"].append(_hour(server, visits, SLOTS))
    fifo = found["fifo"]
    size = f"{users:,} users, {fast_ms:g} and {fast_ms * TIMES_SLOWER:g} ms, {SLOTS} slots"
    for name, hour in {"FIFO": fifo[-1], "lanes": found["learned"][-1]}.items():
        HOURS[name] = tuple([hour.waits_s[user] for user in who] for who in (fast, slow))  # type: ignore[assignment]

    def add(name: str, hours: Sequence[Hour], bar: float, who: Sequence[str]) -> None:
        ours, theirs = ([each.p99(who) for each in side] for side in (hours, fifo))
        detail = {"p99_wait_s": median(ours), "fifo_p99_wait_s": median(theirs)}
        report.add(name, ratios(ours, theirs), "x FIFO", at_most(bar), size, detail=detail)

    add("fast_p99_vs_fifo", found["learned"], 0.1, fast)
    took, fifo_took = ([each.took_s for each in side] for side in (found["learned"], fifo))
    report.add(
        "makespan_vs_fifo", ratios(took, fifo_took), "x FIFO", at_most(1.03), size,
        detail={"s": median(took), "fifo_s": median(fifo_took)},
    )  # fmt: skip
    add("slow_p99_vs_fifo", found["learned"], 1.1, slow)
    add("first_hour_p99_vs_fifo", found["first"], 0.55, fast)
    add("first_hour_hint_p99_vs_fifo", found["hinted"], 0.1, fast)


# A heavy tail.


def _pareto(report: Report, *, rounds: int, users: int) -> None:
    """Give each user the run time of a quantile, so that all rounds have the same work. The seed of what is known."""
    times = [10 * ((place + 0.5) / users) ** (-1 / 1.2) for place in range(users)]
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
        return _watched(tallies.folder, visits, _enqueue(server, visits), child, set(fast))


async def _know(server: RedisServer, visits: Sequence[Visit]) -> None:
    """Tell the partition what an earlier hour would have taught it."""
    broker = Broker(server.url)
    partition = broker.partition(app.QUEUE)
    await seed(partition, {cost_field("visit", each.user): each.ms for each in visits})
    await partition.wire.close()
    await broker.close()


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


def _peer(report: Report, *, system: str, users: int, fast_ms: float) -> None:
    """Measure another queue beside streamq's FIFO; there is no bar for it."""
    other = SYSTEMS[system]
    make(other)
    visits, fast, slow = _load(users, fast_ms, 0)
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        fifo = _hour(server, _without_hints(visits), SLOTS, lanes="false")
        server.flush()
        theirs = _hour_of(other, server, visits)
    HOURS[system] = ([theirs.waits_s[user] for user in fast], [theirs.waits_s[user] for user in slow])
    report.add(
        f"{system}_fast_p99_vs_fifo", [theirs.p99(fast) / fifo.p99(fast)], "x FIFO", None,
        f"{users:,} users, {fast_ms:g} and {fast_ms * TIMES_SLOWER:g} ms, {SLOTS} slots, {', '.join(other.requirements)}",
        detail={"p99_wait_s": theirs.p99(fast), "s": theirs.took_s, "fifo_s": fifo.took_s},
    )  # fmt: skip


def _hour_of(system: System, server: RedisServer, visits: Sequence[Visit]) -> Hour:
    """Do the same with another queue. Not every worker blocks in Redis; it proves itself by a first visit."""
    with tallied() as tallies, peers.worker(system, SLOTS, "default", server, tallies) as child:
        _hand_over(system, server, [Visit("warm-up", 0.0)])
        journal = tallies.folder / "journal"
        wait_until(lambda: journal.exists() and b"end warm-up" in journal.read_bytes(), "the worker works", child)
        began_ns = _hand_over(system, server, visits)
        return _watched(tallies.folder, visits, began_ns, child, {each.user for each in visits})


def _hand_over(system: System, server: RedisServer, visits: Sequence[Visit]) -> int:
    with _listed([f"{each.ms:g} {each.user}" for each in visits]) as file:
        return int(peers.produce(system, server, "listed", file=file, job="long")["began_ns"])


if __name__ == "__main__":
    sys.exit(main())
