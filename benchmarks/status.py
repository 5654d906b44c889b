"""The status side: `python -m benchmarks.status [--json] [--quick]`.

What the recorder costs the jobs, how late the history is, how fast the routes answer, and what becomes of all that when
MongoDB goes away.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import app
from benchmarks.drains import drain, tallied
from benchmarks.harness import Part, Report, Scale, at_least, at_most, median, percentile, ratios, run
from benchmarks.mongo import Documents, MongoServer
from benchmarks.processes import Child, run_to_json
from benchmarks.routes import ROUTES, measure_routes, store
from benchmarks.servers import RedisServer
from benchmarks.waits import wait_for_readers, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.harness import Tell
    from benchmarks.tally import Tallies

__all__ = ["main"]

OUTBOX = "{sq:bench:0}:outbox"
DATABASE = "streamq"
PER_SECOND = 3_000
OUTAGE_PER_SECOND = 200
CACHE_GB = 1.0
"""Memory of the mongod that has millions of documents. Left to itself it takes half of the machine's."""
ENTRY_RECORDS = 100
"""A worker that is busy puts about so many into one entry of the outbox."""

NOTES = [
    "Redis on loopback with persistence off, MongoDB on a unix socket, journaled majority writes; no-op jobs of 120 bytes",
    "without the recorder: STREAMQ_HISTORY=false, so that workers write no outbox either",
    "the recorder runs with nice 10 as always; mongod does not",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("status", parts, arguments)


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    return [
        Part(
            ["recorder_docs_per_s"],
            partial(_alone, rounds=scale.pick(5, 2), total=scale.pick(100_000, 40_000)),
            quick_s=9,
        ),
        Part(
            ["recorder_on_ratio", "status_lag_p99_s"],
            partial(_paced, rounds=scale.pick(5, 1), seconds=scale.pick(20.0, 4.0)),
            quick_s=10,
        ),
        Part(
            ["recorder_saturated_ratio"],
            partial(_saturated, rounds=scale.pick(5, 1), total=scale.pick(150_000, 30_000)),
            quick_s=8,
        ),
        Part(
            ["routes_p99_ms"],
            partial(_routes, documents=scale.pick(5_000_000, 100_000), seconds=scale.pick(10.0, 1.0)),
            quick_s=10,
        ),
        Part(
            ["mongo_down_throughput_ratio", "mongo_back_catch_up_s"],
            partial(_outage, down_s=scale.pick(600.0, 2.0)),
            quick_s=7,
        ),
        Part(["mongo_kill_wrong_states"], partial(_kills, kills=scale.pick(20, 1)), quick_s=6),
    ]


# What runs.


def _settings(mongo: MongoServer | None) -> dict[str, str]:
    return {"history": "false"} if mongo is None else {"mongodb_url": mongo.url, "mongodb_database": DATABASE}


@contextmanager
def _recording(server: RedisServer, mongo: MongoServer | None, *, limit_s: float = 30) -> Iterator[Child | None]:
    """Run a recorder, if there is a MongoDB; it is ready when it has made the collections."""
    if mongo is None:
        yield None
        return
    with Child("-m", "streamq", "recorder", environment=app.environment(server.url, **_settings(mongo))) as child:
        with mongo.client() as client:
            wait_until(
                lambda: "user_latest" in client[DATABASE].list_collection_names(),
                "the recorder is ready",
                child,
                limit_s=limit_s,
            )
        yield child


def _fresh(server: RedisServer, mongo: MongoServer | None) -> None:
    server.flush()
    if mongo is not None:
        with mongo.client() as client:
            client.drop_database(DATABASE)


def _waiting(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.xlen(OUTBOX))


def _start_paced(server: RedisServer, per_second: float, seconds: float) -> Child:
    sizes = json.dumps({"per_second": per_second, "seconds": seconds})
    line = ("-m", "benchmarks.producers", "paced", server.url, sizes)
    return Child(*line, environment=app.environment(server.url))


def _sent(producer: Child) -> int:
    wait_until(lambda: not producer.is_alive, "the producer is done", limit_s=700)
    return int(json.loads(producer.output.rstrip().rpartition("\n")[2])["sent"])


# The recorder alone.


def _alone(report: Report, *, rounds: int, total: int) -> None:
    rates, cores = [], []
    with RedisServer() as server, MongoServer() as mongo:
        report.server, report.notes = f"{server.version}, {mongo.version}", NOTES
        for _ in report.rounds(rounds):
            _fresh(server, mongo)
            _fill_outbox(server, total)
            with _recording(server, mongo) as child:
                assert child is not None
                first = _when(server, total * 9 // 10, child, mongo)
                last = _when(server, total * 3 // 100, child, mongo)
            seconds = last[0] - first[0]
            rates.append((first[1] - last[1]) / seconds)
            cores.append(((last[2] - first[2]) / seconds, (last[3] - first[3]) / seconds))
    report.add(
        "recorder_docs_per_s", rates, "documents/s", at_least(15_000),
        f"{total:,} jobs that MongoDB does not know yet, {ENTRY_RECORDS} records an entry; from 10 % to 97 % done",
        detail={
            "recorder_cores": median([each[0] for each in cores]), "mongod_cores": median([each[1] for each in cores]),
        },
    )  # fmt: skip


def _fill_outbox(server: RedisServer, total: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    with server.client() as client:
        client.xgroup_create(OUTBOX, "rec", "0", mkstream=True)
        pipeline = client.pipeline(transaction=False)
        for first in range(0, total, ENTRY_RECORDS):
            fields: dict[str, str] = {"w": "bench.1"}
            for number in range(first, first + ENTRY_RECORDS):
                record = {
                    "s": "completed", "l": "normal", "e": now_ms, "b": now_ms + 4, "f": now_ms + 7, "h": "process_user_data",
                    "n": 1, "u": f"u{number % 1000}", "r": {"events": number},
                }  # fmt: skip
                fields[f"p{number}"] = json.dumps(record)
            pipeline.xadd(OUTBOX, fields)  # type: ignore[arg-type]
        pipeline.execute()


def _when(server: RedisServer, left: int, child: Child, mongo: MongoServer) -> tuple[float, int, float, float]:
    """Wait until so few records are left. Returns when, how many, and the processor time of recorder and mongod."""
    cpu = mongo.cpu
    wait_until(lambda: _waiting(server) * ENTRY_RECORDS <= left, "the recorder goes on", child, limit_s=120)
    return time.monotonic(), _waiting(server) * ENTRY_RECORDS, child.cpu.seconds(), cpu.seconds()


# Beside jobs at a steady pace.


def _paced(report: Report, *, rounds: int, seconds: float) -> None:
    rates: dict[bool, list[float]] = {True: [], False: []}
    lags: list[float] = []
    with RedisServer() as server, MongoServer() as mongo:
        report.server, report.notes = f"{server.version}, {mongo.version}", NOTES
        for number in report.rounds(rounds):
            for is_on in (True, False) if number % 2 else (False, True):
                _fresh(server, mongo)
                rate, seen = _one_pace(server, mongo if is_on else None, seconds)
                rates[is_on].append(rate)
                lags += seen
    size = f"{PER_SECOND:,} jobs/s for {seconds:g} s, one worker process of 100 slots, {os.cpu_count()} cores for everything"
    report.add(
        "recorder_on_ratio", ratios(rates[True], rates[False]), "x without", at_least(0.98), size,
        detail={"on_jobs_per_s": median(rates[True]), "off_jobs_per_s": median(rates[False])},
    )  # fmt: skip
    report.add_percentile(
        "status_lag_p99_s", lags, 99, "s", at_most(1), f"{size}; each 50th job, looked for every 20 ms",
        detail={"p50_s": percentile(lags, 50), "max_s": max(lags)},
    )  # fmt: skip


def _one_pace(server: RedisServer, mongo: MongoServer | None, seconds: float) -> tuple[float, list[float]]:
    """Run one pace; return jobs a second, and how late statuses became visible."""
    with tallied() as tallies, ExitStack() as stack:
        stack.enter_context(_recording(server, mongo))
        worker = stack.enter_context(app.worker(100, **_settings(mongo))(server, tallies))
        wait_for_readers(server, worker)
        producer = stack.enter_context(_start_paced(server, PER_SECOND, seconds))
        lags = _lags(mongo, int(PER_SECOND * seconds * 0.9), producer) if mongo is not None else []
        sent = _sent(producer)
        wait_until(lambda: tallies.total() >= sent, "all jobs are done", worker)
        return _rate(tallies, sent), lags


def _rate(tallies: Tallies, total: int) -> float:
    """Return how many jobs ended a second, from the first tenth to the last."""
    (pid,) = tallies.counts()
    marks = tallies.marks_ns(pid)
    first, last = total // 1000 * 100, total * 9 // 1000 * 100
    return (last - first) / (marks[last] - marks[first]) * 1e9


def _lags(mongo: MongoServer, jobs: int, producer: Child) -> list[float]:
    """Look for each 50th job until its end can be seen."""
    wanted = [f"p{number}" for number in range(0, jobs, 50)]
    lags: list[float] = []
    position = 0
    with mongo.client() as client:
        documents = Documents(client, DATABASE)
        until = time.monotonic() + 120
        while position < len(wanted):
            found = documents.ended(wanted[position : position + 40])
            now = time.time()
            lags += [max(0.0, now - ended_at) for ended_at in found.values()]
            wanted[position : position + 40] = [name for name in wanted[position : position + 40] if name not in found]
            if time.monotonic() > until:
                raise TimeoutError(f"{len(wanted)} statuses were not seen:\n{producer.output[-2000:]}")
            time.sleep(0.02)
    return lags


# When workers have the machine to themselves, and do not.


def _saturated(report: Report, *, rounds: int, total: int) -> None:
    rates: dict[bool, list[float]] = {True: [], False: []}
    splits: list[dict[str, float]] = []
    with RedisServer() as server, MongoServer() as mongo:
        report.server, report.notes = f"{server.version}, {mongo.version}", NOTES
        for number in report.rounds(rounds):
            for is_on in (True, False) if number % 2 else (False, True):
                _fresh(server, mongo)
                run_to_json(
                    "-m", "benchmarks.producers", "fill", server.url, json.dumps({"count": total}),
                    environment=app.environment(server.url),
                )  # fmt: skip
                rate, split = _one_drain(server, mongo if is_on else None, total)
                rates[is_on].append(rate)
                splits += [split] if is_on else []
    report.add(
        "recorder_saturated_ratio", ratios(rates[True], rates[False]), "x without", at_least(0.75),
        f"{total:,} no-op jobs, two worker processes on {os.cpu_count()} cores that Redis and MongoDB share",
        detail={
            "on_jobs_per_s": median(rates[True]), "off_jobs_per_s": median(rates[False]),
            **{name: median([split[name] for split in splits]) for name in splits[0]},
        },
    )  # fmt: skip


def _one_drain(server: RedisServer, mongo: MongoServer | None, total: int) -> tuple[float, dict[str, float]]:
    with _recording(server, mongo) as recorder:
        worker = app.worker(100, outbox_max="1000000", **_settings(mongo))
        before = (recorder.cpu.seconds(), mongo.cpu.seconds()) if recorder and mongo else (0.0, 0.0)
        begun = time.monotonic()
        drained = drain(server, [worker, worker], total)
        if recorder is None or mongo is None:
            return drained.per_second, {}
        seconds = time.monotonic() - begun
        split = {
            "worker_cores": sum(drained.worker_cpu_s) / drained.seconds,
            "redis_cores": drained.redis_cpu_s / drained.seconds,
            "recorder_cores": (recorder.cpu.seconds() - before[0]) / seconds,
            "mongod_cores": (mongo.cpu.seconds() - before[1]) / seconds,
        }
        ended = time.monotonic()
        wait_until(lambda: not _waiting(server), "the history has caught up", recorder, limit_s=120)
        return drained.per_second, {**split, "caught_up_after_s": time.monotonic() - ended}


# The routes.


def _routes(report: Report, *, documents: int, seconds: float) -> None:
    with RedisServer() as server, MongoServer(cache_gb=CACHE_GB) as mongo:
        report.server, report.notes = f"{server.version}, {mongo.version}", NOTES
        store(mongo, DATABASE, documents, report.tell)
        report.tell("indexes and routes", 0, 1)
        with _recording(server, mongo, limit_s=300):
            pass  # it has made the indexes
        on_disk_mb = mongo.size_mb(DATABASE)
        found = measure_routes(server, mongo, DATABASE, documents, seconds=seconds)
    worst = max(ROUTES, key=lambda name: percentile(found[name], 99))
    report.add_percentile(
        "routes_p99_ms", found[worst], 99, "ms", at_most(20),
        f"{documents:,} documents, mongod with {CACHE_GB:g} GB of cache, one API process, "
        f"each of the four routes at 200 requests/s for {seconds:g} s, "
        f"from when a request was due; the slowest route is {worst}",
        detail={
            **{f"{name}_p{percent}_ms": percentile(found[name], percent) for name in ROUTES for percent in (50, 99)},
            **on_disk_mb,
        },
    )  # fmt: skip


# MongoDB away.


@contextmanager
def _steady_jobs(server: RedisServer, mongo: MongoServer, seconds: float) -> Iterator[tuple[Tallies, Child, Child]]:
    with tallied() as tallies, ExitStack() as stack:
        recorder = stack.enter_context(_recording(server, mongo))
        assert recorder is not None
        worker = stack.enter_context(app.worker(10, **_settings(mongo))(server, tallies))
        wait_for_readers(server, worker)
        producer = stack.enter_context(_start_paced(server, OUTAGE_PER_SECOND, seconds))
        wait_until(lambda: tallies.total() > 0, "the first job is done", worker, producer)
        yield tallies, producer, recorder


def _outage(report: Report, *, down_s: float) -> None:
    before_s = min(60.0, down_s)
    with RedisServer() as server, MongoServer() as mongo:
        report.server, report.notes = f"{server.version}, {mongo.version}", NOTES
        with _steady_jobs(server, mongo, before_s + down_s + 1) as (tallies, producer, recorder):
            up = _speed(tallies, before_s, report.tell)
            mongo.kill()
            memory, done = server.figures().memory, tallies.total()
            down = _speed(tallies, down_s, report.tell)
            grown = (server.figures().memory - memory) / (tallies.total() - done)
            entries = _waiting(server)
            begun = time.monotonic()
            mongo.restart()
            with mongo.client() as client:
                documents = Documents(client, DATABASE)
                wait_until(lambda: _waiting(server) == 0, "the outbox is empty", recorder, limit_s=120)
                caught_up_s = time.monotonic() - begun
                sent = _sent(producer)
                wait_until(lambda: documents.completed() >= sent, "every job has its end", recorder, limit_s=60)
                wrong = documents.wrong(sent)
    size = f"MongoDB killed for {down_s:g} s at {OUTAGE_PER_SECOND} jobs/s"
    report.add(
        "mongo_down_throughput_ratio", [down / up], "x before", at_least(0.95), size,
        detail={
            "before_jobs_per_s": up, "down_jobs_per_s": down, "outbox_entries": entries, "redis_bytes_per_job": grown,
        },
    )  # fmt: skip
    report.add(
        "mongo_back_catch_up_s", [caught_up_s], "s", at_most(60),
        f"{size}; from the start of mongod, its recovery included, until the outbox is empty",
        holds=wrong == 0, detail={"wrong_states": wrong, "jobs": sent},
    )  # fmt: skip


def _speed(tallies: Tallies, seconds: float, tell: Tell) -> float:
    first, begun = tallies.total(), time.monotonic()
    while (gone := time.monotonic() - begun) < seconds:
        tell("seconds", int(gone), int(seconds))
        time.sleep(min(1.0, seconds - gone))
    return (tallies.total() - first) / (time.monotonic() - begun)


def _kills(report: Report, *, kills: int) -> None:
    dice = random.Random(3)
    with RedisServer() as server, MongoServer() as mongo:
        report.server, report.notes = f"{server.version}, {mongo.version}", NOTES
        with _steady_jobs(server, mongo, kills * 2.0) as (_, producer, recorder):
            for number in range(kills):
                report.tell("kills", number, kills)
                time.sleep(dice.uniform(0.1, 1.0))
                mongo.kill()
                time.sleep(dice.uniform(0.0, 0.5))
                mongo.restart()
            wrong, sent = _wrong_at_the_end(server, mongo, producer, recorder)
        stepped_wrong, steps = _step_downs(server, max(1, kills // 4))
    report.add(
        "mongo_kill_wrong_states", [float(wrong + stepped_wrong)], "states", at_most(0),
        f"killed and restarted {kills} times at random during {sent:,} jobs at {OUTAGE_PER_SECOND} jobs/s; "
        f"a replica set of one stepped down {steps} times",
        detail={"after_kills": wrong, "after_step_downs": stepped_wrong},
    )  # fmt: skip


def _step_downs(server: RedisServer, steps: int) -> tuple[int, int]:
    server.flush()
    with (
        MongoServer(replica_set=True) as mongo,
        _steady_jobs(server, mongo, steps * 2.5) as (_, producer, recorder),
        mongo.client() as client,
    ):
        for _ in range(steps):
            time.sleep(0.5)
            client.admin.command({"replSetStepDown": 1, "force": True, "secondaryCatchUpPeriodSecs": 0})
            wait_until(lambda: bool(client.admin.command("hello")["isWritablePrimary"]), "there is a primary")
        return _wrong_at_the_end(server, mongo, producer, recorder)[0], steps


def _wrong_at_the_end(server: RedisServer, mongo: MongoServer, producer: Child, recorder: Child) -> tuple[int, int]:
    sent = _sent(producer)
    wait_until(lambda: _waiting(server) == 0, "the outbox is empty", recorder, limit_s=60)
    with mongo.client() as client:
        documents = Documents(client, DATABASE)
        wait_until(lambda: documents.completed() >= sent, "every job has its end", recorder, limit_s=20)
        return documents.wrong(sent), sent


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
