"""Who asks and who changed what: sessions of browsers, tokens, and the audit."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from starlette.responses import Response

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import auditor_of, or_503, stores_of, told
from streamq.api.door import COOKIE, SESSION_S
from streamq.api.gate import LOGINS_A_MINUTE, Throttle
from streamq.api.parameters import CURSOR, LIMIT, after, body, cursor, limit
from streamq.api.table import Operation, principal_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from streamq.access import Issued, Principal, TokenBook, TokenStatus
    from streamq.api.door import Door

__all__ = ["OPERATIONS", "logins"]

_AUDIT = "audit"
_DAY_S = 86_400
_LONGEST_S = 36_500 * _DAY_S

Lasting = Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)]


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a login."""

    token: str


class NewToken(msgspec.Struct, forbid_unknown_fields=True):
    """A token to make."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    """Whose it is, for people."""
    scopes: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]
    lasts_s: Lasting | None = None
    """How long it is good; null: until it is revoked."""


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """How a token gives way to a new one."""

    overlap_s: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)] = _DAY_S
    """How long the old one stays good."""
    lasts_s: Lasting | None = None
    """How long the new one is good; null: until it is revoked."""


def logins() -> Throttle:
    """Make what counts the logins of each address."""
    return Throttle(LOGINS_A_MINUTE, "login")


async def log_in(request: Request) -> Response:
    """Open a session for a browser: show a token, and get a cookie that is good for twelve hours.

    Each address may try ten times a minute. Writes with the cookie must come from a page of this very site.
    """
    throttle: Throttle = request.app.state.logins
    await throttle.pass_or_refuse(request.client.host if request.client else "")
    door: Door = request.app.state.door
    principal = await door.holder_of((await body(request, Login)).token.encode("utf-8", "replace"))
    if principal is None:
        raise Problem(401, "this is no valid token", headers={"www-authenticate": 'Bearer realm="streamq"'})
    answer = Json(_session(principal), 201)
    is_secure = request.url.scheme == "https" or request.app.state.is_behind_proxy
    answer.set_cookie(
        COOKIE, door.session_of(principal), max_age=SESSION_S, httponly=True, samesite="strict", secure=is_secure
    )
    return answer


async def show_session(request: Request) -> Response:
    """Tell who asks, and what they may."""
    return Json(_session(principal_of(request)))


async def log_out(_: Request) -> Response:
    """Forget the session in this browser."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


async def list_tokens(request: Request) -> Response:
    """List all tokens, the newest first: whose they are, what they may, when they end, and when they were last used."""
    found = await _of_book(request, lambda book: book.list())
    return Json({"items": [_token(each) for each in found]})


async def make_token(request: Request) -> Response:
    """Make a token. The answer is the only place where it is ever shown; what is stored is its digest."""
    order, by = await body(request, NewToken), principal_of(request).name
    lasts = _lasting(order.lasts_s)
    issued = await _of_book(request, lambda book: book.issue(order.name, order.scopes, by=by, lasts=lasts))
    after = {"name": order.name, "scopes": sorted(set(order.scopes)), "lasts_s": order.lasts_s}
    await auditor_of(request).note(request, "token.create", issued.id, after=after)
    return _issued(issued)


async def rotate_token(request: Request) -> Response:
    """Make a token like another one, which ends once the new one has had the time to be handed out."""
    order, by, token_id = await body(request, Rotation), principal_of(request).name, await _token_id(request)
    overlap, lasts = timedelta(seconds=order.overlap_s), _lasting(order.lasts_s)
    issued = await _of_book(request, lambda book: book.replace(token_id, by=by, overlap=overlap, lasts=lasts))
    after = {"new": issued.id, "overlap_s": order.overlap_s, "lasts_s": order.lasts_s}
    await auditor_of(request).note(request, "token.rotate", token_id, after=after)
    return _issued(issued)


async def revoke_token(request: Request) -> Response:
    """Make a token good for nothing, in all processes within five seconds. A repeat changes nothing."""
    token_id = await _token_id(request)
    ended = await _of_book(request, lambda book: book.revoke(token_id))
    await auditor_of(request).note(request, "token.revoke", token_id, before={"name": ended.name})
    return Json(_token(ended))


async def list_audit(request: Request) -> Response:
    """List who changed what, the newest first."""
    place = after(request, _AUDIT, tuple[str, str])
    most, before = limit(request), place[0] if place else None
    stores = stores_of(request)
    found = await or_503(stores.ask_audit(lambda audit: audit.page(limit=most + 1, before=before)), "MongoDB")
    following = cursor(_AUDIT, found[most - 1]["_id"]) if len(found) > most else None
    return Json({"items": [_entry(each) for each in found[:most]], "next": following})


OPERATIONS = (
    Operation(
        method="POST", path="/v1/session", run=log_in, tag="people", is_open=True, body=Login,
        answer=shapes.Session, status=201, misses=(401, 429),
    ),
    Operation(method="GET", path="/v1/session", run=show_session, tag="people", answer=shapes.Session),
    Operation(method="DELETE", path="/v1/session", run=log_out, tag="people", status=204),
    Operation(
        method="GET", path="/v1/tokens", run=list_tokens, tag="people", scope="admin", answer=shapes.Tokens,
    ),
    Operation(
        method="POST", path="/v1/tokens", run=make_token, tag="people", scope="admin", body=NewToken,
        answer=shapes.IssuedToken, status=201,
    ),
    Operation(
        method="POST", path="/v1/tokens/{token_id}:rotate", run=rotate_token, tag="people", scope="admin",
        body=Rotation, answer=shapes.IssuedToken, status=201, misses=(404,),
    ),
    Operation(
        method="DELETE", path="/v1/tokens/{token_id}", run=revoke_token, tag="people", scope="admin",
        answer=shapes.Token, misses=(404,),
    ),
    Operation(
        method="GET", path="/v1/audit", run=list_audit, tag="people", scope="admin", parameters=(LIMIT, CURSOR),
        answer=shapes.AuditEntries,
    ),
)  # fmt: skip


def _session(principal: Principal) -> dict[str, Any]:
    return {"name": principal.name, "scopes": sorted(principal.scopes)}


def _entry(document: dict[str, Any]) -> dict[str, Any]:
    told = {name: document.get(name) for name in shapes.AuditEntry.__struct_fields__}
    return {**told, "id": document["_id"], "at": iso(document["at"])}


async def _of_book(request: Request, question: Callable[[TokenBook], Awaitable[Any]]) -> Any:
    return await or_503(stores_of(request).ask_tokens(question), "MongoDB")


async def _token_id(request: Request) -> str:
    """Return the id in the path if there is such a token.

    Raises:
        Problem: 404.
    """
    token_id: str = request.path_params["token_id"]
    if await _of_book(request, lambda book: book.find(token_id)) is None:
        raise Problem(404, f"no token {token_id!r:.40} is known here", kind="token-unknown")
    return token_id


def _lasting(seconds: float | None) -> timedelta | None:
    return timedelta(seconds=seconds) if seconds is not None else None


def _issued(issued: Issued) -> Response:
    return Json({"id": issued.id, "token": issued.text}, 201)


def _token(status: TokenStatus) -> dict[str, Any]:
    plain = {name: told(value) for name, value in status._asdict().items()}
    return {**plain, "scopes": list(status.scopes), "state": status.state}
