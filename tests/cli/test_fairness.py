"""`streamq fairness`: who is slow, from when on, and how the slots are shared."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta

import pymongo
import pytest
import redis

from streamq.broker.partition import NewJob, Report
from streamq.broker.server import Broker
from streamq.codec import encode_envelope
from streamq.gates import Gates
from streamq.job import Envelope


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


@pytest.fixture
def park(redis_url):
    """Have a worker read jobs of a handler with limits, so that those which may not start wait."""

    def park(gates: Gates, *jobs: tuple[str, str]) -> None:
        async def act() -> None:
            broker = Broker(redis_url)
            partition = broker.partition("default")
            name = uuid.uuid4().hex
            await partition.register(name)
            drafts = [
                NewJob(name, 2, encode_envelope(Envelope("refresh", key=key, gates=gates.of_job(key))))
                for name, key in jobs
            ]
            await partition.add(name, 1, drafts)
            want, plain = (0 if gates.is_fair else 100), {"dead_after_ms": 99999, "control_cursor": b"0-0"}
            reads = [(2, 128, 0)]
            await partition.cycle(name, Report(), want=want, reads=reads, limits=(0, 1), now=0.0, **plain)
            await partition.wire.close()
            await broker.close()

        asyncio.run(act())

    return park


THREE_OF_ADA = [("a1", "ada"), ("a2", "ada"), ("a3", "ada"), ("b1", "bob")]


def test_fairness_tells_at_which_gates_jobs_wait(command, park):
    """The limit, who has a place, who waits and for how long; in lines, as a table, and as JSON."""
    park(Gates.of("refresh", 1, None, 0, None), *THREE_OF_ADA)
    told = command("fairness", "--show", "gates")
    assert "  2 jobs wait at gates\n" in told.err
    assert "  concurrency_per_key of refresh for ada: 1 of 1 places are taken; 2 wait, the first for" in told.err
    assert [row[:7] for row in told.rows] == [
        ["default", "concurrency_per_key", "refresh", "ada", "1", "1", "2"],
        ["default", "concurrency_per_key", "refresh", "bob", "1", "1", "0"],
    ]
    (queue,) = json.loads(command("fairness", "--json", "--limit", "1").out)["items"]
    assert (queue["parked"], queue["is_whole"], len(queue["gates"])) == (2, True, 1)
    assert {name: queue["gates"][0][name] for name in ("user", "limit", "running", "parked", "opens_in_s")} == {
        "user": "ada", "limit": 1, "running": 1, "parked": 2, "opens_in_s": None,
    }  # fmt: skip


def test_fairness_tells_when_a_rate_lets_the_next_one_in(command, park):
    park(Gates.of("refresh", 0, None, 0, "1/m"), ("a1", "ada"), ("a2", "ada"))
    told = command("fairness")
    assert "  rate of refresh: one in 60000 ms, the next in " in told.err


def test_fairness_tells_who_waits_for_a_turn(command, park):
    park(Gates.of("refresh", 0, None, 0, None, fair=True), *THREE_OF_ADA)
    told = command("fairness", "--show", "turns")
    assert "  2 keys wait for their turn, most jobs first: ada 3, bob 1\n" in told.err
    assert told.rows == [["default", "ada", "3", "0.0", "1"], ["default", "bob", "1", "0.0", "1"]]
    (queue,) = json.loads(command("fairness", "--json").out)["items"]
    assert (queue["keys_waiting"], queue["virtual_ms"], queue["mean_ms"]) == (2, 0.0, 1.0)


def test_a_job_that_waits_at_a_gate_is_shown_with_it_and_how_many_come_before(command, park):
    park(Gates.of("refresh", 1, None, 0, None), *THREE_OF_ADA)
    job = json.loads(command("jobs", "show", "a3", "--json").out)
    assert (job["state"], job["parked_at"], job["before_it"]) == ("parked", "concurrency_per_key of refresh for ada", 1)
    since = datetime.fromisoformat(job["parked_since"])
    assert timedelta(0) <= datetime.now(UTC) - since < timedelta(minutes=1)
    assert "parked_at" not in json.loads(command("jobs", "show", "b1", "--json").out)


def test_jobs_ls_lists_jobs_that_wait_at_gates_and_for_their_turn_as_parked(command, park):
    park(Gates.of("refresh", 1, None, 0, None), *THREE_OF_ADA)
    park(Gates.of("refresh", 0, None, 0, None, fair=True), ("f1", "ada"))
    listed = {row[0]: row[4] for row in command("jobs", "ls").rows}
    assert listed == {"a1": "running", "b1": "running", "a2": "parked", "a3": "parked", "f1": "parked"}
    (queue,) = json.loads(command("status", "--json").out)["queues"]
    assert queue["parked"] == list(listed.values()).count("parked")
    assert sorted(command("jobs", "ls", "--state", "parked", "-q").out.split()) == ["a2", "a3", "f1"]
    assert len(command("jobs", "ls", "--state", "parked", "--limit", "2").rows) == 2


def test_all_parked_jobs_are_found_however_many_places_are_taken_before_them(command, park, monkeypatch):
    """They lie among those that have a place, and are looked for page by page."""
    monkeypatch.setattr("streamq.cli.jobs._PLACES_PAGE", 2)
    park(Gates.of("refresh", 1, None, 0, None), *((f"{user}{n}", user) for user in "abcde" for n in range(2)))
    assert sorted(command("jobs", "ls", "--state", "parked", "-q").out.split()) == ["a1", "b1", "c1", "d1", "e1"]


def test_status_and_doctor_tell_of_a_gate_where_a_job_has_waited_long(command, park, redis_url):
    """A limit that is too narrow, or a place that nobody frees, is silent otherwise."""
    park(Gates.of("refresh", 1, None, 0, None), *THREE_OF_ADA)
    (queue,) = json.loads(command("status", "--json").out)["queues"]
    assert (queue["verdict"], queue["parked"]) == ("ok", 2)
    with redis.Redis.from_url(redis_url) as client:
        places = client.hgetall("{sq:default:0}:places")
        (name,) = [name for name, said in places.items() if name == b"a2"]
        client.hset("{sq:default:0}:places", name, places[name].partition(b" @")[0] + b" @1000")
    told = command("status", "--json")
    (queue,) = json.loads(told.out)["queues"]
    assert told.code == 1
    assert queue["verdict"].startswith("parked: 2 jobs at concurrency_per_key of refresh for ada, for ")
    (finding,) = [row for row in command("doctor").rows if row[1] == "queue default"]
    assert (finding[0], finding[3]) == ("WARN", "streamq fairness --show gates shows the gates")


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
    assert "slow jobs hold at most 50% of a worker's slots and are sure of 12.5%, of one at least" in told.err


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
