"""Schedules that are stored in MongoDB instead of written in code: what may be said of one, and what it becomes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from streamq.app import CronEntry
from streamq.errors import BadInput, ConfigurationError, UnknownHandler
from streamq.mongo import UserPages
from streamq.schedules.occurrence import checked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamq.app import PageFunction, StreamQ
    from streamq.schedules.occurrence import Schedule
    from streamq.settings import Settings

__all__ = ["Definition", "Users", "definition_of", "schedule_of"]

_MOST_LISTED = 10_000
_LONGEST_S = 10 * 366 * 86_400
_INT64 = 1 << 63
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
_UserId = Annotated[int, msgspec.Meta(ge=-_INT64, le=_INT64 - 1)]


class Users(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """For whom a stored schedule makes jobs: one of `pages`, `collection` and `ids`."""

    pages: str = ""
    """The name of a page function of the application: of a schedule in code, or of `@app.users`."""
    collection: str = ""
    """A collection with a document for each user."""
    database: str = ""
    """Of that collection; empty: streamq's own."""
    field: str = "_id"
    query: dict[str, Any] = {}
    cost: str = ""
    """A field of that collection that hints how long a user's job runs."""
    ids: list[str | _UserId] = []
    """The users themselves, up to 10,000."""


class Definition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is said of a stored schedule; the options mean what those of `@app.cron` mean, durations are seconds."""

    expression: str
    handler: str
    users: Users
    timezone: str = "UTC"
    start: datetime | None = None
    end: datetime | None = None
    limit: _Count | None = None
    misfire: str = "once"
    misfire_limit: _Count = 24
    overlap: str = "queue"
    scatter_s: _Seconds | None = None
    jitter_s: _Seconds | None = None
    deadline_s: _Seconds | None = None
    grace_s: _Seconds = 300
    page_timeout_s: _Seconds = 300
    alarm_share: float = 0.5
    stale_after: _Count = 3


def definition_of(value: Mapping[str, Any]) -> Definition:
    """Read a definition from JSON or a document.

    Raises:
        BadInput: A field is missing, unknown or of the wrong type; the message names it.
    """
    try:
        return msgspec.convert(dict(value), Definition, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Definition.__struct_fields__)
        raise BadInput(f"this is no schedule: {error}", hint=f"it may have {known}") from None


def schedule_of(
    name: str, definition: Definition, app: StreamQ, settings: Settings, *, made_at: datetime | None = None
) -> Schedule:
    """Check a definition against an application, and make the schedule that it describes.

    Raises:
        ConfigurationError: The application has no such handler or page function, or the schedule cannot work.
    """
    where = f"schedule {name!r}"
    try:
        handler = app.registry.get(definition.handler)
    except UnknownHandler as error:
        raise ConfigurationError(f"{where}: {error}") from None
    options: dict[str, Any] = {
        field: getattr(definition, field)
        for field in ("timezone", "start", "end", "limit", "misfire", "misfire_limit", "overlap", "alarm_share",
                      "stale_after")
    }  # fmt: skip
    options |= {
        field: _duration(getattr(definition, f"{field}_s"))
        for field in ("scatter", "jitter", "deadline", "grace", "page_timeout")
    }
    page = _page(where, definition.users, app, settings)
    return checked(CronEntry(name, definition.expression, handler, page, made_at=made_at, **options))


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _page(where: str, users: Users, app: StreamQ, settings: Settings) -> PageFunction:
    if [bool(users.pages), bool(users.collection), bool(users.ids)].count(True) != 1:
        raise ConfigurationError(f"{where}: its users are one of pages, collection and ids")
    if users.ids:
        return _listed(where, users.ids)
    if users.collection:
        database = users.database or settings.mongodb_database
        return UserPages(
            settings.mongodb_url, database, users.collection,
            field=users.field, query=users.query, cost=users.cost or None,
        )  # fmt: skip
    if users.pages not in app.pages:
        known = ", ".join(sorted(app.pages)) or "none"
        raise ConfigurationError(
            f"{where}: the application has no page function {users.pages!r} (it has: {known})",
            hint="write one, with @app.users",
        )
    return app.pages[users.pages]


def _listed(where: str, ids: list[str | int]) -> PageFunction:
    if len(ids) > _MOST_LISTED:
        raise ConfigurationError(
            f"{where}: {len(ids):,} ids; up to {_MOST_LISTED:,} can be listed", hint="keep them in a collection"
        )

    async def listed(cursor: str | None) -> tuple[list[str | int], None]:  # noqa: ARG001 - as pages are
        return ids, None

    return listed
