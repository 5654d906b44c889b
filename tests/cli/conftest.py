"""A shop with jobs to do, and two ways to run the command line on it: in this process, and as real programs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

import streamq
from streamq.cli import run

SHOP = """
from datetime import timedelta
from streamq import Retry, StreamQ

app = StreamQ()

@app.handler(key="user_id")
async def refresh(user_id: str, limit: int = 1, ratio: float = 1.0, full: bool = False, tags: list[str] = []):
    return {"user_id": user_id, "limit": limit, "ratio": ratio, "full": full, "tags": tags}

@app.cron("0 * * * *", handler=refresh)
async def everybody(page):
    return ["u1", "u2"], None

@app.handler(max_attempts=1)
async def fail(word: str):
    raise ValueError(f"bad {word}")

@app.handler
async def stumble():
    raise Retry(timedelta(hours=1))

@app.handler(timeout=None)
async def wait_for(path: str):
    import asyncio, pathlib
    while not pathlib.Path(path).exists():
        await asyncio.sleep(0.01)
"""

OURS = ("STREAMQ_", "REDIS_", "MONGODB_", "WORKER_")


class Told(NamedTuple):
    """What one command line came to."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """Its lines on standard output, cut at the tabs."""
        return [line.split("\t") for line in self.out.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the module `shop`."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.py").write_text(SHOP)
    return folder


@pytest.fixture
def bare(folder, monkeypatch, capsys):
    """Run a command line in this process, in the folder, with nothing of ours in the environment."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)

    def command(*arguments: str, stdin: str = "") -> Told:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = run(arguments)
        return Told(code, *capsys.readouterr())

    yield command
    sys.modules.pop("shop", None)


@pytest.fixture
def command(bare, monkeypatch, redis_url, mongodb_url, mongo_database):
    """The same, with servers, and patience with a machine that has other tests to run."""
    monkeypatch.setattr("streamq.cli.status.PATIENCE_S", 40)
    monkeypatch.setattr("streamq.cli.status.DOCTOR_PATIENCE_S", 40)
    monkeypatch.setattr("streamq.cli.servers.PATIENCE_S", 40)
    for name, value in _servers(redis_url, mongodb_url, mongo_database).items():
        monkeypatch.setenv(name, value)
    return bare


def _servers(redis_url: str, mongodb_url: str, mongo_database: str) -> dict[str, str]:
    return {
        "REDIS_URL": redis_url,
        "MONGODB_URL": mongodb_url,
        "STREAMQ_MONGODB_DATABASE": mongo_database,
        "STREAMQ_APP": "shop:app",
    }


class Running:
    """A program that was started; its output goes to a file, so that it can never block on us."""

    def __init__(self, arguments, folder: Path, env: dict[str, str]) -> None:
        self._path = folder / f"output-{os.urandom(4).hex()}"
        with self._path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamq", *arguments], cwd=folder, env=env, stdout=output, stderr=output
            )

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self._path.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(50)


@dataclass
class Programs:
    """Starts real programs in the folder of the shop."""

    folder: Path
    env: dict[str, str]
    started: list[Running] = field(default_factory=list)

    def run(self, *arguments: str, **env: str) -> Told:
        """Run a program to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "streamq", *arguments],
            cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        return Told(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **env: str) -> Running:
        """Start a program that stays."""
        self.started.append(Running(arguments, self.folder, {**self.env, **env}))
        return self.started[-1]


@pytest.fixture
def bare_programs(folder):
    """Run real programs, with nothing of ours in their environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    programs = Programs(
        folder, inherited | {"PYTHONPATH": str(Path(streamq.__file__).parents[1]), "PYTHONSAFEPATH": "1"}
    )
    yield programs
    for running in programs.started:
        running.stop()


@pytest.fixture
def programs(bare_programs, redis_url, mongodb_url, mongo_database):
    """The same, with servers."""
    bare_programs.env |= _servers(redis_url, mongodb_url, mongo_database)
    return bare_programs
