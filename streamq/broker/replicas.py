"""Whether replicas have what a producer has added.

See https://redis.io/docs/latest/commands/wait/ and https://redis.io/docs/latest/commands/waitaof/.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from streamq.broker.wire import ServerRefused
from streamq.errors import NotConfirmed

if TYPE_CHECKING:
    from streamq.broker.wire import Wire
    from streamq.keys import Keys

__all__ = ["Confirmations"]

_WAIT_MS = 1_000
_WAIT_FOR_DISK_MS = 5_000
"""A replica that flushes every second needs more than one."""


class Confirmations:
    """Asks replicas for one producer, over a connection of its own: WAIT holds up everything behind it.

    Those who ask while a question is under way share the next one.
    """

    def __init__(self, wire: Wire, keys: Keys, producer: str) -> None:
        self._wire = wire
        self._keys = keys
        self._producer = producer
        self._turn = asyncio.Lock()
        self._confirmed: dict[int, int] = {}
        """Number of replicas to the last call that so many have."""
        self._has_waitaof: bool | None = None

    async def wait(self, replicas: int, number: int) -> None:
        """Wait until so many replicas have a call of the producer, on disk where the server can tell.

        Raises:
            NotConfirmed: Fewer have it in time, or the server no longer knows the call. It was accepted all the same.
            BrokerUnavailable: Redis could not be asked.
        """
        async with self._turn:
            if self._confirmed.get(replicas, 0) < number:
                self._confirmed[replicas] = await self._ask(replicas, number)

    async def _ask(self, replicas: int, number: int) -> int:
        on_disk = await self._can_wait_for_disk()
        timeout_ms = _WAIT_FOR_DISK_MS if on_disk else _WAIT_MS
        # A write of this very connection comes after the call; WAIT asks for it, and with it for the call.
        known, _, reply = await self._wire.pipeline(
            [
                ("HGET", self._keys.producers, self._producer),
                ("HINCRBY", self._keys.counts, "confirmations", 1),
                ("WAITAOF", 0, replicas, timeout_ms) if on_disk else ("WAIT", replicas, timeout_ms),
            ]
        )
        last = int(known.partition(b"|")[0]) if known else 0
        have = int(reply[1] if on_disk else reply)
        if last < number:
            raise NotConfirmed(
                "the job was accepted, but Redis does not know of it any more: it failed over to a replica without it",
                hint="enqueue it again with the same id",
            )
        if have < replicas:
            where = " on disk" if on_disk else ""
            raise NotConfirmed(
                f"the job is enqueued, but {have} of {replicas} replicas have it{where} within {timeout_ms} ms",
                hint="look at the replicas; the job runs, unless Redis fails over before they catch up",
            )
        return last

    async def _can_wait_for_disk(self) -> bool:
        """Tell whether the server knows WAITAOF (Redis from 7.2, Valkey); one that may not be asked is taken not to."""
        if self._has_waitaof is None:
            try:
                self._has_waitaof = (await self._wire.call("COMMAND", "INFO", "WAITAOF"))[0] is not None
            except ServerRefused:
                self._has_waitaof = False
        return self._has_waitaof

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()
