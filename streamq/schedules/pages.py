"""The pages of a fan-out: the user's page function, called with care, and a page that everybody goes by.

A page that takes several calls is stored before the first of them: whoever goes on in its middle, after a crash or
beside another process, must find the same users in the same places, although users come and go meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from streamq.errors import BadArguments, StreamQError
from streamq.options import checked_cost

if TYPE_CHECKING:
    from streamq.broker.fanout import FanOuts, FanOutState
    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.schedules.patience import Patience

__all__ = ["MOST_USERS", "Page", "PageFailed", "Pages", "User", "id_of", "plain_user"]

MOST_USERS = 100_000
"""The most users of one page: it is held in memory, and stored in Redis while it is enqueued."""

User = str | int | list[Any] | dict[str, str]
"""As it stands in a page: text, a whole number, either in a list with its cost, or why it cannot be enqueued."""


class PageFailed(StreamQError):
    """The page function of a schedule did not give a page. What was enqueued before stays; it is called again later."""

    exit_code = 65


@dataclass(frozen=True, slots=True)
class Page:
    """Users, and the cursor of the page after them; None: this is the last one."""

    users: list[User]
    following: str | None
    is_kept: bool = False
    """Whether it is stored, so that places in it stay what they are."""


class Pages:
    """Reads the pages of one occurrence, one ahead."""

    def __init__(  # noqa: PLR0913 - what a fan-out knows and a page needs
        self,
        schedule: Schedule,
        occurrence: Occurrence,
        fanouts: FanOuts,
        patience: Patience,
        *,
        largest: int,
        admits: Callable[[object], bool] | None = None,
        by_cost: bool = False,
        tells_refused: bool = True,
    ) -> None:
        """Prepare to read.

        Args:
            schedule: Whose page function is called.
            occurrence: Which fan-out it is.
            fanouts: Where a page is stored that has more than `largest` users.
            patience: What waits for Redis.
            largest: The most users that one call takes.
            admits: Which users count; None: all. The others are left out of their pages.
            by_cost: Whether users who are known as slow come first in their page, the slowest before all others.
            tells_refused: Whether users that cannot have a job stay in their pages.
        """
        self._schedule = schedule
        self._occurrence = occurrence
        self._fanouts = fanouts
        self._patience = patience
        self._largest = largest
        self._admits = admits
        self._by_cost = by_cost
        self._means: Mapping[str, int] | None = None
        self._tells_refused = tells_refused
        self._keep_ms = schedule.keep_ms(occurrence)
        self._reading: dict[str | None, asyncio.Task[Page]] = {}

    async def at(self, state: FanOutState) -> tuple[Page, int]:
        """Return the page that a fan-out is in, and the place of the next user in it.

        Raises:
            PageFailed: The page function did not give one.
            Stopped: The process is to stop.
        """
        place = state.offset
        if state.cursor not in self._reading and place:
            kept = await self._patience.call(lambda: self._fanouts.kept_page(self._occurrence.producer, state.cursor))
            if kept is None:
                place = 0  # rather a job that is refused as present than a user left out
            else:
                self._hold(state.cursor, _decoded(kept))
        page = await self._patience.unless_stopped(self._read(state.cursor))
        if page.following is not None:
            self._read(page.following)
        for cursor in self._reading.keys() - {state.cursor, page.following}:
            _discard(self._reading.pop(cursor))
        return page, place

    async def close(self) -> None:
        """Give up what is being read ahead."""
        tasks = list(self._reading.values())
        self._reading.clear()
        for task in tasks:
            _discard(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hold(self, cursor: str | None, page: Page) -> None:
        async def held() -> Page:
            return page

        self._reading[cursor] = asyncio.ensure_future(held())

    def _read(self, cursor: str | None) -> asyncio.Task[Page]:
        task = self._reading.get(cursor)
        if task is None:
            task = self._reading[cursor] = asyncio.create_task(self._fetch(cursor))
        return task

    async def _fetch(self, cursor: str | None) -> Page:
        page = self._checked(await self._called(cursor), cursor)
        if self._admits is not None:
            admits, tells = self._admits, self._tells_refused
            users = [user for user in page.users if (tells if isinstance(user, dict) else admits(id_of(user)))]
            page = Page(users, page.following)
        if len(page.users) <= self._largest:
            return page
        await self._put_slow_ones_first(page.users)
        raw = orjson.dumps([page.users, page.following])
        kept = await self._patience.call(
            lambda: self._fanouts.keep_page(self._occurrence.producer, cursor, raw, self._keep_ms)
        )
        return _decoded(kept)

    async def _put_slow_ones_first(self, users: list[User]) -> None:
        """Sort a page that is about to be stored: its order is then everybody's. What one call takes `add` sorts."""
        if not self._by_cost:
            return
        if self._means is None:
            handler = self._schedule.entry.handler.name
            self._means = await self._patience.call(lambda: self._fanouts.slow_means(handler))
        means = self._means
        if means:
            users.sort(key=lambda user: 0 if isinstance(user, dict) else -means.get(str(id_of(user)), 0))

    async def _called(self, cursor: str | None) -> Any:
        entry = self._schedule.entry
        limit_s = entry.page_timeout.total_seconds()
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await called(entry.page, cursor)
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._failure(cursor, f"gave nothing within {limit_s:g} s") from None
            raise self._failure(cursor, f"raised {type(error).__name__}: {error}") from error

    def _checked(self, given: Any, cursor: str | None) -> Page:
        match given:
            case (ids, following) if isinstance(given, tuple):
                pass
            case _:
                raise self._failure(cursor, f"gave {_short(given)}, not a pair (ids, cursor of the next page or None)")
        listed = None if isinstance(ids, str | bytes | Mapping) else _listed(ids)
        if listed is None:
            raise self._failure(cursor, f"gave {_short(ids)}, not a list, as the ids of its page")
        users = _plain_users(listed)
        if len(users) > MOST_USERS:
            raise self._failure(
                cursor, f"gave {len(users):,} ids at once; at most {MOST_USERS:,} fit a page, so give a cursor"
            )
        if following is not None and (not isinstance(following, str) or not following):
            raise self._failure(cursor, f"gave {_short(following)} as the next cursor; it is text, or None at the end")
        return Page(users, following)

    def _failure(self, cursor: str | None, what: str) -> PageFailed:
        return PageFailed(f"schedule {self._occurrence}: the page function, called with cursor {cursor!r}, {what}")

    def check_following(self, state: FanOutState, page: Page) -> str | None:
        """See that a page does not lead back to where the fan-out has been. Returns the anchor to store.

        The anchor is the cursor of the last page whose number was a power of two: a circle of any size meets it.

        Raises:
            PageFailed: It leads back.
        """
        if page.following is None:
            return None
        if page.following in (state.cursor, state.anchor):
            raise self._failure(
                state.cursor, f"gave the cursor {page.following!r} again: the pages would go round for ever"
            )
        pages = state.pages + 1
        return page.following if pages & (pages - 1) == 0 else state.anchor


async def called(page: Callable[[str | None], Any], cursor: str | None) -> Any:
    """Call a page function, whichever kind it is."""
    if _is_async(page):
        return await page(cursor)
    given = await _in_thread(page, cursor)
    return await given if inspect.isawaitable(given) else given


def _is_async(function: Callable[[str | None], Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _in_thread(function: Callable[[str | None], Any], cursor: str | None) -> Any:
    """Call a blocking function; a thread that never comes back does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def work() -> None:
        value, error = None, None
        try:
            value = function(cursor)
        except BaseException as raised:  # noqa: BLE001 - handed to who waits
            error = RuntimeError("it ended the thread") if isinstance(raised, StopIteration | SystemExit) else raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="streamq-page", daemon=True).start()
    return await future


def _discard(task: asyncio.Task[Page]) -> None:
    """Drop a page that nobody waits for any more, and with it whatever went wrong while it was read."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _decoded(raw: bytes) -> Page:
    users, following = orjson.loads(raw)
    return Page(users, following, is_kept=True)


def _listed(ids: Any) -> list[Any] | None:
    return list(ids) if hasattr(ids, "__iter__") else None


def _plain_users(ids: list[Any]) -> list[User]:
    if all(type(user) is str for user in ids):
        try:
            orjson.dumps(ids)
        except TypeError:
            pass  # one is not text that can be written; find out which
        else:
            return ids
    return [_hinted(*user) if isinstance(user, tuple) and len(user) == 2 else plain_user(user) for user in ids]


def _hinted(user: Any, cost: Any) -> User:
    plain = plain_user(user)
    if cost is None or isinstance(plain, dict):
        return plain
    try:
        return [plain, checked_cost(cost, str(plain))]
    except BadArguments as error:
        return {"refused": str(error)}


def id_of(user: User) -> Any:
    """Return the id of a user that has one."""
    return user[0] if isinstance(user, list) else user


def plain_user(user: Any) -> User:
    """Return an id as it stands in a page; one that cannot be enqueued becomes the reason why."""
    if isinstance(user, bool) or not (isinstance(user, str | int | UUID) or type(user).__name__ == "ObjectId"):
        return {"refused": f"{_short(user)} is no user id: it is text, a whole number, a UUID or an ObjectId"}
    plain = int(user) if isinstance(user, int) else str(user)
    try:
        orjson.dumps(plain)
    except TypeError as error:
        return {"refused": f"{_short(user)} cannot be written: {error}"}
    return plain


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
