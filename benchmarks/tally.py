"""What handlers tell the benchmark while they run: a count in shared memory, lines in a journal.

A handler that is measured must not pay for it. Counting is one store into a mapped file (50 ns); the driver reads it
from outside and does all the arithmetic.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Journal", "JournalLine", "Tallies", "counter", "counter_for_threads", "journal", "recorder_of_values"]

FOLDER = "STREAMQ_BENCH_TALLY"
"""The environment variable that names the folder."""

_STEP = 100
_MARKS = 40_000
_VALUES = 100_000


def _mapped(kind: str, length: int) -> memoryview:
    """Map a file of 64-bit integers that carries this process's id."""
    file = os.open(Path(os.environ[FOLDER]) / f"{os.getpid()}.{kind}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(file, length * 8)
        return memoryview(mmap.mmap(file, length * 8)).cast("q")
    finally:
        os.close(file)


def counter() -> Callable[[], None]:
    """Return a function that counts one job as done. From one thread only."""
    slots = _mapped("count", _MARKS)
    now, count = time.monotonic_ns, 0

    def done() -> None:
        nonlocal count
        count += 1
        slots[0] = count
        if not count % _STEP and count < (_MARKS - 1) * _STEP:
            slots[count // _STEP] = now()

    return done


def counter_for_threads() -> Callable[[], None]:
    """Return a function that counts one job as done, from any thread."""
    done, turn = counter(), threading.Lock()

    def done_in_turn() -> None:
        with turn:
            done()

    return done_in_turn


def recorder_of_values() -> Callable[[int], None]:
    """Return a function that keeps one integer per job."""
    slots = _mapped("values", _VALUES)
    count = 0

    def keep(value: int) -> None:
        nonlocal count
        count += 1
        slots[count] = value
        slots[0] = count

    return keep


class Tallies:
    """The driver's side: what all processes that were given this folder have counted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = {FOLDER: str(folder)}
        self._maps: dict[int, memoryview] = {}

    def counts(self) -> dict[int, int]:
        """Return process id to jobs done."""
        for file in self.folder.glob("*.count"):
            pid = int(file.stem)
            if pid not in self._maps and file.stat().st_size:
                with file.open("rb") as opened:
                    self._maps[pid] = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)).cast("q")
        return {pid: slots[0] for pid, slots in self._maps.items()}

    def total(self) -> int:
        """Return how many jobs were done."""
        return sum(self.counts().values())

    def marks_ns(self, pid: int) -> dict[int, int]:
        """Return at which monotonic time each hundredth job of a process ended."""
        slots = self._maps[pid]
        return {number * _STEP: slots[number] for number in range(1, len(slots)) if slots[number]}

    def noted(self) -> int:
        """Return how many integers handlers have kept."""
        return sum(_first(file) for file in self.folder.glob("*.values"))

    def values(self) -> list[int]:
        """Return the integers that handlers kept, in the order of each process."""
        found: list[int] = []
        for file in self.folder.glob("*.values"):
            length = _first(file)
            found += struct.unpack_from(f"{length}q", file.read_bytes(), 8)
        return found


def _first(file: Path) -> int:
    with file.open("rb") as opened:
        return int(struct.unpack("q", opened.read(8).ljust(8, b"\0"))[0])


class JournalLine(NamedTuple):
    """Something that happened to a job in a handler."""

    what: str
    """`start` or `end`."""
    name: str
    pid: int
    at_ns: int
    """Monotonic, the same clock in all processes."""
    attempt: int


def journal() -> Callable[[str, str, int], None]:
    """Return a function that appends one line; a line outlives the process that wrote it, whole."""
    file = os.open(Path(os.environ[FOLDER]) / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(what: str, name: str, attempt: int = 1) -> None:
        os.write(file, f"{what} {name} {os.getpid()} {time.monotonic_ns()} {attempt}\n".encode())

    return write


class Journal:
    """The driver's side of the journal."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "journal"

    def lines(self) -> list[JournalLine]:
        """Return what was written so far, in order."""
        if not self._file.exists():
            return []
        whole = self._file.read_text()
        found = (line.split(" ") for line in whole[: whole.rfind("\n") + 1].splitlines())
        return [JournalLine(what, name, int(pid), int(at), int(attempt)) for what, name, pid, at, attempt in found]
