"""How commands print: data to standard output, everything else to standard error.

A terminal gets tables; a pipe gets lines with tabs, without a header and without truncation; `--json` gets one
document.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Output", "as_text"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Output:
    """How this one command was asked to print."""

    as_json: bool = False
    quiet: bool = False

    def rows(self, items: Sequence[Mapping[str, Any]], columns: Sequence[str], *, id_of: str) -> None:
        """Print a list.

        Args:
            items: One mapping each; JSON has all their keys, the table those of the columns.
            columns: Keys to show, in order; their names with spaces are the header.
            id_of: The key that `-q` prints alone.
        """
        if self.as_json:
            self.document({"items": items})
        elif self.quiet:
            self._lines([item[id_of]] for item in items)
        elif sys.stdout.isatty():
            _table(items, columns)
        else:
            self._lines([item.get(column) for column in columns] for item in items)

    def document(self, document: Any) -> None:
        """Print one JSON document."""
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=_plain) + "\n")

    def one(self, item: Mapping[str, Any], *, id_of: str) -> None:
        """Print one thing: a line for each of its keys, or its JSON."""
        if self.as_json:
            self.document(item)
        elif self.quiet:
            self._lines([[item[id_of]]])
        elif sys.stdout.isatty():
            _table([{"": key.replace("_", " "), " ": value} for key, value in item.items()], ["", " "])
        else:
            self._lines(item.items())

    def note(self, text: str) -> None:
        """Say something that is no data."""
        if not self.quiet:
            sys.stderr.write(text + "\n")

    @staticmethod
    def _lines(rows: Any) -> None:
        sys.stdout.writelines("\t".join(map(as_text, row)) + "\n" for row in rows)


def as_text(value: Any) -> str:
    """Write a value for a cell. Control characters cannot get out of it, so that no job can write on the terminal."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else _dumped(value)
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain).strip('"')


def _plain(value: Any) -> str:
    """Write what JSON has no type for; points in time in ISO 8601, UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)


def _table(items: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console  # a tenth of a second that pipes and JSON need not pay
    from rich.table import Table
    from rich.text import Text

    table = Table(*(column.replace("_", " ") for column in columns), box=None, pad_edge=False, header_style="bold")
    for item in items:
        table.add_row(*(Text(as_text(item.get(column))) for column in columns))
    Console(highlight=False).print(table)
