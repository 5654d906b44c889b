"""What stands before all routes, so that a route that is added later cannot forget it: who may ask, how much, and how often."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, cast

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.requests import HTTPConnection

from streamq.api.answers import Problem, problem
from streamq.api.parameters import MOST_BODY_BYTES, too_large

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from streamq.api.door import Caller, Door

__all__ = ["Gate", "Headers", "Throttle"]

LOGINS_A_MINUTE = 10

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_NO_CONTENT_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class Throttle:
    """Counts requests, each process for itself, so that a runaway script of one cannot take the answers of others."""

    def __init__(self, a_minute: int, policy: str = "default") -> None:
        """Allow so many requests a minute to each who asks; 0: any number.

        Args:
            a_minute: How many.
            policy: What the limit is called in the headers.
        """
        self._item = RateLimitItemPerMinute(a_minute) if a_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._policy = policy

    async def pass_or_refuse(self, who: str) -> dict[str, str]:
        """Count a request. Returns the headers that say how many are left.

        See https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (revision 10).

        Raises:
            Problem: 429, with the same headers and the time to wait.
        """
        if self._item is None:
            return {}
        is_let_in = await self._limiter.hit(self._item, who)
        reset_at, left = await self._limiter.get_window_stats(self._item, who)
        wait_s = max(1, min(60, math.ceil(reset_at - time.time())))
        told = {
            "ratelimit-policy": f'"{self._policy}";q={self._item.amount};w=60',
            "ratelimit": f'"{self._policy}";r={left if is_let_in else 0};t={wait_s}',
        }
        if not is_let_in:
            detail = f"at most {self._item.amount} requests a minute"
            raise Problem(429, detail, kind="too-many", headers={**told, "retry-after": str(wait_s)})
        return told


class Gate:
    """Lets requests through that come from somebody who is known, and not too often."""

    def __init__(self, app: ASGIApp, *, open_to_all: Collection[tuple[str, str]], a_minute: int) -> None:
        """Make the gate.

        Args:
            app: What is behind it.
            open_to_all: Method and path of what anybody may ask.
            a_minute: How many requests one caller has; 0: any number.
        """
        self._app = app
        self._open = frozenset(open_to_all)
        self._throttle = Throttle(a_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            told = await self._check(scope)
        except Problem as refusal:
            await problem(refusal, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, _telling(send, told) if told else send)

    async def _check(self, scope: Scope) -> dict[str, str]:
        """Return the headers that go along with the answer."""
        connection = HTTPConnection(scope)
        _check_size(connection)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if (method, scope["path"]) in self._open:
            return {}
        door: Door = scope["app"].state.door
        caller = await door.caller(connection)
        if caller is None:
            raise Problem(
                401,
                "this needs the header Authorization: Bearer <token> with a valid token",
                headers={"www-authenticate": 'Bearer realm="streamq"'},
            )
        _check_origin(connection, caller)
        principal = caller.principal
        told = await self._throttle.pass_or_refuse(f"{principal.token_id} {principal.name}")
        scope.setdefault("state", {})["principal"] = principal
        return told


def _telling(send: Send, told: Mapping[str, str]) -> Send:
    more = [(name.encode(), value.encode()) for name, value in told.items()]

    async def with_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return with_more


def _check_size(connection: HTTPConnection) -> None:
    """Refuse a body that says itself that it is too large, before any of it is read."""
    length = connection.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and (len(length) > 12 or int(length) > MOST_BODY_BYTES):
        raise too_large()


def _check_origin(connection: HTTPConnection, caller: Caller) -> None:
    """Refuse a write that a browser was made to send by another site's page: cookies go along with those, too."""
    if not caller.is_ambient or connection.scope["method"] in _SAFE_METHODS:
        return
    site = connection.headers.get("sec-fetch-site")
    origin = connection.headers.get("origin", "")
    host = connection.headers.get("host", "")
    if site == "same-origin" or (site is None and host and origin in (f"https://{host}", f"http://{host}")):
        return
    raise Problem(403, "a write with a cookie must come from a page of this very site", kind="cross-site")


class Headers:
    """Adds the headers that keep a browser from making more of an answer than it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add to the answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = cast("list[tuple[bytes, bytes]]", message["headers"])
                names = {name.lower() for name, _ in given}
                policy = () if b"content-security-policy" in names else (_NO_CONTENT_POLICY,)
                kept = () if b"cache-control" in names else ((b"cache-control", b"no-store"),)
                message["headers"] = [*given, *_SAFE_HEADERS, *policy, *kept]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
