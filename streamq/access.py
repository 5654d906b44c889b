"""Who may do what: principals, scopes, and the tokens that people and programs show.

A token reads `sq_<id>_<secret>`. The id finds it, the secret proves it; only a digest of the whole is stored, so that
who reads the database cannot ask anything.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.clock import utc_now
from streamq.errors import BadInput
from streamq.mongo import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from streamq.mongo import Mongo

__all__ = [
    "ADMIN",
    "SCOPES",
    "USER_SCOPE",
    "Issued",
    "Principal",
    "TokenBook",
    "TokenStatus",
    "checked_scopes",
    "digest",
]

ADMIN = "admin"
SCOPES: Mapping[str, str] = {
    "jobs:read": "read jobs, queues, workers and schedules",
    "jobs:write": "enqueue, retry and cancel jobs, also in bulk; run schedules",
    "queues:write": "pause and resume queues and schedules",
    "workers:write": "tell workers to be quiet, to resume, to stop, and where they stand",
    "metrics:read": "read /metrics",
    ADMIN: "everything; alone: the audit, tokens, stored schedules",
}
USER_SCOPE = "user:"
"""`user:<id>` reads the jobs of that user, and knows of no others."""

_LONGEST_NAME = 100
_LONGEST_USER = 512
_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who asks, and what they may."""

    name: str
    scopes: frozenset[str]
    token_id: str = ""
    """Empty for one that did not come with a stored token."""

    @property
    def users(self) -> frozenset[str]:
        """Ids of the users whose jobs this one may read if it may not read all."""
        return frozenset(scope.removeprefix(USER_SCOPE) for scope in self.scopes if scope.startswith(USER_SCOPE))

    def may(self, scope: str) -> bool:
        """Tell whether a scope is granted."""
        return scope in self.scopes or ADMIN in self.scopes


class Issued(NamedTuple):
    """A token that was just made; its text is nowhere else."""

    id: str
    text: str


class TokenStatus(NamedTuple):
    """A token as it may be shown."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def state(self) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= utc_now() else "active"


def checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes, sorted, each once.

    Raises:
        BadInput: There is none, or one is not known.
    """
    chosen = sorted(set(scopes))
    if not chosen:
        raise BadInput("a token needs a scope", hint=f"there are {', '.join(SCOPES)}, and user:<id>")
    for scope in chosen:
        user = scope.removeprefix(USER_SCOPE) if scope.startswith(USER_SCOPE) else None
        if user is None and scope not in SCOPES:
            raise BadInput(f"{scope!r:.80} is no scope", hint=f"there are {', '.join(SCOPES)}, and user:<id>")
        if user is not None and not 0 < len(user) <= _LONGEST_USER:
            raise BadInput(f"{scope!r:.80} names no user: write user: and 1 to {_LONGEST_USER} characters")
    return tuple(chosen)


def digest(token: bytes) -> bytes:
    """Return what is stored of a token. Digests are bytes of one length, so comparing them tells nothing by its time."""
    return hashlib.sha256(token).digest()


class TokenBook:
    """The tokens that are stored in MongoDB. Methods raise `HistoryUnavailable` while it is away."""

    def __init__(self, mongo: Mongo) -> None:
        self._tokens = Tokens(mongo)

    async def issue(self, name: str, scopes: Iterable[str], *, by: str, lasts: timedelta | None = None) -> Issued:
        """Make a token.

        Args:
            name: Whose it is, for people.
            scopes: What it may do.
            by: Who makes it.
            lasts: How long it is good; None: until it is revoked.

        Raises:
            BadInput: The name, a scope or the duration cannot be used; nothing was stored.
        """
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise BadInput(f"the name of a token has 1 to {_LONGEST_NAME} printable characters, not {name!r:.120}")
        if lasts is not None and not timedelta(0) < lasts <= timedelta(days=36_500):
            raise BadInput(f"a token lasts longer than nothing and at most 36500 days, not {lasts}")
        token_id = secrets.token_hex(6)
        text = f"sq_{token_id}_{secrets.token_urlsafe(32)}"
        now = utc_now()
        await self._tokens.add(
            {
                "_id": token_id,
                "name": name,
                "digest": digest(text.encode()),
                "scopes": list(checked_scopes(scopes)),
                "created_at": now,
                "created_by": by,
                **({"expires_at": now + lasts} if lasts is not None else {}),
            }
        )
        return Issued(token_id, text)

    async def replace(self, token_id: str, *, by: str, overlap: timedelta, lasts: timedelta | None = None) -> Issued:
        """Make a token like another one, which stays good for as long as it takes to hand the new one out.

        Raises:
            BadInput: There is no such token, or it is not good any more.
        """
        old = await self._known(token_id)
        if old.state != "active":
            raise BadInput(f"token {token_id} is {old.state}; only an active one can be replaced")
        issued = await self.issue(old.name, old.scopes, by=by, lasts=lasts)
        ends_at = utc_now() + overlap
        if old.expires_at is None or ends_at < old.expires_at:
            await self._tokens.change(token_id, {"expires_at": ends_at})
        return issued

    async def revoke(self, token_id: str) -> TokenStatus:
        """Make a token good for nothing. A repeat changes nothing.

        Raises:
            BadInput: There is no such token.
        """
        known = await self._known(token_id)
        if known.revoked_at is None:
            await self._tokens.change(token_id, {"revoked_at": utc_now()})
        return await self._known(token_id)

    async def list(self) -> list[TokenStatus]:
        """List all tokens, the newest first."""
        return [_status(document) for document in await self._tokens.all()]

    async def find(self, token_id: str) -> TokenStatus | None:
        """Return the token with this id, good or not; None if there is none."""
        document = await self._tokens.find(token_id) if _ID.fullmatch(token_id) else None
        return _status(document) if document else None

    async def verified(self, token: bytes) -> Principal | None:
        """Return whose token this is; None if it is no good one."""
        token_id = _id_of(token)
        document = await self._tokens.find(token_id) if token_id else None
        # Compared in any case, so that an id that exists takes no longer than one that does not.
        is_same = hmac.compare_digest(digest(token), bytes(document["digest"]) if document else bytes(32))
        return _principal(document) if document and is_same else None

    async def holder(self, token_id: str) -> Principal | None:
        """Return whose token has this id; None if it is not good any more."""
        document = await self._tokens.find(token_id)
        return _principal(document) if document else None

    async def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Store when tokens were last used, by their ids."""
        await self._tokens.touch(uses)

    async def _known(self, token_id: str) -> TokenStatus:
        known = await self.find(token_id)
        if known is None:
            raise BadInput(f"there is no token {token_id!r:.40}", hint="streamq token ls lists their ids")
        return known


def _id_of(token: bytes) -> str:
    parts = token.decode("ascii", "replace").split("_", 2)
    is_ours = len(parts) == 3 and parts[0] == "sq" and _ID.fullmatch(parts[1])
    return parts[1] if is_ours else ""


def _principal(document: Mapping[str, Any]) -> Principal | None:
    status = _status(document)
    return Principal(status.name, frozenset(status.scopes), status.id) if status.state == "active" else None


def _status(document: Mapping[str, Any]) -> TokenStatus:
    moments = (document.get(name) for name in ("expires_at", "revoked_at", "last_used_at"))
    return TokenStatus(
        document["_id"], document["name"], tuple(document["scopes"]), document["created_at"],
        document["created_by"], *moments,
    )  # fmt: skip
