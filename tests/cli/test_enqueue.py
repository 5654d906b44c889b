"""`streamq enqueue`: arguments as text, as JSON, and as the handler's signature asks for them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest


def arguments_of(command, *words: str, stdin: str = "") -> dict:
    """Enqueue `refresh` with these words, and return the arguments that the job has."""
    told = command("enqueue", "refresh", *words, "-q", stdin=stdin)
    assert told.code == 0, told.err
    return json.loads(command("jobs", "show", told.out.strip(), "--json").out)["kwargs"]


def test_it_prints_id_handler_queue_and_status(command):
    """The id is what everything else is asked with."""
    told = command("enqueue", "refresh", "user_id=u42")
    (identity, *rest) = told.rows
    assert identity[0] == "id"
    assert rest == [["handler", "refresh"], ["queue", "default"], ["status", "new"]]
    assert (told.code, told.err) == (0, "")


def test_json_is_the_same_as_one_document(command):
    """For programs."""
    document = json.loads(command("enqueue", "refresh", "user_id=u42", "--json").out)
    assert document == {"id": document["id"], "handler": "refresh", "queue": "default", "status": "new"}


def test_text_becomes_what_the_handler_asks_for(command):
    """`user_id=42` stays text, `limit=3` becomes a number: nobody quotes twice."""
    words = ("user_id=42", "limit=3", "ratio=0.5", "full=true")
    assert arguments_of(command, *words) == {"user_id": "42", "limit": 3, "ratio": 0.5, "full": True}


def test_json_arguments_are_taken_as_they_are(command):
    """For lists and objects there is no text."""
    words = ("user_id=a=b", 'tags:=["x", "y"]')
    assert arguments_of(command, *words) == {"user_id": "a=b", "tags": ["x", "y"]}


def test_all_arguments_may_come_as_one_document_or_from_standard_input(command):
    """Single ones given besides win."""
    assert arguments_of(command, "--arguments", '{"user_id": "u1", "limit": 2}') == {"user_id": "u1", "limit": 2}
    read = arguments_of(command, "limit=9", "--arguments", "-", stdin='{"user_id": "u1", "limit": 2}')
    assert read == {"user_id": "u1", "limit": 9}


def test_a_delayed_job_is_scheduled(command):
    """In seconds, or by its time."""
    for words in (("--delay", "60"), ("--at", (datetime.now(UTC) + timedelta(minutes=1)).isoformat())):
        job_id = command("enqueue", "refresh", "user_id=u1", *words, "-q").out.strip()
        job = json.loads(command("jobs", "show", job_id, "--json").out)
        assert job["state"] == "scheduled"
        due_in = datetime.fromisoformat(job["due_at"]) - datetime.fromisoformat(job["enqueued_at"])
        assert timedelta(seconds=55) < due_in < timedelta(seconds=65)


def test_the_options_of_a_job_reach_it(command):
    """Priority, user key, attempts and id."""
    options = ("--priority", "high", "--key", "ann", "--max-attempts", "9", "--id", "my-own-id")
    assert command("enqueue", "refresh", "user_id=u1", *options, "-q").out == "my-own-id\n"
    job = json.loads(command("jobs", "show", "my-own-id", "--json").out)
    assert (job["lane"], job["user"], job["max_attempts"]) == ("high", "ann", 9)
    assert command("enqueue", "refresh", "user_id=u1", "--id", "my-own-id").rows[-1] == ["status", "present"]


def test_a_duplicate_is_said_to_be_one(command):
    """The id is that of the job which lives."""
    first = command("enqueue", "refresh", "user_id=u1", "--dedup", "u1", "-q").out.strip()
    second = dict(command("enqueue", "refresh", "user_id=u1", "--dedup", "u1").rows)
    assert (second["id"], second["status"]) == (first, "duplicate")
    assert command("jobs", "cancel", first).code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("refresh", "u42"), 65, "error: 'u42' is not an argument\n  try: write NAME=TEXT, or NAME:=JSON\n"),
        (("refresh", "=u42"), 65, "error: '=u42' is not an argument"),
        (("refresh", "user_id=u", "limit=x"), 65, "error: limit=x: refresh expects int for 'limit'\n"),
        (("refresh", "tags:=[x"), 65, "error: the value of 'tags' is not JSON: "),
        (("refresh", "tags:=[x"), 65, "  try: text needs no JSON: tags=[x\n"),
        (("refresh", "--arguments", "{x"), 65, "error: --arguments is not JSON: "),
        (("refresh", "--arguments", "[1]"), 65, "error: --arguments is not a JSON object but [1]\n"),
        (("refresh",), 65, "error: refresh(user_id: str, "),
        (("refresh", "user_id=u", "colour=red"), 65, "unexpected keyword argument 'colour'"),
        (("refresh", "user=ada"), 65, "unexpected keyword argument 'user'"),
        (("refrsh",), 65, "error: no handler is named 'refrsh' (known: "),
        (("refresh", "--app", "shopp"), 78, "error: there is no module 'shopp'"),
        (("refresh", "--delay", "soon"), 2, "'soon' is not a number of seconds, 0 or more"),
        (("refresh", "--delay", "-1"), 2, "'-1' is not a number of seconds, 0 or more"),
        (("refresh", "--at", "soon"), 2, "soon is not a time, as 2026-12-01T08:00Z is"),
        (
            ("refresh", "--at", "2026-12-01T08:00"),
            2,
            "2026-12-01T08:00 has no time zone: write 2026-12-01T08:00Z for UTC",
        ),
    ],
)
def test_what_cannot_be_enqueued_is_refused_in_words(bare, monkeypatch, words, code, message):
    """Nothing of this needs a server, and nothing is written."""
    monkeypatch.setenv("STREAMQ_APP", "shop:app")
    told = bare("enqueue", *words)
    assert told.code == code
    assert message in told.err
    assert told.out == ""


def test_a_payload_over_the_limit_is_refused(bare, monkeypatch):
    """By the setting that says so."""
    monkeypatch.setenv("STREAMQ_APP", "shop:app")
    monkeypatch.setenv("STREAMQ_MAX_PAYLOAD_BYTES", "100")
    told = bare("enqueue", "refresh", "user_id=" + "x" * 200, "--json")
    assert told.code == 65
    assert json.loads(told.out)["error"]["type"] == "PayloadTooLarge"


def test_a_server_that_is_away_is_told_at_once_and_its_return_is_waited_for(programs, redis_server, eventually_sync):
    """Half a minute without a word would look like a job that hangs."""
    redis_server.kill9()
    asked = programs.start("enqueue", "refresh", "user_id=u42", REDIS_URL=redis_server.url)
    eventually_sync(lambda: "has not answered yet; trying for half a minute" in asked.output, "it says so")
    redis_server.start()
    assert asked.process.wait(50) == 0
    assert "status\tnew" in asked.output
