"""The collection `schedules`: those that are stored, and what operators have said about any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamq.clock import utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamq.mongo.client import Document, Mongo

__all__ = ["ScheduleStore"]

_MOST = 10_000


class ScheduleStore:
    """One document for each schedule, `_id` its name. Every method raises `HistoryUnavailable` when MongoDB is away."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._documents = mongo.collection("schedules")

    async def all(self) -> list[Document]:
        """Return every document, by name."""
        with self._mongo.translated():
            return await self._documents.find({}).sort("_id").to_list(_MOST)

    async def put(self, name: str, definition: Mapping[str, Any]) -> bool:
        """Store a schedule, new or instead of the one of that name. Returns whether it is new.

        A pause stays, and so does the moment when it was made: fire times go on as they were.
        """
        now = utc_now()
        with self._mongo.translated():
            before = await self._documents.find_one_and_update(
                {"_id": name},
                [
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
                ],
                upsert=True,
            )
        return before is None or "definition" not in before

    async def remove(self, name: str) -> bool:
        """Remove a stored schedule. Returns whether there was one."""
        with self._mongo.translated():
            done = await self._documents.delete_one({"_id": name, "definition": {"$exists": True}})
        return done.deleted_count == 1

    async def pause(self, name: str, *, reason: str, by: str) -> None:
        """Pause a schedule, be it stored or written in code."""
        paused = {"reason": reason, "by": by, "at": utc_now()}
        with self._mongo.translated():
            await self._documents.update_one({"_id": name}, {"$set": {"paused": paused}}, upsert=True)

    async def resume(self, name: str) -> bool:
        """End a pause. Returns whether there was one."""
        with self._mongo.translated():
            done = await self._documents.update_one(
                {"_id": name, "paused": {"$exists": True}}, {"$unset": {"paused": ""}}
            )
            await self._documents.delete_one({"_id": name, "definition": {"$exists": False}})
        return done.modified_count == 1
