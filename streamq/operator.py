"""What an operator does to the queues of an application, from code: cancel, pause, block, and let go again."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
from typing import TYPE_CHECKING, TypeVar

from streamq.broker.inspection import Inspection
from streamq.broker.letters import Letters
from streamq.broker.orders import Orders, came_of_all
from streamq.clock import to_ms
from streamq.errors import JobNotFound, StreamQError
from streamq.keys import Keys, partition_names

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta

    from streamq.broker.inspection import Counts
    from streamq.broker.orders import Cancelled
    from streamq.broker.server import Broker

__all__ = ["Operator", "user_name"]

T = TypeVar("T")


def user_name() -> str:
    """Return who runs this process; a container may have a user without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class Operator:
    """The operators' side of the queues of one application. Each call opens a connection and closes it."""

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        *,
        outbox_max: int,
        partitions_of: Callable[[str], int] = lambda _: 1,
    ) -> None:
        self._broker = broker
        self._partitions_of = partitions_of
        self._queues = tuple(name for queue in queues for name in self._names(queue))
        """The partitions of all queues."""
        self._outbox_max = outbox_max

    async def cancel(self, job_id: str, reason: str = "") -> Cancelled:
        """End a job that waits or is delayed, or have its worker interrupt it if it runs.

        Returns:
            `cancelled`: it has ended. `asked`: it runs, and ends as cancelled once its handler lets go.

        Raises:
            JobNotFound: No queue has a living job of that id; it may have ended.
            StreamQError: Those that could be asked do not have it, and one could not.
        """
        unheard: StreamQError | None = None
        for queue in self._queues:
            try:
                async with self._orders(queue) as orders:
                    return await orders.cancel(job_id, reason=reason)
            except JobNotFound:
                continue
            except StreamQError as error:
                unheard = error
        raise unheard or JobNotFound(f"no job {job_id!r} waits or runs in {', '.join(self._queues)}")

    async def pause(self, queue: str, *, reason: str = "", lasting: timedelta | None = None) -> None:
        """Give out no jobs of a queue, until it is resumed or the time is over. What runs is finished.

        Raises:
            PartlyDone: Some partitions of the queue have done it, and some could not be reached; so with the other orders.
        """

        async def pause(name: str, orders: Orders) -> None:
            until_ms = await self._until_ms(name, lasting)
            await orders.pause(reason=reason, by=user_name(), until_ms=until_ms)

        await self._in_each(self._names(queue), pause)

    async def resume(self, queue: str) -> bool:
        """Give out the jobs of a queue again. Returns whether it was paused."""
        return any(await self._in_each(self._names(queue), lambda _, orders: orders.resume()))

    async def block(
        self, *, handler: str | None = None, key: str | None = None, reason: str = "", lasting: timedelta | None = None
    ) -> None:
        """Give out no jobs of a handler, or none of one user key, in any queue; other jobs go on.

        They wait without using an attempt, and come back in their order when the block is lifted or its time is over.

        Raises:
            BadInput: Neither or both were named, or every queue has too many blocks.
            PartlyDone: Some have it, and others were not reached or have too many blocks.
        """

        async def block(name: str, orders: Orders) -> None:
            until_ms = await self._until_ms(name, lasting)
            await orders.block(handler=handler, key=key, reason=reason, by=user_name(), until_ms=until_ms)

        await self._in_each(self._queues, block)

    async def unblock(self, *, handler: str | None = None, key: str | None = None) -> bool:
        """Give them out again. Returns whether any queue had them blocked."""
        return any(await self._in_each(self._queues, lambda _, orders: orders.unblock(handler=handler, key=key)))

    @contextlib.asynccontextmanager
    async def dead_letters(self, queue: str) -> AsyncGenerator[Letters]:
        """Give the dead letters of a queue, of a divided one those of one partition (`users:0`), to browse, replay, edit and delete."""
        async with self._orders(queue) as orders:
            yield Letters(orders.wire, orders)

    async def counts(self) -> Mapping[str, Counts]:
        """Return what each queue holds, a divided one by its partitions, and what is paused or blocked in it."""
        return {queue: await self._counts(queue) for queue in self._queues}

    async def _in_each(self, names: Sequence[str], order: Callable[[str, Orders], Awaitable[T]]) -> list[T]:
        """Carry an order out in each partition, whatever becomes of it in the others, and return what came of each."""

        async def carry_out(name: str) -> T:
            async with self._orders(name) as orders:
                return await order(name, orders)

        became = await asyncio.gather(*map(carry_out, names), return_exceptions=True)
        return came_of_all(dict(zip(names, became, strict=True)))

    async def _counts(self, queue: str) -> Counts:
        wire = self._broker.wire()
        try:
            return await Inspection(wire, Keys(queue)).counts()
        finally:
            await wire.close()

    async def _until_ms(self, queue: str, lasting: timedelta | None) -> int:
        """Return the moment by the server's clock; 0: open."""
        if lasting is None:
            return 0
        return (await self._counts(queue)).now_ms + to_ms(lasting)

    def _names(self, queue: str) -> tuple[str, ...]:
        """Name the partitions of a queue; one that is a partition's name already means that alone."""
        return (queue,) if ":" in queue else partition_names(queue, self._partitions_of(queue))

    @contextlib.asynccontextmanager
    async def _orders(self, queue: str) -> AsyncGenerator[Orders]:
        wire = self._broker.wire()
        try:
            yield Orders(wire, Keys(queue), outbox_max=self._outbox_max)
        finally:
            await wire.close()
