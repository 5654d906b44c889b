"""Pages of users out of a collection, read along an index: as fast at the end as at the beginning.

A cursor is the last id of the page before, whatever its type. Users that come or go meanwhile shift nobody.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from bson import json_util
from pymongo.errors import OperationFailure

from streamq.errors import BadInput, ConfigurationError
from streamq.mongo.client import Mongo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["UserPages"]

_LARGEST_PAGE = 100_000


class UserPages:
    """A page function over a collection: `app.cron("0 * * * *", handler=refresh, name="all")(UserPages(...))`."""

    def __init__(
        self,
        url: str,
        database: str,
        collection: str,
        *,
        field: str = "_id",
        query: Mapping[str, Any] | None = None,
        size: int = 1000,
    ) -> None:
        """Say where the users are; nothing is opened yet.

        Args:
            url: Of MongoDB.
            database: Its name.
            collection: Its name.
            field: Holds the user's id, of any type; it needs an index, and each value counts once.
            query: Which documents count; None: all.
            size: Users of one page, 1 to 100,000.

        Raises:
            ConfigurationError: The size is out of bounds, or the URL is not MongoDB's.
        """
        if not 1 <= size <= _LARGEST_PAGE:
            raise ConfigurationError(f"a page has 1 to {_LARGEST_PAGE:,} users, and {size} were asked for")
        self.__name__ = collection
        self._where = (url, database)
        self._collection = collection
        self._field = field
        self._query = dict(query or {})
        self._size = size
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mongo] = weakref.WeakKeyDictionary()

    async def __call__(self, cursor: str | None) -> tuple[list[Any], str | None]:
        """Read a page.

        Raises:
            HistoryUnavailable: MongoDB is away.
            ConfigurationError: The field has no index.
            BadInput: The cursor is none of ours.
        """
        mongo = self._mongo()
        key = [(self._field, 1)]
        query = {"$and": [self._query, {self._field: {"$ne": None}}]}
        found = mongo.collection(self._collection).find(query, {self._field: 1}).sort(key).hint(key)
        last = _last(cursor)
        limit = self._size + (cursor is not None)  # the bound itself comes again
        if cursor is not None:
            # `$gt` would stay among values of the last one's type; the bound of an index does not.
            found = found.min([(self._field, last)])
        try:
            with mongo.translated():
                documents = await found.limit(limit).to_list()
        except OperationFailure as error:
            raise ConfigurationError(
                f"cannot read users by {self._field!r} of {self._collection!r}: {error.details and error.details['errmsg']}",
                hint=f"it needs an index: db.{self._collection}.createIndex({{{self._field!r}: 1}})",
            ) from error
        values = _values(documents, self._field)
        ids = [value for value in dict.fromkeys(values) if cursor is None or value != last]
        return ids, json_util.dumps({"v": values[-1]}) if len(values) == limit else None

    async def close(self) -> None:
        """Close the connection of this event loop."""
        mongo = self._clients.pop(asyncio.get_running_loop(), None)
        if mongo is not None:
            await mongo.close()

    def _mongo(self) -> Mongo:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = Mongo(*self._where)
        return self._clients[loop]


def _values(documents: Sequence[Mapping[str, Any]], path: str) -> list[Any]:
    if "." not in path:
        return [document[path] for document in documents]
    return [_value(document, path) for document in documents]


def _value(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _last(cursor: str | None) -> Any:
    if cursor is None:
        return None
    try:
        return json_util.loads(cursor)["v"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{cursor!r} is not a cursor of these pages") from error
