"""Seeding: what a partition may know of run times before its workers have measured one, from the history in MongoDB."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from streamq.broker.partition import BATCH
from streamq.job import State
from streamq.lanes import Learned, cost_field, run_bin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streamq.broker.partition import Arg, Partition
    from streamq.mongo import Statuses

__all__ = ["MOST_JOBS", "remembered", "seed"]

MOST_JOBS = 50_000
"""Completed jobs of a queue that are looked at, the newest first."""

_LONG_FIELDS = ("result", "attempts", "error")
_LIMIT_S = 30.0


async def remembered(statuses: Statuses, queue: str, *, limit: int = MOST_JOBS) -> dict[str, float]:
    """Return the run time in ms of each handler and user whose jobs are in the history.

    Raises:
        HistoryUnavailable: MongoDB did not answer.
    """
    found = await statuses.find(
        {"queue": queue, "state": State.COMPLETED.value, "user": {"$gt": ""}},
        sort=(("enqueued_at", -1), ("_id", -1)), limit=limit, without=_LONG_FIELDS, limit_s=_LIMIT_S,
    )  # fmt: skip
    logarithms: dict[str, list[float]] = {}
    for document in found:
        if document.get("handler") and document.get("run_ms") is not None:
            field = cost_field(document["handler"], document["user"])
            logarithms.setdefault(field, []).append(math.log(max(1, document["run_ms"])))
    return {field: math.exp(sum(values) / len(values)) for field, values in logarithms.items()}


async def seed(partition: Partition, costs: Mapping[str, float]) -> tuple[float | None, int]:
    """Let a partition know what jobs took.

    Args:
        partition: Knows more afterwards; what it knew stays.
        costs: Field of the table of costs to ms.

    Returns:
        The limit in ms that follows, if one does, and how many keys are above it.

    Raises:
        QueueFull: Redis is out of memory.
    """
    counts: dict[str, int] = {}
    for ms in costs.values():
        name = f"t{run_bin(ms)}"
        counts[name] = counts.get(name, 0) + 1
    times = await partition.learn(counts=[word for row in counts.items() for word in row])
    learned = Learned(times)
    slow = [(field, ms) for field, ms in costs.items() if learned.limit_ms is not None and ms >= learned.limit_ms]
    for first in range(0, len(slow), BATCH):
        rows: list[Arg] = _flat(slow[first : first + BATCH])
        await partition.learn(learned.limit_ms, learned.cut, runs=rows)
    return learned.limit_ms, len(slow)


def _flat(rows: Iterable[tuple[str, float]]) -> list[Arg]:
    return [word for row in rows for word in row]
