"""When a failed job runs again: exponential back-off with full jitter and a cap.

See https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from streamq.clock import to_ms
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Never", "RetryPolicy"]

_MOST_DOUBLINGS = 40
"""2**40 s is past any cap; larger powers only make larger integers."""


class Never:
    """In `RetryPolicy.on`: an exception of this kind ends the job at once."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait before attempt n + 1.

    The wait is drawn evenly from 0 to `base` * 2**(n - 1), at most `cap`. Drawing from the whole range (full jitter)
    spreads a thousand jobs that failed together.
    """

    base: timedelta = timedelta(seconds=2)
    cap: timedelta = timedelta(minutes=10)
    on: Mapping[type[BaseException], timedelta | type[Never] | RetryPolicy] = field(default_factory=dict)
    """What to do for a kind of exception, most particular class first: a fixed delay, `Never`, or a policy of its own."""
    custom: Callable[[int, BaseException], timedelta | None] | None = None
    """Given the attempt that failed and its exception, the delay, or None for no further attempt; instead of the formula."""
    until: timedelta | None = None
    """No attempt begins later than this after the job was enqueued; `max_attempts` holds as well."""

    def __post_init__(self) -> None:
        if self.base < timedelta(0) or self.cap < timedelta(0):
            raise ConfigurationError(f"a back-off cannot be negative: base={self.base}, cap={self.cap}")
        if self.until is not None and self.until <= timedelta(0):
            raise ConfigurationError(f"until is how long after its enqueue a job is retried, and {self.until} came")

    def ceiling_ms(self, attempt: int) -> int:
        """Return the longest wait after this attempt (from 1)."""
        doublings = min(max(attempt - 1, 0), _MOST_DOUBLINGS)
        return min(to_ms(self.cap), to_ms(self.base) << doublings)

    def delay_ms(self, attempt: int, error: BaseException) -> int | None:
        """Return the wait after a failed attempt, or None when the job must not run again."""
        rule = self._rule_for(error)
        if rule is Never:
            return None
        if isinstance(rule, timedelta):
            return max(0, to_ms(rule))
        if isinstance(rule, RetryPolicy):
            return rule.delay_ms(attempt, error)
        if self.custom is not None:
            delay = self.custom(attempt, error)
            return None if delay is None else max(0, to_ms(delay))
        return round(random.random() * self.ceiling_ms(attempt))

    def _rule_for(self, error: BaseException) -> timedelta | type[Never] | RetryPolicy | None:
        if not self.on:
            return None
        for kind in type(error).__mro__:
            if kind in self.on:
                return self.on[kind]
        return None
