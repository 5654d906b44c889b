"""What the demo keeps in MongoDB, in a database of its own.

`users` has `_id`, `position`, `is_slow`, `is_flaky`; `activity` one event a document; `summaries` what
`process_user_data` made of them, by user; `made` one document that tells what the others were made from, written last,
so that an interrupted creation is repeated.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.clock import utc_now
from streamq.demo import activity
from streamq.demo.users import EVENTS_PER_PAGE, with_traits
from streamq.mongo import Mongo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from streamq.demo.users import User

__all__ = ["DATABASE", "USERS_PER_PAGE", "Check", "Store"]

DATABASE = "streamq_demo"
USERS_PER_PAGE = 500

_MADE_LIKE = 1
"""Raised when users or activity are made in another way, so that those of an older version are made anew."""
_DOCUMENTS_PER_INSERT = 5_000


class Check(NamedTuple):
    """Whether the work was really done: what is stored against what was summed up."""

    summaries: int
    events_stored: int
    events_summarised: int


class Store:
    """The demo's data. Every method may raise `HistoryUnavailable`: MongoDB did not answer."""

    def __init__(self, url: str, database: str = DATABASE) -> None:
        self.mongo = Mongo(url, database)
        self._users = self.mongo.collection("users")
        self._activity = self.mongo.collection("activity")
        self._summaries = self.mongo.collection("summaries")
        self._made = self.mongo.collection("made")

    # For the program that starts the demo.

    async def create(
        self, ids: Sequence[str], on_progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> bool:
        """Make these users and their activity, in place of any others.

        Args:
            ids: Each once.
            on_progress: Told after each portion how many events are stored, and how many there will be.

        Returns:
            False if just these are there already, and nothing was touched.
        """
        recipe = {"_id": "users", "like": _MADE_LIKE, "ids": hashlib.sha256("\n".join(ids).encode()).hexdigest()}
        with self.mongo.translated():
            if await self._made.find_one(recipe):
                return False
            for collection in (self._made, self._users, self._activity, self._summaries):
                await collection.drop()
            await self._insert(list(with_traits(ids)), on_progress)
            await self._made.insert_one(recipe)
        return True

    async def _insert(self, users: list[User], on_progress: Callable[[int, int], None]) -> None:
        for portion in _portions(_document(user) for user in users):
            await self._users.insert_many(portion, ordered=False)
        done, total, today = 0, sum(user.events for user in users), utc_now().date()
        for portion in _portions(event for user in users for event in activity.made_up(user, today)):
            await self._activity.insert_many(portion, ordered=False)
            done += len(portion)
            on_progress(done, total)
        # After the documents: an index that grows with them costs several times as much.
        await self._activity.create_index("user")

    async def slow_users(self) -> dict[str, bool]:
        """Return every user, and whether it is a slow one."""
        with self.mongo.translated():
            return {user["_id"]: user["is_slow"] async for user in self._users.find({}, {"is_slow": 1})}

    async def check(self) -> Check:
        """Compare what the summaries hold with the activity."""
        added_up: list[dict[str, Any]] = [
            {"$group": {"_id": None, "users": {"$sum": 1}, "events": {"$sum": "$events"}}}
        ]
        with self.mongo.translated():
            found = await (await self._summaries.aggregate(added_up)).to_list()
            stored = await self._activity.count_documents({})
        return Check(found[0]["users"], stored, found[0]["events"]) if found else Check(0, stored, 0)

    # For the handlers.

    async def page(self, after: str | None, limit: int = USERS_PER_PAGE) -> list[str]:
        """Return the ids of the next users in the order of ids, after the given one; empty at the end."""
        wanted: dict[str, Any] = {"_id": {"$gt": after}} if after is not None else {}
        with self.mongo.translated():
            found = await self._users.find(wanted, {"_id": 1}).sort("_id").to_list(limit)
        return [user["_id"] for user in found]

    async def user(self, user_id: str) -> dict[str, Any] | None:
        """Return a user; None if there is none of that id."""
        with self.mongo.translated():
            return await self._users.find_one({"_id": user_id})

    async def activity(self, user_id: str) -> AsyncIterator[list[dict[str, Any]]]:
        """Give a user's events in pages, the last one perhaps shorter."""
        page: list[dict[str, Any]] = []
        with self.mongo.translated():
            async for event in self._activity.find({"user": user_id}, {"_id": 0, "user": 0}):
                page.append(event)
                if len(page) == EVENTS_PER_PAGE:
                    yield page
                    page = []
        if page:
            yield page

    async def save(self, user_id: str, summary: dict[str, Any]) -> None:
        """Store a user's summary in place of an older one; done twice, it is the same as once."""
        with self.mongo.translated():
            await self._summaries.replace_one({"_id": user_id}, summary, upsert=True)

    async def close(self) -> None:
        """Close all connections."""
        await self.mongo.close()


def _document(user: User) -> dict[str, Any]:
    return {"_id": user.id, "position": user.position, "is_slow": user.is_slow, "is_flaky": user.is_flaky}


def _portions(documents: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    portion: list[dict[str, Any]] = []
    for document in documents:
        portion.append(document)
        if len(portion) == _DOCUMENTS_PER_INSERT:
            yield portion
            portion = []
    if portion:
        yield portion
