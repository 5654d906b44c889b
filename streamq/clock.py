"""Time, in the two forms that streamq uses: aware UTC datetimes outside, integer milliseconds on the wire.

Only the Redis server's clock decides anything. A process learns the difference to its own clock from each reply
(`ServerClock`), and uses it for what it *reports*, never for what it *may do*.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

__all__ = ["ServerClock", "due_ms", "from_ms", "now_ms", "to_ms", "utc_now"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def utc_now() -> datetime:
    """Return this machine's time as an aware UTC datetime."""
    return datetime.now(UTC)


def now_ms() -> int:
    """Return this machine's time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def to_ms(moment: datetime | timedelta) -> int:
    """Turn an aware datetime (since 1970) or a duration into whole milliseconds.

    A duration is rounded up, so that nothing that waits for it is early; a moment down, so that it is no later than it was.

    Raises:
        ValueError: The datetime has no zone, so it names no one moment.
    """
    if isinstance(moment, timedelta):
        return _rounded_up(moment)
    return (_aware(moment) - _EPOCH) // _MS


def due_ms(moment: datetime) -> int:
    """Turn an aware datetime into the first whole millisecond (since 1970) that is not before it.

    Raises:
        ValueError: It has no zone, so it names no one moment.
    """
    return _rounded_up(_aware(moment) - _EPOCH)


def _rounded_up(duration: timedelta) -> int:
    whole, rest = divmod(duration, _MS)
    return whole + bool(rest)


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(
            f"{moment.isoformat()} has no time zone: pass an aware datetime, for example datetime.now(UTC)"
        )
    return moment


def from_ms(ms: int) -> datetime:
    """Turn milliseconds since 1970 into an aware UTC datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)


class ServerClock:
    """The Redis server's clock, as last seen from here: an offset to a monotonic clock, so that local jumps do not count."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    def observe(self, server_ms: int, monotonic_s: float) -> None:
        """Take over the server's time from a reply that arrived at this monotonic time."""
        self._offset_ms = server_ms - monotonic_s * 1000

    def at(self, monotonic_s: float) -> int:
        """Return the server's time in milliseconds at a monotonic time, good to about a round trip."""
        return int(monotonic_s * 1000 + self._offset_ms)
