"""Costs: how long the jobs of one partition take, as this worker sees it. Between two beats nothing leaves the process.

Kept are counts by bin, and the runs of keys that are slow or were; a fast job costs one addition.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from streamq.broker.partition import BATCH
from streamq.keys import queue_of
from streamq.lanes import BINS, LEAST_SLOW_MS, RUN_BINS, Learned, cost_field, hint_bin, run_bin

if TYPE_CHECKING:
    from streamq.broker.partition import Arg, Partition
    from streamq.job import Delivery
    from streamq.settings import Settings

__all__ = ["Costs"]

_MOST_UNTOLD = 10_000
"""Runs that are kept when nobody can be told."""
_MOST_UNDECIDED = 1_000
"""Runs that are kept while there is no limit to judge them by: the first slow ones end before there is one."""
_SLOW_DIGIT = 4


class Costs:
    """What is known and what is new."""

    def __init__(self, settings: Settings, queue: str) -> None:
        self.is_on = settings.lanes and queue_of(queue) not in settings.fifo_queues
        self._fixed_ms = settings.slow_limit_ms or None
        self._cut: int | None = None
        self._has_asked = False
        self._times, self._fast_hints, self._slow_hints = ([0] * bins for bins in (RUN_BINS, BINS, BINS))
        self._runs: deque[tuple[str, float]] = deque(maxlen=_MOST_UNTOLD)
        self._undecided: deque[tuple[str, float]] = deque(maxlen=_MOST_UNDECIDED)
        self._new = 0
        self.limit_ms: float | None = None
        self.limit_s = math.inf
        """A job that runs longer is slow."""
        if self.is_on:
            self._set_limit(self._fixed_ms)

    def _set_limit(self, limit_ms: float | None) -> None:
        self.limit_ms = limit_ms
        self.limit_s = math.inf if limit_ms is None else limit_ms / 1000

    def note(self, delivery: Delivery, run_s: float, *, is_done: bool) -> None:
        """Count a run, and say of a job that took too long for the fast lane why it is slow from now on.

        Args:
            delivery: Of a job with a key or a hint.
            run_s: How long it ran.
            is_done: Whether it completed; a job that failed quickly says nothing of how long it takes.
        """
        is_slow = run_s >= self.limit_s
        envelope = delivery.envelope
        if envelope is None or not (is_slow or is_done):
            return
        ms = run_s * 1000
        self._new += 1
        self._times[run_bin(ms)] += 1
        if envelope.cost is not None and self.limit_ms is not None:
            (self._slow_hints if is_slow else self._fast_hints)[hint_bin(envelope.cost)] += 1
        if envelope.key is not None and (is_slow or delivery.digit >= _SLOW_DIGIT):
            self._runs.append((cost_field(envelope.handler, envelope.key), ms))
        elif envelope.key is not None and self.limit_ms is None and ms >= LEAST_SLOW_MS:
            self._undecided.append((cost_field(envelope.handler, envelope.key), ms))

    async def exchange(self, partition: Partition, *, is_busy: bool) -> None:
        """Tell what is new, if anything is, and take over what all workers know; the first time, ask in any case.

        Raises:
            QueueFull: Redis is out of memory. What was new is forgotten.
            BrokerUnavailable: What was new may be forgotten.
        """
        if not self.is_on:
            if not self._has_asked:
                await partition.forget_costs()
                self._has_asked = True
            return
        if self._has_asked and not self._new and not is_busy:
            return
        counts, runs = self._taken_counts(), self._taken_runs()
        times = await partition.learn(self.limit_ms, self._cut, counts=counts[: 2 * BATCH], runs=runs)
        for first in range(2 * BATCH, len(counts), 2 * BATCH):
            times = await partition.learn(self.limit_ms, self._cut, counts=counts[first : first + 2 * BATCH])
        self._has_asked = True
        learned = Learned(times)
        self._cut = learned.cut
        self._set_limit(self._fixed_ms or learned.limit_ms)
        self._decide()

    def _decide(self) -> None:
        """Judge the runs that ended before there was a limit."""
        if self.limit_ms is not None and self._undecided:
            self._runs += [(field, ms) for field, ms in self._undecided if ms >= self.limit_ms]
            self._undecided.clear()
            self._new = len(self._runs)

    def _taken_counts(self) -> list[Arg]:
        rows: list[Arg] = []
        for letter, counts in (("t", self._times), ("f", self._fast_hints), ("s", self._slow_hints)):
            for place, count in enumerate(counts):
                if count:
                    rows += (f"{letter}{place}", count)
                    counts[place] = 0
        return rows

    def _taken_runs(self) -> list[Arg]:
        rows: list[Arg] = []
        for _ in range(min(BATCH, len(self._runs))):
            rows += self._runs.popleft()
        self._new = len(self._runs)
        return rows
