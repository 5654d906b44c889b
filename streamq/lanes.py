"""Lanes: what counts as slow, told by the run times themselves, and who may read how much. Pure: no I/O, no clock.

Run times are counted in bins of a quarter of an octave, hints in bins of an octave: the logarithm is what separates a user of
2 ms from one of 200 ms, whatever the unit. Otsu's method cuts such a histogram in two where the parts differ most from
each other for their width. See https://doi.org/10.1109/TSMC.1979.4310076.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "BINS", "NO_HINT", "RIGHT_OF_SHARE", "RUN_BINS", "HintJudge", "Learned", "cost_field", "hint_bin", "hint_cut", "limit_of", "measured_cut", "reads", "reason_of", "run_bin",
    "slow_right", "slow_room", "slow_share", "whose",
]  # fmt: skip

RUN_BINS, BINS = 128, 64
"""Of run times, and of hints."""
LEAST_SLOW_MS = 10.0
"""A job that is over sooner holds nobody up."""

ENOUGH = 20
"""With fewer values than this nothing is said of their distribution."""
_ENOUGH_OF_EACH = 5
_TIMES_SLOWER = 4.0
"""Slow are jobs only if they take so many times as long as the others, on average."""

RIGHT_OF_SHARE = 4
"""Slow jobs have this part of their share by right, however many fast ones wait."""

_HINT_OFFSET = 20
NO_HINT = "-"
"""Stands where a job without a hint has no bin."""
_FIRST_BIN = ord("0")

_BY_PRIORITY = ((4, 1), (5, 2), (6, 3))
"""Slow and fast lane of each priority, the highest first."""


def run_bin(ms: float) -> int:
    """Return the bin of a run time: four of them make an octave, and all up to a millisecond share one."""
    return min(RUN_BINS - 1, int(4 * math.log2(ms))) if ms > 1 else 0


def hint_bin(hint: float) -> int:
    """Return the bin of a hint, on whatever scale it is: one makes an octave, from 2**-20 to 2**43."""
    return max(0, min(BINS - 1, math.floor(math.log2(hint)) + _HINT_OFFSET)) if hint > 0 else 0


def cost_field(handler: str, key: str) -> str:
    """Return the field of a handler's key in the table of costs."""
    return f"{handler}|{key}"


def whose(handler: str, key: str | None, hint: float | None) -> str:
    """Say to `add.lua` whose job it is, and how costly the producer thinks it is."""
    if key is None and hint is None:
        return ""
    sign = NO_HINT if hint is None else chr(_FIRST_BIN + hint_bin(hint))
    return sign if key is None else f"{sign}{handler}|{key}"


def reason_of(why: str) -> str:
    """Tell in words why a job is slow; nothing for one that nobody knows to be slow.

    Args:
        why: As entries of slow lanes and records have it.
    """
    word, _, ms = why.partition(" ")
    words = {
        "learned": f"jobs of this user took {ms} ms",
        "hint": "its cost stands out from those of other jobs",
        "overran": f"it ran for {ms} ms in the lane for fast jobs",
    }
    return words.get(word, "")


def limit_of(counts: Sequence[int]) -> float | None:
    """Return the run time in ms from which jobs are slow, or None if they do not fall into two groups.

    Args:
        counts: Runs by `run_bin`.
    """
    cut = _otsu(counts)
    if cut is None or not _differ(counts, cut, lambda place: 2 ** ((place + 0.5) / 4)):
        return None
    return max(LEAST_SLOW_MS, 2 ** (cut / 4))


def hint_cut(counts: Sequence[int]) -> int | None:
    """Return the bin from which hints mean slow, going by nothing but the hints that were given."""
    cut = _otsu(counts)
    return cut if cut is not None and _differ(counts, cut, lambda place: 2 ** (place + 0.5)) else None


def measured_cut(fast: Sequence[int], slow: Sequence[int]) -> int | None:
    """Return the bin from which hints meant slow, going by what their jobs took; None before some of each were seen.

    It is the one that would have put the fewest jobs into the wrong lane; of several as good, the middle one.
    """
    if sum(fast) < _ENOUGH_OF_EACH or sum(slow) < _ENOUGH_OF_EACH:
        return None
    slow_below = [0, *accumulate(slow)]
    fast_below = [0, *accumulate(fast)]
    return _middle_of_least([below - quick for below, quick in zip(slow_below, fast_below, strict=True)])


def _otsu(counts: Sequence[int]) -> int | None:
    """Return the first bin of the upper part; in a valley without values, its middle."""
    total, moment = sum(counts), sum(place * count for place, count in enumerate(counts))
    if total < ENOUGH:
        return None
    spreads: list[float] = [0.0]
    below = below_moment = 0
    for place, count in enumerate(counts[:-1]):
        below += count
        below_moment += place * count
        above = total - below
        gap = below_moment / below - (moment - below_moment) / above if below and above else 0.0
        spreads.append(-below * above * gap * gap)
    return _middle_of_least(spreads) if min(spreads) < 0 else None


def _middle_of_least(values: Sequence[float]) -> int:
    least = min(values)
    first = values.index(least)
    last = first
    while last + 1 < len(values) and values[last + 1] == least:
        last += 1
    return (first + last + 1) // 2


def _differ(counts: Sequence[int], cut: int, value: Callable[[int], float]) -> bool:
    """Tell whether the upper part is slow enough for it to matter."""
    lower, upper = counts[:cut], counts[cut:]
    lower_mean = sum(value(place) * count for place, count in enumerate(lower)) / sum(lower)
    upper_mean = sum(value(cut + place) * count for place, count in enumerate(upper)) / sum(upper)
    return upper_mean >= _TIMES_SLOWER * lower_mean


class HintJudge:
    """Judges hints before any of their jobs was measured: by the hints that this producer has given so far."""

    def __init__(self) -> None:
        self._counts = [0] * BINS

    def judge(self, signs: Sequence[str]) -> list[bool]:
        """Return for each `whose` of a call, hint or none, whether it means slow. They count before they are judged."""
        bins = [ord(sign[0]) - _FIRST_BIN if sign and sign[0] != NO_HINT else -1 for sign in signs]
        for place in bins:
            if place >= 0:
                self._counts[place] += 1
        cut = hint_cut(self._counts)
        return [cut is not None and place >= cut for place in bins]


class Learned:
    """What a partition knows of run times: `times` in Redis."""

    def __init__(self, times: Mapping[str, str]) -> None:
        self.counts, self.fast_hints, self.slow_hints = (self._counted(times, letter) for letter in "tfs")
        self.limit_ms = limit_of(self.counts)
        self.cut = measured_cut(self.fast_hints, self.slow_hints)

    @staticmethod
    def _counted(times: Mapping[str, str], letter: str) -> list[int]:
        return [int(times.get(f"{letter}{place}", 0)) for place in range(RUN_BINS if letter == "t" else BINS)]


def slow_share(capacity: int, share: float) -> int:
    """Return how many slots slow jobs may hold while there are fast ones: at least one."""
    return max(1, int(capacity * share))


def slow_right(share: int) -> int:
    """Return how many slots slow jobs get although fast ones wait: a quarter of their share, and at least one."""
    return max(1, share // RIGHT_OF_SHARE)


def slow_room(share: int, known: int, overran: int) -> int:
    """Return how many more slow jobs may start.

    Args:
        share: Slots that slow jobs may hold while there are fast ones.
        known: Slots that jobs of the slow lanes hold.
        overran: Slots that jobs of the fast lanes hold which turned out to be slow. They count as slow, but they do not
            take what slow jobs have a right to: new users who come all the time must not starve those who are known.
    """
    return max(0, share - known - overran, slow_right(share) - known)


def reads(room: int, due: int, free: int, *, reverse: bool) -> list[tuple[int, int, int]]:
    """Return where to read, in order: the lane's digit, the most now, and the most if the other lanes leave room.

    Of each priority first the slow jobs that are due, then the fast ones, then the slow ones that there is room for.

    Args:
        room: How many more slow jobs may start.
        due: How many of them come before fast ones.
        free: Slots that are free. Beyond their room, slow jobs are not read ahead.
        reverse: Whether it is the turn of the lowest priority.
    """
    found: list[tuple[int, int, int]] = []
    for slow, fast in _BY_PRIORITY[::-1] if reverse else _BY_PRIORITY:
        found += ((slow, due, 0), (fast, 128, 0), (slow, room, max(room, free)))
    return found
