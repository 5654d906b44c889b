"""What streamq keeps in MongoDB: collections, indexes, validators, views, and how a database gets there.

What is missing is made by whoever needs it first. What is there and differs is left alone until a person says so, with
`streamq migrate`: an index may take minutes to build, and an older version may still run beside this one. The collection
`layout` holds the number of the layout. Where that is higher than ours, a later version has been here: then what differs is
right as it is.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import IndexModel
from pymongo.errors import CollectionInvalid, DuplicateKeyError, OperationFailure

from streamq.clock import utc_now
from streamq.errors import ConfigurationError, HistoryUnavailable
from streamq.job import State
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence

    from streamq.mongo.client import Document, Mongo

__all__ = ["INDEXES", "LAYOUT", "USER_LATEST", "VALIDATORS", "Change", "Schema"]

LAYOUT = 1
"""Number of this layout. Add one when an index, a validator or a view below becomes another."""

_INDEX_BUILD_S = 600
_ALONE = timedelta(seconds=2 * _INDEX_BUILD_S)
"""For so long after it began a change a migration keeps others from beginning; longer than any change may take."""
_NAMESPACE_EXISTS = 48

INDEXES: Mapping[str, Sequence[IndexModel]] = {
    "job_status": (
        IndexModel(
            [("user", 1), ("enqueued_at", -1), ("_id", -1)],
            name="by_user",
            partialFilterExpression={"user": {"$exists": True}},
        ),
        IndexModel([("enqueued_at", -1), ("_id", -1)], name="recent"),
        IndexModel([("queue", 1), ("state", 1), ("enqueued_at", -1), ("_id", -1)], name="by_queue_and_state"),
        IndexModel([("handler", 1), ("enqueued_at", -1), ("_id", -1)], name="by_handler"),
        IndexModel(
            [("error.type", 1), ("enqueued_at", -1), ("_id", -1)],
            name="by_error",
            partialFilterExpression={"error.type": {"$exists": True}},
        ),
        IndexModel([("finished_at", -1), ("_id", -1)], name="failed", partialFilterExpression={"state": "dead"}),
        IndexModel([("expires_at", 1)], name="expiry", expireAfterSeconds=0),
    ),
    "quarantine": (IndexModel([("at", 1)], name="expiry", expireAfterSeconds=30 * 86_400),),
    "ledger": (IndexModel([("queue", 1), ("_id", 1)], name="by_queue"),),
    "audit": (IndexModel([("at", 1)], name="expiry", expireAfterSeconds=365 * 86_400),),
    "operations": (IndexModel([("started_at", 1)], name="expiry", expireAfterSeconds=30 * 86_400),),
    "shadow": (
        IndexModel([("schedule", 1), ("fire_at", -1)], name="by_schedule"),
        IndexModel([("fire_at", 1)], name="expiry", expireAfterSeconds=30 * 86_400),
    ),
    "shadow_pages": (
        IndexModel([("occurrence", 1), ("number", 1)], name="in_order"),
        IndexModel([("at", 1)], name="expiry", expireAfterSeconds=2 * 86_400),
    ),
}
"""Each serves a query of `history` or of the reconciler; writing a status costs an entry in every one of them."""

_WHOLE = {"bsonType": ["int", "long"]}
_TEXT = {"bsonType": "string"}
_DATE = {"bsonType": "date"}

VALIDATORS: Mapping[str, Document] = {
    "job_status": {
        "$jsonSchema": {
            "bsonType": "object",
            "required": ["queue", "state", "enqueued_at", "version"],
            "properties": {
                "queue": _TEXT,
                "handler": _TEXT,
                "user": _TEXT,
                "state": {"enum": [state.value for state in State]},
                "attempt": _WHOLE,
                "max_attempts": _WHOLE,
                "crashes": _WHOLE,
                "enqueued_at": _DATE,
                "due_at": _DATE,
                "started_at": _DATE,
                "finished_at": _DATE,
                "expires_at": _DATE,
                "attempts": {"bsonType": "array"},
                "version": _WHOLE,
            },
        }
    },
}
"""What a document must look like; fields of later versions are let in. The recorder quarantines what is refused."""

USER_LATEST = "user_latest"
"""The view of the job of each user that was enqueued last: `_id` is the user, `latest` the status."""

_VIEWS: Mapping[str, tuple[str, list[Document]]] = {
    USER_LATEST: (
        "job_status",
        [
            {"$match": {"user": {"$exists": True}}},
            {"$sort": {"user": 1, "enqueued_at": -1, "_id": -1}},
            # A question for one `_id` is moved in front of the group by the server, and `by_user` answers it.
            {"$group": {"_id": "$user", "latest": {"$first": "$$ROOT"}}},
        ],
    )
}


class Change(NamedTuple):
    """A difference between what a database has and what this version wants."""

    what: str
    """In words, such as `create the index recent of job_status`."""
    is_new: bool
    """Whether something is missing; else something is there and differs."""
    apply: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a database has."""

    collections: Mapping[str, Document]
    """Name to options."""
    indexes: Mapping[str, Mapping[str, Document]]


class Schema:
    """The layout of one database."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._layout = mongo.collection("layout")
        self._log = logging.getLogger(__name__)

    async def newer(self) -> int:
        """Return the number of the layout that a later version has made here; 0: none has."""
        with self._mongo.translated():
            told = await self._layout.find_one({"_id": "layout"})
        number = int(told["number"]) if told else 0
        return number if number > LAYOUT else 0

    async def changes(self) -> list[Change]:
        """Tell what has to be done to bring the database to this version; nothing is written.

        Where a later version has been, that is only what is missing.
        """
        is_newer = await self.newer()
        with self._mongo.translated():
            found = await self._find()
        changes = [*self._collections(found), *self._indexes(found), *self._views(found)]
        return [change for change in changes if change.is_new] if is_newer else changes

    async def prepare(self) -> None:
        """Make what is missing. Safe to repeat, and for several at once.

        Raises:
            ConfigurationError: An index of ours exists with another definition: writing would be slow, or never expire.
        """
        changes = await self.changes()
        for change in changes:
            if change.is_new:
                await self._apply(change)
            elif change.what.startswith("replace the index"):
                name = change.what.rpartition(" ")[2]
                raise ConfigurationError(
                    f"the indexes of {name} in MongoDB are not streamq's: {change.what}",
                    hint="streamq migrate shows the differences, and streamq migrate --apply makes them right",
                )
            else:
                event(self._log, logging.WARNING, "schema.differs", f"{change.what}: run streamq migrate --apply")
        if all(change.is_new for change in changes):
            await self._number()

    async def migrate(self) -> list[Change]:
        """Do all that has to be done. Returns what was done.

        Raises:
            HistoryUnavailable: Another migration is under way.
        """
        async with self._alone():
            changes = await self.changes()
            for change in changes:
                await self._go_on()
                await self._apply(change)
            await self._number()
        return changes

    async def _number(self) -> None:
        """Note that the database is at least as this version wants it."""
        with self._mongo.translated():
            told = await self._layout.find_one({"_id": "layout"})
            if not told or told["number"] < LAYOUT:
                await self._layout.update_one({"_id": "layout"}, {"$max": {"number": LAYOUT}}, upsert=True)

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[None]:
        """Keep other migrations out: each would drop the indexes that the other is building."""
        now = utc_now()
        try:
            with self._mongo.translated():
                await self._layout.find_one_and_replace(
                    {"_id": "migration", "until": {"$lt": now}}, {"until": now + _ALONE, "since": now}, upsert=True
                )
        except DuplicateKeyError:
            told = await self._layout.find_one({"_id": "migration"}) or {}
            raise HistoryUnavailable(
                f"another migration of MongoDB at {self._mongo.where} is under way since {told.get('since', now):%H:%M:%S} UTC",
                hint="wait for it; should it have been killed, try again in twenty minutes",
            ) from None
        try:
            yield
        finally:
            with self._mongo.translated():
                await self._layout.delete_one({"_id": "migration"})

    async def _go_on(self) -> None:
        """Keep other migrations out for as long as the next change may take."""
        with self._mongo.translated():
            await self._layout.update_one({"_id": "migration"}, {"$set": {"until": utc_now() + _ALONE}})

    async def _apply(self, change: Change) -> None:
        try:
            with self._mongo.translated(), self._mongo.patience(_INDEX_BUILD_S):
                await change.apply()
        except CollectionInvalid:
            pass  # somebody else was faster
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise ConfigurationError(
                    f"MongoDB at {self._mongo.where} refused to {change.what}: "
                    f"{(error.details or {}).get('errmsg', error)}",
                    hint="the user needs dbAdmin on the database for that",
                ) from error

    async def _find(self) -> _Found:
        database = self._mongo.database
        listed = await (await database.list_collections()).to_list()
        options = {each["name"]: each.get("options", {}) for each in listed}
        indexes = {
            name: await database[name].index_information() for name in {*INDEXES, *VALIDATORS} if name in options
        }
        return _Found(options, indexes)

    def _collections(self, found: _Found) -> Iterator[Change]:
        database = self._mongo.database
        for name in dict.fromkeys([*VALIDATORS, *INDEXES]):
            validator = VALIDATORS.get(name)
            rules: Document = {"validator": validator, "validationLevel": "moderate"} if validator else {}
            if name not in found.collections:
                yield Change(f"create the collection {name}", True, _call(database.create_collection, name, **rules))
            elif validator and found.collections[name].get("validator") != validator:
                yield Change(
                    f"change the validator of {name}", False, _call(database.command, "collMod", name, **rules)
                )

    def _indexes(self, found: _Found) -> Iterator[Change]:
        for name, wanted in INDEXES.items():
            collection = self._mongo.collection(name)
            there = found.indexes.get(name, {})
            for index in wanted:
                label = index.document["name"]
                if label not in there:
                    yield Change(f"create the index {label} of {name}", True, _call(collection.create_indexes, [index]))
                elif _defined(there[label]) != _defined(index.document):
                    yield Change(f"replace the index {label} of {name}", False, self._replacing(name, index))

    def _replacing(self, name: str, index: IndexModel) -> Callable[[], Awaitable[object]]:
        async def replace() -> None:
            collection = self._mongo.collection(name)
            await collection.drop_index(index.document["name"])
            await collection.create_indexes([index])

        return replace

    def _views(self, found: _Found) -> Iterator[Change]:
        database = self._mongo.database
        for name, (source, pipeline) in _VIEWS.items():
            if name not in found.collections:
                create = _call(database.create_collection, name, viewOn=source, pipeline=pipeline)
                yield Change(f"create the view {name}", True, create)
            elif found.collections[name].get("pipeline") != pipeline:
                change = _call(database.command, "collMod", name, viewOn=source, pipeline=pipeline)
                yield Change(f"change the view {name}", False, change)


def _call(function: Callable[..., Awaitable[object]], *args: Any, **kwargs: Any) -> Callable[[], Awaitable[object]]:
    return lambda: function(*args, **kwargs)


def _defined(index: Mapping[str, Any]) -> Document:
    """Reduce an index to what matters; the server and pymongo spell keys differently, and the order of fields counts."""
    key = index["key"]
    pairs = key.items() if hasattr(key, "items") else key
    options = ("expireAfterSeconds", "partialFilterExpression", "unique")
    return {"key": [(name, int(way)) for name, way in pairs]} | {
        name: index[name] for name in options if index.get(name) is not None
    }
