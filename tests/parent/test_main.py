"""What the command line starts a parent with."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import streamq
from streamq import parent
from streamq.parent import Role, child_environment, request, supervise, worker_role
from streamq.settings import load


@pytest.fixture
def settings(tmp_path):
    """Settings of which some came from flags."""
    flags = {"worker_instances": 3, "queues": "mail,default", "allow_eviction": True, "grace_ms": 9000}
    return load(flags, environ={"STREAMQ_BEAT_MS": "50"}, directory=tmp_path)


def test_a_worker_is_started_under_its_own_name_and_without_a_parent_of_its_own(settings):
    """It has one already."""
    role = worker_role(settings, "shop.tasks:app", ["--max-jobs", "100"])
    assert role.argv[1:6] == ["-m", "streamq", "worker", "shop.tasks:app", "--no-parent"]
    assert role.argv[6:] == ["--name", "{name}", "--max-jobs", "100"]
    assert (role.instances, role.grace_ms, role.hang_limit_ms) == (3, 9000, 120_000)


def test_what_came_from_flags_is_handed_on_and_nothing_else(settings, monkeypatch):
    """A child reads the environment and the files for itself, but it does not see our command line."""
    monkeypatch.setenv("NO_COLOR", "1")
    handed_on = child_environment(settings)
    assert handed_on == {
        "STREAMQ_WORKER_INSTANCES": "3",
        "STREAMQ_QUEUES": "mail,default",
        "STREAMQ_ALLOW_EVICTION": "true",
        "STREAMQ_GRACE_MS": "9000",
    }


def test_what_is_handed_on_means_the_same_to_the_child(settings, tmp_path):
    """There and back."""
    child = load({}, environ=child_environment(settings), directory=tmp_path)
    assert (child.queues, child.allow_eviction, child.grace_ms) == (("mail", "default"), True, 9000)


def test_children_of_a_terminal_log_for_people(settings, monkeypatch):
    """Their own output is a pipe, so they could not know."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert child_environment(settings)["STREAMQ_LOG_FORMAT"] == "human"
    assert child_environment(settings)["FORCE_COLOR"] == "1"


def test_supervise_runs_the_roles_and_returns_the_exit_code(settings, tmp_path, capfd):
    """For `streamq up` and `streamq dev`, with the parent's log among the lines."""
    roles = [Role("job", [sys.executable, "-c", "print('hello')"], once=True)]
    assert supervise(roles, settings, directory=tmp_path) == 0
    printed = capfd.readouterr()
    assert "job.1    | hello" in printed.out
    assert "parent.child_started" in printed.err


def test_main_runs_the_workers_of_an_application(settings, tmp_path, monkeypatch, capfd):
    """The way of `streamq worker -n 3`."""
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    assert parent.main(settings, "shop:app", directory=tmp_path, once=True) == 0
    assert capfd.readouterr().out.count("-m streamq worker shop:app --no-parent --name worker.") == 3


ON_TERMINAL = """
import fcntl, sys, termios
from pathlib import Path
from streamq.parent import Role, supervise
from streamq.settings import load

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
folder = Path(sys.argv[1])
code = supervise([Role("sleeper", ["sleep", "60"], speaks=False)], load({}, environ={}, directory=folder), directory=folder)
(folder / "code").write_text(str(code))
"""


def test_a_parent_whose_terminal_is_closed_stops(tmp_path, eventually_sync):
    """HUP would only roll, and a forgotten parent would work on in the dark for ever."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, str(tmp_path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"PYTHONPATH": str(Path(streamq.__file__).parent.parent)},
        start_new_session=True,
    )
    os.close(theirs)
    eventually_sync(lambda: _is_up(tmp_path))
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    process.wait(30)
    assert (tmp_path / "code").read_text() == "0"


def _is_up(folder: Path) -> bool:
    try:
        children = request(folder, {"command": "ps"})["children"]
    except streamq.errors.Unavailable:
        return False
    return bool(children) and children[0]["pid"] is not None
