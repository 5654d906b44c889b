"""What users did, made up; and what the refresh makes of it. Values only."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from streamq.demo.users import User

__all__ = ["Tally", "made_up"]

_KINDS = ("view", "search", "comment", "upload", "purchase")
_WEIGHTS = (60, 20, 10, 7, 3)
_DAYS = 30


def made_up(user: User, last_day: date) -> Iterator[dict[str, Any]]:
    """Make up a user's activity of the thirty days up to `last_day`, in no order; the same for the same user."""
    dice = random.Random(f"activity of {user.id}")
    midnight = datetime.combine(last_day, time.min, UTC)
    for kind in dice.choices(_KINDS, _WEIGHTS, k=user.events):
        at = midnight - timedelta(seconds=int(dice.random() * _DAYS * 86_400))
        event = {"user": user.id, "at": at, "kind": kind, "seconds": 1 + int(dice.random() * 600)}
        if kind == "purchase":
            event["cents"] = 99 + int(dice.random() * 20_000)
        yield event


@dataclass(slots=True)
class Tally:
    """A user's activity, added up. Events may come in any order and in any number of portions."""

    events: int = 0
    seconds: int = 0
    cents: int = 0
    by_kind: Counter[str] = field(default_factory=Counter[str])
    by_day: Counter[str] = field(default_factory=Counter[str])
    first_seen: datetime | None = None
    last_seen: datetime | None = None

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add a portion of events."""
        for event in events:
            at: datetime = event["at"]
            self.events += 1
            self.seconds += event["seconds"]
            self.cents += event.get("cents", 0)
            self.by_kind[event["kind"]] += 1
            self.by_day[at.date().isoformat()] += 1
            self.first_seen = min(self.first_seen or at, at)
            self.last_seen = max(self.last_seen or at, at)

    def summary(self) -> dict[str, Any]:
        """Return what is stored of the user; without any activity the times and the busiest day are None."""
        return {
            "events": self.events,
            "seconds": self.seconds,
            "cents": self.cents,
            "by_kind": dict(self.by_kind),
            "by_day": dict(sorted(self.by_day.items())),
            "busiest_day": max(self.by_day, key=lambda day: (self.by_day[day], day), default=None),
            "first_seen": self.first_seen,
            "last_seen": self.last_seen,
        }
