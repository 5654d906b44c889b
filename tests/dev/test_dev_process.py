"""`streamq dev` as its user starts it: a program of its own, with all of its processes, killed and interrupted."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
from typing import TYPE_CHECKING

import pytest

from streamq import embedded
from tests.dev.conftest import PATIENCE_S

if TYPE_CHECKING:
    from tests.dev.conftest import Dev

pytestmark = pytest.mark.slow

ROUTES = ("queue/stats", "status/user/user-000001", "recent?limit=5", "failed?limit=5")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and that nobody has waited for does not."""
    return embedded._look_up(pid)[0]


def test_the_whole_demo_runs_with_one_command_and_again_in_the_same_hour(dev: Dev):
    """The first thing that a newcomer does, and the second."""
    for _ in range(2):
        assert dev.run("--demo", "--users", "60", "--once", "--json") == 0

        told = dev.document()
        summary = told["summary"]
        assert (summary["completed"], summary["failed"], summary["lost"]) == (60, 0, 0)
        assert summary["retried"] == 1
        assert summary["duplicates_refused"] <= told["repeated_clicks"] == 1
        assert told["users"] == {"fast": 48, "slow": 12}
        assert told["check"]["summaries"] == 60
        assert told["check"]["events_summarised"] == told["check"]["events_stored"]
        assert summary["run_s"]["slow"]["p50"] > 10 * summary["run_s"]["fast"]["p50"]
        assert set(summary["wait_s"]["fast"]) == {"p50", "p95", "p99"}
    assert dev.servers_run() == [False, False]
    assert "[Worker:worker.1] Worker started with concurrency: 3" in dev.err


def test_a_worker_killed_in_the_middle_changes_nothing_but_who_did_the_work(dev: Dev):
    """Its parent frees what it held, and its jobs start again with the same attempt. Meanwhile the API answers."""
    process = dev.start("--demo", "--users", "400", "--once", "--json")
    worker, token = dev.pid_of("worker.1"), dev.token()
    dev.eventually(lambda: dev.stats(token)["completed"] > 20, "the round is well under way")
    os.kill(worker, signal.SIGKILL)
    for route in ROUTES:
        dev.eventually(lambda route=route: dev.get(route, token)[0] == 200, f"{route} answers")
        assert dev.get(route, None)[0] == 401, route
        assert dev.get(route, "wrong")[0] == 401, route

    assert process.wait(PATIENCE_S) == 0
    told = dev.document()
    summary = told["summary"]
    assert (summary["completed"], summary["failed"], summary["lost"], summary["retried"]) == (400, 0, 0, 4)
    assert told["survived_worker_deaths"] >= 1
    assert "killed by SIGKILL" in dev.err


def test_servers_killed_in_the_middle_come_back_and_nothing_is_lost(dev: Dev):
    """With their data, at their addresses; the round waits for them as the workers do."""
    process = dev.start("--demo", "--users", "200", "--once", "--json")
    dev.wait_for("refreshing 200 users")
    before = json.loads((dev.folder / ".streamq/endpoints.json").read_text())

    for name in ("redis", "mongodb"):
        os.kill(before[name]["pid"], signal.SIGKILL)
        dev.wait_for(f"the embedded {name} died; starting it again")
        dev.wait_for(f"the embedded {name} is back, with its data")

    assert process.wait(PATIENCE_S) == 0, dev.err
    summary = dev.document()["summary"]
    assert (summary["completed"], summary["failed"], summary["lost"]) == (200, 0, 0)
    assert dev.servers_run() == [False, False]


def test_users_may_come_from_a_file(dev: Dev):
    """With the ids of a real system, the demo shows what its hour would look like."""
    (dev.folder / "users.csv").write_text("name,user_id\n" + "".join(f"n{n},u/{n}\n" for n in range(10)))

    assert dev.run("--demo", "--users-from", "users.csv", "--once") == 0

    assert dev.out.count("10 users in ") == 1
    assert "10 completed, 0 failed, 0 lost" in dev.out


def test_ctrl_c_stops_everything_that_was_started_and_nothing_else(dev: Dev):
    """Here Redis was running before, and MongoDB was not."""
    embedded.start(dev.folder / ".streamq", mongodb=False)
    process = dev.start("--demo", "--users", "5")
    dev.wait_for("5 users in ")
    children = [dev.pid_of(name) for name in ("worker.1", "worker.2", "cron.1", "recorder.1", "api.1")]

    process.send_signal(signal.SIGINT)

    assert process.wait(PATIENCE_S) == 0
    assert not any(map(is_alive, children))
    assert dev.servers_run() == [True, False]


def test_an_application_without_a_schedule_runs_without_cron(dev: Dev):
    """Cron would find nothing to do, and end everything with it."""
    (dev.folder / "plain.py").write_text("from streamq import StreamQ\napp = StreamQ()\n")
    process = dev.start("plain")
    dev.wait_for("shells ")

    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE_S) == 0
    assert "cron.1" not in dev.err


def test_a_round_that_is_interrupted_says_so_and_the_next_one_with_other_users_is_whole(dev: Dev):
    """The jobs that are left over belong to users that are gone, and end without being counted."""
    process = dev.start("--demo", "--users", "300", "--once", "--json")
    dev.wait_for("job.retrying")
    process.send_signal(signal.SIGTERM)

    assert process.wait(PATIENCE_S) == 1
    assert re.search(r"stopped when [\d,]+ jobs had ended; the others are kept, and go on at the next start", dev.err)
    assert dev.out == ""

    assert dev.run("--demo", "--users", "20", "--once", "--json") == 0
    assert dev.document()["summary"]["completed"] == 20


def test_a_run_that_is_killed_is_cleaned_up_by_the_next_one(dev: Dev):
    """Its processes end by themselves; its servers wait for somebody to feel responsible."""
    process = dev.start("--demo", "--users", "5")
    worker = dev.pid_of("worker.1")
    dev.wait_for("5 users in ")
    process.kill()
    process.wait()
    dev.eventually(lambda: not is_alive(worker), "the worker ends without its parent", timeout=PATIENCE_S)
    assert dev.servers_run() == [True, True]

    assert dev.run("--demo", "--users", "5", "--once") == 0, dev.out + dev.err
    assert dev.servers_run() == [False, False]


def test_on_a_terminal_a_bar_is_drawn(dev: Dev):
    """Below the lines of the workers, and never into standard output."""
    ours, theirs = pty.openpty()
    process = dev.start("--demo", "--users", "20", "--once", err=theirs)
    os.close(theirs)
    drawn = _read_all(ours)

    assert process.wait(PATIENCE_S) == 0
    assert "20/20" in drawn
    assert "Worker started with concurrency: 3" in drawn
    assert "20 users in" in dev.out


def _read_all(terminal: int) -> str:
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(terminal, 65_536)
        except OSError:  # how a terminal says that nobody writes any more
            chunk = b""
        if not chunk:
            os.close(terminal)
            return b"".join(chunks).decode()
        chunks.append(chunk)
