"""Dedup: when a new job is not needed because another one stands in for it.

@app.handler(dedup=Dedup.until_started("user_id"))
async def refresh(user_id: str) -> None: ...
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from streamq.clock import to_ms
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Dedup", "DedupScope", "dedup_key"]

DedupScope = Literal["until done", "until started", "window", "throttle", "period", "debounce", "keep last"]

_LETTERS: dict[DedupScope, str] = {
    "until done": "", "until started": "s", "window": "", "throttle": "t", "period": "p", "debounce": "d",
    "keep last": "k",
}  # fmt: skip
_LONGEST = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Dedup:
    """A rule of deduplication: which jobs are the same, and for how long one of them stands in for the others.

    Made by one of the class methods. `by` names the arguments that make the key; `key` is the key itself. Given for one
    call with neither, the rule holds for the key that the handler makes.
    """

    scope: DedupScope = "until done"
    by: tuple[str, ...] = ()
    key: str | None = None
    interval: timedelta = timedelta(0)
    """Of a window, throttle or period; how long a debounced job waits for the next call."""
    max_wait: timedelta = timedelta(0)
    """The longest that a debounced job is put off, from its first call."""

    letter: str = field(init=False, repr=False)
    """What stands in the envelope: it decides what becomes of the key when the job ends."""
    word: str = field(init=False, repr=False)
    """The scope as `add.lua` reads it."""
    window_ms: int = field(init=False, repr=False)
    """How long the key stays taken after the job's end."""
    wait_ms: int = field(init=False, repr=False)
    """How long a debounced job waits for the next call."""

    def __post_init__(self) -> None:
        if self.by and self.key is not None:
            raise ConfigurationError(f"dedup: by={self.by} and key={self.key!r} both make the key; pass one of them")
        interval_ms, letter = to_ms(self.interval), _LETTERS[self.scope]
        numbers = {"throttle": interval_ms, "period": interval_ms, "debounce": to_ms(self.max_wait)}
        values = {
            "letter": letter,
            "word": f"{letter}{numbers.get(self.scope, '')}",
            "window_ms": interval_ms if self.scope == "window" else 0,
            "wait_ms": interval_ms if self.scope == "debounce" else 0,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def until_done(cls, *by: str, key: str | None = None) -> Dedup:
        """While a job with the key lives, a call returns that job. This is what a plain `dedup=` means."""
        return cls("until done", by, key)

    @classmethod
    def until_started(cls, *by: str, key: str | None = None) -> Dedup:
        """While a job with the key waits, a call returns it; once a worker has it, a call makes a new one.

        So a run always begins after the last call. The two may run at the same time.
        """
        return cls("until started", by, key)

    @classmethod
    def window(cls, interval: timedelta, *by: str, key: str | None = None) -> Dedup:
        """While a job with the key lives, and for `interval` after its end, a call returns that job."""
        return cls("window", by, key, _checked(interval, "a window"))

    @classmethod
    def throttle(cls, interval: timedelta, *by: str, key: str | None = None) -> Dedup:
        """At most one job in each `interval`, counted from when the last one was accepted; whether it has ended or not."""
        return cls("throttle", by, key, _checked(interval, "the interval of a throttle"))

    @classmethod
    def per(cls, period: timedelta, *by: str, key: str | None = None) -> Dedup:
        """At most one job in each period of the calendar, in UTC: `timedelta(hours=1)` is one from full hour to full hour."""
        return cls("period", by, key, _checked(period, "a period"))

    @classmethod
    def debounce(cls, wait: timedelta, *by: str, max_wait: timedelta, key: str | None = None) -> Dedup:
        """Run once calls have stopped for `wait`, with the arguments of the last one; `max_wait` after the first at the latest."""
        _checked(wait, "the wait of a debounce")
        if _checked(max_wait, "max_wait") < wait:
            raise ConfigurationError(f"dedup: max_wait={max_wait} is shorter than the wait of {wait}")
        return cls("debounce", by, key, wait, max_wait)

    @classmethod
    def keep_last(cls, *by: str, key: str | None = None) -> Dedup:
        """While a job with the key runs, the newest call is kept and runs after it; one that waits stands in for calls."""
        return cls("keep last", by, key)


def _checked(interval: object, what: str) -> timedelta:
    if not isinstance(interval, timedelta) or not timedelta(milliseconds=1) <= interval <= _LONGEST:
        raise ConfigurationError(
            f"dedup: {what} is a timedelta from 1 ms to {_LONGEST.days:,} days, and {interval!r} came"
        )
    return interval


def dedup_key(handler: str, values: Sequence[Any]) -> str:
    """Make the dedup key of a call from the arguments that count: `handler:value`.

    Several values are parted by colons, and those within them are escaped, so that different values make different keys.
    """
    if len(values) == 1:
        return f"{handler}:{values[0]}"
    return f"{handler}:" + ":".join(str(value).replace("\\", "\\\\").replace(":", "\\:") for value in values)
