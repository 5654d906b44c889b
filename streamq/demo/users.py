"""Who the users of the demo are: made up by number, or read from a file.

Nothing here is random from run to run: the same number of users, or the same file, gives the same users with the same
activity.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.errors import BadInput

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
_MOST_PROBLEMS = 10
_COLUMNS = ("user_id", "id", "user")


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
    lines = _lines(path)
    if not lines:
        raise BadInput(f"{path} holds no user ids", hint="write one a line, or CSV with a column user_id, or NDJSON")
    reading = _Reading()
    for number, value in _json_values(lines, reading) if lines[0][1][0] in '{"' else _csv_values(lines, reading):
        reading.take(number, value)
    if reading.problems:
        raise BadInput(_told(path, reading.problems), hint="correct these lines and run it again")
    if not reading.ids:
        raise BadInput(f"{path} holds a header and no user ids")
    return list(reading.ids)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read the users file {path}: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {number} is not UTF-8 text; nothing was created", hint="save the file as UTF-8"
        ) from error
    return [(number, line) for number, each in enumerate(text.split("\n"), 1) if (line := each.strip())]


class _Reading:
    """What was read so far, and what is wrong with it."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.problems: list[str] = []

    def take(self, number: int, value: Any) -> None:
        """Take the id of a line, or note why it cannot be one."""
        # JSON numbers are common ids; true is an int to Python, and not an id.
        user_id = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(user_id, str) or not user_id.strip():
            self.refuse(number, f"{value!r} is not a user id")
        elif len(user_id) > _LONGEST_ID:
            self.refuse(number, f"a user id has at most {_LONGEST_ID} characters, and this one has {len(user_id)}")
        elif not user_id.isprintable():
            self.refuse(number, f"{user_id!r} holds characters that cannot be printed")
        elif user_id in self.ids:
            self.refuse(number, f"{user_id!r} stands in line {self.ids[user_id]} already")
        else:
            self.ids[user_id] = number

    def refuse(self, number: int, why: str) -> None:
        """Note that a line is not good."""
        self.problems.append(f"line {number}: {why}")


def _json_values(lines: list[tuple[int, str]], reading: _Reading) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        try:
            value = json.loads(line)
        except ValueError as error:
            reading.refuse(number, f"not JSON: {error}")
            continue
        if not isinstance(value, dict):
            yield number, value
        elif name := next((name for name in _COLUMNS if name in value), None):
            yield number, value[name]
        else:
            reading.refuse(number, f"the object has none of {', '.join(_COLUMNS)}")


def _csv_values(lines: list[tuple[int, str]], reading: _Reading) -> Iterator[tuple[int, Any]]:
    header = [name.strip().lower() for name in _row(lines[0][1])]
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    width = len(header)
    if column is None and width > 1:
        reading.refuse(lines[0][0], f"{width} columns, and none is called {', '.join(_COLUMNS)}")
        return
    for number, line in lines if column is None else lines[1:]:
        fields = _row(line)
        if len(fields) == width:
            yield number, fields[column or 0].strip()
        else:
            reading.refuse(number, f"{len(fields)} columns instead of {width}")


def _row(line: str) -> list[str]:
    return next(csv.reader([line]))


def _told(path: Path, problems: list[str]) -> str:
    """List what is wrong, and say what was done about the good lines: nothing."""
    count = f"{len(problems)} lines are" if len(problems) > 1 else "one line is"
    rest = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
    top = f"{path}: {count} not good, so nothing was created"
    return "\n".join([top, *problems[:_MOST_PROBLEMS], *rest])
