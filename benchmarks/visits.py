"""A load of users some of whom take a hundred times as long as others, and when each of them starts, in any queue."""

from __future__ import annotations

import json
import random
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.drains import tallied
from benchmarks.harness import percentile
from benchmarks.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.processes import Child
    from benchmarks.servers import RedisServer

__all__ = [
    "SLOTS",
    "SLOW_IN_TEN",
    "TIMES_SLOWER",
    "Hour",
    "JournalReader",
    "Visit",
    "hours_of",
    "listed",
    "load_of",
    "watched",
]

SLOTS = 6
SLOW_IN_TEN = 2
TIMES_SLOWER = 100
BETWEEN_S = 2.0
"""From the end of an hour to the next one, which is much longer in life: a queue may learn meanwhile."""


class Visit(NamedTuple):
    """One job: a user's data is refreshed."""

    user: str
    ms: float
    """How long it takes."""
    hint: float | None = None
    """What the producer believes."""


@dataclass(frozen=True)
class Hour:
    """What one run of a load came to."""

    waits_s: dict[str, float]
    """User to the time from the first enqueue to the start."""
    took_s: float
    """To the end of the last job that was awaited."""

    def p99(self, users: Sequence[str]) -> float:
        """Return the 99th percentile of the waits of some users."""
        return percentile([self.waits_s[user] for user in users], 99)

    def sides(self, fast: Sequence[str], slow: Sequence[str]) -> tuple[list[float], list[float]]:
        """Return the waits of some users and of others."""
        return [self.waits_s[user] for user in fast], [self.waits_s[user] for user in slow]


def load_of(users: int, fast_ms: float, seed_of_dice: int) -> tuple[list[Visit], list[str], list[str]]:
    """Return the visits in random order, who is fast, and who is slow. Hints are off by up to a half."""
    dice = random.Random(seed_of_dice)
    visits = []
    for number in range(users):
        ms = fast_ms * (TIMES_SLOWER if number % 10 < SLOW_IN_TEN else 1)
        visits.append(Visit(f"u{number}", ms, round(1000 * ms * dice.uniform(0.5, 1.5), 1)))
    dice.shuffle(visits)
    slow = [each.user for each in visits if each.ms > fast_ms]
    fast = [each.user for each in visits if each.ms == fast_ms]
    return visits, fast, slow


def hours_of(
    work: Callable[..., Child],
    produce: Callable[..., Any],
    server: RedisServer,
    visits: Sequence[Visit],
    hours: int = 1,
) -> Hour:
    """Have a queue do the visits of so many hours, and tell of the last.

    Not every worker blocks in Redis, so it proves itself by a first visit.

    Args:
        work: Starts a worker with a number of slots, a setting, a server and its tallies.
        produce: Runs the producing side with a server, a mode and its sizes.
        server: An empty one.
        visits: Who comes each hour, in this order.
        hours: A queue that learns has learned before the last.
    """
    everybody = {each.user for each in visits}
    with tallied() as tallies, work(SLOTS, "default", server, tallies) as child:
        journal = tallies.folder / "journal"
        _hand_over(produce, server, [Visit("warm-up", 0.0)])
        wait_until(lambda: journal.exists() and b"end warm-up" in journal.read_bytes(), "the worker works", child)

        def hour() -> Hour:
            written = journal.stat().st_size
            return watched(tallies.folder, visits, _hand_over(produce, server, visits), child, everybody, written)

        for _ in range(hours - 1):
            hour()
            time.sleep(BETWEEN_S)
        return hour()


def _hand_over(produce: Callable[..., Any], server: RedisServer, visits: Sequence[Visit]) -> int:
    with listed([f"{each.ms:g} {each.user}" for each in visits]) as file:
        return int(produce(server, "listed", file=file, job="long")["began_ns"])


@contextmanager
def listed(rows: Sequence[object]) -> Iterator[str]:
    """Write down what is to be enqueued."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(rows, file)
        file.flush()
        yield file.name


def watched(
    folder: Path, visits: Sequence[Visit], began_ns: int, child: Child, awaited: set[str], begins_at: int = 0
) -> Hour:
    """Read what the handlers write down, from a place in their journal on, until the visits of some users have ended."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    read = JournalReader(folder / "journal", starts, ends, begins_at)

    def is_over() -> bool:
        read()
        return awaited <= ends.keys()

    wait_until(is_over, f"{len(visits)} visits have ended", child, limit_s=240)
    waits = {user: (at_ns - began_ns) / 1e9 for user, at_ns in starts.items()}
    return Hour(waits, (max(ends.values()) - began_ns) / 1e9)


class JournalReader:
    """Reads what the handlers have written since the last look, when it is called."""

    def __init__(self, file: Path, starts: dict[str, int], ends: dict[str, int], begins_at: int = 0) -> None:
        self._file = file
        self._kinds = {"start": starts, "end": ends}
        self._read = begins_at

    def __call__(self) -> None:
        """Look again."""
        if not self._file.exists():
            return
        with self._file.open("rb") as opened:
            opened.seek(self._read)
            new = opened.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            what, user, _pid, at_ns, _attempt = line.split(" ")
            self._kinds[what].setdefault(user, int(at_ns))
