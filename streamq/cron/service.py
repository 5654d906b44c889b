"""The role: every schedule of an application looked after, until the process is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from streamq.broker.fanout import FanOuts
from streamq.broker.server import Broker
from streamq.clock import ServerClock
from streamq.cron.fanout import Desk
from streamq.cron.minder import Minder
from streamq.cron.occurrence import Schedule, schedules_of
from streamq.cron.patience import Patience, Stopped
from streamq.errors import ConfigurationError
from streamq.logs import event
from streamq.parentlink import ParentLink
from streamq.process import notify, watchdog_period_s

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from streamq.app import StreamQ
    from streamq.settings import Settings

__all__ = ["Bureau", "desks", "run"]

_log = logging.getLogger("streamq.cron")

_WAKE_GRACE_S = 3600
"""How late APScheduler may still wake us. Its default of one second drops a wake-up when the loop was busy for two."""


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
        partition = self._broker.partition(queue)
        fanouts = FanOuts(partition)
        clock = ServerClock()

        async def observe() -> None:
            server_ms = await fanouts.server_ms()
            clock.observe(server_ms, time.monotonic())

        return Desk(
            partition, fanouts, self._settings, self.patience, self._stop,
            now_ms=self._own_clock or (lambda: clock.at(time.monotonic())), observe=observe,
        )  # fmt: skip

    async def close(self) -> None:
        """Close every connection."""
        for desk in self._desks.values():
            await desk.partition.wire.close()
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


async def run(settings: Settings, app: StreamQ, stop: asyncio.Event) -> None:
    """Fire the schedules of an application until `stop` is set; then end at the next call of each fan-out.

    Whatever is left of a fan-out is gone on with by the next process. Redis being away is waited for.

    Raises:
        ConfigurationError: A schedule cannot be used, or Redis is not what streamq needs.
    """
    schedules = wanted_schedules(app, None)
    link = ParentLink.open()
    link.hello([])
    watching = asyncio.create_task(_stop_without_parent(link, stop))
    try:
        async with desks(settings, stop) as bureau:
            await _mind(schedules, bureau, link)
    except Stopped:
        pass
    finally:
        notify("STOPPING=1")
        watching.cancel()
        link.bye()
        link.close()


async def _mind(schedules: list[Schedule], bureau: Bureau, link: ParentLink) -> None:
    minders = [Minder(schedule, bureau.desk(schedule.entry.handler.queue)) for schedule in schedules]
    scheduler = _waker(minders)
    scheduler.start()
    helpers = [asyncio.create_task(link.keep_ticking(lambda: (0, 1))), asyncio.create_task(_feed_watchdog())]
    event(_log, logging.INFO, "cron.started", schedules=", ".join(schedule.name for schedule in schedules))
    link.ready()
    notify("READY=1", f"STATUS={len(schedules)} schedules")
    try:
        async with asyncio.TaskGroup() as group:
            for minder in minders:
                group.create_task(minder.mind())
    except* ConfigurationError as errors:
        raise errors.exceptions[0] from None
    finally:
        scheduler.shutdown(wait=False)
        for helper in helpers:
            helper.cancel()
        await asyncio.sleep(0)  # the scheduler shuts down in the next turn of the loop
        event(_log, logging.INFO, "cron.stopped")


def _waker(minders: list[Minder]) -> Any:
    """Make the scheduler that wakes each schedule at its fire times. What is due is decided by who is woken."""
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    scheduler: Any = AsyncIOScheduler(timezone="UTC")
    for minder in minders:
        scheduler.add_job(
            minder.wake.set,
            minder.schedule.expression.trigger(),
            id=minder.schedule.name,
            misfire_grace_time=_WAKE_GRACE_S,
            coalesce=True,
            max_instances=1,
        )
    return scheduler


async def _feed_watchdog() -> None:
    period_s = watchdog_period_s()
    while period_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


async def _stop_without_parent(link: ParentLink, stop: asyncio.Event) -> None:
    await link.gone.wait()
    stop.set()
