"""Who has a place at gates and who waits there, and whose turn it is in a fair queue. Looks only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.gates import GateName
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.broker.wire import Wire
    from streamq.keys import Keys

__all__ = ["Crowd", "GateSeen", "crowd_of"]

MOST_GATES = 128
"""How many are looked at in each of three ways, see crowd.lua."""
_SPEC = re.compile(r"([a-z])(\d+),(\d+)=")


class GateSeen(NamedTuple):
    """A gate where a job has a place, or waits."""

    name: GateName
    running: int | None
    """Jobs that have a place: they run, or are about to. None for a rate and for a turn."""
    parked: int
    """Jobs that wait."""
    limit: int | None
    """How many may have a place; of a rate, how many may start together."""
    interval_ms: float | None
    """Of a rate: after so long one more may start."""
    weight: int | None
    """Of a turn: that of the job that is next."""
    longest_ms: int
    """How long one of them has been waiting at gates, of those that are next by their priority; 0: nobody waits."""
    opens_in_ms: int | None
    """When a rate lets the next one in; None: when a job ends, or it is its turn."""
    virtual_ms: float | None
    """Of a turn: the virtual time of the key. The least one is next."""


class Crowd(NamedTuple):
    """The gates of a partition, those first where most jobs wait."""

    gates: Sequence[GateSeen]
    """Without those of turns."""
    turns: Sequence[GateSeen]
    """Keys of a fair queue whose jobs wait."""
    parked: int
    """Jobs that wait at any gate, also at those that were not looked at."""
    keys: int
    """Keys that wait for their turn, all of them."""
    virtual_ms: float
    """Virtual time of the queue: no key that comes is behind it."""
    mean_ms: float
    """What a key pays when a job of it starts."""
    is_whole: bool
    """Whether all gates were looked at."""

    def longest(self) -> GateSeen | None:
        """Return the gate where a job has waited longest, turns left out: there a long wait is a long queue."""
        return max((gate for gate in self.gates if gate.parked), key=lambda gate: gate.longest_ms, default=None)


async def crowd_of(wire: Wire, keys: Keys, *, handlers_only: bool = False) -> Crowd:
    """Look at the gates of a partition. One round trip, bounded.

    Args:
        wire: The connection.
        keys: Of the partition.
        handlers_only: Leave out the gates of user keys.
    """
    reply = await wire.script(
        load("crowd"),
        [keys.gates, keys.places, keys.payload, keys.delayed, keys.openings, keys.fair],
        [MOST_GATES, "1" if handlers_only else "0"],
    )
    now_ms, parked, waiting_keys, virtual_ms, mean_ms, is_part, rows = reply
    seen = sorted((_seen(now_ms, row) for row in rows), key=_most_first)
    return Crowd(
        [gate for gate in seen if gate.name.kind != "fair"],
        [gate for gate in seen if gate.name.kind == "fair"],
        parked, waiting_keys, float(virtual_ms), float(mean_ms), not is_part,
    )  # fmt: skip


def _seen(now_ms: int, row: list[Any]) -> GateSeen:
    name, spec, held, waiting, since, opens, virtual = row
    found = _SPEC.match(spec.decode())
    kind, first, second = (found[1], int(found[2]), int(found[3])) if found else ("", 0, 0)
    return GateSeen(
        GateName.parse(name.decode("utf-8", "replace")),
        running=held if kind == "c" else None,
        parked=waiting,
        limit={"c": first, "r": second}.get(kind),
        interval_ms=first / 1000 if kind == "r" else None,
        weight=first if kind == "f" else None,
        longest_ms=max(0, now_ms - int(since)) if since else 0,
        opens_in_ms=max(0, int(float(opens) / 1000) - now_ms) if opens and waiting else None,
        virtual_ms=float(virtual) if virtual else None,
    )


def _most_first(gate: GateSeen) -> tuple[int, str]:
    return -gate.parked, str(gate.name)
