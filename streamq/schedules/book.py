"""Every schedule there is: those in code, those that are stored, and which of them are paused."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from streamq.broker.fanout import FanOuts
from streamq.broker.server import Broker
from streamq.errors import BadInput, ConfigurationError, HistoryUnavailable, StreamQError
from streamq.logs import event
from streamq.mongo import FlagStore, Mongo, ScheduleStore, Seen
from streamq.schedules.occurrence import Schedule, checked
from streamq.schedules.phase import Phase
from streamq.schedules.stored import Definition, definition_of, schedule_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

    from streamq.app import CronEntry, StreamQ
    from streamq.settings import Settings

__all__ = ["Book", "Listed", "Pause", "book", "every_schedule", "listing", "resolve"]

_log = logging.getLogger("streamq.cron")


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a schedule does not fire."""

    reason: str
    by: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A schedule, and what is said of it."""

    name: str
    source: Literal["code", "stored"]
    schedule: Schedule | None
    """None: it cannot be used, for the reason in `error`."""
    pause: Pause | None = None
    error: str = ""
    version: Any = None
    """Differs when anything but the pause has changed."""
    definition: Definition | None = None
    """Of a stored one that can be read."""

    @property
    def seen(self) -> Seen:
        """What is stored of it, for writes that expect it unchanged."""
        revision, made_at = self.version or (None, None)
        return Seen(revision, made_at, self.pause.at if self.pause else None)


def listing(app: StreamQ, settings: Settings, documents: Iterable[Mapping[str, Any]]) -> list[Listed]:
    """Put together what is written in code and what is stored, by name. What cannot be used is listed with the reason."""
    stored = {str(document["_id"]): document for document in documents}
    listed = [_in_code(entry, _pause(stored.get(name, {}))) for name, entry in app.cron_entries.items()]
    for name, document in stored.items():
        if name not in app.cron_entries and "definition" in document:
            listed.append(_stored(name, document, app, settings))
    return sorted(listed, key=lambda each: each.name)


def _in_code(entry: CronEntry, pause: Pause | None) -> Listed:
    try:
        return Listed(entry.name, "code", checked(entry), pause)
    except ConfigurationError as error:
        return Listed(entry.name, "code", None, pause, str(error))


def _stored(name: str, document: Mapping[str, Any], app: StreamQ, settings: Settings) -> Listed:
    pause = _pause(document)
    version = (document.get("revision"), document.get("made_at"))
    definition = None
    try:
        definition = definition_of(document["definition"])
        schedule = schedule_of(name, definition, app, settings, made_at=document.get("made_at"))
    except StreamQError as error:
        return Listed(name, "stored", None, pause, str(error), version, definition)
    return Listed(name, "stored", schedule, pause, version=version, definition=definition)


def _pause(document: Mapping[str, Any]) -> Pause | None:
    paused = document.get("paused")
    if not isinstance(paused, dict):
        return None
    return Pause(str(paused.get("reason", "")), str(paused.get("by", "")), paused.get("at"))


class Book:
    """What operators do to schedules. Cron processes notice within two seconds."""

    def __init__(self, app: StreamQ, settings: Settings, mongo: Mongo) -> None:
        self._app = app
        self._settings = settings
        self._store = ScheduleStore(mongo)

    async def all(self) -> list[Listed]:
        """List every schedule, by name."""
        return listing(self._app, self._settings, await self._store.all())

    async def find(self, name: str) -> Listed:
        """Return the schedule of that name.

        Raises:
            ConfigurationError: There is none.
        """
        every = {listed.name: listed for listed in await self.all()}
        if name not in every:
            known = ", ".join(sorted(every)) or "none"
            raise ConfigurationError(f"no schedule is named {name!r} (known: {known})")
        return every[name]

    async def put(self, name: str, definition: Definition, seen: Seen | None = None) -> bool:
        """Store a schedule, new or instead of the one of that name. Returns whether it is new.

        Raises:
            ConfigurationError: It cannot work with this application, or the name is that of one in code.
            Conflict: What is stored is not what was seen.
        """
        if name in self._app.cron_entries:
            raise ConfigurationError(
                f"schedule {name!r} is written in code", hint="change it there, or give the stored one another name"
            )
        schedule_of(name, definition, self._app, self._settings)
        return await self._store.put(name, msgspec.to_builtins(definition, builtin_types=(datetime,)), seen)

    async def remove(self, name: str, seen: Seen | None = None) -> None:
        """Remove a stored schedule, and forget up to when it was decided. Jobs that it made go on.

        Raises:
            ConfigurationError: There is none of that name, or it is written in code.
            Conflict: What is stored is not what was seen.
        """
        listed = await self.find(name)
        if listed.source == "code":
            raise ConfigurationError(
                f"schedule {name!r} is written in code, and cannot be removed from here",
                hint="take it out of the code, or pause it",
            )
        await self._store.remove(name, seen)
        if listed.schedule is not None:
            await _forget(self._settings, listed.schedule)

    async def pause(self, name: str, *, reason: str, by: str, seen: Seen | None = None) -> None:
        """Let a schedule fire no more until it is resumed. Fire times that pass meanwhile are not made up for.

        Raises:
            BadInput: There is no reason.
            ConfigurationError: There is no such schedule.
            Conflict: What is stored is not what was seen.
        """
        if not reason.strip():
            raise BadInput("a pause has a reason, for whoever wonders why nothing is refreshed")
        await self.find(name)
        await self._store.pause(name, reason=reason, by=by, seen=seen)

    async def resume(self, name: str, seen: Seen | None = None) -> bool:
        """Let a schedule fire again, from its next fire time on. Returns whether it was paused.

        Raises:
            ConfigurationError: There is no such schedule.
            Conflict: What is stored is not what was seen.
        """
        await self.find(name)
        return await self._store.resume(name, seen)


async def _forget(settings: Settings, schedule: Schedule) -> None:
    broker = Broker(settings.redis_url, allow_eviction=True)
    partition = broker.partition(schedule.entry.handler.queue)
    try:
        await FanOuts(partition).forget(schedule.mark)
    finally:
        await partition.wire.close()
        await broker.close()


@contextlib.asynccontextmanager
async def book(app: StreamQ, settings: Settings) -> AsyncGenerator[Book]:
    """Open the book.

    Raises:
        ConfigurationError: There is no MongoDB to keep it in, or it refuses us.
        HistoryUnavailable: MongoDB is away.
    """
    if not settings.history:
        raise ConfigurationError(
            f"history is off ({settings.sources.get('history', 'the program')}), so no schedule can be stored or paused"
        )
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        await mongo.check()
        yield Book(app, settings, mongo)
    finally:
        await mongo.close()


def _warn(text: str) -> None:
    event(_log, logging.WARNING, "mongodb.lost", text)


async def every_schedule(app: StreamQ, settings: Settings, *, tell: Callable[[str], None] = _warn) -> list[Listed]:
    """List every schedule, by name; while MongoDB is away, those in code, and `tell` is told so."""
    documents, _ = await _stored_now(settings, tell)
    return listing(app, settings, documents)


async def resolve(app: StreamQ, settings: Settings, name: str | None) -> tuple[list[Schedule], Phase]:
    """Return the schedule of that name, or all that are not paused, and how far the move from the old system is.

    While MongoDB is away, those in code are all there is.

    Raises:
        ConfigurationError: There is none, or one of them cannot be used.
    """
    documents, flags = await _stored_now(settings)
    listed = listing(app, settings, documents)
    if not listed:
        raise ConfigurationError(
            "the application has no schedule", hint='write one: @app.cron("0 * * * *", handler=...)'
        )
    wanted = [each for each in listed if each.name == name or (name is None and each.pause is None)]
    if not wanted and name is not None:
        raise ConfigurationError(
            f"no schedule is named {name!r} (known: {', '.join(sorted(each.name for each in listed))})"
        )
    for each in wanted:
        if each.error:
            raise ConfigurationError(each.error)
    return [each.schedule for each in wanted if each.schedule is not None], Phase.of(settings, flags)


async def _stored_now(
    settings: Settings, tell: Callable[[str], None] = _warn
) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    if not settings.history:
        return [], {}
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        return await ScheduleStore(mongo).all(), await FlagStore(mongo).get()
    except HistoryUnavailable as error:
        tell(f"{error}; going by the schedules in code")
        return [], {}
    finally:
        await mongo.close()
