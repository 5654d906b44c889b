"""Spares: warm processes that take the place of one that died."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import orjson

import streamq
from tests.conftest import free_port, is_running


def a_spare(running):
    """Return the pid of the spare that is warm; None: there is none."""
    return next((child["pid"] for child in running.children("worker.spare") if child["state"] == "spare"), None)


async def test_a_spare_takes_the_place_of_a_child_that_dies_and_another_is_started(start, children, eventually):
    """It has done already what takes long. Name and numbers are those of the place."""
    running = start(children.spared(instances=2, spares=1, numbered={"STREAMQ_HEALTH_PORT": 9000}))
    await eventually(lambda: len(running.pids()) == 2, "both are ready")
    spare = await eventually(lambda: a_spare(running), "there is a spare")
    victim = running.children("worker.2")[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: running.children("worker.2")[0]["pid"] == spare, "the spare has its place")
    await eventually(lambda: running.children("worker.2")[0]["state"] == "ready", "and works")
    assert running.children("worker.2")[0]["consumers"] == [f"worker.2:{spare}"]
    assert (children.folder / f"placed-{spare}").read_text() == "worker.2 {'STREAMQ_HEALTH_PORT': 9001}"
    another = await eventually(lambda: a_spare(running), "there is another spare")
    assert another not in (victim, spare)
    assert running.record.buried == [f"worker.2:{victim}"]
    running.parent.stop()
    assert await running.task == 0
    assert not is_running(another)
    assert len(running.record.deaths) == 3


async def test_a_restart_replaces_the_spares_as_well(start, children, eventually):
    """They have imported what is old now."""
    running = start(children.spared(spares=1))
    old = await eventually(lambda: a_spare(running), "there is a spare")
    first = running.pids()[0]
    running.parent.restart("worker")
    await eventually(lambda: running.pids() and first not in running.pids(), "the worker is another one")
    await eventually(lambda: a_spare(running) not in (None, old), "so is the spare")
    assert old not in running.pids()
    assert not is_running(old)


async def test_a_spare_that_cannot_start_is_told_and_the_workers_go_on(start, children, eventually, caplog):
    running = start(
        children.spared(before="import os, sys\nif os.environ.get('STREAMQ_PARENT_STANDBY'): sys.exit(3)\n", spares=1)
    )
    await eventually(lambda: "parent.no_spare" in caplog.messages, "it is told")
    told = next(record for record in caplog.records if record.msg == "parent.no_spare")
    assert told.text == "worker.spare cannot start, so there is none: exit 3"
    assert len(running.pids()) == 1
    assert not running.children("worker.spare")


def test_a_spare_ends_with_its_parent():
    """Nobody could give it a place any more."""
    ours, theirs = socket.socketpair()
    home = Path(streamq.__file__).parent.parent
    environment = {"STREAMQ_PARENT_FD": str(theirs.fileno()), "STREAMQ_PARENT_STANDBY": "1", "PYTHONPATH": str(home)}
    with ours, theirs:
        program = subprocess.Popen(
            [sys.executable, "-c", "from streamq.parentlink import wait_for_place; wait_for_place(); print('on')"],
            env=os.environ | environment,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
        )
        theirs.close()
        assert ours.recv(100) == b'{"type":"warm"}\n'
    assert program.communicate(timeout=60) == (b"", None)
    assert program.returncode == 0


async def test_a_real_spare_answers_for_the_worker_that_was_killed(redis_url, tmp_path, eventually):
    """With its name, on its port, and it runs jobs."""
    (tmp_path / "warm.py").write_text(
        "from streamq import StreamQ\napp = StreamQ()\n@app.handler\nasync def job() -> None: ...\n"
    )
    port = free_port()
    home = Path(streamq.__file__).parent.parent
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamq", "worker", "warm:app", "-n", "1", "--warm-spare", "1", "--name", "host",
        "--health-port", str(port),
        cwd=tmp_path,
        env=os.environ | {"REDIS_URL": redis_url, "STREAMQ_HISTORY": "false", "PYTHONPATH": f"{home}:{tmp_path}"},
    )  # fmt: skip

    async def seen() -> dict[str, str]:
        listing = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamq", "ps", "--json", cwd=tmp_path, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(home)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        told, _ = await listing.communicate()
        found = orjson.loads(told)["children"] if listing.returncode == 0 else []
        return {child["name"]: child for child in found}

    async def warm() -> dict[str, str] | None:
        found = await seen()
        return found if found.get("worker.spare", {}).get("state") == "spare" else None

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=40) as answer:
                return answer.status == 200
        except OSError:
            return False

    before = await eventually(warm, "there is a spare")
    os.kill(before["worker.1"]["pid"], signal.SIGKILL)

    async def replaced() -> bool:
        worker = (await seen())["worker.1"]
        return worker["pid"] == before["worker.spare"]["pid"] and worker["state"] == "ready"

    await eventually(replaced, "the spare works")
    await eventually(lambda: asyncio.to_thread(answers), "on the port of the one that was killed")
    assert (await seen())["worker.1"]["consumers"][0].startswith("host.worker.1.")
    program.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(program.wait(), 60) == 0
