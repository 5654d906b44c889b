"""The role: every schedule of an application looked after, until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from streamq.cron.minder import Minder
from streamq.errors import ConfigurationError
from streamq.logs import event
from streamq.parentlink import ParentLink
from streamq.process import notify, watchdog_period_s
from streamq.schedules.desks import Bureau, desks, wanted_schedules
from streamq.schedules.patience import Stopped

if TYPE_CHECKING:
    from streamq.app import StreamQ
    from streamq.schedules.occurrence import Schedule
    from streamq.settings import Settings

__all__ = ["run"]

_log = logging.getLogger("streamq.cron")

_WAKE_GRACE_S = 3600
"""How late APScheduler may still wake us. Its default of one second drops a wake-up when the loop was busy for two."""


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
            minder.schedule.timing.trigger(),
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
