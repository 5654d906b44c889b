"""What a handler can learn of the job that it runs: `current_job()`."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamq.clock import from_ms, now_ms
from streamq.errors import StreamQError
from streamq.notes import Notes

if TYPE_CHECKING:
    from collections.abc import Callable, Set as AbstractSet
    from datetime import datetime

    from streamq.job import Delivery, Envelope

__all__ = ["JobContext", "Place", "current_job", "place"]


@dataclass(frozen=True, slots=True)
class JobContext:
    """The job that runs, as its handler sees it."""

    id: str
    handler: str
    key: str | None
    attempt: int
    """From 1."""
    max_attempts: int
    fence: int
    """Rises with every start of this job. A system that remembers the highest one seen can refuse a late writer."""
    enqueued_at: datetime
    deadline: datetime | None
    occurrence: str | None
    headers: dict[str, str]
    _delivery: Delivery = field(repr=False, compare=False)
    _told: Callable[[Delivery], None] = field(repr=False, compare=False)
    _lost: AbstractSet[bytes] = field(repr=False, compare=False)

    def progress(self, fraction: float, note: str = "") -> None:
        """Tell how far the job has come, from 0 to 1. Cheap: what is written down is the latest, a few times a second."""
        self._notes().come_to(fraction, note)
        self._told(self._delivery)

    def log(self, line: str) -> None:
        """Add a line to the job's own log, which is kept with its status; the last hundred lines are."""
        self._notes().say(now_ms(), line)
        self._told(self._delivery)

    def _notes(self) -> Notes:
        notes = self._delivery.notes
        if notes is None:
            notes = self._delivery.notes = Notes()
        return notes

    @property
    def is_lost(self) -> bool:
        """Whether the job is another worker's now, or may be: it should stop, and change nothing any more."""
        return self._delivery.token in self._lost

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure now is final."""
        return self.attempt >= self.max_attempts


class Place:
    """Where one job at a time runs. It stays the same from job to job; what it holds changes.

    So a handler that sets context variables of its own is noticed by a changed context, and its place is not used
    again.
    """

    __slots__ = ("delivery", "lost", "max_attempts", "on_notes")

    def __init__(
        self, on_notes: Callable[[Delivery], None] = lambda _: None, lost: AbstractSet[bytes] = frozenset()
    ) -> None:
        self.delivery: Delivery | None = None
        self.max_attempts = 0
        self.on_notes = on_notes
        """Called, from any thread, when a handler has told something of its job."""
        self.lost = lost
        """Tokens of the jobs here that are another worker's now."""


place: ContextVar[Place] = ContextVar("streamq_place")


def current_job() -> JobContext:
    """Return the job that this code runs for.

    Raises:
        StreamQError: No job runs here.
    """
    here = place.get(None)
    delivery = here.delivery if here is not None else None
    if here is None or delivery is None or delivery.envelope is None:
        raise StreamQError("no job runs here: current_job() is for code that a handler calls")
    return _context(delivery, delivery.envelope, here)


def _context(delivery: Delivery, envelope: Envelope, here: Place) -> JobContext:
    return JobContext(
        id=delivery.id.decode(),
        handler=envelope.handler,
        key=envelope.key,
        attempt=envelope.attempt,
        max_attempts=here.max_attempts,
        fence=(envelope.starts << 16) | delivery.delivery,
        enqueued_at=from_ms(delivery.enqueued_ms),
        deadline=from_ms(envelope.deadline_ms) if envelope.deadline_ms else None,
        occurrence=envelope.occurrence,
        headers=envelope.headers,
        _delivery=delivery,
        _told=here.on_notes,
        _lost=here.lost,
    )
