"""`streamq explain`: who holds a dedup key."""

from __future__ import annotations

import json


def test_explain_says_who_holds_a_key_and_who_does_not(command):
    """The first question when a job was not enqueued."""
    free = command("explain", "refresh:u1")
    assert free.code == 0
    assert free.rows == [["default", "free", "", "", "", "", "nobody holds the key: a call makes a new job"]]
    job_id = command("enqueue", "refresh", "user_id=u1", "--dedup", "refresh:u1", "-q").out.strip()
    assert command("explain", "refresh:u1", "-q").out == f"{job_id}\n"
    (found,) = json.loads(command("explain", "refresh:u1", "--json").out)["items"]
    assert (found["state"], found["holder"], found["handler"]) == ("queued", job_id, "refresh")
    assert found["why"] == "the holder waits for a worker: a call returns it"
    assert found["since"].endswith("Z")
    assert (found["left_s"], found["taken_over"], found["kept_behind"]) == (None, 0, None)
    command("jobs", "cancel", job_id)
    assert command("explain", "refresh:u1").rows[0][1] == "free"


def test_explain_looks_into_every_queue(command):
    """A key of one queue says nothing about another."""
    told = command("explain", "k", "--queue", "default", "--queue", "mail")
    assert [row[:2] for row in told.rows] == [["default", "free"], ["mail", "free"]]
