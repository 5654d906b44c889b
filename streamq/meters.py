"""What is counted in `{t}:counts` for Prometheus, field by field: workers write it, the API reads it.

Workers come and go, and a scrape of each would lose what it counted last. So each tells Redis once a second what is new,
and the sums outlive it. User text is the last part of a field.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BOUNDS_S", "Histogram", "Meter", "Metered", "fired_field", "metered", "missed_field"]

BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
"""Upper ends of the buckets; the last one has none."""

_LAST, _SHORTEST_S = len(BOUNDS_S), BOUNDS_S[0]
_RUN_WORDS = (*(f"r{place}" for place in range(_LAST + 1)), "rs")
_PLAIN = ("enqueued", "evicted", "late_outcomes", "leases_run_out", "reclaimed", "redis_lost", "stuck")


class Histogram(NamedTuple):
    """How often a duration fell into each bucket, and the sum of all."""

    buckets: list[int]
    sum_s: float


class Metered(NamedTuple):
    """What was counted in one partition, ever."""

    ended: Mapping[tuple[str, str], int]
    """Handler and outcome to number; `retrying` is an outcome of a run as well."""
    runs: Mapping[str, Histogram]
    """Handler to how long its runs took."""
    waits: Histogram
    """From when a job came into its lane to its start."""
    plain: Mapping[str, int]
    """`enqueued`, `evicted`, `late_outcomes`, `leases_run_out`, `reclaimed`, `redis_lost`, `stuck`."""
    fired: Mapping[str, int]
    """Schedule to the last fire time that was enqueued, in ms since 1970."""
    missed: Mapping[str, int]
    """Schedule to the last fire time that was missed."""


class Meter:
    """Counts what happens in one process for one partition, until that is told to Redis. No I/O."""

    __slots__ = ("_ended", "_plain", "_runs", "_waits")

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._ended: dict[tuple[str, str], int] = {}
        self._runs: dict[tuple[str, str], list[float]] = {}
        self._waits: list[float] = [0] * (_LAST + 2)
        self._plain = Counter[str]()

    def end(self, handler: str, outcome: str) -> None:
        """Count the outcome of a job that did not run."""
        key = (handler, outcome)
        self._ended[key] = self._ended.get(key, 0) + 1

    def run(self, handler: str, outcome: str, run_s: float, wait_s: float) -> None:
        """Count a run: what it came to, how long it took, and how long its job had waited for it."""
        key = (handler, outcome)
        row = self._runs.get(key)
        if row is None:
            row = self._runs[key] = [0] * (_LAST + 2)
        row[0 if run_s <= _SHORTEST_S else bisect_left(BOUNDS_S, run_s)] += 1
        row[-1] += run_s
        waits = self._waits
        waits[0 if wait_s <= _SHORTEST_S else bisect_left(BOUNDS_S, wait_s)] += 1
        waits[-1] += wait_s

    def add(self, name: str, number: int = 1) -> None:
        """Count one of `Metered.plain`."""
        self._plain[name] += number

    def taken(self) -> dict[str, int]:
        """Return what is new by its field, and begin anew. Sums are in whole microseconds."""
        ended, runs = Counter(self._ended), dict[str, list[float]]()
        for (handler, outcome), row in self._runs.items():
            ended[handler, outcome] += int(sum(row[:-1]))
            runs[handler] = [one + other for one, other in zip(runs.get(handler, [0] * len(row)), row, strict=True)]
        new = {name: number for name, number in self._plain.items() if number}
        new |= {f"e|{outcome}|{handler}": number for (handler, outcome), number in ended.items()}
        for handler, row in runs.items():
            new |= dict(_fields("r", row, f"|{handler}"))
        new |= dict(_fields("w", self._waits, ""))
        self._reset()
        return new


def _fields(letter: str, row: list[float], suffix: str) -> Iterator[tuple[str, int]]:
    for place, number in enumerate(row[:-1]):
        if number:
            yield f"{letter}{place}{suffix}", int(number)
    if row[-1]:
        yield f"{letter}s{suffix}", round(row[-1] * 1_000_000)


def fired_field(schedule: str) -> str:
    """Return the field of a schedule's last fire time."""
    return f"fired|{schedule}"


def missed_field(schedule: str) -> str:
    """Return the field of a schedule's last missed fire time."""
    return f"missed|{schedule}"


def metered(counts: Mapping[str, int]) -> Metered:
    """Read what `Meter.taken` and schedules wrote; fields that are not known are left out."""
    by_word: dict[str, dict[str, int]] = {}
    for name, number in counts.items():
        word, _, rest = name.partition("|")
        by_word.setdefault(word, {})[rest] = number
    ended = {_handler_and_outcome(rest): number for rest, number in by_word.get("e", {}).items()}
    handlers = {handler for word in _RUN_WORDS for handler in by_word.get(word, ())}
    runs = {
        handler: _histogram({word: by_word.get(word, {}).get(handler, 0) for word in _RUN_WORDS})
        for handler in handlers
    }
    plain = {name: by_word[name][""] for name in _PLAIN if name in by_word}
    waits = _histogram({word: by_word.get(f"w{word[1:]}", {}).get("", 0) for word in _RUN_WORDS})
    return Metered(ended, runs, waits, plain, by_word.get("fired", {}), by_word.get("missed", {}))


def _handler_and_outcome(rest: str) -> tuple[str, str]:
    outcome, _, handler = rest.partition("|")
    return handler, outcome


def _histogram(row: Mapping[str, int]) -> Histogram:
    return Histogram([row[f"r{place}"] for place in range(_LAST + 1)], row["rs"] / 1_000_000)
