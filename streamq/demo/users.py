"""Who the users of the demo are: made up by number, or read from a file.

Nothing here is random from run to run: the same number of users, or the same file, gives the same users with the same
activity.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.errors import BadInput
from streamq.schedules.userfile import BadLines, read_users

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["EVENTS_PER_PAGE", "User", "made_up", "read_ids", "with_traits"]

EVENTS_PER_PAGE = 3
"""What the provider of the demo gives out at a time; a fast user has one page."""

SLOW_EVERY, FLAKY_EVERY = 5, 100
_SLOW_AT, _FLAKY_AT = 2, 3
_LEAST_SLOW_PAGES, _MOST_SLOW_PAGES = 100, 1_000
_TAIL = 2.2
"""Exponent of the Pareto distribution of slow users' pages: the smaller, the heavier the tail."""

_LONGEST_ID = 256


@dataclass(frozen=True, slots=True)
class User:
    """A user of the demo, before there is any data of theirs."""

    id: str
    position: int
    """From 0; with the id it decides everything else about the user."""
    is_slow: bool
    """Has a hundred times as much activity as others, or more, and takes about as many times longer."""
    is_flaky: bool
    """The first attempt of each refresh fails."""
    events: int


def made_up(count: int) -> list[str]:
    """Make the ids of so many users.

    Raises:
        BadInput: That is not a number of users.
    """
    if count < 1:
        raise BadInput(f"cannot create {count} users: expected 1 or more")
    return [f"user-{number:06d}" for number in range(1, count + 1)]


def with_traits(ids: Iterable[str]) -> Iterator[User]:
    """Make users of ids: every fifth is slow, one in a hundred is flaky."""
    for position, user_id in enumerate(ids):
        is_slow = position % SLOW_EVERY == _SLOW_AT
        pages = _slow_pages(random.Random(f"pages of {user_id}")) if is_slow else 1
        is_flaky = position % FLAKY_EVERY == _FLAKY_AT
        yield User(user_id, position, is_slow, is_flaky, pages * EVENTS_PER_PAGE)


def _slow_pages(dice: random.Random) -> int:
    return min(round(_LEAST_SLOW_PAGES * dice.paretovariate(_TAIL)), _MOST_SLOW_PAGES)


def read_ids(path: Path) -> list[str]:
    """Read user ids from a file: CSV with or without a header, or a JSON value a line.

    In CSV the column `user_id`, `id` or `user` counts, or the only one. In NDJSON each line is an object with one of
    these names, or the id itself.

    Raises:
        BadInput: The file cannot be read, is empty, or at least one line is not good. The message names the lines.
    """
    bad, ids = BadLines(path, "created"), dict[str, int]()
    for number, value in read_users(path, bad):
        # JSON numbers are common ids; true is an int to Python, and not an id.
        user_id: Any = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if problem := _problem(user_id, ids):
            bad.add(number, problem)
        else:
            ids[user_id] = number
    bad.check()
    if not ids:
        raise BadInput(f"{path} holds a header and no users")
    return list(ids)


def _problem(user_id: Any, seen: dict[str, int]) -> str:
    """Say why this cannot be the id of another user; nothing if it can."""
    if not isinstance(user_id, str) or not user_id.strip():
        return f"{user_id!r} is not a user id"
    if len(user_id) > _LONGEST_ID:
        return f"a user id has at most {_LONGEST_ID} characters, and this one has {len(user_id)}"
    if not user_id.isprintable():
        return f"{user_id!r} holds characters that cannot be printed"
    return f"{user_id!r} stands in line {seen[user_id]} already" if user_id in seen else ""
