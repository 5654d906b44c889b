"""`streamq schedule`: stored schedules and enqueueing by hand, on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import redis

from streamq.broker.fanout import FanOutState, encode_state

NIGHTLY = ("schedule", "set", "nightly", "--cron", "30 2 * * *", "--handler", "refresh")


def test_a_schedule_is_stored_shown_paused_resumed_and_removed(command):
    assert (
        command(*NIGHTLY, "--pages", "everybody", "--timezone", "Europe/Berlin", "--option", "overlap=skip").code == 0
    )
    rows = {row[0]: row for row in command("schedule", "ls").rows}
    assert set(rows) == {"everybody", "nightly"}
    assert rows["nightly"][1:4] == ["30 2 * * *", "Europe/Berlin", "refresh"]
    shown = command("schedule", "show", "nightly", "--next", "3")
    assert "words\tAt 02:30" in shown.out
    times = [row for row in shown.rows if len(row) == 2 and row[0].endswith(":00")]
    assert len(times) == 3
    assert all(" 02:30:00 CE" in local for _, local in times)
    assert len(json.loads(command("schedule", "show", "nightly", "--json").out)["next"]) == 5
    assert command("schedule", "pause", "nightly", "--reason", "the provider is down").code == 0
    assert rows != (paused := {row[0]: row for row in command("schedule", "ls").rows})
    assert paused["nightly"][5].endswith("the provider is down")
    assert "resumed" in command("schedule", "resume", "nightly").err
    assert "was not paused" in command("schedule", "resume", "nightly").err
    assert "changed" in command(*NIGHTLY, "--user", "u7").err
    assert json.loads(command("schedule", "run", "nightly", "--json").out)["added"] == 1
    assert "removed" in command("schedule", "rm", "nightly").err
    assert command("schedule", "show", "nightly").code == 78


def test_a_schedule_is_read_from_json(command, folder):
    document = {"expression": "every 15m", "handler": "refresh", "users": {"collection": "users"}}
    (folder / "s.json").write_text(json.dumps(document))
    assert command("schedule", "set", "quarter", "--from", "s.json").code == 0
    assert "words\tEvery 15 minutes" in command("schedule", "show", "quarter").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((*NIGHTLY, "--every", "5m"), 2, "say when, with --cron or with --every"),
        (("schedule", "set", "x", "--every", "5m"), 2, "say what runs, with --handler"),
        (NIGHTLY, 78, "its users are one of pages, collection and ids"),
        ((*NIGHTLY, "--collection", "users", "--query", "{"), 65, "--query is not JSON"),
        ((*NIGHTLY, "--user", "a", "--option", "misfire"), 65, "'misfire' is not an option"),
        ((*NIGHTLY, "--user", "a", "--option", "misfire=twice"), 78, "misfire is skip, once or all, not 'twice'"),
        (("schedule", "set", "x", "--from", "bad.json"), 65, "bad.json: not JSON"),
        (("schedule", "set", "x", "--from", "list.json"), 65, "list.json: not a JSON object"),
        (("schedule", "enqueue", "everybody"), 2, "say whom, with one of --user, --users-from and --all"),
        (("schedule", "enqueue", "everybody", "--user", ""), 65, "a user id has 1 to 512 characters"),
    ],
)
def test_what_is_wrong_is_said(command, folder, arguments, code, message):
    (folder / "bad.json").write_text("{")
    (folder / "list.json").write_text("[]")
    told = command(*arguments)
    assert told.code == code
    assert message in told.err


def test_users_are_enqueued_by_hand_beside_the_hour(command, folder):
    """One, those of a file, all; who has a job of this hour gets none."""
    first = json.loads(command("schedule", "enqueue", "everybody", "--user", "u1", "--user", "z", "--json").out)
    assert (first["added"], first["present"]) == (2, 0)
    (folder / "users.csv").write_text("user_id\nu1\ny\n")
    assert (
        "1 added, 0 duplicates, 1 already present"
        in command("schedule", "enqueue", "everybody", "--users-from", "users.csv").err
    )
    everyone = json.loads(command("schedule", "enqueue", "everybody", "--all", "--json").out)
    assert (everyone["added"], everyone["present"]) == (1, 1)
    (folder / "bad.csv").write_text('user_id\nq\n""\n')
    told = command("schedule", "enqueue", "everybody", "--users-from", "bad.csv")
    assert told.code == 65
    assert "line 3" in told.err


def test_status_tells_how_far_each_schedule_is_and_of_its_alarms(command, redis_url):
    """Also when no cron process is left to say so."""
    (before,) = json.loads(command("status", "--json").out)["schedules"]
    assert (before["verdict"], before["alarms"]) == ("no cron process has looked after it yet", [])
    command("schedule", "run", "everybody")
    (after,) = json.loads(command("status", "--json").out)["schedules"]
    assert (after["users"], after["progress"], after["alarms"]) == (2, 1.0, [])
    hour_ago = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    begun_ms = int(hour_ago.timestamp() * 1000)
    state = encode_state(FanOutState(cursor="x", pages=1, added=40, begun_ms=begun_ms))
    record = f"3|{begun_ms + 10**9}|{len(state)}|{state}"
    with redis.Redis.from_url(redis_url) as client:
        client.hset("{sq:default:0}:producers", f"cron:everybody:{hour_ago:%Y%m%dT%H%MZ}", record)
    told = command("status")
    assert told.code == 1
    assert "is unfinished, after 40 users" in told.err


def test_without_mongodb_the_list_says_that_it_holds_only_those_in_code(programs):
    """A list that is short without a word would look as if somebody had removed the others."""
    for words in (["ls"], ["show", "everybody"]):
        told = programs.run("schedule", *words, MONGODB_URL="mongodb://127.0.0.1:1")
        assert (told.code, "everybody" in told.out) == (0, True)
        (warning,) = (line for line in told.err.splitlines() if line.startswith("warning: "))
        assert warning.startswith("warning: cannot reach MongoDB at 127.0.0.1:1: ")
        assert warning.endswith("; going by the schedules in code")
