"""`streamq health`: what a container's probe is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from streamq.process import HEARTBEAT_LIMIT_S, READY, beat_file
from tests.conftest import free_port


@pytest.mark.parametrize(
    ("words", "live", "ready"),
    [(READY, (0, "ok\n"), (0, "ok\n")), ("the worker is quiet", (0, "ok\n"), (1, "the worker is quiet\n"))],
    ids=["ready", "quiet"],
)
def test_live_asks_for_a_fresh_file_and_ready_for_its_words(bare, tmp_path, words, live, ready):
    path = tmp_path / "heartbeat"
    beat_file(path, words)
    for what, (code, out) in (("live", live), ("ready", ready)):
        told = bare("health", what, "--file", str(path))
        assert (told.code, told.out) == (code, out)


def test_an_old_heartbeat_is_that_of_a_process_that_is_stuck(bare, tmp_path, monkeypatch):
    path = tmp_path / "heartbeat"
    beat_file(path)
    os.utime(path, (time.time() - HEARTBEAT_LIMIT_S - 12,) * 2)
    monkeypatch.setenv("STREAMQ_HEARTBEAT_FILE", str(path))
    told = bare("health", "live")
    assert told.code == 1
    assert told.out == "the last heartbeat was 42 s ago: stuck, or gone\n"


def test_without_a_file_the_answer_is_no_and_says_where_it_was_looked_for(bare, tmp_path):
    told = bare("health", "ready", "--file", str(tmp_path / "nope"))
    assert (told.code, told.out) == (1, f"there is no heartbeat file {tmp_path / 'nope'}\n")
    (tmp_path / "file").touch()
    told = bare("health", "ready", "--file", str(tmp_path / "file" / "nope"))
    assert (told.code, "cannot be read: Not a directory" in told.out) == (1, True)


def test_a_probe_without_a_file_to_look_at_says_what_to_set(bare):
    told = bare("health", "live")
    assert told.code == 78
    assert "no heartbeat file is named" in told.err
    assert "STREAMQ_HEARTBEAT_FILE" in told.err


def test_the_file_may_stand_in_the_settings_of_the_project(bare, folder, tmp_path):
    beat_file(tmp_path / "heartbeat")
    (folder / "pyproject.toml").write_text(f'[tool.streamq]\nheartbeat_file = "{tmp_path}/heartbeat"\n')
    assert bare("health", "ready").out == "ok\n"


def test_a_probe_imports_neither_settings_nor_servers(tmp_path):
    """It starts every few seconds in every container."""
    beat_file(tmp_path / "heartbeat")
    source = (
        "import sys\nfrom streamq.cli import run\n"
        f"code = run(['health', 'live', '--file', {str(tmp_path / 'heartbeat')!r}])\n"
        "heavy = {'asyncio', 'msgspec', 'redis', 'pymongo', 'streamq.settings', 'streamq.app'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("0 set()\n")


def test_workers_of_a_parent_answer_on_ports_of_their_own_and_the_parent_beats(
    programs, command, folder, eventually_sync, tmp_path
):
    """One port cannot say which of them is ready."""
    import httpx

    port = free_port(neighbours=1)
    heartbeat = tmp_path / "beat"
    parent = programs.start(
        "worker", "-n", "2", "--health-port", str(port), "--heartbeat-file", str(heartbeat), "--name", "w"
    )

    def answers(number: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port + number}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    eventually_sync(lambda: answers(0) and answers(1), "both are ready")
    eventually_sync(lambda: command("health", "ready", "--file", str(heartbeat)).code == 0, "the parent is ready")
    parent.process.send_signal(20)  # TSTP
    eventually_sync(
        lambda: command("health", "ready", "--file", str(heartbeat)).out == "quiet\n", "the parent is quiet"
    )
    assert command("health", "live", "--file", str(heartbeat)).code == 0
    assert parent.stop() == 0
