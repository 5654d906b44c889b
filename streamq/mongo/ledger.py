"""The collection `ledger`: jobs that were written down before they were enqueued, until they have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bson.binary import Binary
from pymongo import UpdateOne

from streamq.clock import utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from streamq.mongo.client import Document, Mongo

__all__ = ["Ledger", "LedgerEntry"]


class LedgerEntry(NamedTuple):
    """A job as it was accepted: all that is needed to enqueue it once more."""

    id: str
    queue: str
    lane: str
    envelope: bytes
    dedup: str | None = None
    scope: str = ""
    """Of the dedup key, as `NewJob.scope`."""
    due_at: datetime | None = None
    """None: at once."""


class Ledger:
    """Writes are on disk at a majority when a method returns; `HistoryUnavailable` says that they may not be."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._entries = mongo.collection("ledger")

    async def write(self, entries: Sequence[LedgerEntry]) -> None:
        """Write jobs down. One that is there already stays as it was first written."""
        now = utc_now()
        writes = [
            UpdateOne({"_id": entry.id}, {"$setOnInsert": _document(entry, now)}, upsert=True) for entry in entries
        ]
        if writes:
            with self._mongo.translated():
                await self._entries.bulk_write(writes, ordered=False)

    async def rewrite(self, entries: Sequence[LedgerEntry]) -> None:
        """Write down jobs whose arguments were replaced, whether or not they were there."""
        now = utc_now()
        writes = [UpdateOne({"_id": entry.id}, {"$set": _document(entry, now)}, upsert=True) for entry in entries]
        if writes:
            with self._mongo.translated():
                await self._entries.bulk_write(writes, ordered=False)

    async def strike(self, job_ids: Sequence[str]) -> None:
        """Strike out jobs that have ended, or were never enqueued."""
        if job_ids:
            with self._mongo.translated():
                await self._entries.delete_many({"_id": {"$in": list(job_ids)}})

    async def page(self, queue: str, *, after: str, limit: int, older_than: timedelta) -> list[LedgerEntry]:
        """List the jobs of a queue that were written down some time ago, by their ids, behind one of them."""
        query = {"queue": queue, "_id": {"$gt": after}, "written_at": {"$lt": utc_now() - older_than}}
        with self._mongo.translated():
            found = await self._entries.find(query, sort=[("_id", 1)], limit=limit, hint="by_queue").to_list()
        return [_entry(document) for document in found]

    async def claim(self, job_id: str, *, every: timedelta) -> bool:
        """Take it upon oneself to enqueue a job again. False if somebody did so lately, or it was struck out."""
        now = utc_now()
        free = {"_id": job_id, "$or": [{"tried_at": None}, {"tried_at": {"$lt": now - every}}]}
        with self._mongo.translated():
            done = await self._entries.update_one(free, {"$set": {"tried_at": now}})
        return done.modified_count == 1

    async def count(self) -> int:
        """Count the jobs that are written down, about."""
        with self._mongo.translated():
            return await self._entries.estimated_document_count()


def _document(entry: LedgerEntry, now: datetime) -> Document:
    return {
        "queue": entry.queue,
        "lane": entry.lane,
        "envelope": Binary(entry.envelope),
        "dedup": entry.dedup,
        "scope": entry.scope,
        "due_at": entry.due_at,
        "written_at": now,
        "tried_at": None,
    }


def _entry(document: Document) -> LedgerEntry:
    return LedgerEntry(
        document["_id"],
        document["queue"],
        document["lane"],
        bytes(document["envelope"]),
        document["dedup"],
        document["scope"],
        document["due_at"],
    )
