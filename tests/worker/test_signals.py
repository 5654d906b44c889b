"""Real worker processes, and what each signal does to them and to their jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

import streamq
from streamq import StreamQ
from streamq.keys import Keys
from tests.conftest import children_of, is_running

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import asyncio, json, os, pathlib
from streamq import StreamQ, current_job

app = StreamQ()
folder = pathlib.Path(__file__).parent

@app.handler(timeout=None, queue=os.environ["STREAMQ_QUEUES"])
async def wait_for(name: str):
    job = current_job()
    with (folder / "starts").open("a") as starts:
        starts.write(json.dumps({"name": name, "pid": os.getpid(), "attempt": job.attempt, "fence": job.fence}) + "\\n")
    while not (folder / name).exists():
        await asyncio.sleep(0.01)
"""


@dataclass
class House:
    """A folder with an application, and workers that were started in it."""

    folder: Path
    url: str
    queue: str
    """Of this house alone: a child that outlives its parent may not take the next one's job."""
    handler: Any
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker, or a parent; its output goes to a file, so that it can never block on us."""
        home = str(Path(streamq.__file__).parent.parent)
        environment = {**os.environ, "REDIS_URL": self.url, "PYTHONPATH": home, "STREAMQ_HISTORY": "false"} | settings
        environment["STREAMQ_QUEUES"] = self.queue
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamq", "worker", "house", "--log-format", "json", *arguments],
                cwd=self.folder, env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        self.started.append(process)
        return process

    def enqueue(self, name: str) -> None:
        """Enqueue a job that runs until there is a file of its name."""
        self.handler.enqueue_sync(name)

    def let_end(self, name: str) -> None:
        """Let that job end."""
        (self.folder / name).touch()

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Every start of a job, in order."""
        path = self.folder / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def output(self) -> str:
        """All that was printed."""
        return (self.folder / "output").read_text()

    def left(self) -> int:
        """Return how many jobs have not ended."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.hlen(Keys(self.queue).index))


@pytest.fixture
def house(redis_url: str, queue_name: str, tmp_path: Path) -> Iterator[House]:
    """Give a folder with an application; what was started there is killed at the end."""
    (tmp_path / "house.py").write_text(PROGRAM)
    app = StreamQ(redis_url=redis_url)

    @app.handler(name="wait_for", queue=queue_name)
    async def wait_for(name: str) -> None: ...

    made = House(tmp_path, redis_url, queue_name, wait_for)
    yield made
    running = {start["pid"] for start in made.starts}
    for process in made.started:
        running |= children_of(process.pid)
        process.kill()
        process.wait()
    for pid in running:  # children of parents that are gone would drain for half a minute, in a server that others use
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_term_lets_a_running_job_end_and_starts_no_other(house, eventually_sync):
    worker = house.start("--no-parent", "--concurrency", "1")
    house.enqueue("first")
    house.enqueue("second")
    eventually_sync(lambda: house.starts, "the first job runs")
    worker.send_signal(signal.SIGTERM)
    eventually_sync(lambda: "worker.draining" in house.output, "it drains")
    house.let_end("first")
    house.let_end("second")
    assert worker.wait(50) == 0
    assert [start["name"] for start in house.starts] == ["first"]
    assert house.left() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_second_signal_hands_back_what_runs_and_it_starts_again_with_its_attempt(house, eventually_sync, number):
    worker = house.start("--no-parent")
    house.enqueue("job")
    eventually_sync(lambda: house.starts, "it runs")
    worker.send_signal(number)
    eventually_sync(lambda: "worker.draining" in house.output, "it drains")
    worker.send_signal(number)
    assert worker.wait(50) == 130
    house.let_end("job")
    house.start("--no-parent")
    eventually_sync(lambda: house.left() == 0, "the job has ended elsewhere")
    first, second = house.starts
    assert (first["attempt"], second["attempt"]) == (1, 1)
    assert second["fence"] > first["fence"]


def test_past_its_grace_a_job_is_handed_back_and_the_exit_is_clean(house, eventually_sync):
    worker = house.start("--no-parent", "--drain-timeout", "0.2")
    house.enqueue("job")
    eventually_sync(lambda: house.starts, "it runs")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(50) == 0
    assert house.left() == 1
    assert '"released":1' in house.output.replace(" ", "")


def test_a_quiet_worker_starts_nothing_until_it_is_told_to_go_on(house, eventually_sync):
    worker = house.start("--no-parent")
    house.enqueue("before")
    eventually_sync(lambda: house.starts, "it runs")
    worker.send_signal(signal.SIGTSTP)
    eventually_sync(lambda: "worker.quiet" in house.output, "it is quiet")
    house.enqueue("after")
    house.let_end("before")
    eventually_sync(lambda: house.left() == 1, "what ran has ended")
    assert [start["name"] for start in house.starts] == ["before"]
    worker.send_signal(signal.SIGCONT)
    eventually_sync(lambda: len(house.starts) == 2, "the other runs")


def test_usr1_logs_what_runs_and_where_it_stands(house, eventually_sync):
    worker = house.start("--no-parent")
    house.enqueue("job")
    eventually_sync(lambda: house.starts, "it runs")
    worker.send_signal(signal.SIGUSR1)
    eventually_sync(lambda: "job.running" in house.output, "it tells what runs")
    eventually_sync(lambda: "most recent call first" in house.output, "it tells where its threads stand")
    eventually_sync(lambda: "await asyncio.sleep(0.01)" in house.output, "it tells the very line of the handler")
    assert worker.poll() is None


def test_the_jobs_of_a_killed_child_run_again_at_once_and_no_attempt_is_used(house, eventually_sync):
    """The first net: its parent saw it die. The others would take longer than this waits."""
    house.start(
        "-n", "2", "--directory", str(house.folder / "run"), STREAMQ_DEAD_AFTER_MS="300000", STREAMQ_LEASE_MS="600000"
    )
    house.enqueue("job")
    eventually_sync(lambda: house.starts, "it runs")
    os.kill(house.starts[0]["pid"], signal.SIGKILL)
    eventually_sync(lambda: len(house.starts) == 2, "it runs again")
    first, second = house.starts
    assert second["pid"] != first["pid"]
    assert second["attempt"] == 1
    house.let_end("job")
    eventually_sync(lambda: house.left() == 0, "it has ended")


def test_workers_whose_parent_was_killed_finish_their_jobs_and_end(house, eventually_sync):
    """Nobody restarts them any more, and nobody reads their output; but the job is theirs until it ends."""
    parent = house.start("-n", "1", "--directory", str(house.folder / "run"))
    house.enqueue("job")
    eventually_sync(lambda: house.starts, "it runs")
    parent.kill()
    parent.wait()
    house.let_end("job")
    eventually_sync(lambda: house.left() == 0, "the job ends where it ran")
    assert len(house.starts) == 1
    eventually_sync(lambda: not is_running(house.starts[0]["pid"]), "the worker ends")
