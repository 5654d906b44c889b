"""`streamq block`, `unblock` and `blocks`; and what status and doctor say of jobs that are held up."""

from __future__ import annotations

import json

import pytest
import redis

from streamq.broker.inspection import Block, Unknown
from streamq.cli.queues import described_queue
from streamq.cli.status import _verdict
from streamq.keys import Keys
from streamq.settings import Settings
from tests.cli.test_look import counts


@pytest.mark.parametrize(
    ("words", "row"),
    [
        (["refresh", "--reason", "bad release"], ["default", "handler", "refresh", "", "bad release"]),
        (["--key", "u42"], ["default", "key", "u42", "", ""]),
    ],
    ids=["handler", "key"],
)
def test_what_is_blocked_is_listed_with_reason_and_name_until_it_is_let_go(command, words, row):
    """The next person asks why, and whom."""
    told = command("block", *words)
    assert (told.code, told.out) == (0, "")
    (listed,) = command("blocks").rows
    assert listed[:5] == row
    assert listed[5]
    what = words[:2] if words[0] == "--key" else words[:1]
    assert command("unblock", *what).code == 0
    assert command("blocks").out == ""
    again = command("unblock", *what)
    assert (again.code, again.err.endswith("was not blocked\n")) == (1, True)


def test_a_block_may_end_by_itself(command, eventually_sync):
    """It says when."""
    assert json.loads(command("block", "refresh", "--for", "0.5", "--json").out) == {"blocked": "handler refresh"}
    assert command("blocks").rows[0][3].endswith("Z")
    eventually_sync(lambda: command("blocks").out == "", "the block ends")


@pytest.mark.parametrize("words", [[], ["refresh", "--key", "u1"]], ids=" ".join)
@pytest.mark.parametrize("order", ["block", "unblock"])
def test_a_block_is_of_a_handler_or_of_a_user(command, order, words):
    """One of the two."""
    told = command(order, *words)
    assert told.code == 2
    assert "name a HANDLER, or a user by --key" in told.err


def test_a_blocked_job_says_that_it_is(command, redis_url):
    """Somebody asks why it does not run."""
    job_id = command("enqueue", "refresh", "user_id=1", "--delay", "60", "-q").out.strip()
    with redis.Redis.from_url(redis_url) as server:
        server.zadd(Keys("default").delayed, {job_id: 2**48 + 2**42})
    assert json.loads(command("jobs", "show", job_id, "--json").out)["state"] == "blocked"
    (queue,) = json.loads(command("queues", "ls", "--json").out)["items"]
    assert (queue["blocked"], queue["scheduled"]) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"unknown": [Unknown("send", 0)], "now_ms": 61_000}, "no worker knows send, for 61 s"),
        ({"unknown": [Unknown("send", 0)], "now_ms": 59_000}, "ok"),
        ({"evicted": 7, "evicted_ms": 1, "now_ms": 86_400_000}, "7 dead letters were dropped: there were too many"),
        ({"evicted": 7, "evicted_ms": 1, "now_ms": 86_500_000}, "ok"),
        ({"blocks": [Block("key", "u1", 0, "", ""), Block("handler", "h", 0, "", "")]}, "blocked: key u1, handler h"),
    ],
    ids=str,
)
def test_jobs_that_are_held_up_are_told(changes, verdict):
    """An unknown handler after a minute, lost letters for a day, blocks while they last."""
    seen = counts(**changes)
    described = described_queue("default", seen, Settings(redis_url="redis://x"))
    assert _verdict({**described, "workers": 1}) == verdict


def test_the_doctor_says_what_to_do_about_a_block(command, redis_url):
    """And where to look."""
    with redis.Redis.from_url(redis_url) as server:
        server.zadd(Keys("default").workers, {"w1": 9_999_999_999_999})
    command("block", "refresh")
    rows = command("doctor").rows
    assert [
        "WARN",
        "queue default",
        "blocked: handler refresh",
        "streamq blocks shows why; streamq unblock ends it",
    ] in rows
