"""Connections for commands that look and tell: opened for one command, closed after it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from streamq.broker.inspection import Inspection
from streamq.broker.orders import Orders, came_of_all
from streamq.broker.server import Broker
from streamq.errors import StreamQError
from streamq.keys import partition_names

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from streamq.broker.partition import Partition
    from streamq.broker.server import ServerInfo
    from streamq.broker.wire import Wire
    from streamq.keys import Keys
    from streamq.settings import Settings

__all__ = ["Queue", "Redis", "redis"]

T = TypeVar("T")

PATIENCE_S = 1.5
"""Whoever looks because something is wrong hears soon that Redis is what is wrong."""


class Queue(NamedTuple):
    """One partition, to look into and to give orders to; of a queue that is not divided, all of it."""

    name: str
    view: Inspection
    orders: Orders
    wire: Wire


class Redis(NamedTuple):
    """The server, and the queues of the settings on it."""

    server: ServerInfo
    queues: list[Queue]
    settings: Settings
    """Those that hold, with what the application says."""
    max_attempts: Mapping[str, int]
    """Of each handler of the application; empty where that is not known."""

    async def in_each(self, do: Callable[[Queue], Awaitable[T]]) -> list[T]:
        """Do something in each partition, and return what came of each.

        Raises:
            PartlyDone: Some have done it, and some could not be reached.
        """
        became = await asyncio.gather(*(do(queue) for queue in self.queues), return_exceptions=True)
        return came_of_all({queue.name: what for queue, what in zip(self.queues, became, strict=True)})


@contextlib.asynccontextmanager
async def redis(settings: Settings, *, queue: str | None = None) -> AsyncGenerator[Redis]:
    """Connect, and make sure that the server is one that streamq can use.

    Args:
        settings: Where it is. Where they name an application, what that says of its Redis and its queues counts, too.
        queue: The only queue that is meant, whether or not the settings have it.

    Raises:
        BrokerUnavailable: It cannot be reached.
        ConfigurationError: It is too old, or would lose jobs.
    """
    settings, max_attempts = _with_app(settings)
    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
    probe = Broker(settings.redis_url, allow_eviction=settings.allow_eviction, timeout_s=PATIENCE_S)
    views: list[Queue] = []
    try:
        server = await probe.check()
        for name in (queue,) if queue else settings.queues:
            count = settings.partitions_of(name)
            partitions = [broker.partition(each) for each in partition_names(name, count)]
            views += [_view(partition, settings) for partition in partitions]
            await partitions[0].agree(count, looks=True)
        yield Redis(server, views, settings, max_attempts)
    finally:
        for view in views:
            await view.wire.close()
        await probe.close()
        await broker.close()


def _view(partition: Partition, settings: Settings) -> Queue:
    """Look into a partition over a connection of its own, for it may lie on a server of its own."""
    keys, wire = partition.keys, partition.wire
    return Queue(keys.queue, Inspection(wire, keys), _orders(wire, keys, settings), wire)


def _orders(wire: Wire, keys: Keys, settings: Settings) -> Orders:
    return Orders(wire, keys, outbox_max=settings.outbox_max if settings.history else 0)


def _with_app(settings: Settings) -> tuple[Settings, dict[str, int]]:
    """Look where the application looks, and at all its queues; one left out would look like all is well."""
    if not settings.app:
        return settings, {}
    from streamq.loading import load_with_settings

    try:
        app, settings = load_with_settings(settings)
    except StreamQError as error:
        queues = ", ".join(settings.queues)
        sys.stderr.write(f"warning: the queues of {settings.app} are not known, looking at {queues}: {error}\n")
        return settings, {}
    return settings, {spec.name: spec.max_attempts for spec in app.registry}
