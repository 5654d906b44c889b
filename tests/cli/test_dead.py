"""`streamq dead`: browse, retry, change and delete."""

from __future__ import annotations

import json
import signal

import orjson
import pytest
import redis

from streamq.keys import Keys


@pytest.fixture
def server(redis_url):
    """A plain client."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def letters(server):
    """Write three dead letters into the queue `default`, one of them an hour old."""
    seconds, _ = server.time()
    for number, (age_s, handler, user, error) in enumerate(
        [(3600, "refresh", "u1", "KeyError"), (60, "refresh", "u2", "ValueError"), (1, "fail", None, "ValueError")]
    ):
        envelope = {"v": 1, "h": handler, "k": {"user_id": user} if user else {"word": "sku"}, "n": 5}
        failure = {"t": error, "m": "no", "tb": "File x", "fp": f"fp{number}"}
        record = {"s": "dead", "h": handler, "u": user, "n": 5, "l": "normal", "e": 1, "x": failure}
        fields = {"j": f"job{number}", "d": orjson.dumps(envelope), "r": orjson.dumps(record)}
        server.xadd(Keys("default").dead, fields, id=f"{(seconds - age_s) * 1000}-{number}")


def left(command) -> list[str]:
    """Return the jobs whose letters lie there."""
    return command("dead", "ls", "-q").out.split()


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        ([], ["job2", "job1", "job0"]),
        (["--handler", "refresh"], ["job1", "job0"]),
        (["--user", "u2"], ["job1"]),
        (["--error", "KeyError"], ["job0"]),
        (["--error", "fp2"], ["job2"]),
        (["--older-than", "30m"], ["job0"]),
        (["--newer-than", "30"], ["job2"]),
        (["--newer-than", "2h", "--older-than", "30"], ["job1", "job0"]),
        (["--limit", "2"], ["job2", "job1"]),
    ],
    ids=" ".join,
)
def test_letters_are_listed_by_what_is_said_of_them(command, letters, words, jobs):
    """Newest first."""
    assert command("dead", "ls", "-q", *words).out.split() == jobs


def test_one_letter_is_shown_with_arguments_and_traceback(command, letters):
    """Or exit 1."""
    told = json.loads(command("dead", "show", "job1", "--json").out)
    assert (told["id"], told["kwargs"], told["traceback"], told["error"]) == (
        "job1", {"user_id": "u2"}, "File x", "ValueError: no",
    )  # fmt: skip
    missing = command("dead", "show", "nope")
    assert missing.code == 1
    assert "no dead letter of job 'nope' lies in default" in missing.err


def test_those_that_fit_are_retried_at_a_rate(command, letters):
    """And the rest stays."""
    told = command("dead", "retry", "--handler", "refresh", "--rate", "100")
    assert (told.code, told.rows) == (0, [["job0", "default", "replayed", ""], ["job1", "default", "replayed", ""]])
    assert "2 replayed" in told.err
    assert left(command) == ["job2"]
    assert sorted(command("jobs", "ls", "-q").out.split()) == ["job0", "job1"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["retry"], "name jobs, or say which"),
        (["delete", "--yes"], "name jobs, or say which"),
        (["retry", "--all", "--user", "u1"], "--all and a choice contradict each other"),
        (["retry", "--all", "job1"], "--all and a choice contradict each other"),
        (["delete", "--all"], "deleting is for good: say --yes"),
        (["ls", "--older-than", "soon"], "is not a number of seconds"),
    ],
    ids=" ".join,
)
def test_a_choice_that_says_nothing_or_two_things_is_refused(command, letters, words, complaint):
    """Nothing is touched."""
    told = command("dead", *words)
    assert told.code == 2
    assert complaint in told.err
    assert len(left(command)) == 3


def test_a_rate_of_nothing_is_refused(command, letters):
    """With the exit code of bad input."""
    told = command("dead", "retry", "--all", "--rate", "0")
    assert (told.code, len(left(command))) == (65, 3)
    assert "a rate is more than 0 in a second" in told.err


def test_letters_are_deleted_for_good(command, letters):
    """And counted."""
    told = command("dead", "delete", "--error", "ValueError", "--yes", "--json")
    assert (told.code, json.loads(told.out)) == (0, {"deleted": 2})
    assert left(command) == ["job0"]
    assert command("dead", "delete", "nope", "--yes").err.splitlines()[-1] == "no letter fits"


def test_a_job_is_changed_and_retried(command, letters, server):
    """A named argument at a time; the others stay."""
    told = command("dead", "edit", "job1", "user_id=u9", "limit=3", "--user", "u9", "--max-attempts", "2")
    assert (told.code, told.rows) == (0, [["job1", "default", "replayed", ""]])
    job = json.loads(command("jobs", "show", "job1", "--json").out)
    assert (job["kwargs"], job["user"], job["attempt"]) == ({"user_id": "u9", "limit": 3}, "u9", 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nonsense"], "'nonsense' is not NAME=VALUE"),
        (["--args", "{}"], "--args is a JSON list, and '{}' came"),
        (["colour=red"], "got an unexpected keyword argument 'colour'"),
        (["--handler", "nobody"], "no handler is named 'nobody'"),
        ([], "nothing was said to change"),
    ],
    ids=" ".join,
)
def test_a_change_that_makes_no_sense_is_refused(command, letters, words, complaint):
    """It is checked against the handler's signature; the letter stays."""
    told = command("dead", "edit", "job1", *words)
    assert told.code == 65
    assert complaint in told.err
    assert len(left(command)) == 3


def test_ctrl_c_stops_a_retry_in_order(programs, server, eventually_sync):
    """What was retried stays so, the rest is as it was, and the exit code says that it is not all."""
    for number in range(50):
        server.xadd(Keys("default").dead, {"j": f"j{number}", "d": '{"v":1,"h":"refresh"}', "r": "{}"})
    running = programs.start("dead", "retry", "--all", "--rate", "5")
    index = Keys("default").index
    eventually_sync(lambda: server.hlen(index) >= 2, "some are retried")
    assert running.stop(signal.SIGINT) == 1
    assert "stopped: the rest is as it was" in running.output
    assert server.hlen(index) + server.xlen(Keys("default").dead) == 50
