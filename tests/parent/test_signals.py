"""Parents that are real processes: their signals, their exit codes, and what becomes of their children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import streamq
from streamq.errors import BadInput, Unavailable
from streamq.parent import follow, request, socket_path
from tests.conftest import is_running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

PARENT = """
import asyncio, logging, sys
from pathlib import Path
from streamq.logs import configure
from streamq.parent import Pace, Parent, Role

configure("info", "human")
program, folder, instances, margin_s = sys.argv[1:]
role = Role("worker", [sys.executable, program, folder, "{name}"], instances=int(instances), grace_ms=20_000)
pace = Pace(first_delay_s=0.02, margin_s=float(margin_s))
sys.exit(asyncio.run(Parent([role], directory=Path(folder), pace=pace).run()))
"""


@dataclass
class Process:
    """A parent in a process of its own."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    @property
    def said(self) -> str:
        """Everything it printed."""
        return self.log.read_text()

    def ps(self) -> list[dict[str, Any]]:
        """Ask it for its children; none as long as it does not listen."""
        try:
            return request(self.folder, {"command": "ps"})["children"]
        except Unavailable:
            return []

    def pids(self, state: str = "ready") -> list[int]:
        """Return the processes in this state."""
        return [child["pid"] for child in self.ps() if child["state"] == state]

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(30)


@pytest.fixture
def launch(children, eventually_sync) -> Iterator[Any]:
    """Give a function that starts a parent with so many children, and waits until they are ready."""
    launched: list[Process] = []

    def _launch(instances: int = 1, *, margin_s: float = 5, env: dict[str, str] | None = None) -> Process:
        program = children.speaker().argv[1]
        log = children.folder / "log"
        with log.open("wb") as output:
            home = str(Path(streamq.__file__).parent.parent)
            process = subprocess.Popen(
                [sys.executable, "-c", PARENT, program, str(children.folder), str(instances), str(margin_s)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": home} | (env or {}),
                start_new_session=True,
            )
        launched.append(Process(process, children.folder, log))
        eventually_sync(lambda: len(launched[-1].pids()) == instances, "all are ready")
        return launched[-1]

    yield _launch
    (children.folder / "hold").unlink(missing_ok=True)
    for parent in launched:
        if parent.process.poll() is None:
            parent.send(signal.SIGQUIT)
            parent.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_stop_signal_drains_and_the_parent_ends_with_zero(launch, children, eventually_sync, number):
    """PM2 sends INT, systemd TERM; both must be graceful."""
    hold = children.hold()
    parent = launch(2)
    parent.send(number)
    eventually_sync(lambda: len(parent.pids("draining")) == 2)
    hold.unlink()
    assert parent.wait() == 0


def test_the_second_stop_signal_forces_and_the_parent_ends_with_130(launch, children, eventually_sync):
    """Whoever presses Ctrl-C twice does not want to wait for a drain."""
    children.hold()
    parent = launch(1, margin_s=0.2)
    (pid,) = parent.pids()
    parent.send(signal.SIGINT)
    eventually_sync(lambda: (children.folder / f"gone-{pid}").exists())
    eventually_sync(lambda: parent.send(signal.SIGINT) or "stopping by force" in parent.said)
    assert parent.wait() == 130
    assert not is_running(pid)


def test_a_stop_signal_that_is_repeated_at_once_still_drains(launch, children, eventually_sync):
    """Programs such as `uv run` send the Ctrl-C on that the terminal has sent already."""
    hold = children.hold()
    parent = launch(1)
    parent.send(signal.SIGINT)
    parent.send(signal.SIGTERM)
    eventually_sync(lambda: parent.pids("draining"))
    hold.unlink()
    assert parent.wait() == 0


def test_quit_ends_everything_without_a_drain(launch, children):
    """For the case that nothing else helps."""
    children.hold()
    parent = launch(2)
    pids = parent.pids()
    parent.send(signal.SIGQUIT)
    assert parent.wait() == 131
    assert not any(is_running(pid) for pid in pids)


def test_children_see_that_their_parent_was_killed_and_drain_by_themselves(launch, children, eventually_sync):
    """Orphans would work on with nobody to beat for them."""
    hold = children.hold()
    parent = launch(3)
    pids = parent.pids()
    parent.send(signal.SIGKILL)
    parent.wait()
    seen = [children.folder / f"gone-{pid}" for pid in pids]
    eventually_sync(lambda: all(path.exists() and path.read_text() == "True" for path in seen))
    assert all(is_running(pid) for pid in pids)
    hold.unlink()
    eventually_sync(lambda: not any(is_running(pid) for pid in pids))


def test_hup_rolls_and_the_new_child_is_ready_before_the_old_one_drains(launch, children, eventually_sync):
    """A deployment without a gap."""
    hold = children.hold()
    parent = launch(2)
    before = parent.pids()
    parent.send(signal.SIGHUP)
    eventually_sync(lambda: parent.pids("draining") == before[:1] and len(parent.pids()) == 2)
    hold.unlink()
    eventually_sync(lambda: len(parent.pids()) == 2 and not set(before) & {child["pid"] for child in parent.ps()})


def test_ttin_and_ttou_start_one_more_and_one_fewer_but_never_none(launch, eventually_sync):
    """As gunicorn's users know them."""
    parent = launch(1)
    parent.send(signal.SIGTTIN)
    eventually_sync(lambda: len(parent.pids()) == 2)
    parent.send(signal.SIGTTOU)
    eventually_sync(lambda: len(parent.ps()) == 1)
    parent.send(signal.SIGTTOU)
    parent.send(signal.SIGTSTP)  # handled after the one before it
    eventually_sync(lambda: "heard SIGTSTP" in parent.said)
    assert request(parent.folder, {"command": "ps"})["roles"] == {"worker": 1}


def test_quiet_is_passed_on_and_holds_for_children_that_start_later(launch, eventually_sync):
    """A replacement that fetched would undo the order."""
    parent = launch(1)
    parent.send(signal.SIGTSTP)
    eventually_sync(lambda: parent.said.count("worker.1 | heard SIGTSTP") == 1)
    os.kill(parent.pids()[0], signal.SIGKILL)
    eventually_sync(lambda: parent.said.count("worker.1 | heard SIGTSTP") == 2)
    parent.send(signal.SIGCONT)
    eventually_sync(lambda: "worker.1 | heard SIGCONT" in parent.said)


def test_usr1_makes_the_children_print_their_stacks(launch, eventually_sync):
    """To see what they are doing without stopping them."""
    parent = launch(1)
    parent.send(signal.SIGUSR1)
    eventually_sync(lambda: "most recent call first" in parent.said)
    assert parent.pids()


def test_the_terminal_sees_its_ctrl_c_reach_the_parent_alone(launch):
    """Each child has a session of its own; a whole group that is signalled would be told twice."""
    parent = launch(1)
    (pid,) = parent.pids()
    assert os.getsid(pid) == pid


# ---- the control socket


def test_scaling_through_the_socket_goes_from_two_to_five_and_back(launch, eventually_sync):
    """`streamq scale worker 5`."""
    parent = launch(2)
    answer = request(parent.folder, {"command": "scale", "role": "worker", "n": 5})
    assert answer == {"ok": True, "role": "worker", "before": 2, "after": 5}
    eventually_sync(lambda: len(parent.pids()) == 5)
    request(parent.folder, {"command": "scale", "role": "worker", "n": 2})
    eventually_sync(lambda: [child["name"] for child in parent.ps()] == ["worker.1", "worker.2"])


def test_the_socket_is_its_users_alone(launch):
    """Whoever can open it may stop the workers."""
    parent = launch(1)
    path = socket_path(parent.folder)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_restart_through_the_socket_rolls(launch, eventually_sync):
    """`streamq restart worker --rolling`."""
    parent = launch(1)
    before = parent.pids()
    request(parent.folder, {"command": "restart", "role": "worker", "rolling": True})
    eventually_sync(lambda: len(parent.pids()) == 1 and parent.pids() != before)
    eventually_sync(lambda: "rolling restart done" in parent.said)


def test_a_stop_through_the_socket_takes_the_socket_away(launch):
    """`streamq down`."""
    parent = launch(1)
    assert request(parent.folder, {"command": "stop"})["pid"] == parent.process.pid
    assert parent.wait() == 0
    assert not socket_path(parent.folder).exists()
    with pytest.raises(Unavailable, match=r"no parent answers at .*parent\.sock") as told:
        request(parent.folder, {"command": "ps"})
    assert "streamq up" in told.value.hint


def test_logs_give_the_kept_lines_and_then_the_new_ones(launch):
    """`streamq logs worker -f`."""
    parent = launch(1)
    os.kill(parent.pids()[0], signal.SIGCONT)
    lines = follow(parent.folder, {"command": "logs", "role": "worker", "lines": 10, "follow": True})
    assert next(lines)["line"] == "heard SIGCONT"
    parent.send(signal.SIGTSTP)
    line = next(lines)
    assert (line["child"], line["stream"], line["line"]) == ("worker.1", "stdout", "heard SIGTSTP")
    parent.send(signal.SIGTERM)
    assert all(line["role"] == "worker" for line in lines)  # ends with the parent


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        ({"command": "dance"}, "unknown command 'dance': expected one of logs, scale, restart, stop, ps"),
        ({"command": "scale", "role": "worker", "n": "5"}, "cannot scale worker to '5': expected a whole number"),
        ({"command": "scale", "n": 5}, "the request needs 'role', a text, but has None"),
        ({"command": "restart", "role": "cron"}, "there is no role 'cron' here: expected one of worker"),
        ({"command": "logs", "role": "x"}, "no role or child 'x' here: expected one of parent, worker, worker.1"),
        ({"command": "logs", "lines": "all"}, "cannot give 'all' lines: expected a whole number"),
        ([1], "the request is not a JSON object"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_the_reason(launch, message, refusal):
    """And the parent goes on."""
    parent = launch(1)
    with pytest.raises(BadInput) as told:
        request(parent.folder, message)
    assert refusal in str(told.value)
    assert parent.pids()


def test_a_request_that_is_not_json_is_refused(launch):
    """Somebody may try with netcat."""
    import socket

    parent = launch(1)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(parent.folder)))
        connection.sendall(b"ps\n")
        answer = json.loads(connection.makefile().readline())
    assert answer == {"ok": False, "error": "the request is not a line of JSON"}


def test_a_second_parent_in_one_directory_works_without_a_socket(launch, children, eventually_sync):
    """An operator's convenience must not keep jobs from running."""
    first = launch(1)
    home = str(Path(streamq.__file__).parent.parent)
    second = subprocess.Popen(
        [sys.executable, "-c", PARENT, children.speaker().argv[1], str(children.folder), "1", "5"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": home},
    )
    assert second.stdout is not None
    told = second.stdout.readline().decode()
    assert "no control socket at" in told
    assert "another parent of this directory has it" in told
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=30)
    assert first.pids()


def test_a_socket_that_a_killed_parent_left_is_replaced(launch):
    """The next start must not need a person."""
    parent = launch(1)
    parent.send(signal.SIGKILL)
    parent.wait()
    assert socket_path(parent.folder).exists()
    assert launch(1).pids()


def test_a_directory_too_deep_for_a_socket_gets_one_in_a_folder_of_the_users(tmp_path):
    """The address of a Unix socket holds about a hundred bytes."""
    deep = tmp_path / ("d" * 120)
    assert len(os.fsencode(socket_path(deep))) <= 103
    assert socket_path(deep) != socket_path(deep / "x")
    assert socket_path(Path("/srv/app")) == Path("/srv/app/run/parent.sock")
