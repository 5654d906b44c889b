"""`streamq fairness`: who is slow, from when on, and how the slots are shared."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pymongo
import pytest

from streamq.broker.server import Broker


@pytest.fixture
def know(redis_url):
    """Tell the default queue what runs took."""

    def know(limit_ms: float | None, *, counts=(), runs=()) -> None:
        async def tell() -> None:
            broker = Broker(redis_url)
            partition = broker.partition("default")
            await partition.learn(limit_ms, 24, counts=counts, runs=runs)
            await partition.wire.close()
            await broker.close()

        asyncio.run(tell())

    return know


def test_fairness_says_that_nobody_is_slow_yet(command):
    told = command("fairness")
    assert (told.code, told.out) == (0, "")
    assert told.err.startswith("default: nobody is slow yet; 0 slow users; 0 fast and 0 slow jobs run, 0 and 0 wait;")


def test_fairness_lists_the_slowest_users_and_from_when_on_they_are_slow(command, know):
    """The slowest first, and no more than asked for."""
    know(22.6, counts=["t4", 80, "t30", 20], runs=["refresh|ada", 900, "refresh|eve", 90, "refresh|bob|by", 4000])
    told = command("fairness", "--limit", "2")
    assert [row[:4] for row in told.rows] == [
        ["default", "refresh", "bob|by", "4000"], ["default", "refresh", "ada", "900"],
    ]  # fmt: skip
    assert "default: slow from 22.6 ms on, by the run times; 3 slow users" in told.err
    assert "slow jobs get 50% of the slots while there are fast ones" in told.err


def test_fairness_as_json_has_the_queue_and_its_users(command, know):
    know(22.6, counts=["t4", 80, "t30", 20], runs=["refresh|ada", 900])
    command("enqueue", "refresh", "user_id=ada")
    command("enqueue", "refresh", "user_id=bob")
    (queue,) = json.loads(command("fairness", "--json").out)["items"]
    assert {name: queue[name] for name in ("lanes", "limit_ms", "limit_from", "slow_keys", "runs", "slow_runs")} == {
        "lanes": True, "limit_ms": 22.6, "limit_from": "the run times", "slow_keys": 1, "runs": 100, "slow_runs": 20,
    }  # fmt: skip
    assert (queue["slow_waiting"], queue["fast_waiting"], queue["hint_limit"]) == (1, 1, 16.0)
    assert queue["slowest"][0]["user"] == "ada"
    limited = json.loads(command("fairness", "--json", "--slow-limit-ms", "500").out)["items"][0]
    assert (limited["limit_ms"], limited["limit_from"]) == (500, "slow_limit_ms")


def test_fairness_says_when_a_queue_has_no_lanes(command, monkeypatch):
    monkeypatch.setenv("STREAMQ_LANES", "false")
    assert command("fairness").err == "default: no lanes by cost; jobs run in their order\n"


def test_a_job_of_a_slow_user_is_shown_with_its_lane_and_the_reason(command, know):
    know(22.6, runs=["refresh|ada", 900])
    job_id = command("enqueue", "refresh", "user_id=ada", "-q").out.strip()
    job = json.loads(command("jobs", "show", job_id, "--json").out)
    assert (job["lane"], job["lane_reason"]) == ("normal.slow", "jobs of this user took 900 ms")


def test_fairness_learns_from_the_history(command, mongodb_url, mongo_database):
    """A new Redis, or the first hour of the first release with lanes."""
    now = datetime.now(UTC)
    ends = [("ada", 900), *((f"u{number}", 3) for number in range(60)), *((f"s{number}", 700) for number in range(5))]
    with pymongo.MongoClient(mongodb_url) as client:
        client[mongo_database].job_status.insert_many(
            {
                "_id": f"j{place}", "queue": "default", "handler": "refresh", "user": user, "state": "completed",
                "run_ms": ms, "enqueued_at": now - timedelta(seconds=place), "version": place,
            }
            for place, (user, ms) in enumerate(ends)
        )  # fmt: skip
    (queue,) = json.loads(command("fairness", "--seed", "--json").out)["items"]
    assert (queue["slow_keys"], queue["runs"]) == (6, 66)
    assert 10 < queue["limit_ms"] < 700
    assert [each["user"] for each in queue["slowest"]][:1] == ["ada"]
