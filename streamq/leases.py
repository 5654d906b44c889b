"""Who vouches for a worker while its own event loop cannot: the parent for its children, or a thread.

A worker's jobs are its own while somebody beats for it. A handler that blocks the loop, or a C extension that holds
the interpreter, must not cost it its jobs; a process that is gone must lose them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

from streamq.broker.server import Broker
from streamq.errors import StreamQError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from streamq.broker.partition import Partition
    from streamq.settings import Settings

__all__ = ["Guardian", "Pulse", "guardian"]


class Guardian:
    """Beats for workers, and buries those that somebody saw die."""

    def __init__(self, broker: Broker, partitions: Sequence[str]) -> None:
        self._broker = broker
        self._partitions: list[Partition] = [broker.partition(name) for name in partitions]

    async def beat(self, consumers: Sequence[str]) -> None:
        """Say that these workers live. One round trip per partition."""
        if consumers:
            await self._each(lambda partition: partition.beat(consumers))

    async def renew(self, consumers: Sequence[str]) -> None:
        """Keep the deliveries of workers whose loops are blocked."""
        for consumer in consumers:
            await self._each(lambda partition, consumer=consumer: partition.renew(consumer))  # type: ignore[misc]

    async def bury(self, consumers: Sequence[str]) -> None:
        """Free what these dead workers held, now."""
        if consumers:
            await self._each(lambda partition: partition.bury(consumers))

    async def _each(self, do: Callable[[Partition], Awaitable[object]]) -> None:
        """Do it in all partitions: one that cannot be reached is no reason to let workers be given up in the others."""
        done = await asyncio.gather(*(do(partition) for partition in self._partitions), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    async def close(self) -> None:
        """Close the connections."""
        for partition in self._partitions:
            await partition.wire.close()
        await self._broker.close()


def guardian(settings: Settings) -> Guardian:
    """Make the guardian for a parent process; connections open when first used, on the loop that runs then."""
    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction, timeout_s=5.0)
    return Guardian(broker, settings.partition_names)


class Pulse:
    """A thread that beats for a worker that has no parent.

    It vouches for the worker only while the loop has ticked within `hang_limit_s`; after that the worker's jobs go to
    others.
    """

    def __init__(
        self,
        settings: Settings,
        consumers: Callable[[], Sequence[str]],
        ticked_at: Callable[[], float],
    ) -> None:
        """Note whom to beat for.

        Args:
            settings: Where Redis is, how often to beat, and when a loop counts as hung.
            consumers: Gives the worker's present names; called from the thread.
            ticked_at: Gives the time (`time.monotonic`) of the loop's last turn; called from the thread.
        """
        self._settings = settings
        self._consumers = consumers
        self._ticked_at = ticked_at
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamq-pulse", daemon=True)

    def start(self) -> None:
        """Start to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to beat; returns when the thread has ended."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        asyncio.run(self._beat())

    async def _beat(self) -> None:
        settings = self._settings
        guard = guardian(settings)
        try:
            while not self._stop.wait(settings.beat_ms / 1000):
                silent_ms = (time.monotonic() - self._ticked_at()) * 1000
                if silent_ms > settings.hang_limit_ms:
                    continue
                # Redis away: the worker says so itself, and beats again when it is back.
                with contextlib.suppress(StreamQError, OSError):
                    await guard.beat(self._consumers())
                    if silent_ms > settings.lease_ms / 3:
                        await guard.renew(self._consumers())
        finally:
            await guard.close()
