"""A queue that is divided, told as one: what its partitions hold is added up, and of ages the worst counts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from streamq.broker.crowd import Crowd
from streamq.broker.inspection import LaneCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamq.broker.inspection import Block, Counts, Unknown, WorkerSeen

__all__ = ["crowd_of_all", "together"]

_ADDED = ("waiting", "in_flight", "delayed", "dead", "jobs", "outbox", "blocked", "evicted", "parked")
_WORST = ("now_ms", "outbox_age_ms", "oldest_wait_ms", "evicted_ms", "most_idle_ms")


def together(parts: Sequence[Counts]) -> Counts:
    """Tell what partitions hold in all. It is paused if each of them is; a worker of several counts once."""
    first, *others = parts
    if not others:
        return first
    due = [part.next_due_ms for part in parts if part.next_due_ms is not None]
    counted: Counter[str] = Counter()
    for part in parts:
        counted.update(part.counted)
    return first._replace(
        **{name: sum(getattr(part, name) for part in parts) for name in _ADDED},
        **{name: max(getattr(part, name) for part in parts) for name in _WORST},
        next_due_ms=min(due, default=None),
        lanes={lane: _lane(part.lanes[lane] for part in parts if lane in part.lanes) for lane in first.lanes},
        pause=first.pause if all(part.pause for part in parts) else None,
        workers=_workers([worker for part in parts for worker in part.workers]),
        blocks=_blocks([block for part in parts for block in part.blocks]),
        unknown=_unknown([each for part in parts for each in part.unknown]),
        counted=counted,
    )


def _lane(parts: Iterable[LaneCounts]) -> LaneCounts:
    held = list(parts)
    return LaneCounts(sum(each.waiting for each in held), sum(each.in_flight for each in held))


def _workers(seen: Sequence[WorkerSeen]) -> list[WorkerSeen]:
    """Put together what partitions know of a worker: its oldest beat counts, of those where it was not given up."""
    known: dict[str, list[WorkerSeen]] = {}
    for worker in seen:
        known.setdefault(worker.name, []).append(worker)
    return [_worker(each) for each in known.values()]


def _worker(seen: Sequence[WorkerSeen]) -> WorkerSeen:
    kept = [each for each in seen if not each.given_up] or seen
    return max(kept, key=lambda each: each.beat_age_ms)._replace(held=sum(each.held for each in seen))


def _blocks(blocks: Sequence[Block]) -> list[Block]:
    return list({(block.kind, block.name): block for block in reversed(blocks)}.values())[::-1]


def _unknown(unknown: Sequence[Unknown]) -> list[Unknown]:
    oldest = sorted(unknown, key=lambda each: each.since_ms)
    return list({each.what: each for each in reversed(oldest)}.values())[::-1]


def crowd_of_all(parts: Sequence[Crowd]) -> Crowd:
    """Tell who is at the gates of partitions; a key has its gates in one of them alone."""
    first, *others = parts
    if not others:
        return first
    return Crowd(
        parked=sum(part.parked for part in parts),
        gates=sorted((gate for part in parts for gate in part.gates), key=lambda gate: -gate.parked),
        turns=sorted((turn for part in parts for turn in part.turns), key=lambda turn: -turn.parked),
        keys=sum(part.keys for part in parts),
        virtual_ms=max(part.virtual_ms for part in parts),
        mean_ms=max(part.mean_ms for part in parts),
        is_whole=all(part.is_whole for part in parts),
    )
