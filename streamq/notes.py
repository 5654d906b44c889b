"""What a handler tells of its job while it runs: how far it has come, and lines of a log. Bounded; nothing if unused."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import msgspec

__all__ = ["LOG_CHARS", "LOG_LINES", "Notes", "Progress"]

LOG_LINES = 100
"""The newest lines are kept."""
LOG_CHARS = 500
"""The most of a line."""


class Progress(msgspec.Struct):
    """How far a job has come."""

    fraction: float
    """From 0 to 1."""
    note: str = ""


class Notes:
    """What was told of one attempt."""

    __slots__ = ("is_new", "lines", "progress", "told")

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.lines: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)
        """When, in ms of the machine that ran it, and what."""
        self.told = 0
        """How many lines there were in all."""
        self.is_new = False
        """Whether something was told since it was last written down."""

    def come_to(self, fraction: float, note: str) -> None:
        """Take down how far the job has come; what is out of range is brought into it."""
        fraction = float(fraction)
        self.progress = Progress(min(1.0, max(0.0, fraction)) if math.isfinite(fraction) else 0.0, _plain(note))

    def say(self, at_ms: int, line: str) -> None:
        """Take down a line."""
        self.lines.append((at_ms, _plain(line)))
        self.told += 1

    @classmethod
    def of(cls, record: dict[str, Any]) -> Notes:
        """Make them of what `as_record` returned."""
        notes = cls()
        if "p" in record:
            notes.progress = Progress(*record["p"])
        notes.lines.extend((at_ms, line) for at_ms, line in record.get("lg", ()))
        notes.told = record.get("ln", 0)
        return notes

    def as_record(self) -> dict[str, Any]:
        """Return what is kept, as in a record: `p` progress and its note, `lg` lines with their ms, `ln` lines in all."""
        record: dict[str, Any] = {}
        if self.progress is not None:
            record["p"] = [self.progress.fraction, self.progress.note]
        if self.lines:
            record |= {"lg": list(self.lines), "ln": self.told}
        return record


def _plain(text: str) -> str:
    return str(text)[:LOG_CHARS].encode(errors="replace").decode()
