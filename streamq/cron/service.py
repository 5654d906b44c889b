"""The role: every schedule of an application looked after, until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from streamq.cron.health import checks, serving
from streamq.cron.roster import Roster, check_app
from streamq.cron.watch import Watch
from streamq.logs import event
from streamq.mongo import Mongo, Statuses
from streamq.parentlink import ParentLink
from streamq.probes import keep_reporting
from streamq.process import Reporter
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
        ConfigurationError: A schedule in code cannot be used, Redis is not what streamq needs, or the heartbeat file
            cannot be written.
    """
    check_app(settings, app)
    link = ParentLink.open()
    link.hello([])
    reporter = Reporter(Path(settings.heartbeat_file) if settings.heartbeat_file and not link.present else None)
    watching = asyncio.create_task(_stop_without_parent(link, stop))
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database) if settings.history else None
    try:
        async with desks(settings, stop) as bureau:
            roster = Roster(settings, app, bureau, mongo)
            watch = Watch(settings, roster, bureau, Statuses(mongo) if mongo is not None else None)
            async with serving(settings, watch):
                await roster.begin()
                await _keep(roster, watch, stop, link, reporter)
    except Stopped:
        pass
    finally:
        reporter.stopping()
        watching.cancel()
        link.bye()
        link.close()
        if mongo is not None:
            await mongo.close()


async def _keep(roster: Roster, watch: Watch, stop: asyncio.Event, link: ParentLink, reporter: Reporter) -> None:
    def status() -> str:
        return f"{len(roster.listed)} schedules"

    helpers = [
        asyncio.create_task(keep_reporting(link, reporter, partial(checks, watch), status, lambda: (0, 1))),
        asyncio.create_task(watch.keep()),
    ]
    names = ", ".join(each.name for each in roster.listed)
    event(_log, logging.INFO, "cron.started", schedules=names)
    link.ready()
    reporter.ready(status())
    try:
        await roster.keep(stop)
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        event(_log, logging.INFO, "cron.stopped")


async def _stop_without_parent(link: ParentLink, stop: asyncio.Event) -> None:
    await link.gone.wait()
    stop.set()
