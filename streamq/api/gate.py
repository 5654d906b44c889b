"""Who may ask. One gate before all routes, so that a route that is added later cannot forget it."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from streamq.api.answers import Problem, problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["OPEN_PATHS", "Gate", "Headers"]

OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz"})
"""Probes cannot carry a token; they say one word."""

_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)


class Gate:
    """Lets requests through that carry the bearer token."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._digest = _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_let_in(scope):
            await self._app(scope, receive, send)
            return
        refusal = Problem(
            401,
            "this needs the header Authorization: Bearer <token> with a valid token",
            headers={"www-authenticate": 'Bearer realm="streamq"'},
        )
        await problem(refusal)(scope, receive, send)

    def _is_let_in(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        # Digests have one length and are bytes, so that neither the time it takes nor an odd character tells anything.
        return hmac.compare_digest(_digest(token.strip()), self._digest) and scheme.lower() == b"bearer"


class Headers:
    """Adds the headers that keep a browser from making more of an answer than it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add to the answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_SAFE_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
