"""Children for a parent to have: small programs that speak to it, drain, crash, hang or ignore what they are told."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import streamq
from streamq.parent import Hooks, Output, Pace, Parent, Role

# A worker in small. It drains for as long as the file `hold` exists, and says what it does in files of its own name.
SPEAKER = """
import asyncio, faulthandler, os, signal, sys, time
from pathlib import Path
from streamq.parentlink import ParentLink

folder, name = Path(sys.argv[1]), sys.argv[2]

async def main():
    loop, link, stop = asyncio.get_running_loop(), ParentLink.open(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    for number in (signal.SIGTSTP, signal.SIGCONT):
        loop.add_signal_handler(number, print, f"heard {number.name}")
    faulthandler.register(signal.SIGUSR1)
    link.hello([f"{name}:{os.getpid()}"])
    link.ready()
    ticking = asyncio.create_task(link.keep_ticking(lambda: (1, 3), 0.05))
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(link.gone.wait())]
    while not any(wait.done() for wait in waits):
        if (folder / f"block-{os.getpid()}").exists():
            time.sleep(60)
        await asyncio.wait(waits, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
    (folder / f"gone-{os.getpid()}").write_text(str(link.gone.is_set()))
    while (folder / "hold").exists():
        await asyncio.sleep(0.02)
    link.bye()

asyncio.run(main())
"""

# The same for places of which some are filled with spares.
SPARE = SPEAKER.replace(
    "async def main()",
    """from streamq.parentlink import wait_for_place

place = wait_for_place()
if place is not None:
    name = name.replace("{name}", place.name)
    (folder / f"placed-{os.getpid()}").write_text(f"{place.name} {place.numbers}")

async def main()""",
)


@dataclass
class Children:
    """A folder of programs, and what the tests do with them."""

    folder: Path

    def role(self, source: str, name: str = "worker", **options: Any) -> Role:
        """Make a role that runs this Python source; `sys.argv` has the folder and the child's name."""
        program = self.folder / f"{name}.py"
        program.write_text(source)
        home = Path(streamq.__file__).parent.parent
        options = {"env": {"PYTHONPATH": str(home)}} | options
        return Role(name, [sys.executable, str(program), str(self.folder), "{name}"], **options)

    def speaker(self, instances: int = 1, **options: Any) -> Role:
        """Make a role of children that speak to their parent."""
        return self.role(SPEAKER, instances=instances, **options)

    def spared(self, before: str = "", **options: Any) -> Role:
        """Make a role of such children, of which some may be spares; `before` is done first."""
        return self.role(before + SPARE, **options)

    def hold(self) -> Path:
        """Make draining take until the file that is returned is removed."""
        path = self.folder / "hold"
        path.touch()
        return path


@dataclass
class Record:
    """Everything that a parent told its hooks, in order."""

    deaths: list[tuple[str, str, int, tuple[str, ...], int]] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    beats: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    buried: list[str] = field(default_factory=list)
    is_closed: bool = False
    fault: Exception | None = None

    async def on_death(self, role: str, child: str, pid: int, consumers: Any, returncode: int) -> None:
        """Note a death."""
        self.deaths.append((role, child, pid, tuple(consumers), returncode))

    async def on_hang(self, _role: str, child: str, _pid: int, _consumers: Any) -> None:
        """Note a child that hangs."""
        self.hangs.append(child)

    async def beat(self, consumers: Any) -> None:
        """Note the beats, as a guardian."""
        self._fail()
        self.beats += consumers

    async def renew(self, consumers: Any) -> None:
        """Note whose leases are kept, as a guardian."""
        self._fail()
        self.renewed += consumers

    async def bury(self, consumers: Any) -> None:
        """Note the burials, as a guardian."""
        self._fail()
        self.buried += consumers

    async def close(self) -> None:
        """Note the end, as a guardian."""
        self.is_closed = True

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault

    @property
    def hooks(self) -> Hooks:
        """Hooks that write here."""
        return Hooks(guardian=self, on_death=self.on_death, on_hang=self.on_hang)


@dataclass
class Running:
    """A parent that runs in the test's own event loop."""

    parent: Parent
    record: Record
    out: io.BytesIO
    err: io.BytesIO
    directory: Path
    task: asyncio.Task[int]

    def children(self, name: str = "") -> list[dict[str, Any]]:
        """Describe the children, or those of one name."""
        return [child for child in self.parent.ps()["children"] if name in ("", child["name"])]

    def pids(self, state: str = "ready") -> list[int]:
        """Return the processes in this state, in the order of their names."""
        return [child["pid"] for child in self.children() if child["state"] == state]

    @property
    def said(self) -> str:
        """Everything that was printed until now."""
        return self.out.getvalue().decode() + self.err.getvalue().decode()


QUICK = Pace(first_delay_s=0.02, most_delay_s=0.2, beat_ms=20, dump_s=0.5, presumed_ready_s=0.1)


@pytest.fixture
def children(tmp_path: Path) -> Children:
    """Programs to run as children."""
    folder = tmp_path / "children"
    folder.mkdir()
    return Children(folder)


@pytest.fixture
async def start(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Give a function that starts a parent of some roles. It is stopped at the end, whatever it takes."""
    caplog.set_level("INFO", "streamq")
    started: list[Running] = []

    def _start(
        *roles: Role, pace: Pace = QUICK, record: Record | None = None, heartbeat_file: Path | None = None
    ) -> Running:
        out, err, record = io.BytesIO(), io.BytesIO(), record or Record()
        output = Output(out, err, colour=False)
        parent = Parent(
            roles, directory=tmp_path, hooks=record.hooks, pace=pace, output=output, heartbeat_file=heartbeat_file
        )
        running = Running(parent, record, out, err, tmp_path, asyncio.ensure_future(parent.run()))
        started.append(running)
        return running

    yield _start
    for running in started:
        await _end(running)


async def _end(running: Running) -> None:
    if not running.task.done():
        for child in running.children():
            with suppress(ProcessLookupError):
                os.kill(child["pid"] or 2**22 + 1, 9)
        running.parent.stop()
        await running.task


def lines_of(text: bytes) -> list[dict[str, Any]]:
    """Read lines of JSON."""
    return [json.loads(line) for line in text.splitlines()]
