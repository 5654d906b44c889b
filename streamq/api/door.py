"""Who is at the door: a bearer token, a session cookie, or whoever the host application says."""

from __future__ import annotations

import contextlib
import hmac
import inspect
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from itsdangerous import BadData, URLSafeTimedSerializer

from streamq.access import ADMIN, Principal, digest
from streamq.api.answers import Problem
from streamq.clock import utc_now
from streamq.errors import HistoryUnavailable, StreamQError
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from starlette.requests import HTTPConnection

    from streamq.access import TokenBook
    from streamq.api.stores import Stores

__all__ = ["BOOTSTRAP", "COOKIE", "SESSION_S", "Caller", "Door"]

COOKIE = "streamq_session"
SESSION_S = 12 * 3600
BELIEVED_S = 5.0
"""How long a token that was looked up is taken for good without another look; so late a revocation counts."""
BELIEVED_WITHOUT_MONGODB_S = 600.0
MOST_BELIEVED = 10_000

BOOTSTRAP = Principal("bootstrap", frozenset({ADMIN}))
"""Who has the token of the settings."""

_log = logging.getLogger(__name__)


class _Belief(NamedTuple):
    principal: Principal
    since_s: float


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and whether a browser may have been made to ask by somebody else's page."""

    principal: Principal
    is_ambient: bool


class Door:
    """Finds out who asks."""

    def __init__(self, stores: Stores, token: str, hook: Callable[[HTTPConnection], Any] | None = None) -> None:
        """Make it.

        Args:
            stores: Where the stored tokens are.
            token: The bootstrap token; empty: there is none.
            hook: Asked about whoever has no token of ours.
        """
        self._stores = stores
        self._hook = hook
        self._digest = digest(token.encode()) if token else b""
        self._believed: dict[bytes, _Belief] = {}
        self._uses: dict[str, datetime] = {}
        # Every process that knows the bootstrap token knows the cookies of the others; a new token ends all sessions.
        secret = hmac.digest(self._digest or utc_now().isoformat().encode(), b"streamq session", "sha256")
        self._cookies = URLSafeTimedSerializer(secret.hex(), salt="streamq session")

    async def caller(self, connection: HTTPConnection) -> Caller | None:
        """Return who asks; None if nobody knows.

        Raises:
            Problem: 503; that cannot be found out now.
        """
        given = connection.headers.getlist("authorization")
        if len(given) == 1:
            scheme, _, token = given[0].encode("latin-1").partition(b" ")
            if scheme.lower() == b"bearer" and (principal := await self.holder_of(token.strip())):
                return Caller(principal, is_ambient=False)
        elif not given and (principal := await self._of_session(connection.cookies.get(COOKIE, ""))):
            return Caller(principal, is_ambient=True)
        if len(given) < 2 and (principal := await self._of_hook(connection)):
            return Caller(principal, is_ambient=True)
        return None

    async def holder_of(self, token: bytes) -> Principal | None:
        """Return whose bearer token this is."""
        key = digest(token)
        # Digests have one length and are bytes, so that neither the time it takes nor an odd character tells anything.
        if hmac.compare_digest(key, self._digest):
            return BOOTSTRAP
        return await self._believe(key, lambda book: book.verified(token)) if token.startswith(b"sq_") else None

    def session_of(self, principal: Principal) -> str:
        """Make the value of the cookie for somebody who has shown a token."""
        return self._cookies.dumps(principal.token_id)

    async def note_uses(self) -> None:
        """Store when tokens were last used. Called now and then, for all of them at once."""
        uses, self._uses = self._uses, {}
        if uses:
            with contextlib.suppress(StreamQError):
                await self._stores.ask_tokens(lambda book: book.note_uses(uses))

    async def _of_session(self, cookie: str) -> Principal | None:
        try:
            token_id: object = self._cookies.loads(cookie, max_age=SESSION_S)
        except BadData:
            return None
        if not isinstance(token_id, str):
            return None
        if not token_id:
            return BOOTSTRAP
        return await self._believe(b"id " + token_id.encode(), lambda book: book.holder(token_id))

    async def _of_hook(self, connection: HTTPConnection) -> Principal | None:
        if self._hook is None:
            return None
        try:
            answer = self._hook(connection)
            principal: object = await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            event(_log, logging.ERROR, "api.hook_failed", f"the login of the host application: {error!r}")
            raise Problem(503, "the login of the host application failed", kind="login-failed") from error
        if principal is not None and not isinstance(principal, Principal):
            event(
                _log, logging.ERROR, "api.hook_failed", f"the login returned {type(principal).__name__}, no Principal"
            )
            raise Problem(503, "the login of the host application failed", kind="login-failed")
        return principal

    async def _believe(
        self, key: bytes, look_up: Callable[[TokenBook], Awaitable[Principal | None]]
    ) -> Principal | None:
        known, now_s = self._believed.get(key), time.monotonic()
        if known is None or now_s - known.since_s > BELIEVED_S:
            try:
                known = self._noted(key, await self._stores.ask_tokens(look_up))
            except HistoryUnavailable:
                if known is None or now_s - known.since_s > BELIEVED_WITHOUT_MONGODB_S:
                    raise Problem(503, "MongoDB is away, and with it the tokens", kind="store-away") from None
        if known is None:
            return None
        self._uses[known.principal.token_id] = utc_now()
        return known.principal

    def _noted(self, key: bytes, principal: Principal | None) -> _Belief | None:
        self._believed.pop(key, None)
        if principal is None:
            return None
        if len(self._believed) >= MOST_BELIEVED:
            self._believed.clear()
        return self._believed.setdefault(key, _Belief(principal, time.monotonic()))
