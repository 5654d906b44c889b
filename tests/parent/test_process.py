"""What a process and its machine tell each other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamq.process import (
    beat_file,
    exit_status,
    exit_words,
    file_age_s,
    is_frozen,
    notify,
    queued_s,
    rss_bytes,
    watchdog_period_s,
)


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_systemd_is_told_line_by_line(tmp_path, name):
    """At a path, or in the abstract namespace."""
    address = str(tmp_path / "notify") if name == "path" else f"@streamq-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        assert notify("READY=1", "STATUS=fine", environ={"NOTIFY_SOCKET": address})
        assert listener.recv(1000) == b"READY=1\nSTATUS=fine"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/no/such/socket"}])
def test_a_missing_systemd_is_no_error(environ):
    """Most machines of developers have none."""
    assert not notify("READY=1", environ=environ)


@pytest.mark.parametrize(
    ("environ", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_answered_twice_as_often_as_it_asks(environ, period_s):
    """And only by the process that it watches."""
    assert watchdog_period_s(environ) == period_s


def test_a_heartbeat_file_tells_its_age(tmp_path):
    """A probe in a container has no port to ask."""
    path = tmp_path / "run" / "worker.1"
    assert file_age_s(path) is None
    beat_file(path)
    assert _age_s(path) < 90
    os.utime(path, (time.time() - 100,) * 2)
    assert _age_s(path) >= 100
    beat_file(path)
    assert _age_s(path) < 90


def _age_s(path: Path) -> float:
    age_s = file_age_s(path)
    assert age_s is not None
    return age_s


@pytest.mark.parametrize(
    ("returncode", "words", "status"),
    [
        (0, "exit 0, ended", 0),
        (3, "exit 3", 3),
        (78, "exit 78, bad configuration", 78),
        (-11, "killed by SIGSEGV", 139),
        (-9, "killed by SIGKILL, perhaps out of memory", 137),
        (-200, "killed by signal 200", 328),
    ],
)
def test_an_end_is_told_in_words_and_passed_on_as_a_shell_does(returncode, words, status):
    """Nobody knows the numbers by heart."""
    assert exit_words(returncode) == words
    assert exit_status(returncode) == status


def test_a_process_tells_its_memory_and_whether_it_is_frozen(eventually_sync):
    """As long as there is one."""
    with subprocess.Popen(["sleep", "60"]) as process:
        assert (rss_bytes(process.pid) or 0) > 0
        assert not is_frozen(process.pid)
        process.send_signal(signal.SIGSTOP)
        eventually_sync(lambda: is_frozen(process.pid))
        process.kill()
    assert rss_bytes(process.pid) is None
    assert not is_frozen(process.pid)


def test_the_time_without_a_processor_rises_when_another_process_has_it(eventually_sync):
    """Where the kernel counts it, as Linux mostly does."""
    begun_s = queued_s()
    if not Path("/proc/thread-self/schedstat").exists():
        assert begun_s == 0
        return
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    load = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        eventually_sync(lambda: sum(range(100_000)) and queued_s() > begun_s + 0.01, "the other had the processor")
    finally:
        os.sched_setaffinity(0, processors)
        load.kill()
        load.wait()


NICE = """
import os
from pathlib import Path
from streamq.process import be_nice

def session():
    group = Path("/proc/self/autogroup")
    words = group.read_text().split() if group.exists() else []
    return words[-1] if words else "untold"  # a kernel without groups has no file, one that groups nobody an empty one

before = session()
be_nice(3 if before != "3" else 4)
print(before, os.nice(0), session())
"""


@pytest.mark.parametrize("leads", [True, False])
def test_a_process_that_is_nice_makes_the_session_nice_that_it_leads_and_no_other(leads):
    """Between sessions nice counts for nothing where Linux groups by them; a shared session is also its neighbours'."""
    before, own, after = subprocess.run(
        [sys.executable, "-c", NICE], start_new_session=leads, check=True, capture_output=True, text=True
    ).stdout.split()
    by = 3 if before != "3" else 4
    assert int(own) == os.nice(0) + by
    assert after == (str(by) if leads and before != "untold" else before)
