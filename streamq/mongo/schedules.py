"""The collection `schedules`: those that are stored, and what operators have said about any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo.errors import DuplicateKeyError, OperationFailure

from streamq.clock import utc_now
from streamq.errors import BadInput, Conflict
from streamq.mongo.client import UNENCODABLE, is_about_the_document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from streamq.mongo.client import Document, Mongo

__all__ = ["ScheduleStore", "Seen"]

_MOST = 10_000


class Seen(NamedTuple):
    """What a writer saw of a schedule; when it is something else by then, nothing is written. All None: nothing is stored."""

    revision: int | None = None
    made_at: datetime | None = None
    paused_at: datetime | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was stored."""
        return self == Seen()

    def query(self, name: str) -> Document:
        """Match the document only as it was seen."""
        fields = {"revision": self.revision, "made_at": self.made_at, "paused.at": self.paused_at}
        same = {field: {"$exists": False} if value is None else value for field, value in fields.items()}
        return {"_id": name, **same}


def _which(name: str, seen: Seen | None) -> Document:
    return {"_id": name} if seen is None else seen.query(name)


class ScheduleStore:
    """One document for each schedule, `_id` its name.

    Every method raises `HistoryUnavailable` when MongoDB is away, and those with `seen` raise `Conflict` when it is not
    as it was seen.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._documents = mongo.collection("schedules")

    async def all(self) -> list[Document]:
        """Return every document, by name."""
        with self._mongo.translated():
            return await self._documents.find({}).sort("_id").to_list(_MOST)

    async def put(self, name: str, definition: Mapping[str, Any], seen: Seen | None = None) -> bool:
        """Store a schedule, new or instead of the one of that name. Returns whether it is new.

        `BadInput`: there is something in it that MongoDB cannot hold. A pause stays, and so does the moment when it was made: fire times go on as they were.
        """
        now = utc_now()
        update = [
            {
                "$replaceWith": {
                    "$mergeObjects": [
                        {"$literal": {"_id": name, "definition": dict(definition), "changed_at": now}},
                        {
                            "made_at": {"$ifNull": ["$made_at", now]},
                            "revision": {"$add": [{"$ifNull": ["$revision", 0]}, 1]},
                            "paused": {"$ifNull": ["$paused", "$$REMOVE"]},
                        },
                    ]
                }
            }
        ]
        may_be_new = seen is None or seen.is_nothing
        with self._mongo.translated():
            try:
                before = await self._documents.find_one_and_update(_which(name, seen), update, upsert=may_be_new)
            except DuplicateKeyError:
                raise _changed(name) from None
            except (OperationFailure, *UNENCODABLE) as error:
                if isinstance(error, OperationFailure) and not is_about_the_document(error.code):
                    raise
                raise BadInput(f"schedule {name!r} cannot be stored: {str(error)[:200]}") from None
        if before is None and not may_be_new:
            raise _changed(name)
        return before is None or "definition" not in before

    async def remove(self, name: str, seen: Seen | None = None) -> bool:
        """Remove a stored schedule. Returns whether there was one."""
        with self._mongo.translated():
            done = await self._documents.delete_one({"definition": {"$exists": True}, **_which(name, seen)})
        if seen is not None and done.deleted_count == 0:
            raise _changed(name)
        return done.deleted_count == 1

    async def pause(self, name: str, *, reason: str, by: str, seen: Seen | None = None) -> None:
        """Pause a schedule, be it stored or written in code."""
        paused = {"reason": reason, "by": by, "at": utc_now()}
        may_be_new = seen is None or seen.is_nothing
        with self._mongo.translated():
            try:
                done = await self._documents.update_one(
                    _which(name, seen), {"$set": {"paused": paused}}, upsert=may_be_new
                )
            except DuplicateKeyError:
                raise _changed(name) from None
        if not may_be_new and done.matched_count == 0:
            raise _changed(name)

    async def resume(self, name: str, seen: Seen | None = None) -> bool:
        """End a pause. Returns whether there was one."""
        with self._mongo.translated():
            done = await self._documents.update_one(
                {"paused": {"$exists": True}, **_which(name, seen)}, {"$unset": {"paused": ""}}
            )
            empty = {"definition": {"$exists": False}, "paused": {"$exists": False}}
            await self._documents.delete_one({"_id": name, **empty})
        if seen is not None and seen.paused_at is not None and done.modified_count == 0:
            raise _changed(name)
        return done.modified_count == 1


def _changed(name: str) -> Conflict:
    return Conflict(f"schedule {name!r} was changed by somebody else meanwhile", hint="look at it again")
