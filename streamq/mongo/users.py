"""Pages of users out of a collection, read along an index: as fast at the end as at the beginning.

A cursor is the last id of the page before, whatever its type. Users that come or go meanwhile shift nobody.
"""

from __future__ import annotations

import asyncio
import math
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

    def __init__(  # noqa: PLR0913 - each says one thing of the collection
        self,
        url: str,
        database: str,
        collection: str,
        *,
        field: str = "_id",
        query: Mapping[str, Any] | None = None,
        size: int = 1000,
        cost: str | None = None,
    ) -> None:
        """Say where the users are; nothing is opened yet.

        Args:
            url: Of MongoDB.
            database: Its name.
            collection: Its name.
            field: Holds the user's id, of any type; it needs an index, and each value counts once.
            query: Which documents count; None: all.
            size: Users of one page, 1 to 100,000.
            cost: A field that hints how long a user's job runs: a number, 0 or more, that rises with it. A document where
                it is missing, or anything else, gives no hint.

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
        self._cost = cost
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mongo] = weakref.WeakKeyDictionary()

    async def __call__(self, cursor: str | None) -> tuple[list[Any], str | None]:
        """Read a page: of ids, or with `cost` of pairs of an id and its hint, None for one without.

        Raises:
            HistoryUnavailable: MongoDB is away.
            ConfigurationError: The field has no index.
            BadInput: The cursor is none of ours.
        """
        mongo = self._mongo()
        key = [(self._field, 1)]
        query = {"$and": [self._query, {self._field: {"$ne": None}}]}
        wanted = {self._field: 1} if self._cost is None else {self._field: 1, self._cost: 1}
        found = mongo.collection(self._collection).find(query, wanted).sort(key).hint(key)
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
        if self._cost is not None:
            costs = {value: _hint(each, self._cost) for value, each in zip(values[::-1], documents[::-1], strict=True)}
            ids = [(value, costs[value]) for value in ids]
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


def _hint(document: Mapping[str, Any], path: str) -> float | None:
    """Return a number that can be a cost; what a collection holds else must not keep a user from being refreshed."""
    value = _value(document, path)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None


def _last(cursor: str | None) -> Any:
    if cursor is None:
        return None
    try:
        return json_util.loads(cursor)["v"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{cursor!r} is not a cursor of these pages") from error
