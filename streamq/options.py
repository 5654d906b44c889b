"""What may be said of one job besides its arguments, and what is wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from streamq.clock import due_ms, now_ms, to_ms
from streamq.codec import encode_json
from streamq.errors import BadArguments
from streamq.keys import LANES, lane_digit

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.dedup import Dedup

__all__ = [
    "LONGEST_KEY",
    "MOST_WEIGHT",
    "NO_OPTIONS",
    "Options",
    "checked_cost",
    "checked_digit",
    "checked_text",
    "due_of",
    "envelope_fields",
]

LONGEST_KEY = 512
MOST_WEIGHT = 100
_MOST_ATTEMPTS = 1_000_000
_PRIORITIES = LANES[:3]
_LONGEST_DELAY_MS = 100 * 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Options:
    """What may be said of one job besides its arguments. What is None is as the handler says."""

    key: str | None = None
    """The user or tenant that the job belongs to."""
    cost: float | None = None
    """A hint how long the job runs, on any scale: say, how many records the user has."""
    dedup: str | Dedup | None = None
    """A dedup key, by the handler's rule (until done, unless it has one), or a rule of its own."""
    delay: timedelta | None = None
    at: datetime | None = None
    """When it is due; an aware datetime. Instead of `delay`. A time that has passed is now."""
    priority: Literal["high", "normal", "low"] | None = None
    max_attempts: int | None = None
    deadline: datetime | timedelta | None = None
    """The job is not started after it; a duration counts from now."""
    ttl: timedelta | None = None
    """For how long it may wait for its start, from when it is due; by the server's clock. Later it ends as expired."""
    retry_until: datetime | timedelta | None = None
    """The job is not tried again after it; a duration counts from now. `max_attempts` holds as well."""
    headers: dict[str, str] | None = None
    keep_result: timedelta | None = None
    """Keep the result for that long, for `job.result()`."""
    id: str | None = None
    """The job's id, made by the caller; the same id is one job. None: a new one."""
    occurrence: str | None = None
    replicas: int = 0
    """Wait until that many replicas have the job."""
    weight: int = 1
    """How much of a fair queue the job's key gets, 1 to 100, beside others with 1."""
    ledger: bool = False
    """Write the job to a majority of MongoDB's servers first: should Redis lose it, it is enqueued again."""


NO_OPTIONS = Options()


def envelope_fields(options: Options, handler: str) -> dict[str, Any]:
    """Check options and return the envelope's fields for them, by their short names.

    Raises:
        BadArguments: One of them makes no sense; the message says which, and what came.
    """
    fields: dict[str, Any] = {}
    if options.id is not None:
        _checked_id(options.id)
    if options.max_attempts is not None:
        fields["m"] = _checked_number(options.max_attempts, f"max_attempts of {handler!r}", 1, _MOST_ATTEMPTS)
    _add_ends(fields, options)
    if options.occurrence is not None:
        fields["o"] = checked_text(options.occurrence, "occurrence")
    if options.headers:
        fields["t"] = _checked_headers(options.headers)
    if options.keep_result is not None:
        fields["kr"] = _checked_duration(options.keep_result, "keep_result", least_ms=1)
    if options.weight != 1:
        fields["w"] = _checked_number(options.weight, f"weight of {handler!r}", 1, MOST_WEIGHT)
    if options.replicas:
        _checked_number(options.replicas, "replicas", 0, 100)
    return fields


def due_of(options: Options) -> tuple[int, int]:
    """Return the delay in ms, and instead of it the due time in ms, if one was given.

    Raises:
        BadArguments: Both are given, the delay is negative or longer than 100 years, or the time has no zone.
    """
    if options.delay is not None and options.at is not None:
        raise BadArguments("delay= and at= both say when; pass one of them")
    if options.at is not None:
        return 0, max(1, _moment_ms(options.at, "at", due_ms))
    if options.delay is None:
        return 0, 0
    delay_ms = _checked_duration(options.delay, "delay")
    if delay_ms > _LONGEST_DELAY_MS:
        raise BadArguments(f"delay can be 100 years at most, and {options.delay} came")
    return delay_ms, 0


def checked_digit(priority: str) -> int:
    """Return the lane's digit of a priority.

    Raises:
        BadArguments: There is no such priority.
    """
    if priority not in _PRIORITIES:
        raise BadArguments(f"priority is high, normal or low, and {priority!r} came")
    return lane_digit(priority)


def checked_text(text: object, what: str) -> str:
    """Return a key if it is text that may be one.

    Raises:
        BadArguments: It is something else, too long, empty, or has no UTF-8 form.
    """
    if not isinstance(text, str):
        raise BadArguments(f"{what} must be text, and {text!r} came", hint=f'pass {what}=str(...) or "..."')
    if not text or len(text) > LONGEST_KEY:
        raise BadArguments(f"{what} must have 1 to {LONGEST_KEY} characters, and {len(text)} came")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadArguments(f"{what} {text!r} is not text: {error.reason}") from None
    return text


def checked_cost(cost: object, handler: str) -> float:
    """Return a hint if it is one.

    Raises:
        BadArguments: It is no number, below 0, or infinite.
    """
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < math.inf:
        raise BadArguments(f"a cost is a number, 0 or more, and {cost!r} came for {handler!r}")
    return float(cost)


def _checked_id(text: object) -> None:
    """Refuse also what would part a list of ids: results come as one id per line."""
    if not checked_text(text, "id").isprintable():
        raise BadArguments(f"id {text!r} holds a character that cannot be printed, such as a newline")


def _checked_number(number: object, what: str, least: int, most: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise BadArguments(f"{what} is a whole number from {least} to {most:,}, and {number!r} came")
    return number


def _checked_duration(duration: object, what: str, *, least_ms: int = 0) -> int:
    if not isinstance(duration, timedelta):
        raise BadArguments(f"{what} is a timedelta, and {duration!r} came", hint=f"pass {what}=timedelta(seconds=...)")
    if duration < timedelta(milliseconds=least_ms):
        least = "negative" if not least_ms else f"shorter than {least_ms} ms"
        raise BadArguments(f"{what} cannot be {least}, and {duration} came")
    return to_ms(duration)


def _checked_headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, dict):
        raise BadArguments(f"headers are a dict of text by text, and {headers!r} came")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadArguments(f"headers are text by text, and {name!r}: {value!r} came")
    try:
        encode_json(headers)
    except ValueError as error:
        raise BadArguments(f"headers are not text: {error}") from None
    return headers


def _deadline_ms(deadline: object, what: str = "deadline") -> int:
    """A deadline that has passed is one all the same: the job ends as expired."""
    if isinstance(deadline, timedelta):
        return max(1, now_ms() + to_ms(deadline))
    return max(1, _moment_ms(deadline, what))


def _add_ends(fields: dict[str, Any], options: Options) -> None:
    """Add when the job must not be started, or not be tried again."""
    if options.deadline is not None:
        fields["x"] = _deadline_ms(options.deadline)
    if options.ttl is not None:
        _add_ttl(fields, options)
    if options.retry_until is not None:
        fields["ru"] = _deadline_ms(options.retry_until, "retry_until")


def _add_ttl(fields: dict[str, Any], options: Options) -> None:
    """Count a time to live from when the job is due: it does not live while it is delayed."""
    ttl_ms = _checked_duration(options.ttl, "ttl", least_ms=1)
    delay_ms, at_ms = due_of(options)
    if at_ms:
        end_ms = max(at_ms, now_ms()) + ttl_ms
        fields["x"] = min(fields.get("x", end_ms), end_ms)
    else:
        fields["tl"] = delay_ms + ttl_ms


def _moment_ms(moment: object, what: str, rounded: Callable[[datetime], int] = to_ms) -> int:
    if not isinstance(moment, datetime):
        raise BadArguments(f"{what} is an aware datetime, and {moment!r} came")
    try:
        return rounded(moment)
    except ValueError as error:
        raise BadArguments(f"{what}: {error}") from None
