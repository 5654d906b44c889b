"""Programs that are measured from outside: started, watched, ended, and their processor time read."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["TREE", "Child", "CpuClock", "children_of", "remember", "run_to_json"]

TREE = Path(__file__).resolve().parent.parent
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


_started: list[subprocess.Popen[bytes]] = []


def remember(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """See to it that a program does not outlive this one, however this one ends."""
    _started.append(process)
    return process


@atexit.register
def _end_all() -> None:
    for process in _started:
        if process.poll() is None:
            process.kill()


class CpuClock:
    """Processor time of a process with all its threads, in seconds."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._schedstat = self._tasks / str(pid) / "schedstat"
        self._stat = Path(f"/proc/{pid}/stat")
        self._last = self._last_queued = 0.0

    def seconds(self) -> float:
        """Return the time used so far; after the end of the process, what was last seen."""
        with contextlib.suppress(OSError):
            self._last = self._scheduled(0)
        return self._last

    def queued_seconds(self) -> float:
        """Return how long the process was ready to run and had no core; 0 where the kernel does not tell."""
        with contextlib.suppress(OSError):
            self._last_queued = self._scheduled(1) if self._schedstat.exists() else 0.0
        return self._last_queued

    def _scheduled(self, field: int) -> float:
        if not self._schedstat.exists():
            fields = self._stat.read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) * _TICK_S
        total = 0
        for task in os.listdir(self._tasks):  # noqa: PTH208 - names are all that is wanted, a thousand times a second
            with contextlib.suppress(OSError):
                total += int((self._tasks / task / "schedstat").read_bytes().split()[field])
        return total / 1e9


AS_IN_PRODUCTION = {"PYTHONDEVMODE": "", "PYTHONASYNCIODEBUG": ""}
"""Not what the benchmark itself may run with: asyncio's debug mode alone takes more than twice the instructions of a job."""


class Child:
    """A program of ours in a process group of its own; the whole group is gone when its context ends."""

    def __init__(
        self, *arguments: str, environment: Mapping[str, str] | None = None, program: Sequence[str] = (sys.executable,)
    ) -> None:
        """Start `python ARGUMENTS`, or another program, in the folder of the project, its output in a file."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self.process = remember(
            subprocess.Popen(
                [*program, *arguments],
                cwd=TREE,
                env={**os.environ, **AS_IN_PRODUCTION, "PYTHONPATH": _python_path(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
        )
        self.pid = self.process.pid
        self.cpu = CpuClock(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._output.close()

    @property
    def is_alive(self) -> bool:
        """Whether the program runs."""
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """What it has written so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def assert_alive(self) -> None:
        """Raise with its last words if it has ended."""
        if not self.is_alive:
            raise RuntimeError(f"the program ended with {self.process.returncode}:\n{self.output[-4000:]}")

    def stop(self, *, wait_s: float = 30) -> int:
        """Ask it to end as a supervisor does, and return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait_s)

    def signal_all(self, which: signal.Signals) -> None:
        """Send a signal to the program and to every process that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, which)

    def kill(self) -> None:
        """End the program and its children at once."""
        children = children_of(self.pid)
        self.signal_all(signal.SIGKILL)
        for pid in children:  # a child may have made a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _python_path() -> str:
    """Name the folder of this package first, also where the working directory does not count."""
    return os.pathsep.join(filter(None, [str(TREE), os.environ.get("PYTHONPATH")]))


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started and that live, with theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def run_to_json(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable,),
    wait_s: float = 600,
) -> Any:
    """Run a program to its end and return the JSON of its last line."""
    with Child(*arguments, environment=environment, program=program) as child:
        until = time.monotonic() + wait_s
        while child.is_alive and time.monotonic() < until:
            time.sleep(0.01)
        if child.process.returncode != 0:
            raise RuntimeError(
                f"{' '.join(arguments[:3])} ended with {child.process.returncode}:\n{child.output[-4000:]}"
            )
        return json.loads(child.output.rstrip().rpartition("\n")[2])
