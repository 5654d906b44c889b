"""The collection `flags`: how far the move from the old system has come, for streamq and the old system alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamq.mongo.client import Document, Mongo

__all__ = ["FlagStore"]

_ID = "streamq"


class FlagStore:
    """One document, `_id` `streamq`. Every method raises `HistoryUnavailable` when MongoDB is away."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._flags = mongo.collection("flags")

    async def get(self) -> Document:
        """Return what is stored; empty: nothing is."""
        with self._mongo.translated():
            return await self._flags.find_one({"_id": _ID}, {"_id": 0}) or {}

    async def set(self, **flags: Any) -> None:
        """Store some flags; the others stay."""
        with self._mongo.translated():
            await self._flags.update_one({"_id": _ID}, {"$set": flags}, upsert=True)
