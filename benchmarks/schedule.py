"""The hour: `python -m benchmarks.schedule [--json] [--quick]`.

A million users out of MongoDB become a million deduplicated jobs; the process that does it is killed again and again; and
five processes with clocks that disagree look after the same schedule.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo

from benchmarks.harness import Part, Report, Scale, at_most, run
from benchmarks.hour import COLLECTION, DATABASE, QUEUE
from benchmarks.processes import Child
from benchmarks.servers import APPEND_ONLY, RedisServer
from streamq.embedded import MongoServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

__all__ = ["main"]

NOTES = [
    "Redis on loopback with AOF everysec; MongoDB from the wheel of the extra `embedded`, on a Unix socket",
    "one process, pages of 1,000 users read along _id, jobs with a dedup key; from before the first connection to the end",
    "processes are killed with SIGKILL when the queue reaches sizes drawn at random; each next one goes on",
    "five processes: the time of each is its own, up to 2 s off, and one blocks its loop for up to two hours at a time",
]
KILLS = 20
CRONS = 5
_SEED = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    return run("schedule", parts, arguments)


def parts(scale: Scale) -> list[Part]:
    """List what is measured."""
    return [
        Part(
            ["million_users_s", "million_users_mb", "second_run_added"],
            partial(_million, total=scale.pick(1_000_000, 100_000)),
            quick_s=15,
        ),
        Part(
            ["killed_fanout_missing", "killed_fanout_doubled"],
            partial(_killed, total=scale.pick(1_000_000, 60_000)),
            quick_s=20,
        ),
        Part(
            ["five_crons_doubles", "five_crons_missing"],
            partial(_five, hours=scale.pick(60, 12), hour_s=0.5),
            quick_s=12,
        ),
    ]


class _Ground:
    """Both servers, with so many users."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._folder = tempfile.TemporaryDirectory(prefix="streamq-bench-")
        self.mongo = MongoServer(Path(self._folder.name))
        self.redis = RedisServer(*APPEND_ONLY)

    def __enter__(self) -> _Ground:
        self.redis.__enter__()
        self.mongo.start()
        with pymongo.MongoClient[dict[str, Any]](self.mongo.url) as client:
            users = client[DATABASE][COLLECTION]
            for start in range(0, self.total, 50_000):
                end = min(start + 50_000, self.total)
                users.insert_many([{"_id": f"user-{number:07}"} for number in range(start, end)], ordered=False)
        return self

    def __exit__(self, *raised: object) -> None:
        self.mongo.stop()
        self.redis.__exit__(None, None, None)
        self._folder.cleanup()

    def cron(self) -> Child:
        """Start a process that enqueues what is left."""
        return Child("-m", "benchmarks.hour", "fire", self.redis.url, self.mongo.url)


def _fired(ground: _Ground) -> dict[str, Any]:
    with ground.cron() as child:
        while child.is_alive:
            time.sleep(0.02)
        told: dict[str, Any] = json.loads(child.output.splitlines()[-1])
    return told


def _million(report: Report, *, total: int) -> None:
    report.notes = NOTES
    with _Ground(total) as ground:
        report.server = ground.redis.version
        first, second = _fired(ground), _fired(ground)
        jobs = _jobs(ground.redis)
    size = f"{total:,} users, one process"
    whole = total == 1_000_000 and first["added"] == total
    detail = {"added": first["added"], "pages": first["pages"], "users_per_s": total / first["seconds"]}
    report.add("million_users_s", [first["seconds"]], "s", at_most(30), size, holds=whole, detail=detail)
    report.add("million_users_mb", [first["peak_mb"]], "MB", at_most(200), size, holds=whole)
    report.add(
        "second_run_added", [second["added"]], "jobs", at_most(0), size,
        holds=len(jobs) == total and set(jobs.values()) == {1}, detail={"jobs": jobs.total()},
    )  # fmt: skip


def _killed(report: Report, *, total: int) -> None:
    report.notes = NOTES
    dice = random.Random(_SEED)
    marks = sorted(dice.sample(range(1, total * 97 // 100), KILLS))
    killed = 0
    with _Ground(total) as ground, ground.redis.client() as client:
        report.server = ground.redis.version
        for mark in marks:
            killed += _killed_at(ground, client, mark)
        last = _fired(ground)
        jobs = _jobs(ground.redis)
    missing, doubled = total - len(jobs), jobs.total() - len(jobs)
    size = f"{total:,} users, {killed} kills in the middle"
    detail = {"kills": killed, "added_by_the_last": last["added"]}
    holds = killed == KILLS
    report.add("killed_fanout_missing", [missing], "users", at_most(0), size, holds=holds, detail=detail)
    report.add("killed_fanout_doubled", [doubled], "jobs", at_most(0), size, holds=holds)


def _killed_at(ground: _Ground, client: redis.Redis, mark: int) -> bool:
    """Run a process until so many jobs are there, and kill it. Returns whether it was still at work."""
    with ground.cron() as child:
        while child.is_alive and int(client.hlen(_key("index"))) < mark:  # type: ignore[arg-type]
            time.sleep(0.0005)
        was_alive = child.is_alive
        child.kill()
    return was_alive


def _five(report: Report, *, hours: int, hour_s: float) -> None:
    report.notes = NOTES
    users = 50
    with RedisServer(*APPEND_ONLY) as server:
        report.server = server.version
        begun = time.time() + 4.0
        skews = (-2.0, -1.0, 0.0, 1.0, 2.0)
        children = [
            Child("-m", "benchmarks.hour", "mind", server.url, json.dumps(
                {"users": users, "hours": hours, "hour_s": hour_s, "begun": begun, "skew_s": skew, "seed": number,
                 "blocks": number == CRONS - 1}
            ))
            for number, skew in enumerate(skews)
        ]  # fmt: skip
        checks = [_told(child)["checks"] for child in children]
        jobs = _jobs(server)
    occurrences = {name.split(":")[1] for name in jobs}
    expected = hours * users
    missing, doubled = expected - len(jobs), jobs.total() - len(jobs)
    size = f"{CRONS} processes, {hours} simulated hours of {hour_s:g} s, {users} users"
    detail = {"occurrences": len(occurrences), "checks": sum(checks)}
    holds = len(occurrences) == hours
    report.add("five_crons_doubles", [doubled], "jobs", at_most(0), size, holds=holds, detail=detail)
    report.add("five_crons_missing", [missing], "jobs", at_most(0), size, holds=holds)


def _told(child: Child) -> dict[str, Any]:
    with child:
        while child.is_alive:
            time.sleep(0.05)
        told: dict[str, Any] = json.loads(child.output.splitlines()[-1])
    return told


def _key(word: str) -> str:
    return f"{{sq:{QUEUE}:0}}:{word}"


def _jobs(server: RedisServer) -> Counter[str]:
    """Count how often each job is in the lane."""
    jobs: Counter[str] = Counter()
    with server.client() as client:
        after = "-"
        while entries := client.xrange(_key("lane:normal"), after, "+", count=20_000):
            jobs.update(fields[b"j"].decode() for _, fields in entries if b"j" in fields)  # type: ignore[union-attr]
            after = f"({entries[-1][0].decode()}"  # type: ignore[index]
    return jobs


if __name__ == "__main__":
    sys.exit(main())
