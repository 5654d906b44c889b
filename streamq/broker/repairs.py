"""What the reconciler may do to a partition: each repair is one script that looks again before it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.broker.partition import BATCH, NewJob, Partition
from streamq.broker.wire import Fault, ServerRefused
from streamq.keys import LANES
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Mended", "Repairs", "Tidied"]

PAGE = 1_000
PRODUCER_KEPT_MS = 600_000


class Mended(NamedTuple):
    """Jobs that could never run."""

    orphaned: list[str]
    """In the index and nowhere else."""
    stranded: list[str]
    """Kept behind a job that does not live any more, or at a gate that does not know them."""


class Tidied(NamedTuple):
    """What was found that belongs to nobody."""

    dedup_keys: list[str]
    workers: list[str]


class Repairs:
    """The repairs of one partition. Walks are bounded, and go on where they stopped."""

    def __init__(self, partition: Partition, who: str) -> None:
        """Make them.

        Args:
            partition: Over a connection of its own or of one who does not block it.
            who: A name that no other has: jobs are enqueued again under it.
        """
        self._partition = partition
        self._who = who
        self._calls = 0
        self._index_cursor: Any = b"0"
        self._key_cursor: Any = b"0"
        self._gate_cursor: Any = b"0"

    async def leads(self, ttl_ms: int) -> bool:
        """Tell whether this is the one that reconciles for so long. The lock only saves work."""
        keys = self._partition.keys
        return bool(await self._wire.script(load("lead"), [f"{keys.tag}:lead:reconciler"], [self._who, ttl_ms]))

    async def indexed(self, most: int) -> list[bytes]:
        """List job ids that the index knows: the next ones of a walk that begins anew at its end."""
        found: list[bytes] = []
        while len(found) < most:
            self._index_cursor, flat = await self._wire.call(
                "HSCAN", self._partition.keys.index, self._index_cursor, "COUNT", PAGE
            )
            found += flat[::2]
            if self._index_cursor == b"0":
                break
        return found

    async def mend(self, job_ids: Sequence[bytes], *, repair: bool) -> Mended:
        """Find jobs that can never run, and with `repair` drop those that lie nowhere and make due what is kept in vain."""
        keys = self._partition.keys
        found = Mended([], [])
        for first in range(0, len(job_ids), BATCH):
            names = job_ids[first : first + BATCH]
            reply = await self._wire.script(
                load("mend"),
                [*keys.lanes, keys.delayed, keys.payload, keys.index, keys.gates, keys.places],
                ["1" if repair else "0", *names],
            )
            for names_found, more in zip(found, reply, strict=True):
                names_found += [name.decode("utf-8", "replace") for name in more]
        return found

    async def gates(self, *, repair: bool, most: int = 20 * PAGE) -> list[str]:
        """Find places at gates whose jobs are not there; with `repair` free them, and have a worker look at each gate.

        Looks at about `most` of them, the next ones of a walk that begins anew at its end.

        Returns:
            The ids of those jobs.
        """
        keys = self._partition.keys
        wrong: list[str] = []
        for _ in range(max(1, most // BATCH)):
            self._gate_cursor, names = await self._wire.script(
                load("gates"),
                [keys.index, keys.gates, keys.places, keys.openings, keys.lanes[0]],
                ["1" if repair else "0", self._gate_cursor, BATCH],
            )
            wrong += [name.decode("utf-8", "replace") for name in names]
            if self._gate_cursor == b"0":
                break
        return sorted(set(wrong))

    async def tidy(self, *, idle_ms: int, repair: bool, most: int = 20 * PAGE) -> Tidied:
        """Find dedup keys whose job has ended and workers that are gone; with `repair` remove them.

        Looks at about `most` keys of the database, the next ones of a walk that begins anew at its end.
        """
        found = Tidied([], [])
        for first in range(0, max(1, len(names := await self._dedup_keys(most))), BATCH):
            batch = names[first : first + BATCH]
            keys = self._partition.keys
            places, workers = await self._wire.script(
                load("tidy"), [*keys.lanes, keys.index, keys.workers, *batch], [idle_ms, "1" if repair else "0"]
            )
            found.dedup_keys.extend(batch[place - 9].decode("utf-8", "replace") for place in places)
            found.workers.extend(name.decode("utf-8", "replace") for name in workers)
        return Tidied(found.dedup_keys, sorted(set(found.workers)))

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[str]:
        """Enqueue jobs again under their old ids, at most `BATCH`; one that lives is left alone.

        Returns:
            Per job as in `Added.results`.
        """
        self._calls += 1
        return list((await self._partition.add(self._who, self._calls, jobs, keep_ms=PRODUCER_KEPT_MS)).results)

    async def sweep(self, lease_ms: int) -> int:
        """Hand back what nobody renewed within the lease, in all lanes. Returns how many deliveries."""
        handed = 0
        for lane in range(1, len(LANES) + 1):
            try:
                handed += await self._sweep_lane(lane, lease_ms)
            except ServerRefused as error:
                if error.fault is not Fault.REJOIN:  # else no worker has ever read this lane
                    raise
        return handed

    async def _sweep_lane(self, lane: int, lease_ms: int) -> int:
        cursor, handed = b"0-0", 0
        while True:
            cursor, some, _ = await self._partition.sweep(lane, lease_ms=lease_ms, cursor=cursor)
            handed += some
            if cursor == b"0-0":
                return handed

    async def _dedup_keys(self, most: int) -> list[bytes]:
        """Give names as the bytes that they are: users choose them."""
        pattern = self._partition.keys.dedup("*")
        found: list[bytes] = []
        for _ in range(max(1, most // PAGE)):
            self._key_cursor, names = await self._wire.call("SCAN", self._key_cursor, "MATCH", pattern, "COUNT", PAGE)
            found += names
            if self._key_cursor == b"0":
                break
        return found

    @property
    def _wire(self) -> Any:
        return self._partition.wire
