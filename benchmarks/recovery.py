"""Recovery: `python -m benchmarks.recovery [--json] [--quick]`.

Real processes are killed, frozen and asked to stop, a reply is lost, Redis is killed under load. Handlers write down when
they start and end, in a file that outlives them; what was settled is read from the recorder's entries in Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import app
from benchmarks.drains import tallied
from benchmarks.harness import Part, Report, Scale, at_most, median, run
from benchmarks.processes import Child, children_of
from benchmarks.proxy import LossyProxy
from benchmarks.servers import APPEND_ONLY, RedisServer
from benchmarks.tally import Journal
from benchmarks.waits import wait_for_readers, wait_until
from streamq.queue import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.tally import JournalLine, Tallies
    from streamq.queue import Draft

__all__ = ["main"]

KEYS = f"{{sq:{app.QUEUE}:0}}"
DEAD_AFTER_S = 5.0
"""Silence after which a worker is given up, as streamq comes."""
GRACE_S = 25.0
SETTLED = ("completed", "dead", "cancelled", "expired")

NOTES = [
    "all settings of streamq as it comes, unless a figure says otherwise; a private server, append-only where it is killed",
    "a restart is timed from the signal or the lost reply to the first line of the handler",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("recovery", parts, arguments)


def parts(scale: Scale) -> list[Part]:
    """List what is measured. In a quick run, what mostly waits does so at the same time."""
    lost = partial(_lost_reply, rounds=scale.pick(10, 2), lease_s=scale.pick(60.0, 10.0))
    hosts = partial(_kill_hosts, rounds=scale.pick(5, 1), victims=scale.pick(4, 2))
    frozen = partial(_freeze, rounds=scale.pick(5, 1), victims=4)
    waiting = [
        Part(["host_kill_restart_p99_s"], hosts, quick_s=16),
        Part(["lost_reply_restart_s"], lost, quick_s=16),
        Part(["frozen_double_outcomes"], frozen, quick_s=16),
    ]
    if scale.quick:
        names = [name for part in waiting for name in part.measures]
        waiting = [Part(names, partial(_together, [part.run for part in waiting]), quick_s=18)]
    return [
        Part(["child_kill_restart_p99_s"], partial(_kill_children, rounds=scale.pick(20, 3)), quick_s=10),
        *waiting,
        Part(
            ["sigterm_attempts_used", "sigterm_extra_starts"],
            partial(_terminate, groups=scale.pick(25, 2), size=4),
            quick_s=8,
        ),
        Part(
            ["redis_restart_lost", "redis_restart_resume_p99_s"],
            partial(_restart_redis, restarts=scale.pick(20, 3)),
            quick_s=14,
        ),
    ]


def _together(measures: Sequence[Callable[[Report], None]], report: Report) -> None:
    """Run several measurements at the same time."""
    failures: list[BaseException] = []

    def one(measure: Callable[[Report], None]) -> None:
        try:
            measure(report)
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            failures.append(error)

    threads = [threading.Thread(target=one, args=(measure,), daemon=True) for measure in measures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# What all of them use.


def _host(
    server: RedisServer, tallies: Tallies, *, instances: int, concurrency: int, name: str, **settings: str
) -> Child:
    """Start a parent with its worker processes."""
    where = ("--directory", str(tallies.folder / f"run-{name}"))
    start = app.worker(concurrency, "-n", str(instances), "--name", name, *where, **settings)
    return start(server, tallies)


def _send(server: RedisServer, jobs: Iterable[Draft]) -> None:
    async def go() -> None:
        client = Client(server.url)
        await client.send_many(jobs)
        await client.close()

    asyncio.run(go())


def _starts(journal: Journal) -> dict[str, list[JournalLine]]:
    """Return a job's name to its starts, in order."""
    found: dict[str, list[JournalLine]] = {}
    for line in journal.lines():
        if line.what == "start":
            found.setdefault(line.name, []).append(line)
    return found


def _ends(journal: Journal) -> Counter[str]:
    return Counter(line.name for line in journal.lines() if line.what == "end")


def _wait_for_workers(server: RedisServer, count: int, *children: Child) -> None:
    with server.client() as client:
        wait_until(lambda: int(client.zcard(f"{KEYS}:workers")) >= count, f"{count} workers are there", *children)


def _wait_for_empty(server: RedisServer, *children: Child, limit_s: float = 60) -> None:
    with server.client() as client:
        wait_until(lambda: not client.hlen(f"{KEYS}:index"), "all jobs are settled", *children, limit_s=limit_s)


@dataclass
class Outcomes:
    """What the recorder would read."""

    settled: Counter[str]
    """Job id to how often it was settled: more than once must not be."""
    failed: int
    attempts_used: int
    """Beyond the first of each job."""

    @property
    def doubles(self) -> int:
        """How many outcomes were recorded for jobs that had one."""
        return sum(self.settled.values()) - len(self.settled)


def _outcomes(server: RedisServer) -> Outcomes:
    found = Outcomes(Counter(), 0, 0)
    with server.client() as client:
        for _, fields in client.xrange(f"{KEYS}:outbox"):
            for job_id, record in fields.items():
                if job_id != b"w":
                    _count(found, job_id.decode(), json.loads(record))
    return found


def _count(found: Outcomes, job_id: str, record: dict[str, Any]) -> None:
    if record["s"] not in SETTLED:
        found.attempts_used += 1
        return
    found.settled[job_id] += 1
    found.failed += record["s"] != "completed"


# Killed workers.


def _kill_children(report: Report, *, rounds: int) -> None:
    """SIGKILL a worker process under a parent, with ten jobs in it.

    In one half of the kills its sister has free slots, and takes over; in the other it has none, and the successor must.
    """
    delays: dict[str, list[float]] = {"sister": [], "successor": []}
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            for who, concurrency in (("sister", 20), ("successor", 10)):
                server.flush()
                delays[who] += _kill_child(server, f"{who}{number}", concurrency)
    every = [*delays["sister"], *delays["successor"]]
    report.add_percentile(
        "child_kill_restart_p99_s", every, 99, "s", at_most(1.0),
        f"{len(every)} jobs of {2 * (number + 1)} processes that were killed, two processes under a parent",
        detail={f"{who}_{name}_s": value for who, each in delays.items() for name, value in _summary(each).items()},
    )  # fmt: skip


def _summary(delays: Sequence[float]) -> dict[str, float]:
    return {"p50": median(delays), "max": max(delays)}


def _kill_child(server: RedisServer, name: str, concurrency: int) -> list[float]:
    """Have 20 jobs run in two processes of one parent, and kill the one that runs more of them."""
    jobs = 20
    with tallied() as tallies, _host(server, tallies, instances=2, concurrency=concurrency, name=name) as host:
        _wait_for_workers(server, 2, host)
        _send(server, (app.held.draft(f"j{i}") for i in range(jobs)))
        journal = Journal(tallies.folder)
        wait_until(lambda: len(_starts(journal)) == jobs, "all jobs run", host)
        holders = Counter(lines[0].pid for lines in _starts(journal).values())
        victim = holders.most_common(1)[0][0]
        return _restarts(journal, {victim}, partial(os.kill, victim, signal.SIGKILL), host)


def _restarts(
    journal: Journal, victims: set[int], kill: Callable[[], object], *others: Child, limit_s: float = 30
) -> list[float]:
    """Kill, wait until all jobs of the victims run again, and return how long each took, in seconds."""
    lost = [name for name, lines in _starts(journal).items() if lines[-1].pid in victims]
    killed_ns = time.monotonic_ns()
    kill()

    def again() -> list[int]:
        starts = _starts(journal)
        later = ([line.at_ns for line in starts[name] if line.at_ns > killed_ns] for name in lost)
        return [moments[0] for moments in later if moments]

    wait_until(lambda: len(again()) == len(lost), f"{len(lost)} jobs run again", *others, limit_s=limit_s)
    return [(moment - killed_ns) / 1e9 for moment in again()]


def _kill_hosts(report: Report, *, rounds: int, victims: int) -> None:
    """SIGKILL parents with all their children; another host takes over when their beats are too old."""
    delays: list[float] = []
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for number in report.rounds(rounds):
            server.flush()
            delays += _kill_hosts_once(server, victims, number)
    report.add_percentile(
        "host_kill_restart_p99_s", delays, 99, "s", at_most(6.5),
        f"{len(delays)} jobs of {victims * (number + 1)} hosts of two processes that were killed, one host left",
        detail={"p50_s": median(delays), "kills": victims * (number + 1), "dead_after_s": DEAD_AFTER_S},
    )  # fmt: skip


def _kill_hosts_once(server: RedisServer, victims: int, number: int) -> list[float]:
    with tallied() as tallies, contextlib.ExitStack() as stack:
        journal = Journal(tallies.folder)

        def host(name: str, *, instances: int, concurrency: int) -> Child:
            return stack.enter_context(
                _host(server, tallies, instances=instances, concurrency=concurrency, name=f"{name}-{number}")
            )

        doomed = [host(f"victim{i}", instances=2, concurrency=10) for i in range(victims)]
        _wait_for_workers(server, 2 * victims, *doomed)
        _send(server, (app.held.draft(f"j{i}") for i in range(10 * victims)))
        wait_until(lambda: len(_starts(journal)) == 10 * victims, "all jobs run", *doomed)
        survivor = host("survivor", instances=1, concurrency=100)
        _wait_for_workers(server, 2 * victims + 1, survivor)
        # A worker gives nobody up before it has been there for a while itself.
        time.sleep(DEAD_AFTER_S + 0.5)
        pids = {pid for each in doomed for pid in children_of(each.pid)}

        def kill() -> None:
            # All at once, as a host vanishes; the parents first, or they would bury their children.
            for pid in [each.pid for each in doomed] + sorted(pids):
                os.kill(pid, signal.SIGKILL)

        return _restarts(journal, pids, kill, survivor)


# A lost reply.


def _lost_reply(report: Report, *, rounds: int, lease_s: float) -> None:
    """Drop the reply that carries a delivery, and its connection: to an idle worker, and to one that is at work."""
    delays: dict[str, list[float]] = {"idle": [], "busy": []}
    with RedisServer() as server, LossyProxy(server.port) as proxy, tallied() as tallies:
        report.server, report.notes = server.version, NOTES
        lease_ms = str(int(lease_s * 1000))
        with app.worker(1, "--no-parent", url=proxy.url, lease_ms=lease_ms)(server, tallies) as child:
            wait_for_readers(server, child)
            journal = Journal(tallies.folder)
            for number in range(rounds):
                for how, before in (("idle", []), ("busy", [app.journaled.draft(f"first{number}", 0.2)])):
                    name = f"lost-{how}-{number}-"
                    proxy.arm(name.encode())
                    _send(server, [*before, app.journaled.draft(name, 0.0)])
                    dropped_ns = proxy.dropped_at_ns(wait_s=20)
                    wait_until(lambda n=name: n in _ends(journal), f"{name} runs", child, limit_s=2 * lease_s + 20)
                    delays[how].append((_starts(journal)[name][0].at_ns - dropped_ns) / 1e9)
                    wait_for_readers(server, child)
    every = [delay for each in delays.values() for delay in each]
    report.add_percentile(
        "lost_reply_restart_s", every, 100, "s", at_most(lease_s),
        f"the slowest of {len(every)} lost replies; lease {lease_s:g} s",
        detail={f"{how}_median_s": median(each) for how, each in delays.items()},
    )  # fmt: skip


# Frozen workers.


def _freeze(report: Report, *, rounds: int, victims: int) -> None:
    """SIGSTOP workers in the middle of their jobs until others have taken these over, then SIGCONT."""
    doubles, missing, late, twice, freezes, jobs = 0, 0, 0, 0, 0, 60
    with RedisServer() as server:
        report.server, report.notes = server.version, NOTES
        for _ in report.rounds(rounds):
            server.flush()
            freezes += victims
            with tallied() as tallies:
                late += _freeze_once(server, tallies, victims, jobs)
                outcomes, starts = _outcomes(server), _starts(Journal(tallies.folder))
            doubles += outcomes.doubles
            missing += jobs - len(outcomes.settled)
            twice += sum(len(lines) > 1 for lines in starts.values())
    report.add(
        "frozen_double_outcomes", [doubles], "outcomes", at_most(0),
        f"{freezes} workers frozen for {DEAD_AFTER_S + 2:g} s with jobs in them, {jobs} jobs a round",
        holds=missing == 0 and late > 0,
        detail={
            "freezes": freezes,
            "jobs_without_outcome": missing,
            "late_outcomes_refused": late,
            "jobs_that_ran_twice": twice,
        },
    )  # fmt: skip


def _freeze_once(server: RedisServer, tallies: Tallies, victims: int, jobs: int) -> int:
    """Return how many late outcomes the thawed workers counted."""
    journal = Journal(tallies.folder)
    start = app.worker(10, log_level="info", log_format="json")
    frozen = [start(server, tallies) for _ in range(victims)]
    try:
        _wait_for_workers(server, victims, *frozen)
        _send(server, (app.journaled.draft(f"j{i}", 2.0) for i in range(jobs)))
        wait_until(lambda: len(_starts(journal)) >= 10 * victims, "the workers are full", *frozen)
        for child in frozen:
            child.signal_all(signal.SIGSTOP)
        with app.worker(50)(server, tallies) as other:
            # Started after the freeze, it trusts old beats only later; so the freeze lasts until it has taken over.
            time.sleep(DEAD_AFTER_S + 2)
            wait_until(lambda: len(_ends(journal)) == jobs, "another worker has run the jobs", other)
            for child in frozen:
                child.signal_all(signal.SIGCONT)
            time.sleep(1.5)
            for child in frozen:
                child.stop()
            _wait_for_empty(server, other)
        return sum(_late_outcomes(child.output) for child in frozen)
    finally:
        for child in frozen:
            child.signal_all(signal.SIGCONT)
            child.kill()


def _late_outcomes(output: str) -> int:
    """Read from a worker's log how many outcomes it had for jobs that were no longer its own."""
    lines = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return sum(int(line.get("late_outcomes", 0)) for line in lines if line.get("event") == "worker.stopped")


# Stopped workers.


def _terminate(report: Report, *, groups: int, size: int) -> None:
    """SIGTERM workers while they and the queue are full; nothing may run twice because of it."""
    dice, slow_exits, exit_s, sent = random.Random(3), 0, [], 0
    with RedisServer() as server, tallied() as tallies:
        report.server, report.notes = server.version, NOTES
        journal = Journal(tallies.folder)
        done = 0
        for group in report.rounds(groups):
            _send(server, (app.journaled.draft(f"j{sent + i}", dice.uniform(0.02, 0.2)) for i in range(200 * size)))
            sent += 200 * size
            children = [_to_be_stopped(server, tallies, f"t{group}-{i}", with_parent=i % 2 == 1) for i in range(size)]
            before = len(_starts(journal))
            _wait_for_workers(server, size, *children)
            wait_until(lambda n=before: len(_starts(journal)) > n + 10 * size, "the workers are busy", *children)
            for child in children:
                time.sleep(dice.uniform(0, 0.1))
                child.process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                code = child.process.wait(GRACE_S + 10)
                exit_s.append(time.monotonic() - began)
                slow_exits += code != 0 or exit_s[-1] > GRACE_S + 2
                child.kill()
            done += size
        with app.worker(500)(server, tallies) as last:
            _wait_for_empty(server, last)
            last.stop()
        outcomes, starts = _outcomes(server), _starts(journal)
    extra = sum(len(lines) for lines in starts.values()) - len(starts)
    attempts = outcomes.attempts_used + sum(lines[-1].attempt - 1 for lines in starts.values())
    size_text = f"{done} stops, half of them of a parent with two processes, {sent:,} jobs of 20 to 200 ms"
    detail = {
        "exits_not_0_or_later_than_grace_and_2_s": slow_exits,
        "slowest_exit_s": max(exit_s),
        "jobs_without_outcome": sent - len(outcomes.settled),
        "failed": outcomes.failed,
    }
    holds = slow_exits == 0 and len(outcomes.settled) == sent and outcomes.failed == 0
    report.add("sigterm_attempts_used", [attempts], "attempts", at_most(0), size_text, holds=holds, detail=detail)
    report.add("sigterm_extra_starts", [extra], "starts", at_most(0), size_text, holds=holds, detail={})


def _to_be_stopped(server: RedisServer, tallies: Tallies, name: str, *, with_parent: bool) -> Child:
    if with_parent:
        return _host(server, tallies, instances=2, concurrency=5, name=name)
    return app.worker(10)(server, tallies)


# Redis killed.

LOAD_PER_S, WINDOW_S = 300, 0.25


def _restart_redis(report: Report, *, restarts: int) -> None:
    """`kill -9` of Redis under load and a start on the same port, again and again."""
    resumed: list[float] = []
    with RedisServer(*APPEND_ONLY) as server, tallied() as tallies:
        report.server, report.notes = server.version, NOTES
        journal, accepted, stop = Journal(tallies.folder), tallies.folder / "accepted", tallies.folder / "stop"
        sizes = {"per_second": LOAD_PER_S, "job_s": 0.01, "accepted": str(accepted), "stop": str(stop)}
        line = ("-m", "benchmarks.producers", "steady", server.url, json.dumps(sizes))
        with (
            _host(server, tallies, instances=2, concurrency=10, name="h") as host,
            Child(*line, environment=app.environment(server.url)) as producer,
        ):
            wait_until(lambda: len(_ends(journal)) > LOAD_PER_S, "jobs flow", host, producer)
            for _ in report.rounds(restarts):
                time.sleep(1.0)
                server.kill()
                time.sleep(0.3)
                server.start()
                up_ns = time.monotonic_ns()
                wait_until(lambda t=up_ns: _resumed_s(journal, t) is not None, "jobs flow again", host, producer)
                resumed.append(_resumed_s(journal, up_ns) or 0.0)
            stop.touch()
            producer.process.wait(60)
            names = set(accepted.read_text().split())
            with contextlib.suppress(TimeoutError):  # what is missing then is the figure
                wait_until(lambda: names <= set(_ends(journal)), "what was accepted has run", host, limit_s=30)
            lost = names - set(_ends(journal))
            time.sleep(1.0)
            outcomes = _outcomes(server)
    size = f"{len(resumed)} restarts at {LOAD_PER_S} jobs/s, {len(names):,} jobs, append-only file synced each second"
    detail = {
        "jobs_failed": outcomes.failed,
        "doubles": outcomes.doubles,
        "jobs_that_ran_twice": sum(count > 1 for count in _ends(journal).values()),
    }
    holds = outcomes.failed == 0
    report.add("redis_restart_lost", [len(lost)], "jobs", at_most(0), size, holds=holds, detail=detail)
    report.add_percentile(
        "redis_restart_resume_p99_s", resumed, 99, "s", at_most(2.0), size,
        detail={"p50_s": median(resumed), "counts_as_back": f"80 % of the load within {WINDOW_S} s"},
    )  # fmt: skip


def _resumed_s(journal: Journal, up_ns: int) -> float | None:
    """Return how long after the server was up the load is worked off again; None: not yet."""
    ends = [line.at_ns for line in journal.lines() if line.what == "end" and line.at_ns > up_ns]
    enough = int(0.8 * LOAD_PER_S * WINDOW_S)
    for first, last in zip(ends, ends[enough - 1 :], strict=False):
        if last - first <= WINDOW_S * 1e9:
            return (first - up_ns) / 1e9
    return None


if __name__ == "__main__":
    sys.exit(main())
