"""Which schedules this process looks after: those in code and those that are stored, as they are now.

MongoDB is asked every two seconds. While it is away everything goes on as it was; before it has ever answered, with what
is written in code.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from streamq.cron.minder import Minder
from streamq.errors import ConfigurationError, HistoryUnavailable
from streamq.logs import event
from streamq.mongo import FlagStore, Mongo, ScheduleStore
from streamq.schedules.book import listing
from streamq.schedules.patience import Patience
from streamq.schedules.phase import Phase
from streamq.schedules.shadow import Shadow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamq.app import StreamQ
    from streamq.schedules.book import Listed
    from streamq.schedules.desks import Bureau
    from streamq.settings import Settings

__all__ = ["LOOK_EVERY_S", "Roster", "check_app"]

_log = logging.getLogger("streamq.cron")

LOOK_EVERY_S = 2.0
_WAKE_GRACE_S = 3600
"""How late APScheduler may still wake us. Its default of one second drops a wake-up when the loop was busy for two."""


@dataclass(slots=True)
class _Kept:
    """A schedule that is looked after."""

    listed: Listed
    minder: Minder
    stop: asyncio.Event
    task: asyncio.Task[None]


def check_app(settings: Settings, app: StreamQ) -> None:
    """See that there is something to look after, before any server is asked.

    Raises:
        ConfigurationError: There is nothing, and nothing can be stored; or a schedule in code cannot be used.
    """
    listed = listing(app, settings, ())
    for each in listed:
        if each.error:
            raise ConfigurationError(each.error)
    if not listed and not settings.history:
        raise ConfigurationError(
            "the application has no schedule", hint='write one: @app.cron("0 * * * *", handler=...)'
        )


class Roster:
    """The minders of this process, one for each schedule."""

    def __init__(self, settings: Settings, app: StreamQ, bureau: Bureau, mongo: Mongo | None) -> None:
        self._settings = settings
        self._app = app
        self._bureau = bureau
        self._shadow = Shadow(mongo) if mongo is not None else None
        self._schedules = ScheduleStore(mongo) if mongo is not None else None
        self._flags = FlagStore(mongo) if mongo is not None else None
        self._kept: dict[str, _Kept] = {}
        self._told: dict[str, str] = {}
        self._is_away = False
        self._seen: object = None
        self._ending: set[asyncio.Future[None]] = set()
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._waker: Any = AsyncIOScheduler(timezone="UTC")
        self.listed: Sequence[Listed] = ()
        """Every schedule, also those that are paused or cannot be used."""

    async def begin(self) -> None:
        """Look for the first time. Without MongoDB the schedules in code are all there is."""
        documents, flags = await self._look() or ((), {})
        self._apply(documents, flags)

    async def keep(self, stop: asyncio.Event) -> None:
        """Look after all schedules, and notice what changes, until told to stop.

        Raises:
            ConfigurationError: Redis does not let us in.
        """
        self._waker.start()
        try:
            while not stop.is_set():
                self._raise_failures()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._until_something_ends(stop)
                if not stop.is_set() and (found := await self._look()) is not None:
                    self._apply(*found)
        finally:
            await self._close()

    async def _until_something_ends(self, stop: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait(
                [waiting, *(kept.task for kept in self._kept.values())], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()

    def _raise_failures(self) -> None:
        for kept in self._kept.values():
            if kept.task.done() and not kept.task.cancelled() and (error := kept.task.exception()) is not None:
                raise error

    async def _close(self) -> None:
        if self._waker.running:
            self._waker.shutdown(wait=False)
        for name in list(self._kept):
            self._end(name)
        await asyncio.gather(*self._ending)

    async def _look(self) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]] | None:
        """Return what is stored; None: MongoDB is away, or history is off."""
        if self._schedules is None or self._flags is None:
            return None
        try:
            found = await self._schedules.all(), await self._flags.get()
        except (HistoryUnavailable, ConfigurationError) as error:
            if not self._is_away:
                event(_log, logging.WARNING, "mongodb.lost", f"{error}; schedules stay as they are")
            self._is_away = True
            return None
        if self._is_away:
            event(_log, logging.INFO, "mongodb.back")
        self._is_away = False
        return found

    def _apply(self, documents: Sequence[Mapping[str, Any]], flags: Mapping[str, Any]) -> None:
        """Make what is looked after what it should be."""
        if (documents, flags) == self._seen:
            return
        self._seen = (documents, flags)
        self._bureau.phase = Phase.of(self._settings, flags)
        self.listed = listing(self._app, self._settings, documents)
        wanted = {each.name: each for each in self.listed if each.schedule is not None}
        for name, kept in list(self._kept.items()):
            if name not in wanted or wanted[name].version != kept.listed.version:
                event(_log, logging.INFO, "cron.changed", schedule=name)
                self._end(name)
        for each in self.listed:
            self._complain(each)
        for name, each in wanted.items():
            if name not in self._kept:
                self._begin(each)
            kept = self._kept[name]
            if (kept.minder.is_paused, kept.minder.pause) != (is_paused := self._is_paused(each), each.pause):
                kept.minder.is_paused, kept.minder.pause = is_paused, each.pause
                self._tell_pause(each)
                kept.minder.wake.set()

    def _is_paused(self, listed: Listed) -> bool:
        return listed.pause is not None or not self._bureau.phase.is_enabled

    def _tell_pause(self, listed: Listed) -> None:
        if listed.pause is not None:
            event(
                _log,
                logging.WARNING,
                "cron.paused",
                schedule=listed.name,
                reason=listed.pause.reason,
                by=listed.pause.by,
            )
        elif not self._bureau.phase.is_enabled:
            event(_log, logging.WARNING, "cron.paused", schedule=listed.name, reason="background_jobs.enabled is false")
        else:
            event(_log, logging.INFO, "cron.on", schedule=listed.name)

    def _complain(self, listed: Listed) -> None:
        """Say once about each stored schedule that it cannot be used; the others go on."""
        if listed.error and self._told.get(listed.name) != listed.error:
            event(_log, logging.ERROR, "cron.failed", listed.error, schedule=listed.name)
        self._told[listed.name] = listed.error

    def _begin(self, listed: Listed) -> None:
        schedule = listed.schedule
        if schedule is None:
            return
        stop = asyncio.Event()
        desk = self._bureau.desk(schedule.entry.handler.queue)
        own = dataclasses.replace(desk, stop=stop, patience=Patience(stop))
        minder = Minder(schedule, own, shadow=self._shadow)
        minder.is_paused, minder.pause = self._is_paused(listed), listed.pause
        self._kept[listed.name] = _Kept(listed, minder, stop, asyncio.ensure_future(minder.mind()))
        if minder.is_paused:
            self._tell_pause(listed)
        self._waker.add_job(
            minder.wake.set, schedule.timing.trigger(), id=listed.name, misfire_grace_time=_WAKE_GRACE_S,
            coalesce=True, max_instances=1, replace_existing=True,
        )  # fmt: skip

    def _end(self, name: str) -> None:
        """Stop looking after a schedule; a fan-out that is under way ends at its next call."""
        kept = self._kept.pop(name)
        kept.stop.set()
        with contextlib.suppress(LookupError):
            self._waker.remove_job(name)
        ending = asyncio.ensure_future(_finished(kept))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


async def _finished(kept: _Kept) -> None:
    """Wait for a minder to end, and close what its page function has opened, if that says how."""
    await asyncio.gather(kept.task, return_exceptions=True)
    page = kept.listed.schedule.entry.page if kept.listed.schedule is not None else None
    if (close := getattr(page, "close", None)) is not None:
        await close()
