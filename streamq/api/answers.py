"""What goes over the line: JSON, and errors as RFC 9457 describes them."""

from __future__ import annotations

import http
import logging
from typing import TYPE_CHECKING, Any, cast

import orjson
from starlette.responses import Response

from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from starlette.exceptions import HTTPException
    from starlette.requests import Request

__all__ = ["Json", "Problem", "iso", "on_error", "on_http_error", "on_problem", "problem"]

_log = logging.getLogger(__name__)


class Json(Response):
    """JSON of whatever comes out of MongoDB. It is never the answer to be kept: statuses change."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = orjson.dumps(content, default=str, option=orjson.OPT_NON_STR_KEYS)
        super().__init__(body, status_code, {"cache-control": "no-store", **(headers or {})})


class Problem(Exception):
    """An answer that is an error. Everything in it is meant for the caller."""

    def __init__(
        self, status: int, detail: str, *, kind: str = "", headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind or http.HTTPStatus(status).phrase.lower().replace(" ", "-")
        self.headers = headers
        self.extra = extra


def problem(error: Problem, instance: str = "") -> Response:
    """Make the response of a problem."""
    body = {
        "type": f"urn:streamq:problem:{error.kind}",
        "title": http.HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        **({"instance": instance} if instance else {}),
        **error.extra,
    }
    response = Json(body, error.status, error.headers)
    response.headers["content-type"] = "application/problem+json"
    return response


async def on_problem(request: Request, error: Exception) -> Response:
    """Answer with a problem that was raised."""
    return problem(cast("Problem", error), request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer with what the framework raises: an unknown path, a wrong method."""
    raised = cast("HTTPException", error)
    return problem(Problem(raised.status_code, raised.detail, headers=raised.headers), request.url.path)


async def on_error(request: Request, error: Exception) -> Response:
    """Answer when we made a mistake. The caller learns nothing of the inside; the log does."""
    event(_log, logging.ERROR, "api.error", f"{request.method} {request.url.path}: {error!r}", path=request.url.path)
    return problem(Problem(500, "an error inside streamq; the log of the API says more"), request.url.path)


def iso(moment: datetime | None) -> str | None:
    """Write a point in time as ISO 8601 in UTC, to the millisecond."""
    if moment is None:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
