"""User ids from a file that a person made: CSV, or a JSON value a line. Either every line is good, or none counts."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

from streamq.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BadLines", "read_users"]

_COLUMNS = ("user_id", "id", "user")
_MOST_TOLD = 10


class BadLines:
    """Collects what is wrong with the lines of a file."""

    def __init__(self, path: Path, undone: str = "enqueued") -> None:
        """Take the file, and the word for what does not happen when a line is not good."""
        self._path = path
        self._undone = undone
        self._told: list[str] = []
        self._count = 0

    def add(self, number: int, why: str) -> None:
        """Note that a line, counted from 1, is not good."""
        self._count += 1
        if self._count <= _MOST_TOLD:
            self._told.append(f"line {number}: {why}")

    def check(self) -> None:
        """End it if a line is not good.

        Raises:
            BadInput: The message names the first ten lines. Nothing was enqueued.
        """
        if not self._count:
            return
        rest = [f"and {self._count - _MOST_TOLD} more"] if self._count > _MOST_TOLD else []
        count = "one line is" if self._count == 1 else f"{self._count} lines are"
        top = f"{self._path}: {count} not good, so nothing was {self._undone}"
        raise BadInput("\n".join([top, *self._told, *rest]), hint="correct these lines and run it again")


def read_users(path: Path, bad: BadLines | None = None) -> list[tuple[int, Any]]:
    """Read user ids and the numbers of their lines; whether each is an id is for the caller to say.

    In CSV the column `user_id`, `id` or `user` counts, or the only one. In NDJSON each line is the id, or an object with
    one of these names. Blank lines are passed over.

    Args:
        path: The file.
        bad: Collects the malformed lines, for a caller that will add to them and ends it; None: they end it here.

    Raises:
        BadInput: The file cannot be read, holds no users, or a line is malformed. The message names the lines.
    """
    lines = list(_lines(path))
    found = bad or BadLines(path)
    if not lines:
        raise BadInput(f"{path} holds no users", hint="write one a line, or CSV with a column user_id, or NDJSON")
    read = _json_users if lines[0][1][0] in '{"' else _csv_users
    users = list(read(lines, found))
    if bad is None:
        found.check()
        if not users:
            raise BadInput(f"{path} holds a header and no users")
    return users


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {number} is not UTF-8 text: nothing of it counts", hint="save the file as UTF-8"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def _json_users(lines: list[tuple[int, str]], bad: BadLines) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            bad.add(number, f"not JSON: {error}")
            continue
        if not isinstance(value, dict):
            yield number, value
        elif name := next((name for name in _COLUMNS if name in value), None):
            yield number, value[name]
        else:
            bad.add(number, f"the object has none of {', '.join(_COLUMNS)}")


def _csv_users(lines: list[tuple[int, str]], bad: BadLines) -> Iterator[tuple[int, Any]]:
    rows = list(_csv_rows(lines, bad))
    if not rows:
        return
    header = [name.strip().lower() for name in rows[0][1]]
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    if column is None and len(header) > 1:
        bad.add(rows[0][0], f"{len(header)} columns, and none is called {', '.join(_COLUMNS)}")
        return
    for number, fields in rows if column is None else rows[1:]:
        if len(fields) == len(header):
            yield number, fields[column or 0].strip()
        else:
            bad.add(number, f"{len(fields)} columns instead of {len(header)}")


def _csv_rows(lines: list[tuple[int, str]], bad: BadLines) -> Iterator[tuple[int, list[str]]]:
    """Cut lines into their fields; one with an open quotation mark, or a field without end, is not good."""
    for number, line in lines:
        try:
            yield number, next(csv.reader([line], strict=True))
        except csv.Error as error:
            bad.add(number, f"not CSV: {error}")
