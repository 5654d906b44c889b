"""The routes, and what stands before them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from streamq.api import v1
from streamq.api.answers import Json, Problem, on_error, on_http_error, on_problem
from streamq.api.gate import Gate, Headers
from streamq.api.legacy import Desk
from streamq.api.metrics import CONTENT_TYPE, metrics
from streamq.api.paths import ANYTHING
from streamq.api.stores import Stores
from streamq.errors import ConfigurationError, StreamQError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from streamq.settings import Settings

__all__ = ["create_app"]

DEFAULT_LIMIT, MOST = 20, 100
_NUMBER = re.compile(r"0*[1-9][0-9]*", re.ASCII)


def create_app(settings: Settings) -> Starlette:
    """Make the ASGI application. It opens its connections when it is started, and needs neither server for that.

    Raises:
        ConfigurationError: There is no token, or an address is none.
    """
    if not settings.api_token:
        raise ConfigurationError(
            "the API has no token: anybody who reaches it could read every job",
            hint="set STREAMQ_API_TOKEN, or STREAMQ_API_TOKEN_FILE to a file that holds it",
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        stores = Stores(settings)
        app.state.stores = stores
        stores.start()
        try:
            yield
        finally:
            await stores.close()

    return Starlette(
        routes=_ROUTES,
        lifespan=lifespan,
        middleware=[Middleware(Headers), Middleware(Gate, token=settings.api_token)],
        exception_handlers={Problem: on_problem, HTTPException: on_http_error, Exception: on_error},
    )


async def _stats(request: Request) -> Response:
    return Json(await _desk(request).stats(), headers={"cache-control": "max-age=1"})


async def _user(request: Request) -> Response:
    return Json(await _desk(request).user(request.path_params["user_id"]))


async def _recent(request: Request) -> Response:
    return Json(await _desk(request).recent(_limit(request)))


async def _failed(request: Request) -> Response:
    return Json(await _desk(request).failed(_limit(request)))


async def _livez(_: Request) -> Response:
    """Say that the process turns; a server that is away is no reason to restart it."""
    return PlainTextResponse("ok")


async def _readyz(request: Request) -> Response:
    """Say whether there is anything to be had here: one server is enough."""
    stores = _stores(request)
    asked = (stores.counts(), stores.ask_history(lambda history: history.recent(1)))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if unforeseen := [error for error in errors if not isinstance(error, StreamQError)]:
        raise unforeseen[0]
    words = {0: "ok", 1: "degraded", 2: "unavailable"}[len(errors)]
    return PlainTextResponse(words, 503 if len(errors) == 2 else 200)


async def _metrics(request: Request) -> Response:
    return Response(await metrics(_stores(request)), headers={"content-type": CONTENT_TYPE})


def _stores(request: Request) -> Stores:
    stores: Stores = request.app.state.stores
    return stores


def _desk(request: Request) -> Desk:
    return Desk(_stores(request))


def _limit(request: Request) -> int:
    """Read `limit`: a number from 1; what is above the most counts as the most, as it always did here."""
    given = request.query_params.getlist("limit")
    if not given:
        return DEFAULT_LIMIT
    if len(given) > 1 or not _NUMBER.fullmatch(given[0]):
        detail = f"limit must be a whole number from 1, not {', '.join(given)[:40]!r}"
        raise Problem(422, detail, kind="bad-parameter", errors=[{"parameter": "limit", "detail": detail}])
    return min(MOST, int(given[0][:9]) if len(given[0]) < 10 else MOST)


_ROUTES = [
    *v1.ROUTES,
    Route("/app/job-status/queue/stats", _stats),
    Route(f"/app/job-status/status/user/{{user_id:{ANYTHING}}}", _user),
    Route("/app/job-status/recent", _recent),
    Route("/app/job-status/failed", _failed),
    Route("/livez", _livez),
    Route("/readyz", _readyz),
    Route("/healthz", _readyz),
    Route("/metrics", _metrics),
]
