"""Connections for commands that look and tell: opened for one command, closed after it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from streamq.broker.inspection import Inspection
from streamq.broker.orders import Orders
from streamq.broker.server import Broker
from streamq.errors import StreamQError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from streamq.broker.server import ServerInfo
    from streamq.settings import Settings

__all__ = ["Queue", "Redis", "redis"]


class Queue(NamedTuple):
    """One queue, to look into and to give orders to."""

    name: str
    view: Inspection
    orders: Orders


class Redis(NamedTuple):
    """The server, and the queues of the settings on it."""

    server: ServerInfo
    queues: list[Queue]


@contextlib.asynccontextmanager
async def redis(settings: Settings) -> AsyncGenerator[Redis]:
    """Connect, and make sure that the server is one that streamq can use.

    Raises:
        BrokerUnavailable: It cannot be reached.
        ConfigurationError: It is too old, or would lose jobs.
    """
    settings = _with_all_queues(settings)
    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
    wire = broker.wire()
    try:
        server = await broker.check()
        keys = {name: broker.partition(name).keys for name in settings.queues}
        outbox_max = settings.outbox_max if settings.history else 0
        yield Redis(
            server,
            [
                Queue(name, Inspection(wire, each), Orders(wire, each, outbox_max=outbox_max))
                for name, each in keys.items()
            ],
        )
    finally:
        await wire.close()
        await broker.close()


def _with_all_queues(settings: Settings) -> Settings:
    """Look at every queue of the application, where one is set; a queue left out would look like all is well."""
    if not settings.app or settings.sources.get("queues", "default") != "default":
        return settings
    from streamq.loading import load_app, with_queues_of

    try:
        return with_queues_of(settings, load_app(settings.app))
    except StreamQError as error:
        queues = ", ".join(settings.queues)
        sys.stderr.write(f"warning: the queues of {settings.app} are not known, looking at {queues}: {error}\n")
        return settings
