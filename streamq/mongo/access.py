"""The collections `tokens`, `audit` and `operations`: who may ask, what they changed, and what of it is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError

from streamq.mongo.client import Document, Mongo, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

__all__ = ["Audit", "Operations", "Tokens"]

LIMIT_S = 2.0
_DUPLICATE_KEY = 11000


class Tokens:
    """The collection `tokens`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._tokens = mongo.collection("tokens")

    async def add(self, document: Document) -> None:
        """Store a new token."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            await self._tokens.insert_one(document)

    async def find(self, token_id: str) -> Document | None:
        """Find a token by its id."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            return await self._tokens.find_one({"_id": token_id})

    async def all(self) -> list[Document]:
        """List all tokens, the newest first."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            return await self._tokens.find({}, {"digest": 0}).sort("created_at", -1).to_list()

    async def change(self, token_id: str, fields: Mapping[str, Any]) -> None:
        """Change fields of a token."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            await self._tokens.update_one({"_id": token_id}, {"$set": dict(fields)})

    async def touch(self, uses: Mapping[str, datetime]) -> None:
        """Store when tokens were last used; never earlier than is stored already."""
        if uses:
            updates = [UpdateOne({"_id": each}, {"$max": {"last_used_at": moment}}) for each, moment in uses.items()]
            with self._mongo.translated(), self._mongo.patience(LIMIT_S):
                await self._tokens.bulk_write(updates, ordered=False)


class Audit:
    """The collection `audit`. Ids of entries sort by time."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._audit = mongo.collection("audit")

    async def add(self, entries: Sequence[Document]) -> None:
        """Store entries; those that are stored already change nothing."""
        try:
            with self._mongo.translated(), self._mongo.patience(LIMIT_S):
                await self._audit.insert_many(entries, ordered=False)
        except BulkWriteError as error:
            if any(failure["code"] != _DUPLICATE_KEY for failure in error.details["writeErrors"]):
                raise

    async def page(self, *, limit: int, before: str | None = None) -> list[Document]:
        """List entries, the newest first, from behind one of them."""
        query: Document = {} if before is None else {"_id": {"$lt": before}}
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            found = await self._audit.find(query).sort("_id", -1).limit(limit).to_list()
        return [plain(document) for document in found]


class Operations:
    """The collection `operations`: orders that take longer than a request."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._operations = mongo.collection("operations")

    async def add(self, document: Document) -> None:
        """Store a new operation."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            await self._operations.insert_one(document)

    async def find(self, operation_id: str) -> Document | None:
        """Find an operation by its id."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            return await self._operations.find_one({"_id": operation_id})

    async def change(self, operation_id: str, fields: Mapping[str, Any]) -> Document | None:
        """Change fields of an operation, and return it as it is then."""
        with self._mongo.translated(), self._mongo.patience(LIMIT_S):
            return await self._operations.find_one_and_update(
                {"_id": operation_id}, {"$set": dict(fields)}, return_document=ReturnDocument.AFTER
            )
