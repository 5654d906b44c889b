"""Numbered calls: jobs that are put into a queue once, however often it has to be said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.api.answers import Problem
from streamq.broker.partition import CallRepeated
from streamq.errors import BrokerUnavailable, QueueFull
from streamq.keys import queue_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.api.stores import Stores
    from streamq.broker.partition import Partition
    from streamq.queue import Draft

__all__ = ["Call"]

TRIES = 3
KEY_KEPT_MS = 86_400_000
CALL_KEPT_MS = 60_000


class Call:
    """One call of a producer that makes no other: repeating it adds nothing, and tells what the first one did."""

    def __init__(self, producer: str, fingerprint: str, max_depth: int) -> None:
        """Name it.

        Args:
            producer: Who makes it; the same text is the same call, within a day.
            fingerprint: Of what is in it, to notice another call under this name. Empty: nobody will repeat it.
            max_depth: The most jobs that the queue may hold; 0: any number.
        """
        self._producer = producer
        self._fingerprint = fingerprint
        self._max_depth = max_depth
        self.is_repeat = False

    async def make(self, stores: Stores, drafts: Sequence[Draft]) -> Sequence[str | QueueFull]:
        """Put up to `BATCH` jobs into their queue, as many as there is room for.

        Either all or none are to be written into the ledger first. Returns for each its result, as in `Added`, or the refusal.

        Raises:
            Problem: 422; this call was made with something else in it.
            BrokerUnavailable: Unknown whether they were added.
            HistoryUnavailable: They may not be written down; none was added.
        """
        self._max_depth = -(-self._max_depth // stores.partitions_of(queue_of(drafts[0].queue)))

        async def add(items: Sequence[Draft]) -> Sequence[str | QueueFull]:
            return await stores.add(items[0].queue, lambda partition: self._tried(partition, items))

        return await (stores.add_written(drafts, add) if drafts[0].ledger else add(drafts))

    async def _tried(self, partition: Partition, items: Sequence[Draft]) -> Sequence[str | QueueFull]:
        """Make the call, and again while no reply comes."""
        for attempt in range(1, TRIES + 1):
            try:
                return await self._filled(partition, items)
            except BrokerUnavailable:
                if attempt == TRIES:
                    raise
        raise AssertionError

    async def _filled(self, partition: Partition, items: Sequence[Draft]) -> Sequence[str | QueueFull]:
        try:
            return await self._once(partition, items)
        except QueueFull as full:
            room = max(0, full.max_depth - full.depth)
            fitting = await self._filled(partition, items[:room]) if 0 < room < len(items) else []
            if fitting:
                full = QueueFull(f"there was room for {len(fitting)} of {len(items)} jobs: {full}", hint=full.hint)
            return [*fitting, *[full] * (len(items) - len(fitting))]

    async def _once(self, partition: Partition, items: Sequence[Draft]) -> Sequence[str | QueueFull]:
        keep_ms = KEY_KEPT_MS if self._fingerprint else CALL_KEPT_MS
        # How many it took in stands in the record, for results that are all alike are not kept one by one.
        told = f"{self._fingerprint} {len(items)}"
        try:
            added = await partition.add(
                self._producer, 1, items, cursor=told, keep_ms=keep_ms, max_depth=self._max_depth
            )
        except CallRepeated as repeated:
            return self._said_before(repeated, len(items))
        return added.results

    def _said_before(self, repeated: CallRepeated, wanted: int) -> Sequence[str | QueueFull]:
        fingerprint, _, count = repeated.cursor.partition(" ")
        if fingerprint != self._fingerprint:
            detail = "this Idempotency-Key was used with another body"
            raise Problem(422, detail, kind="idempotency-key-reused", errors=[{"detail": detail}])
        self.is_repeat = True
        results = repeated.results.split("\n") if repeated.results else ["n"] * int(count or 1)
        full = QueueFull("the queue was full when this was first asked", hint="ask for it with another Idempotency-Key")
        return [*results, *[full] * (wanted - len(results))]
