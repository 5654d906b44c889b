"""What the tests of `streamq dev` share: the program, started in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import streamq
from streamq import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_S = 100

_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "STREAMQ_MONGOD", "COVERAGE_PROCESS_CONFIG")


@dataclass
class Dev:
    """Starts `streamq dev` in a folder, and reads what it says."""

    folder: Path
    eventually: Callable[..., Any]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str, err: int | None = None) -> subprocess.Popen[bytes]:
        """Start it. Its output goes to files, so that no full pipe stops it."""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as plain:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamq", "dev", *arguments, "--port", "0"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=plain if err is None else err,
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> int:
        """Run it to its end, and return the exit code."""
        return self.start(*arguments).wait(PATIENCE_S)

    @property
    def environment(self) -> dict[str, str]:
        """Ours, without anything that says where servers are."""
        home = str(Path(streamq.__file__).parent.parent)
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return env | {"PYTHONPATH": home}

    @property
    def out(self) -> str:
        """What it has printed."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it has said beside that."""
        return (self.folder / "err").read_text()

    def document(self) -> dict[str, Any]:
        """Read standard output as the one document that it must be."""
        told: dict[str, Any] = json.loads(self.out)
        return told

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it says something."""

        def found_or_over() -> Any:
            return re.search(pattern, self.out + self.err) or self.started[-1].poll() is not None

        self.eventually(found_or_over, f"it says {pattern!r}", timeout=PATIENCE_S)
        found = re.search(pattern, self.out + self.err)
        assert found, f"it ended without saying {pattern!r}:\n{self.out}{self.err}"
        return found

    def pid_of(self, child: str) -> int:
        """Return the process id of a child."""
        return int(self.wait_for(rf"{re.escape(child)} started, pid (\d+)")[1])

    def token(self) -> str:
        """Read the token where the banner says it."""
        return self.wait_for(r"token +(\S+)")[1]

    def get(self, route: str, token: str | None) -> tuple[int, bytes]:
        """Ask a route of the API. Returns the status and the body."""
        address = self.wait_for(r"API +(http://\S+)")[1]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.get(f"{address}/app/job-status/{route}", headers=headers)
        return answer.status_code, answer.content

    def stats(self, token: str) -> dict[str, Any]:
        """Ask how many jobs are where; nothing is known of any before the API answers."""
        status, body = self.get("queue/stats", token)
        told: dict[str, Any] = json.loads(body) if status == 200 else {"completed": 0}
        return told

    def servers_run(self) -> list[bool]:
        """Tell whether the embedded servers of the folder run."""
        data = self.folder / ".streamq"
        records = json.loads((data / "endpoints.json").read_text())
        servers = [embedded.RedisServer(data / "redis"), embedded.MongoServer(data / "mongodb")]
        return [server.adopt(records.get(server.name, {})) for server in servers]


@pytest.fixture
def dev(tmp_path: Path, eventually_sync: Callable[..., Any]) -> Iterator[Dev]:
    """A folder to start it in; whatever a failing test has left running is stopped."""
    dev = Dev(tmp_path, eventually_sync)
    yield dev
    for process in dev.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    if (tmp_path / ".streamq").exists():
        embedded.stop(tmp_path / ".streamq")
