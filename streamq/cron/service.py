"""The role: every schedule of an application looked after, until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from streamq.cron.health import serving
from streamq.cron.roster import Roster, check_app
from streamq.cron.watch import Watch
from streamq.logs import event
from streamq.mongo import Mongo, Statuses
from streamq.parentlink import ParentLink
from streamq.process import notify, watchdog_period_s
from streamq.schedules.desks import desks
from streamq.schedules.patience import Stopped

if TYPE_CHECKING:
    from streamq.app import StreamQ
    from streamq.settings import Settings

__all__ = ["run"]

_log = logging.getLogger("streamq.cron")


async def run(settings: Settings, app: StreamQ, stop: asyncio.Event) -> None:
    """Fire the schedules of an application, in code and stored, until `stop` is set.

    Each fan-out then ends at its next call; whatever is left of it is gone on with by the next process. Redis and
    MongoDB being away is waited for.

    Raises:
        ConfigurationError: A schedule in code cannot be used, or Redis is not what streamq needs.
    """
    check_app(settings, app)
    link = ParentLink.open()
    link.hello([])
    watching = asyncio.create_task(_stop_without_parent(link, stop))
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database) if settings.history else None
    try:
        async with desks(settings, stop) as bureau:
            roster = Roster(settings, app, bureau, mongo)
            watch = Watch(settings, roster, bureau, Statuses(mongo) if mongo is not None else None)
            async with serving(settings, watch):
                await roster.begin()
                await _keep(roster, watch, stop, link)
    except Stopped:
        pass
    finally:
        notify("STOPPING=1")
        watching.cancel()
        link.bye()
        link.close()
        if mongo is not None:
            await mongo.close()


async def _keep(roster: Roster, watch: Watch, stop: asyncio.Event, link: ParentLink) -> None:
    helpers = [
        asyncio.create_task(link.keep_ticking(lambda: (0, 1))),
        asyncio.create_task(_feed_watchdog()),
        asyncio.create_task(watch.keep()),
    ]
    names = ", ".join(each.name for each in roster.listed)
    event(_log, logging.INFO, "cron.started", schedules=names)
    link.ready()
    notify("READY=1", f"STATUS={len(roster.listed)} schedules")
    try:
        await roster.keep(stop)
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        event(_log, logging.INFO, "cron.stopped")


async def _feed_watchdog() -> None:
    period_s = watchdog_period_s()
    while period_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


async def _stop_without_parent(link: ParentLink, stop: asyncio.Event) -> None:
    await link.gone.wait()
    stop.set()
