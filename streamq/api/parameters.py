"""What comes in with a request: query parameters, headers, cursors, bodies. Each is read in one place, and described there."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson

from streamq.api.answers import Problem
from streamq.api.desk import stores_of
from streamq.history import Filter
from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

__all__ = [
    "BODY_WITHIN_S",
    "CURSOR",
    "FILTER",
    "IF_MATCH",
    "LIMIT",
    "MOST_BODY_BYTES",
    "Parameter",
    "after",
    "bad",
    "body",
    "check_match",
    "check_parameters",
    "cursor",
    "filter_of",
    "flag",
    "limit",
    "matches",
    "moment",
    "number",
    "one_of",
    "only",
]  # fmt: skip

DEFAULT_LIMIT, MOST = 50, 200
MOST_BODY_BYTES = 1_000_000
BODY_WITHIN_S = 10.0
MOST_VALUES = 20

_CLOSE = {"connection": "close"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter, or a header."""

    name: str
    description: str
    schema: Mapping[str, Any]
    is_required: bool = False


_ANY_STATE = "|".join(State)


def _times(name: str, description: str) -> Parameter:
    return Parameter(name, description, {"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00Z"]})


LIMIT = Parameter("limit", "The most to list.", {"type": "integer", "minimum": 1, "maximum": MOST, "default": 50})
CURSOR = Parameter("cursor", "`next` of the page before.", {"type": "string"})
FILTER = (
    Parameter(
        "state",
        f"One of {', '.join(State)}, or several with commas.",
        {"type": "string", "pattern": f"^({_ANY_STATE})(,({_ANY_STATE}))*$", "examples": ["dead", "dead,cancelled"]},
    ),
    Parameter("queue", "A queue, or several with commas.", {"type": "string"}),
    Parameter("handler", "The name of a handler.", {"type": "string"}),
    Parameter("user", "The user that the jobs belong to.", {"type": "string"}),
    Parameter("error_type", "Type of the last error, such as `ValueError`.", {"type": "string"}),
    _times("since", "Enqueued then or later."),
    _times("until", "Enqueued before."),
)


def bad(parameter: str, detail: str) -> Problem:
    """Say that a parameter, or the body, cannot be used."""
    return Problem(422, detail, kind="bad-parameter", errors=[{"parameter": parameter, "detail": detail}])


def check_parameters(request: Request, known: Sequence[Parameter]) -> None:
    """Refuse a parameter that is not known: a typing error would else answer another question.

    Raises:
        Problem: 422.
    """
    names = {parameter.name for parameter in known}
    if unknown := next((name for name in request.query_params if name not in names), None):
        there = f"there are {', '.join(sorted(names))}" if names else "there is none"
        raise bad(unknown[:80], f"{unknown!r:.80} is no parameter; {there}")


def only(request: Request, name: str) -> str | None:
    """Read a parameter that may stand there once."""
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise bad(name, f"{name} is given {len(given)} times")
    return given[0] if given else None


def one_of(request: Request, name: str, choices: Sequence[str], default: str) -> str:
    """Read a parameter that is one of some words."""
    given = only(request, name)
    if given is not None and given not in choices:
        raise bad(name, f"{name} is one of {', '.join(choices)}, not {given!r:.40}")
    return given if given is not None else default


def flag(request: Request, name: str) -> bool:
    """Read a parameter that is `true` or `false`."""
    return one_of(request, name, ("false", "true"), "false") == "true"


def number(request: Request, name: str, *, low: int, high: int, default: int) -> int:
    """Read a whole number within bounds."""
    given = only(request, name)
    if given is None:
        return default
    digits = len(str(high))
    if not (given.isascii() and given.isdigit() and len(given) <= digits and low <= int(given) <= high):
        raise bad(name, f"{name} is a whole number from {low} to {high}, not {given!r:.40}")
    return int(given)


def limit(request: Request) -> int:
    """Read how much to list."""
    return number(request, "limit", low=1, high=MOST, default=DEFAULT_LIMIT)


def moment(request: Request, name: str) -> datetime | None:
    """Read a point in time."""
    given = only(request, name)
    return None if given is None else moment_of(name, given)


def moment_of(name: str, given: str) -> datetime:
    """Read a point in time that stands in text; without a zone it is UTC."""
    try:
        # A plus sign that nobody encoded arrives as a space.
        when = datetime.fromisoformat(given.replace(" ", "+") if "T" in given else given)
        return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise bad(name, f"{name} is a time such as 2026-01-31T12:00:00Z, not {given!r:.40}") from None


def filter_of(request: Request) -> Filter:
    """Read which jobs are meant."""
    return Filter(
        states=_states(request),
        queues=stores_of(request).queues_meant(_several(request, "queue")),
        handler=only(request, "handler"),
        user=only(request, "user"),
        error_type=only(request, "error_type"),
        since=moment(request, "since"),
        until=moment(request, "until"),
    )


def _states(request: Request) -> tuple[str, ...]:
    given = only(request, "state")
    states = given.split(",") if given is not None else []
    if wrong := [state for state in states if state not in set(State)]:
        raise bad("state", f"{wrong[0]!r:.80} is no state; there are {', '.join(State)}")
    return tuple(sorted(set(states)))


def _several(request: Request, name: str) -> tuple[str, ...]:
    given = only(request, name)
    values = tuple(sorted({value for value in given.split(",") if value})) if given else ()
    if len(values) > MOST_VALUES:
        raise bad(name, f"at most {MOST_VALUES} values of {name} at once")
    return values


def cursor(mark: str, *place: Any) -> str:
    """Write down where the next page of a list begins, and which list it is of."""
    return base64.urlsafe_b64encode(orjson.dumps([*place, mark])).decode().rstrip("=")


def after(request: Request, mark: str, kind: type[T]) -> T | None:
    """Read where a page begins.

    Args:
        request: The request.
        mark: Tells the list from others, as given to `cursor`.
        kind: A tuple type of the place and the mark.
    """
    given = only(request, "cursor")
    if given is None:
        return None
    try:
        raw = base64.b64decode(given.encode() + b"=" * (-len(given) % 4), altchars=b"-_", validate=True)
        place: Any = msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, RecursionError):
        raise bad("cursor", "the cursor is none that was given out here") from None
    if place[-1] != mark:
        raise bad("cursor", "the cursor is of a list with another filter; begin without one")
    if any(isinstance(part, datetime) and part.tzinfo is None for part in place):
        raise bad("cursor", "the cursor is none that was given out here")
    return place  # type: ignore[no-any-return]


def mark_of(which: Any) -> str:
    """Tell filters apart, in few characters."""
    return hashlib.sha256(repr(dataclasses.astuple(which)).encode("utf-8", "replace")).hexdigest()[:12]


IF_MATCH = Parameter("If-Match", "Do it only if the ETag is still this one.", {"type": "string"})


def matches(given: str, etag: str, *, weakly: bool = False) -> bool:
    """Tell whether a header names this ETag; weakly: also as a weak one, as If-None-Match may."""
    tags = [tag.strip() for tag in given.split(",")]
    return "*" in tags or etag in ([tag.removeprefix("W/") for tag in tags] if weakly else tags)


def check_match(request: Request, etag: str) -> bool:
    """Hold an If-Match against what is there. Returns whether there was one.

    Raises:
        Problem: 412; it is not as the caller knows it.
    """
    given = request.headers.get("if-match")
    if given is not None and not matches(given, etag):
        raise Problem(412, "it is not as your If-Match says; look at it again", kind="changed-meanwhile")
    return given is not None


def too_large() -> Problem:
    """Say that a body is too large; what is left of it is not read."""
    detail = f"the body may have at most {MOST_BODY_BYTES} bytes"
    return Problem(413, detail, kind="body-too-large", headers=_CLOSE)


async def body(request: Request, kind: type[T]) -> T:
    """Read the JSON body.

    Raises:
        Problem: 408, 413, 415 or 422.
    """
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Problem(415, f"the body is JSON, with the content type application/json, not {media!r:.60}")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MOST_BODY_BYTES:
                    raise too_large()
    except TimeoutError:
        raise Problem(408, f"the body was not there within {BODY_WITHIN_S:g} s", headers=_CLOSE) from None
    try:
        return msgspec.json.decode(bytes(raw) or b"{}", type=kind)
    except (ValueError, RecursionError) as error:
        raise bad("body", f"the body does not fit: {str(error)[:200]}") from None
