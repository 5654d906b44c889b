"""The programs that stay, as they are started and stopped in life, and the commands that speak to them."""

from __future__ import annotations

import json
import signal

import httpx
import pytest

from tests.conftest import free_port

FIRST_LINE = "[Worker:web-1] Worker started with concurrency: 3"


def test_the_first_line_of_a_worker_has_the_words_that_are_looked_for(programs, eventually_sync):
    """And a drain on INT, which is what PM2 sends, is a clean end."""
    worker = programs.start("worker", "--no-parent", "--name", "web-1", "--log-format", "human")
    eventually_sync(lambda: "worker.ready" in worker.output, "the worker is ready")
    assert worker.output.splitlines()[0].endswith(FIRST_LINE)
    assert worker.stop(signal.SIGINT) == 0
    assert "worker.stopped" in worker.output


def test_off_a_terminal_a_worker_logs_json(programs, eventually_sync):
    """What reads a pipe is a program."""
    worker = programs.start("worker", "--no-parent", "--name", "web-1")
    eventually_sync(lambda: "worker.ready" in worker.output, "the worker is ready")
    first = json.loads(worker.output.splitlines()[0])
    assert (first["event"], first["message"]) == ("worker.started", FIRST_LINE)


def test_the_api_records_as_well_when_told(programs, command, eventually_sync):
    """A process less, where there is little to do."""
    programs.start("worker", "--no-parent", "--name", "web-1")
    api = programs.start("api", "--record", "--port", "0", STREAMQ_API_TOKEN="t")
    done = command("enqueue", "refresh", "user_id=u42", "-q").out.strip()
    eventually_sync(lambda: ["state", "completed"] in command("jobs", "show", done).rows, "the history has its end")
    assert "recorder.started" in api.output
    assert api.stop() == 0


def test_a_job_goes_from_the_command_line_to_the_history_and_to_the_dead_letters(programs, command, eventually_sync):
    """Worker and recorder as real programs, everything else asked of them."""
    programs.start("worker", "--no-parent", "--name", "web-1")
    programs.start("recorder")
    done = command("enqueue", "refresh", "user_id=u42", "-q").out.strip()
    failed = command("enqueue", "fail", "word=sku", "-q").out.strip()
    eventually_sync(lambda: ["state", "completed"] in command("jobs", "show", done).rows, "the history has its end")
    eventually_sync(lambda: command("dead", "ls").out, "the failed job is dead")
    (letter,) = command("dead", "ls").rows
    assert (letter[:5], letter[-1]) == ([failed, "default", "fail", "", "1"], "ValueError: bad sku")
    assert command("dead", "ls", "--by-error").rows[0][:4] == ["1", "default", "fail", "ValueError: bad sku"]
    assert command("status").code == 0

    assert command("dead", "retry").code == 2
    assert command("dead", "retry", "nope").rows == [["nope", "", "gone", ""]]
    told = command("dead", "retry", failed)
    assert (told.code, told.rows) == (0, [[failed, "default", "replayed", ""]])
    eventually_sync(lambda: command("dead", "ls", "-q").out == f"{failed}\n", "it failed again")
    (fingerprint,) = command("dead", "ls", "--by-error", "-q").out.splitlines()
    assert command("dead", "retry", "--error", fingerprint).code == 0


def test_a_running_job_is_cancelled_by_its_worker(programs, command, folder, eventually_sync):
    """Its handler is interrupted where it waits."""
    programs.start("worker", "--no-parent", "--name", "web-1")
    job_id = command("enqueue", "wait_for", f"path={folder}/never", "-q").out.strip()
    eventually_sync(lambda: ["state", "running"] in command("jobs", "show", job_id).rows, "the job runs")
    assert command("jobs", "cancel", job_id).err == f"{job_id}: it runs; its worker was told\n"
    eventually_sync(lambda: command("jobs", "show", job_id).code == 1, "the job has ended")


def test_cron_lists_counts_and_fires(programs, command, folder, eventually_sync):
    """By hand, and a second time without effect."""
    assert "would enqueue 2 users" in command("cron", "--dry-run").out
    assert len(command("cron", "--list", "--next", "3").out.splitlines()) == 4
    assert "2 added" in command("cron", "--now").out
    assert "nothing added" in command("cron", "--now", "--schedule", "everybody").out
    assert [row[2] for row in command("jobs", "ls").rows] == ["refresh", "refresh"]
    assert command("cron", "--now", "--list").code == 2
    running = programs.start("cron")
    eventually_sync(lambda: running.output, "it has said something")
    assert running.stop() == 0


def test_workers_are_listed_and_told_what_to_do(programs, command, folder, eventually_sync):
    """By name, or all of them."""
    worker = programs.start("worker", "--no-parent", "--name", "web-1")

    def listed() -> list[tuple[str, str, str]]:
        return [(row[0], row[1], row[4]) for row in command("workers", "ls").rows]

    eventually_sync(lambda: listed() == [("web-1", "default", "alive")], "the worker is there, and beats")
    assert command("workers", "quiet", "web-1").err == "web-1: told to quiet\n"
    eventually_sync(lambda: '"worker.quiet"' in worker.output, "the worker is quiet")
    told = command("workers", "stop", "web-2")
    assert (told.code, told.err) == (
        65, "error: no worker is named 'web-2'\n  try: known: web-1\nexit 65\n",
    )  # fmt: skip
    assert command("workers", "stop").code == 2
    assert command("workers", "stop", "web-1", "--all").code == 2
    assert json.loads(command("workers", "stop", "--all", "--json").out) == {"order": "stop", "worker": None}
    assert worker.process.wait(50) == 0


def test_a_parent_is_listed_scaled_followed_restarted_and_stopped(programs, command, eventually_sync):
    """What `pm2 status`, `scale`, `logs`, `reload` and `stop` do."""
    parent = programs.start("worker", "-n", "1")
    eventually_sync(lambda: "parent.ready" in parent.output, "the parent is ready", timeout=50)
    (row,) = command("ps").rows
    assert row[:2] == ["worker.1", "ready"]
    assert command("ps", "-q").out == "worker.1\n"
    assert json.loads(command("ps", "--json").out)["roles"] == {"worker": 1}

    assert command("scale", "worker", "2").err == "worker: 1 → 2\n"
    eventually_sync(lambda: [row[1] for row in command("ps").rows] == ["ready", "ready"], "both are ready")
    told = command("logs", "worker.2")
    assert told.out.startswith("worker.2   | ")
    assert "Worker started with concurrency: 3" in told.out
    assert {json.loads(line)["child"] for line in command("logs", "worker", "--json").out.splitlines()} == {
        "worker.1", "worker.2",
    }  # fmt: skip

    pids = {row["pid"] for row in json.loads(command("ps", "--json").out)["children"]}
    assert command("restart", "worker", "--at-once").err.startswith("worker: restarting all together")

    def are_new():
        rows = json.loads(command("ps", "--json").out)["children"]
        return len(rows) == 2 and all(row["state"] == "ready" and row["pid"] not in pids for row in rows)

    eventually_sync(are_new, "both were replaced", timeout=50)
    assert command("down").code == 0
    assert parent.process.wait(50) == 0


def test_schedules_are_listed_with_their_next_time_and_fired_once(command):
    """The second time nothing is added: an occurrence is one job for each user."""
    (row,) = command("schedule", "ls").rows
    assert row[:4] == ["everybody", "0 * * * *", "UTC", "refresh"]
    assert row[4].endswith(":00:00.000Z")
    assert command("schedule", "ls", "-q").out == "everybody\n"
    first = json.loads(command("schedule", "run", "everybody", "--json").out)
    assert (first["added"], first["was_finished"]) == (2, False)
    assert "nothing added" in command("schedule", "run", "everybody").err
    told = command("schedule", "run", "nobody")
    assert (told.code, told.err.splitlines()[0]) == (78, "error: no schedule is named 'nobody' (known: everybody)")


@pytest.mark.slow
def test_up_runs_every_role_under_one_parent(programs, command, eventually_sync):
    """One command on a machine that has its servers: a job goes in, and the API tells what became of it."""
    port, token = free_port(), "a-token-of-this-test-0123456789"
    parent = programs.start("up", "-n", "1", "--port", str(port), "--token", token)
    eventually_sync(lambda: "parent.ready" in parent.output, "all roles are ready", timeout=50)
    assert [row[0] for row in command("ps").rows] == ["api.1", "cron.1", "recorder.1", "worker.1"]
    command("enqueue", "refresh", "user_id=u42")

    def status_of_the_user() -> str:
        url = f"http://127.0.0.1:{port}/app/job-status/status/user/u42"
        return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).json().get("status", "")

    eventually_sync(lambda: status_of_the_user() == "completed", "the API tells the end of the job")
    assert parent.stop() == 0


def test_an_address_in_the_program_counts_for_every_command(programs, command, folder, monkeypatch, eventually_sync):
    """A parent that beat in another Redis than its workers work in would have them given up."""
    url = programs.env.pop("REDIS_URL")
    monkeypatch.delenv("REDIS_URL")
    program = (folder / "shop.py").read_text().replace("app = StreamQ()", f"app = StreamQ(redis_url={url!r})")
    (folder / "shop.py").write_text(program)
    parent = programs.start("worker", "-n", "1", STREAMQ_DEAD_AFTER_MS="1500", STREAMQ_BEAT_MS="300")
    eventually_sync(lambda: "parent.ready" in parent.output, "the parent is ready", timeout=50)
    eventually_sync(lambda: command("workers", "ls").rows, "the worker is in that Redis")
    command("enqueue", "refresh", "user_id=u1")
    eventually_sync(lambda: command("jobs", "ls").out == "", "the job was done")
    told = command("status")
    assert (told.code, told.rows[0][-1]) == (0, "ok")
    assert "127.0.0.1:6379/" not in told.err.splitlines()[0]


def test_an_address_in_the_program_is_not_taken_for_one_that_nobody_gave(bare, folder):
    """There is no variable to correct."""
    program = (folder / "shop.py").read_text().replace("StreamQ()", "StreamQ(redis_url='redis://127.0.0.1:2')")
    (folder / "shop.py").write_text(program)
    told = bare("status", "--app", "shop")
    assert told.code == 69
    assert "cannot reach Redis at redis://127.0.0.1:2" in told.err
    assert "no address was given" not in told.err


@pytest.mark.parametrize("words", [["ps"], ["scale", "worker", "3"], ["logs"], ["restart", "worker"], ["down"]])
def test_without_a_parent_its_commands_say_how_to_start_one(bare, words):
    """Exit 69: it cannot be reached."""
    told = bare(*words)
    assert told.code == 69
    assert "error: no parent answers at " in told.err
    assert "  try: start one with `streamq up` or `streamq worker -n 2`, or name its directory\n" in told.err


@pytest.mark.parametrize("words", [["worker"], ["worker", "--no-parent"]])
def test_a_worker_without_an_application_says_how_to_name_one(bare, words):
    """The first thing that a newcomer types."""
    told = bare(*words)
    assert told.code == 78
    assert "error: no application is named\n" in told.err


def test_a_worker_without_redis_ends_with_69(bare_programs):
    """After a few tries, for its supervisor to go on."""
    told = bare_programs.run("worker", "shop:app", "--no-parent", REDIS_URL="redis://127.0.0.1:1/0")
    assert told.code == 69
    assert "the address is REDIS_URL from the environment" in told.err


def test_a_wrong_value_of_an_option_is_a_wrong_command_line(bare):
    """With the range in the message."""
    told = bare("worker", "shop:app", "-c", "0")
    assert told.code == 2
    assert "0 is not in the range 1<=x<=10000" in told.err


def test_a_recorder_without_history_is_refused_with_the_place_that_says_so(bare, monkeypatch):
    """It would do nothing for ever."""
    monkeypatch.setenv("STREAMQ_HISTORY", "false")
    told = bare("recorder")
    assert told.code == 78
    assert "error: history is off (STREAMQ_HISTORY from the environment): there is nothing to record" in told.err
