"""What a dry run would have enqueued, what the old system reports for the same time, and how the two differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.clock import utc_now

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from datetime import datetime

    from streamq.mongo.client import Document, Mongo

__all__ = ["Legacy", "ShadowStore"]

_READ_LIMIT_S = 300
_MOST_REPORTS = 1000


@dataclass(frozen=True, slots=True)
class Legacy:
    """Where the old system writes the status of its jobs, a document for each."""

    collection: str = "jobstatuses"
    """As mongoose names the collection of the model `JobStatus`."""
    database: str = ""
    """Empty: streamq's own."""
    user_field: str = "userId"
    time_field: str = "createdAt"
    """A date: when the old system enqueued the job."""


class ShadowStore:
    """The collections `shadow`, with a document for each occurrence, and `shadow_pages`, with the users of its pages.

    Every method raises `HistoryUnavailable` when MongoDB is away.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._reports = mongo.collection("shadow")
        self._pages = mongo.collection("shadow_pages")

    async def begin(self, occurrence: str) -> None:
        """Forget what an earlier run of the occurrence has stored."""
        with self._mongo.translated():
            await self._pages.delete_many({"occurrence": occurrence})

    async def add_page(self, occurrence: str, number: int, users: Sequence[Any]) -> None:
        """Store the users of a page."""
        page = {"occurrence": occurrence, "number": number, "users": list(users), "at": utc_now()}
        with self._mongo.translated():
            await self._pages.insert_one(page)

    async def users(self, occurrence: str) -> AsyncGenerator[Any]:
        """Yield the users of an occurrence, page by page."""
        with self._mongo.translated():
            async for page in self._pages.find({"occurrence": occurrence}).sort("number", 1):
                for user in page["users"]:
                    yield user

    async def report(self, occurrence: str, fields: Mapping[str, Any]) -> None:
        """Store what is known of an occurrence; what was known before and is not named stays."""
        with self._mongo.translated():
            await self._reports.update_one({"_id": occurrence}, {"$set": dict(fields)}, upsert=True)

    async def reports(self, schedule: str | None = None, *, limit: int = 24) -> list[Document]:
        """Return what is known of the newest occurrences, newest first."""
        query = {} if schedule is None else {"schedule": schedule}
        with self._mongo.translated():
            return await self._reports.find(query).sort("fire_at", -1).to_list(min(limit, _MOST_REPORTS))

    async def legacy_users(
        self, legacy: Legacy, since: datetime, until: datetime
    ) -> AsyncGenerator[tuple[str, datetime, datetime]]:
        """Yield each user whose jobs the old system enqueued in a time, with when the first and the last was."""
        client = self._mongo.database.client
        database = client[legacy.database] if legacy.database else self._mongo.database
        time, user = f"${legacy.time_field}", f"${legacy.user_field}"
        pipeline: list[Document] = [
            {"$match": {legacy.time_field: {"$gte": since, "$lt": until}}},
            {"$group": {"_id": user, "first": {"$min": time}, "last": {"$max": time}}},
        ]
        with self._mongo.translated(), self._mongo.patience(_READ_LIMIT_S):
            async for found in await database[legacy.collection].aggregate(pipeline, allowDiskUse=True):
                yield str(found["_id"]), found["first"], found["last"]
