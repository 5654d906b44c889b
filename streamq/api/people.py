"""Who asks and who changed what: sessions of browsers, and the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import or_503, stores_of
from streamq.api.door import COOKIE, SESSION_S
from streamq.api.gate import LOGINS_A_MINUTE, Throttle
from streamq.api.parameters import CURSOR, LIMIT, after, body, cursor, limit
from streamq.api.table import Operation, principal_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from streamq.access import Principal
    from streamq.api.door import Door

__all__ = ["OPERATIONS", "logins"]

_AUDIT = "audit"


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a login."""

    token: str


def logins() -> Throttle:
    """Make what counts the logins of each address."""
    return Throttle(LOGINS_A_MINUTE)


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
        method="GET", path="/v1/audit", run=list_audit, tag="people", scope="admin", parameters=(LIMIT, CURSOR),
        answer=shapes.AuditEntries,
    ),
)  # fmt: skip


def _session(principal: Principal) -> dict[str, Any]:
    return {"name": principal.name, "scopes": sorted(principal.scopes)}


def _entry(document: dict[str, Any]) -> dict[str, Any]:
    told = {name: document.get(name) for name in shapes.AuditEntry.__struct_fields__}
    return {**told, "id": document["_id"], "at": iso(document["at"])}
