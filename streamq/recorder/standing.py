"""How a recorder is: what its probes, its parent and its heartbeat file are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.errors import BrokerUnavailable, HistoryUnavailable, QueueFull
from streamq.probes import Check

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Standing"]

_WORDS = (
    (BrokerUnavailable, "Redis cannot be reached"),
    (HistoryUnavailable, "MongoDB cannot be reached"),
    (QueueFull, "Redis has no room"),
)


class Standing:
    """What goes wrong just now, and for which queue."""

    def __init__(self) -> None:
        self.is_up = False
        """Whether both servers have answered once."""
        self.late_s: dict[str, Callable[[], float]] = {}
        """By queue: how far its history is behind."""
        self._troubles: dict[str, str] = {}

    def note(self, what: str, error: Exception | None) -> None:
        """Note that something failed, or that it works (again).

        Args:
            what: What is done repeatedly, and for which queue.
            error: Why it failed; None: it did not.
        """
        if error is None:
            self._troubles.pop(what, None)
        else:
            self._troubles[what] = next((words for kind, words in _WORDS if isinstance(error, kind)), "Redis refuses")

    def checks(self, latest_s: float) -> list[Check]:
        """Tell how things stand. Asks nobody.

        Args:
            latest_s: How late the history may be.
        """
        late_s = max((late() for late in self.late_s.values()), default=0.0)
        troubles = sorted(set(self._troubles.values()))
        return [
            Check("started", "" if self.is_up else "the servers have not answered yet"),
            Check("servers", "; ".join(troubles)),
            Check("history", f"it is {late_s:.0f} s late" if late_s > latest_s else ""),
        ]
