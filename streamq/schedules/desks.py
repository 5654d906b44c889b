"""The desks that fan-outs work at: one connection and one clock for each queue that a schedule enqueues into."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from streamq.broker.fanout import FanOuts
from streamq.broker.server import Broker
from streamq.clock import ServerClock
from streamq.errors import ConfigurationError
from streamq.keys import partition_names
from streamq.logs import event
from streamq.schedules.fanout import Desk
from streamq.schedules.occurrence import Schedule, schedules_of
from streamq.schedules.patience import Patience
from streamq.schedules.phase import Phase

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable

    from streamq.app import StreamQ
    from streamq.settings import Settings

__all__ = ["Bureau", "desks", "wanted_schedules"]

_log = logging.getLogger("streamq.cron")


class Bureau:
    """The desks of this process, one for each queue that a schedule enqueues into."""

    def __init__(self, settings: Settings, stop: asyncio.Event, *, now_ms: Callable[[], int] | None = None) -> None:
        """Note where Redis is; nothing is opened yet.

        Args:
            settings: Where Redis is, and how much a queue may hold.
            stop: Set to make everything end at the next call.
            now_ms: The time, for those who bring their own; None: the Redis server's.
        """
        self.patience = Patience(stop)
        self.phase = Phase.of(settings)
        """Which users are streamq's. Whoever has looked what is stored sets it."""
        self._settings = settings
        self._stop = stop
        self._own_clock = now_ms
        self._broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
        self._desks: dict[str, Desk] = {}

    async def check(self) -> None:
        """Wait for Redis, and see that it is one that streamq can work with.

        Raises:
            ConfigurationError: It is not.
            Stopped: The process was told to stop.
        """
        info = await self.patience.call(self._broker.check)
        for warning in info.warnings:
            event(_log, logging.WARNING, "redis.warning", warning)

    def desk(self, queue: str) -> Desk:
        """Return the desk of a queue."""
        if queue not in self._desks:
            self._desks[queue] = self._new_desk(queue)
        return self._desks[queue]

    def _new_desk(self, queue: str) -> Desk:
        count = self._settings.partitions_of(queue)
        partition, *others = [self._broker.partition(name) for name in partition_names(queue, count)]
        fanouts = FanOuts(partition, others)
        clock = ServerClock()
        agreed = False

        async def observe() -> None:
            nonlocal agreed
            if not agreed:
                await partition.agree(count)
                agreed = True
            server_ms = await fanouts.server_ms()
            clock.observe(server_ms, time.monotonic())

        settings = msgspec.structs.replace(self._settings, max_depth=-(-self._settings.max_depth // count))
        return Desk(
            partition, fanouts, settings, self.patience, self._stop,
            now_ms=self._own_clock or (lambda: clock.at(time.monotonic())), observe=observe, phase=lambda: self.phase,
            divided=(partition, *others) if others else (),
        )  # fmt: skip

    async def close(self) -> None:
        """Close every connection."""
        for desk in self._desks.values():
            for share in desk.shares():
                await share.partition.wire.close()
        await self._broker.close()


@contextlib.asynccontextmanager
async def desks(
    settings: Settings, stop: asyncio.Event, *, now_ms: Callable[[], int] | None = None
) -> AsyncGenerator[Bureau]:
    """Open the desks, and close them at the end."""
    bureau = Bureau(settings, stop, now_ms=now_ms)
    try:
        await bureau.check()
        yield bureau
    finally:
        await bureau.close()


def wanted_schedules(app: StreamQ, name: str | None) -> list[Schedule]:
    """Return the schedule of that name, or all of them.

    Raises:
        ConfigurationError: There is none, or one of them cannot be used.
    """
    schedules = schedules_of(app)
    if not schedules:
        raise ConfigurationError(
            "the application has no schedule", hint='write one: @app.cron("0 * * * *", handler=...)'
        )
    if name is None:
        return list(schedules.values())
    if name not in schedules:
        raise ConfigurationError(f"no schedule is named {name!r} (known: {', '.join(sorted(schedules))})")
    return [schedules[name]]
