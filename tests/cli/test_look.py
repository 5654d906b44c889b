"""The commands that look into the queues, and those that tell them something."""

from __future__ import annotations

import asyncio
import json

import pytest

from streamq.broker.inspection import Counts, WorkerSeen
from streamq.broker.server import Broker
from streamq.cli.dead import _grouped
from streamq.cli.queues import described_queue, described_worker
from streamq.cli.status import _skew, _verdict
from streamq.clock import from_ms
from streamq.keys import Keys
from streamq.mongo import Mongo, Statuses, StatusWrite
from streamq.settings import Settings, load


def counts(**changes) -> Counts:
    """A queue with nothing in it."""
    empty = Counts(**{**dict.fromkeys(Counts._fields, 0), "lanes": {}, "pause": None, "workers": []})
    return empty._replace(**changes)


def enqueued(command, *words: str) -> str:
    """Enqueue a job and return its id."""
    return command("enqueue", *words, "-q").out.strip()


# Queues


def test_queues_ls_lists_what_each_queue_holds(command):
    """In the order of the settings; those that nobody has used yet as well."""
    enqueued(command, "refresh", "user_id=1")
    enqueued(command, "refresh", "user_id=2", "--delay", "60")
    told = command("queues", "ls", "--queue", "default", "--queue", "mail")
    assert told.rows == [
        ["default", "1", "0", "1", "0", told.rows[0][5], "0", "running", ""],
        ["mail", "0", "0", "0", "0", "0.0", "0", "running", ""],
    ]


def test_a_paused_queue_says_so_with_the_reason_and_the_name(command):
    """The next person asks why, and whom."""
    told = command("queues", "pause", "default", "--reason", "deploy of 1.4")
    assert (told.code, told.out) == (0, "")
    assert told.err == "default: paused; streamq queues resume default ends it\n"
    (queue,) = json.loads(command("queues", "ls", "--json").out)["items"]
    assert (queue["state"], queue["pause_reason"]) == ("paused", "deploy of 1.4")
    assert queue["paused_by"]
    assert command("queues", "ls").rows[0][-1] == "deploy of 1.4"
    (finding,) = [row for row in command("doctor").rows if row[1] == "queue default"]
    assert finding == ["WARN", "queue default", "paused: deploy of 1.4", "streamq queues resume ends it"]
    assert command("queues", "resume", "default").err == "default: resumed\n"
    assert command("queues", "resume", "default").err == "default: was not paused\n"
    assert command("queues", "ls").rows[0][-2:] == ["running", ""]


def test_a_pause_may_end_by_itself(command, eventually_sync):
    """Forgotten pauses are what stops a queue over a weekend."""
    assert json.loads(command("queues", "pause", "default", "--for", "0.3", "--json").out)["state"] == "paused"
    assert command("queues", "ls").rows[0][-2] == "paused"
    eventually_sync(lambda: command("queues", "ls").rows[0][-2] == "running", "the pause ends")


def test_only_the_queue_that_is_named_is_paused(command):
    """Even one that the application does not have."""
    paused = command("queues", "pause", "mail")
    assert paused.err.startswith("warning: nothing is known of a queue mail: no jobs, no workers; is that its name?\n")
    told = command("queues", "ls", "--queue", "default", "--queue", "mail")
    assert [(row[0], row[-2]) for row in told.rows] == [("default", "running"), ("mail", "paused")]


def test_a_name_that_can_be_no_queue_is_refused(command):
    """By the rule of names, before anything is written."""
    told = command("queues", "pause", "a b")
    assert told.code == 78
    assert "'a b' cannot be the name of a queue" in told.err


def test_a_purge_says_what_it_takes_and_asks(command):
    """Jobs that are gone by mistake are gone."""
    enqueued(command, "refresh", "user_id=1")
    enqueued(command, "refresh", "user_id=2", "--delay", "60")
    told = command("queues", "purge", "default", "--dry-run")
    words = "default: 1 waiting, 1 scheduled, 0 blocked to cancel; 0 running and 0 dead stay\n"
    assert (told.code, told.out, told.err) == (0, "", words + "nothing was changed\n")
    told = command("queues", "purge", "default")
    assert (told.code, "purging is for good: say --yes" in told.err) == (2, True)
    assert command("queues", "ls").rows[0][1:4] == ["1", "0", "1"]
    assert command("queues", "purge", "default", "--yes").err == words + "default: 2 cancelled\n"
    assert command("queues", "ls").rows[0][1:4] == ["0", "0", "0"]
    told = json.loads(command("queues", "purge", "default", "--yes", "--json").out)
    assert (told["waiting"], told["stay"], told["purged"]) == (0, {"running": 0, "dead": 0}, 0)


def test_the_status_of_a_purged_job_says_so(programs, eventually_sync):
    """Whoever looks for it hears that it will not run, and why."""
    job_id = programs.run("enqueue", "refresh", "user_id=1", "-q").out.strip()
    assert programs.run("queues", "purge", "default", "--yes", "--reason", "made by mistake").code == 0
    recorder = programs.start("recorder")

    def told() -> tuple[str, str]:
        shown = programs.run("jobs", "show", job_id, "--json")
        job = json.loads(shown.out) if shown.code == 0 else {}
        return job.get("state"), job.get("error", {}).get("message")

    eventually_sync(lambda: told() == ("cancelled", "made by mistake"), "MongoDB has the status")
    assert recorder.stop() == 0


# Jobs


def test_jobs_ls_lists_the_newest_first(command):
    """With what a person wants to know of each."""
    first, second = (enqueued(command, "refresh", f"user_id={number}") for number in (1, 2))
    told = command("jobs", "ls")
    assert [row[:6] for row in told.rows] == [
        [second, "default", "refresh", "2", "queued", "1"],
        [first, "default", "refresh", "1", "queued", "1"],
    ]
    assert command("jobs", "ls", "-q", "--limit", "1").out == f"{second}\n"


def test_jobs_ls_lists_blocked_jobs_among_the_others(programs, eventually_sync):
    """A job that nobody sees is one that is looked for all night."""
    assert programs.run("block", "fail").code == 0
    blocked = programs.run("enqueue", "fail", "word=x", "-q").out.strip()
    worker = programs.start("worker", "--no-parent")

    def listed() -> list[tuple[str, str]]:
        return [(row[0], row[4]) for row in programs.run("jobs", "ls").rows]

    eventually_sync(lambda: listed() == [(blocked, "blocked")], "a worker meets the block")
    worker.stop()
    younger = programs.run("enqueue", "refresh", "user_id=1", "-q").out.strip()
    assert listed() == [(younger, "queued"), (blocked, "blocked")]
    assert programs.run("jobs", "ls", "--limit", "1").rows[0][0] == younger
    assert programs.run("jobs", "cancel", blocked).code == 0
    assert listed() == [(younger, "queued")]


def test_jobs_ls_lists_jobs_that_are_due_later_and_those_that_wait_for_their_next_attempt(programs, eventually_sync):
    """`status` counts both as scheduled; here somebody looks for one of them."""
    later = programs.run("enqueue", "refresh", "user_id=1", "--delay", "3600", "-q").out.strip()
    failed = programs.run("enqueue", "stumble", "-q").out.strip()
    worker = programs.start("worker", "--no-parent")

    def listed(*words: str) -> list[tuple[str, str]]:
        return [(row[0], row[4]) for row in programs.run("jobs", "ls", *words).rows]

    eventually_sync(lambda: listed() == [(failed, "retrying"), (later, "scheduled")], "its first attempt fails")
    worker.stop()
    assert listed("--state", "scheduled") == [(later, "scheduled")]
    assert listed("--state", "retrying", "--state", "queued") == [(failed, "retrying")]
    (queue,) = json.loads(programs.run("status", "--json").out)["queues"]
    assert queue["scheduled"] == 2


def test_an_unknown_job_is_exit_1_with_the_places_that_were_searched(command):
    """It may have ended long ago."""
    told = command("jobs", "show", "nope")
    assert told.code == 1
    assert "no job 'nope' is known, in default or in the history" in told.err
    assert "in default\n" in command("jobs", "show", "nope", "--no-history").err


def test_a_job_without_attempts_of_its_own_has_those_of_its_handler(command, monkeypatch):
    """Where the application is not known, it is only known that they are the handler's."""
    job_id = enqueued(command, "refresh", "user_id=1")
    assert json.loads(command("jobs", "show", job_id, "--json").out)["max_attempts"] == 5
    assert json.loads(command("jobs", "ls", "--json").out)["items"][0]["max_attempts"] == 5
    monkeypatch.delenv("STREAMQ_APP")
    assert ["max_attempts", "the handler's own"] in command("jobs", "show", job_id).rows


def test_a_waiting_job_is_cancelled_and_nobody_knows_it_afterwards(command):
    """Without a recorder there is no history to remember it."""
    job_id = enqueued(command, "refresh", "user_id=1")
    assert command("jobs", "cancel", job_id, "--reason", "a mistake").err == f"{job_id}: cancelled\n"
    assert command("jobs", "ls").out == ""
    told = command("jobs", "cancel", job_id)
    assert told.code == 1
    assert f"error: no job '{job_id}' waits or runs in default\n" in told.err


def test_the_queues_of_the_application_are_looked_at_unless_somebody_says_which(command, folder):
    """A queue that was left out would look like all is well."""
    (folder / "two.py").write_text(
        "from streamq import StreamQ\napp = StreamQ()\n"
        "@app.handler(queue='mail')\nasync def mail(): ...\n@app.handler\nasync def other(): ...\n"
    )
    assert command("queues", "ls", "--app", "two", "-q").out == "default\nmail\n"
    assert command("queues", "ls", "--app", "two", "-q", "--queue", "sms").out == "sms\n"


def test_an_application_that_cannot_be_loaded_does_not_hide_the_queues(command):
    """At three in the morning, a broken import must not be in the way."""
    told = command("queues", "ls", "--app", "gone", "-q")
    assert (told.code, told.out) == (0, "default\n")
    assert told.err.startswith(
        "warning: the queues of gone are not known, looking at default: there is no module 'gone'"
    )


# Status and doctor


def test_status_without_workers_is_degraded(command):
    """Exit 1: the answer is no."""
    told = command("status")
    assert told.code == 1
    assert told.rows == [["default", "0", "0", "0", "0", "0.0", "0", "no workers"]]
    assert told.err.splitlines()[-1] == "degraded"
    assert "***" in told.err.splitlines()[0]


def test_status_as_json_has_both_servers_and_all_queues(command):
    """The same, for a program."""
    told = json.loads(command("status", "--json").out)
    assert told["healthy"] is False
    assert told["mongodb"]["error"] is None
    assert [queue["verdict"] for queue in told["queues"]] == ["no workers"]


@pytest.mark.parametrize("words", [["status"], ["queues", "ls"], ["workers", "ls"], ["jobs", "ls"], ["dead", "ls"]])
def test_without_redis_every_look_is_exit_69_with_the_place_of_the_address(bare, monkeypatch, words):
    """Nobody should have to guess which of five places the address came from."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    told = bare(*words)
    assert told.code == 69
    assert "cannot reach Redis at redis://127.0.0.1:1/0" in told.err
    assert "\n       the address is REDIS_URL from the environment\n" in told.err
    assert "s3cret" not in told.err + told.out


def test_an_address_that_nobody_gave_is_said_to_be_the_default(bare, tmp_path):
    """Then there is nothing to correct, but something to set."""
    (tmp_path / "shop" / ".env").write_text("REDIS_PORT=1\n")
    assert "\n       the address is REDIS_PORT from .env\n" in bare("status").err


def test_the_doctor_says_what_to_do(command, monkeypatch):
    """Each line has a verdict, and each that is not OK a remedy."""
    monkeypatch.setenv("STREAMQ_MAX_DEPHT", "1")
    told = command("doctor")
    findings = {row[1]: row for row in told.rows}
    assert told.code == 0
    assert findings["redis"][0] == findings["mongodb"][0] == findings["clock"][0] == "OK"
    assert findings["queue default"] == ["WARN", "queue default", "no workers", "start one: streamq worker"]
    assert findings["settings"][0] == "WARN"


def test_the_doctor_compares_both_servers_and_repairs_when_told(command):
    """Looks twice before it judges, and writes nothing unless asked to."""
    assert command("migrate", "--apply").code == 0
    rows = {row[1]: row for row in command("doctor").rows}
    assert rows["jobs default"] == ["OK", "jobs default", "MongoDB and Redis agree", ""]

    asyncio.run(_lose_a_job())
    told = command("doctor")
    rows = {row[1]: row for row in told.rows}
    assert told.code == 0
    assert rows["lost default"][0] == "WARN"
    assert rows["lost default"][2].endswith("Redis does not know them: j1")
    assert rows["lost default"][3] == "streamq doctor --repair"
    assert rows["orphaned default"][2].startswith("1 in the index of Redis and nowhere else: j2")

    rows = {row[1]: row for row in command("doctor", "--repair").rows}
    assert rows["lost default"][0] == rows["orphaned default"][0] == "OK"
    assert rows["lost default"][2].startswith("repaired: 1 ")
    assert "jobs default" in {row[1]: row for row in command("doctor").rows}


async def _lose_a_job():
    """Write what is left in both servers when somebody deletes a job by hand."""
    settings = load({})
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    fields = {"queue": "default", "state": "queued", "attempt": 1, "enqueued_at": from_ms(1_000)}
    await Statuses(mongo).write([StatusWrite("j1", 1, True, fields, [])])
    await mongo.close()
    wire = Broker(settings.redis_url).wire()
    await wire.call("HSET", Keys("default").index, "j2", "z")
    await wire.close()


def test_the_doctor_says_when_mongodb_is_not_as_this_version_wants_it(command):
    """It is found before it hurts."""
    rows = {row[1]: row for row in command("doctor").rows}
    assert rows["schema"][0] == "WARN"
    assert rows["schema"][3] == "streamq migrate shows them"


@pytest.mark.parametrize(("share", "verdict"), [(0.4, None), (0.6, "WARN"), (0.9, "FAIL")])
def test_an_outbox_that_fills_up_is_an_alarm_before_anything_is_dropped(command, monkeypatch, share, verdict):
    """In the status and at the doctor's."""
    asyncio.run(_fill_the_outbox(int(100 * share)))
    monkeypatch.setenv("STREAMQ_OUTBOX_MAX", "100")
    told = command("doctor", "--no-history") if verdict is None else command("doctor")
    rows = {row[1]: row for row in told.rows}
    assert rows.get("outbox default", [None])[0] == verdict
    assert told.code == (1 if verdict == "FAIL" else 0)
    assert _verdict({"state": "running", "workers": 1, "outbox_share": share, "oldest_wait_s": 0}) == (
        "outbox nearly full: the history will have gaps" if verdict == "FAIL" else "ok"
    )
    assert json.loads(command("queues", "ls", "--json").out)["items"][0]["outbox_share"] == share


async def _fill_the_outbox(entries):
    wire = Broker(load({}).redis_url).wire()
    await wire.pipeline([("XADD", Keys("default").outbox, "*", "w", "w1")] * entries)
    await wire.close()


def test_a_frozen_redis_is_told_within_seconds(programs, redis_server):
    """It takes connections, and says nothing."""
    redis_server.sigstop()
    told = programs.run("status", REDIS_URL=redis_server.url)
    redis_server.sigcont()
    assert told.code == 69
    assert "no reply within 1.5 s" in told.err
    assert "try: is Redis running?" in told.err


def test_without_mongodb_the_status_tells_of_redis_and_a_job_that_ended_cannot_be_shown(programs):
    """Each within seconds: whoever looks does so because something is wrong."""
    told = programs.run("status", MONGODB_URL="mongodb://127.0.0.1:1")
    assert told.code == 1
    assert "mongodb  mongodb://127.0.0.1:1  cannot reach MongoDB at 127.0.0.1:1" in told.err
    assert [row[0] for row in told.rows] == ["default"]
    assert "schedule everybody" in told.err
    shown = programs.run("jobs", "show", "long-gone", MONGODB_URL="mongodb://127.0.0.1:1")
    assert (shown.code, shown.out) == (69, "")
    assert "cannot reach MongoDB" in shown.err


def test_the_doctor_fails_for_servers_that_are_not_there(bare_programs):
    """And looks at the others all the same."""
    told = bare_programs.run("doctor", REDIS_URL="redis://127.0.0.1:1/0", MONGODB_URL="mongodb://127.0.0.1:1")
    assert told.code == 1
    assert [row[:2] for row in told.rows] == [["FAIL", "redis"], ["FAIL", "mongodb"]]


# What is made of what Redis tells


@pytest.mark.parametrize(
    ("queue", "verdict"),
    [
        ({"state": "paused", "pause_reason": "deploy"}, "paused: deploy"),
        ({"state": "paused", "pause_reason": ""}, "paused"),
        ({"state": "running", "workers": 0}, "no workers"),
        ({"state": "running", "workers": 1, "oldest_wait_s": 61.0}, "falling behind"),
        ({"state": "running", "workers": 1, "oldest_wait_s": 60.0}, "ok"),
    ],
)
def test_the_verdict_names_what_keeps_a_queue_from_being_worked_off(queue, verdict):
    """The first of them that is true."""
    assert _verdict(queue) == verdict


def test_workers_that_are_silent_do_not_count():
    """The limit is the one by which their jobs are taken over."""
    seen = [WorkerSeen("a", 5_000, 0, False), WorkerSeen("b", 5_001, 0, False), WorkerSeen("c", 0, 2, True)]
    assert described_queue("q", counts(workers=seen), Settings())["workers"] == 1


@pytest.mark.parametrize(
    ("worker", "name", "beat_age_s", "state"),
    [
        (WorkerSeen("web-1.0a1b2c3d", 200, 3, False), "web-1", 0.2, "alive"),
        (WorkerSeen("web-1.0a1b2c3d~2", 6_000, 3, False), "web-1", 6.0, "lost"),
        (WorkerSeen("odd", 1_700_000_000_000, 3, True), "odd", None, "given up"),
    ],
)
def test_a_worker_is_shown_by_the_name_that_it_was_given(worker, name, beat_age_s, state):
    """What makes its name unique is for Redis."""
    shown = described_worker("q", worker, Settings())
    assert (shown["worker"], shown["beat_age_s"], shown["state"], shown["running"]) == (name, beat_age_s, state, 3)


def test_dead_letters_are_grouped_by_kind_of_error_the_most_frequent_first():
    """1,204 lines of the same error are one finding."""

    def letter(number, handler, fingerprint):
        return {
            "queue": "q",
            "handler": handler,
            "fingerprint": fingerprint,
            "error": f"E: {number}",
            "finished_at": number,
        }

    groups = _grouped([letter(3, "a", "x"), letter(2, "b", "x"), letter(1, "b", "x")])
    assert [(group["jobs"], group["handler"], group["error"], group["newest"]) for group in groups] == [
        (2, "b", "E: 2", 2),
        (1, "a", "E: 3", 3),
    ]


def test_clocks_that_differ_are_worth_a_word():
    """Decisions are the server's, but times would read oddly."""
    assert _skew(-2_000).verdict == "OK"
    assert _skew(-2_500) == ("WARN", "clock", "2.5 s from the server's", "set the clocks by NTP")


def test_a_job_that_runs_shows_how_far_it_is_and_what_it_has_logged(command, redis_url):
    """From Redis, where the worker writes it while the handler goes on."""
    job_id = enqueued(command, "refresh", "user_id=1")
    assert command("jobs", "logs", job_id).out == ""
    asyncio.run(_note(redis_url, job_id, b'{"n":1,"p":[0.4,"page 3"],"lg":[[1750000000000,"three pages"]],"ln":1}'))
    shown = json.loads(command("jobs", "show", job_id, "--json").out)
    assert shown["progress"] == {"fraction": 0.4, "note": "page 3"}
    assert [row[1] for row in command("jobs", "logs", job_id).rows] == ["three pages"]


async def _note(url: str, job_id: str, text: bytes) -> None:
    partition = Broker(url).partition("default")
    await partition.note([(job_id.encode(), text)])
    await partition.wire.close()
