"""A queue with several partitions at the command line: each is shown by its name, and orders go to all of them."""

from __future__ import annotations

import json
import sys

import pytest
import redis

from streamq.errors import BadInput, PartlyDone
from streamq.keys import partition_for

NAMES = ["default:0", "default:1", "default:2"]


@pytest.fixture
def divided(command, monkeypatch):
    """Work in the shop, whose queue has three partitions."""
    monkeypatch.setenv("STREAMQ_PARTITIONS", "3")
    return command


def test_each_partition_is_shown_by_its_name(divided):
    """So it is seen when one of them is behind."""
    ids = {user: divided("enqueue", "refresh", f"user_id={user}", "-q").out.strip() for user in ("u1", "u2", "u4")}
    listed = {row[0]: row[1] for row in divided("queues", "ls").rows}
    homes = {user: partition_for("default", user, 3) for user in ids}
    assert set(listed) == set(NAMES)
    assert {name: int(count) for name, count in listed.items()} == {
        name: list(homes.values()).count(name) for name in NAMES
    }
    shown = json.loads(divided("jobs", "show", ids["u1"], "--json").out)
    assert shown["queue"] == homes["u1"]
    jobs = json.loads(divided("jobs", "ls", "--json").out)["items"]
    assert {job["id"]: job["queue"] for job in jobs} == {ids[user]: home for user, home in homes.items()}
    assert divided("jobs", "cancel", ids["u2"]).code == 0
    assert [row[0] for row in divided("status", "--queue", "default").rows][:3] == NAMES


def test_pausing_a_queue_pauses_all_its_partitions(divided):
    """Whoever says default means all of it."""
    assert divided("queues", "pause", "default", "--reason", "deploy").code == 0
    assert [row[-2:] for row in divided("queues", "ls").rows] == [["paused", "deploy"]] * 3
    assert divided("queues", "resume", "default").err == "default: resumed\n"
    assert [row[-2] for row in divided("queues", "ls").rows] == ["running"] * 3


def test_an_order_that_a_partition_refuses_tells_where_it_was_done(divided, redis_url):
    """Whoever repeats it when the cause is gone has it everywhere."""
    with redis.Redis.from_url(redis_url) as server:
        server.set("{sq:default:1}:pause", "of the wrong type")
        told = divided("queues", "pause", "default", "--reason", "deploy")
        assert told.code == PartlyDone.exit_code == 69
        assert "done in default:0, default:2, and not in default:1: " in told.err
        assert "do it once more" in told.err
        server.delete("{sq:default:1}:pause")
    assert divided("queues", "pause", "default", "--reason", "deploy").code == 0
    assert [row[-2:] for row in divided("queues", "ls").rows] == [["paused", "deploy"]] * 3


def test_who_looks_with_another_number_of_partitions_is_told(divided, monkeypatch):
    """Half of the queue would look like all of it."""
    job = divided("enqueue", "refresh", "user_id=u1", "-q").out.strip()
    assert divided("jobs", "cancel", job).code == 0
    monkeypatch.setenv("STREAMQ_PARTITIONS", "2")
    sys.modules.pop("shop")  # as a new process would read it
    told = divided("queues", "ls")
    assert told.code == 78
    assert "queue 'default' has 3 partitions, and the settings say 2 partitions" in told.err
    assert "streamq queues divide default 2" in told.err


def test_an_empty_queue_is_divided_otherwise_and_one_that_is_not_is_left_alone(divided, monkeypatch):
    """Jobs in a partition that nobody reads would be lost."""
    job = divided("enqueue", "refresh", "user_id=u1", "-q").out.strip()
    told = divided("queues", "divide", "default", "2")
    assert told.code == BadInput.exit_code
    assert "is not empty: 1 jobs" in told.err
    assert divided("jobs", "cancel", job).code == 0
    assert "1 entries that the recorder has not written" in divided("queues", "divide", "default", "2").err
    monkeypatch.setenv("STREAMQ_HISTORY", "false")
    told = divided("queues", "divide", "default", "2")
    assert (told.code, told.err) == (0, "default: 2 partitions; set STREAMQ_PARTITIONS to match\n")
    monkeypatch.setenv("STREAMQ_PARTITIONS", "default=2")
    sys.modules.pop("shop")
    assert [row[0] for row in divided("queues", "ls").rows] == NAMES[:2]
    assert divided("enqueue", "refresh", "user_id=u1").code == 0


@pytest.mark.parametrize("value", ["0", "129", "x", "a b=2", "users="])
def test_what_is_no_number_of_partitions_is_refused(command, monkeypatch, value):
    """With what it may be."""
    monkeypatch.setenv("STREAMQ_PARTITIONS", value)
    told = command("queues", "ls")
    assert told.code == 78
    assert "STREAMQ_PARTITIONS" in told.err
    assert "numbers from 1 to 128 separated by commas" in told.err


def test_a_dead_letter_and_a_dedup_key_are_found_in_whichever_partition_they_lie(divided, redis_url):
    """Nobody has to know where."""
    home = partition_for("default", "u4", 3)
    with redis.Redis.from_url(redis_url) as server:
        record = json.dumps({"s": "dead", "h": "refresh", "x": {"t": "ValueError", "m": "no"}})
        name = f"{{sq:{home}}}:dead"
        server.xadd(name, {"j": "j1", "d": '{"v":1,"h":"refresh","a":["u4"],"u":"u4"}', "r": record})
    assert [row[:2] for row in divided("dead", "ls").rows] == [["j1", home]]
    assert divided("dead", "retry", "j1").rows[0][:3] == ["j1", home, "replayed"]
    assert {row[0] for row in divided("explain", "nobody").rows} == set(NAMES)
