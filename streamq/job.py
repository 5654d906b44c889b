"""What a job is: its envelope, its states, and the outcomes of a run. Values only.

| state | means | who moves it on |
|---|---|---|
| scheduled | due later | the first cycle after its due time |
| queued | in a lane, not delivered | a worker's read |
| running | delivered, not settled | the worker that holds the delivery, or one that claims it |
| retrying | failed, due again later | the first cycle after its due time |
| completed, dead, cancelled, expired | ended; never changes again | |
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from streamq.clock import to_ms, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamq.notes import Notes

__all__ = [
    "CRASH_LIMIT", "ENVELOPE_VERSION", "SUCCESSORS", "Cancel", "Cancelled", "Completed", "Crashed", "Dead", "Delivery",
    "Dropped", "Envelope", "Expired", "Fail", "Failure", "Limited", "Outcome", "Parked", "RateLimited", "Released", "Retry",
    "Retrying", "Signal", "Snooze", "Snoozed", "State", "latest_start_ms",
]  # fmt: skip

ENVELOPE_VERSION = 1
"""The newest envelope this code can read. A job with a newer one is left for newer workers."""

CRASH_LIMIT = 3
"""A job that took this many workers down with it is dead. From the second on it runs alone."""


_LONGEST_SECONDS = 100 * 365 * 86_400


class State(StrEnum):
    """Where a job is in its life."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return not SUCCESSORS[self]


SUCCESSORS: Mapping[State, frozenset[State]] = {
    State.SCHEDULED: frozenset({State.QUEUED, State.CANCELLED}),
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset(
        {
            State.QUEUED,
            State.SCHEDULED,
            State.RETRYING,
            State.COMPLETED,
            State.DEAD,
            State.CANCELLED,
            State.EXPIRED,
        }
    ),
    State.RETRYING: frozenset({State.QUEUED, State.CANCELLED}),
    State.COMPLETED: frozenset(),
    State.DEAD: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}
"""Every step that a job may take. A dead job that is replayed starts a new life under the same id."""


_Whole = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""What every reader of JSON takes for the same whole number."""


class Envelope(
    msgspec.Struct,
    omit_defaults=True,
    rename={
        "version": "v", "handler": "h", "args": "a", "kwargs": "k", "key": "u", "attempt": "n", "max_attempts": "m",
        "deadline_ms": "x", "occurrence": "o", "dedup": "g", "dedup_window_ms": "gw", "headers": "t", "starts": "s",
        "dedup_scope": "gs", "keep_result_ms": "kr", "ttl_ms": "tl", "retry_until_ms": "ru",
        "cost": "c", "crashes": "cr", "gates": "gt", "weight": "w",
    },
):  # fmt: skip
    """What travels with a job. The keys on the wire are short; a field that has its default is left out."""

    handler: str
    version: _Whole = 1
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    key: str | None = None
    """The user or tenant that the job belongs to."""
    attempt: _Whole = 1
    max_attempts: _Whole = 0
    """0: the handler's own."""
    deadline_ms: _Whole = 0
    """Server time after which the job is not started any more; 0: none."""
    occurrence: str | None = None
    """`schedule:fire time`, for a job that a schedule made."""
    dedup: str | None = None
    dedup_window_ms: _Whole = 0
    """How long the dedup key stays taken after the job has ended."""
    dedup_scope: str = ""
    """The letter of its `Dedup`; the key of a throttled job (t, p) outlives it."""
    headers: dict[str, str] = {}
    starts: _Whole = 0
    """How often the job was put back into a lane: with the delivery number it makes the fence."""
    keep_result_ms: _Whole = 0
    ttl_ms: _Whole = 0
    """How long after it was enqueued, by the server's clock, the job may start; 0: whenever."""
    retry_until_ms: _Whole = 0
    """Server time after which the job is not tried again; 0: none."""
    cost: float | None = None
    """The producer's hint of how long the job runs, on a scale of its own."""
    crashes: _Whole = 0
    """How many processes had died over the job when a child process was the last of them."""
    gates: str = ""
    """What the job has to pass before it starts, see `Gates`. On the wire it comes first: the scripts look for it there."""
    weight: _Whole = 1
    """How much of a fair queue its key gets."""


def latest_start_ms(envelope: Envelope, enqueued_ms: int) -> int:
    """Return the server time after which a job must not start; 0: none."""
    ends = (envelope.deadline_ms, envelope.ttl_ms and enqueued_ms + envelope.ttl_ms)
    return min((end for end in ends if end), default=0)


class Delivery:
    """One handing of a job to this worker. `token` is what the index holds while the job is ours."""

    __slots__ = (
        "crashes",
        "delivery",
        "digit",
        "enqueued_ms",
        "entered_ms",
        "envelope",
        "id",
        "notes",
        "raw",
        "taken_at",
        "token",
        "why",
    )

    def __init__(self, digit: int, token: bytes, job_id: bytes, raw: bytes, enqueued_ms: int, taken_at: float) -> None:
        self.digit = digit
        self.token = token
        self.id = job_id
        self.raw = raw
        self.enqueued_ms = enqueued_ms
        self.entered_ms = enqueued_ms
        """When it came into its lane: later than it was enqueued if it had to wait for a time or for a gate first."""
        self.taken_at = taken_at
        """When it came into this process, on the event loop's clock, in seconds."""
        self.delivery = 1
        self.crashes = 0
        self.envelope: Envelope | None = None
        self.why = ""
        """What makes the job slow; empty for a fast one."""
        self.notes: Notes | None = None
        """What its handler has told of it; None: nothing."""


@dataclass(slots=True)
class Failure:
    """What went wrong in a run."""

    type: str
    message: str
    traceback: str = ""
    fingerprint: str = ""


@dataclass(slots=True)
class Completed:
    """The handler returned."""

    result: Any = None


@dataclass(slots=True)
class Retrying:
    """The job runs again after a delay, and the attempt counts."""

    delay_ms: int
    failure: Failure


@dataclass(slots=True)
class Snoozed:
    """The job runs again after a delay, and no attempt is used."""

    delay_ms: int
    reason: str = ""


@dataclass(slots=True)
class Parked:
    """The job was not run, and waits: no attempt is used."""

    what: str
    """The block that it waits for, `h:..` or `k:..`; or `?` and what no worker here knows."""
    reason: str = ""


@dataclass(slots=True)
class Limited:
    """The job was not run: its producer did not know the limits of its handler. It has them now, and goes back."""


@dataclass(slots=True)
class Crashed:
    """The process that ran the job died, and its worker lives: it runs again after a delay, and no attempt is used."""

    delay_ms: int
    failure: Failure
    crashes: int
    """How many processes have died over the job, with this one."""


@dataclass(slots=True)
class Dead:
    """The job ends failed and is kept as a dead letter."""

    failure: Failure
    crashes: int = 0
    """How many processes have died over the job, if it ends for that; 0: what was known of it before holds."""


@dataclass(slots=True)
class Cancelled:
    """The job ends because somebody asked for it."""

    reason: str = ""


@dataclass(slots=True)
class Expired:
    """The job was not started before its deadline."""


@dataclass(slots=True)
class Released:
    """The delivery goes back to the queue as it came: no attempt, no crash."""


@dataclass(slots=True)
class Dropped:
    """The job belongs to another worker now; nothing is said of this run."""


Outcome = Completed | Retrying | Snoozed | Parked | Limited | Crashed | Dead | Cancelled | Expired | Released | Dropped


class Signal(Exception):
    """What a handler raises to ask for an outcome."""


def _check_delay(what: str, delay: object) -> None:
    if not isinstance(delay, timedelta):
        raise TypeError(f"{what} takes a timedelta, and {delay!r} came")


class Retry(Signal):
    """Run the job again after `delay` (`None`: the handler's back-off). The attempt counts."""

    def __init__(self, delay: timedelta | None = None, reason: str = "") -> None:
        super().__init__(reason or "the handler asked for a retry")
        if delay is not None:
            _check_delay("Retry", delay)
        self.delay = delay


class Snooze(Signal):
    """Run the job again after `delay`, and use up no attempt: it was not ready, or a limit was reached."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        super().__init__(reason or "the handler asked for a snooze")
        _check_delay("Snooze", delay)
        self.delay = delay


class Cancel(Signal):
    """End the job as cancelled: it is not needed any more."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler cancelled the job")


class Fail(Signal):
    """End the job as dead now, whatever attempts are left."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler gave the job up")


class RateLimited(Signal):
    """Run the job again when the other side takes calls again, and use up no attempt.

    `retry_after` is how long that side asked to wait: a duration, seconds, or the text of a `Retry-After` header
    (seconds or a date). None, or a text that cannot be read: as long as the handler's back-off waits at most.

    The job starts no earlier, and up to a tenth later, so that those that were refused together do not come together.

    See https://www.rfc-editor.org/rfc/rfc9110#field.retry-after.
    """

    def __init__(self, retry_after: timedelta | float | str | None = None, reason: str = "") -> None:
        super().__init__(reason or "the other side limits the rate")
        self.delay_ms = _retry_after_ms(retry_after)


def _retry_after_ms(given: object) -> int | None:
    match given:
        case None:
            return None
        case timedelta():
            return max(0, to_ms(given))
        case bool():
            pass
        case int() | float() if 0 <= given < _LONGEST_SECONDS:
            return to_ms(timedelta(seconds=given))
        case str():
            return _header_ms(given.strip())
        case _:
            pass
    raise TypeError(f"RateLimited takes a timedelta, seconds, or the text of a Retry-After header, and {given!r} came")


def _header_ms(text: str) -> int | None:
    """Read a header that another server sent; what it got wrong is no fault of the job's."""
    if text.isdecimal() and len(text) < 10:
        return int(text) * 1000
    from email.utils import parsedate_to_datetime  # 11 ms that nearly nobody needs

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0, to_ms(aware - utc_now()))
