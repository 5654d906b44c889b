"""What the API says of itself: probes, metrics, its OpenAPI document, and that as a page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from streamq.api.answers import Json
from streamq.api.desk import stores_of
from streamq.api.metrics import CONTENT_TYPE, metrics
from streamq.api.pages import POLICY, page
from streamq.api.table import Operation
from streamq.errors import StreamQError

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["OPERATIONS"]


async def livez(_: Request) -> Response:
    """Say that the process turns; a server that is away is no reason to restart it."""
    return PlainTextResponse("ok")


async def readyz(request: Request) -> Response:
    """Say whether there is anything to be had here: `ok`, `degraded` (one server is away), or 503 `unavailable`."""
    stores = stores_of(request)
    asked = (stores.counts(), stores.ask_history(lambda history: history.recent(1)))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if unforeseen := [error for error in errors if not isinstance(error, StreamQError)]:
        raise unforeseen[0]
    words = {0: "ok", 1: "degraded", 2: "unavailable"}[len(errors)]
    return PlainTextResponse(words, 503 if len(errors) == 2 else 200)


async def healthz(request: Request) -> Response:
    """Say the same as /readyz, under the name that people look for."""
    return await readyz(request)


async def show_metrics(request: Request) -> Response:
    """Count, for Prometheus."""
    return Response(await metrics(stores_of(request)), headers={"content-type": CONTENT_TYPE})


async def show_openapi(request: Request) -> Response:
    """Tell what can be asked here, as an OpenAPI 3.1 document."""
    return Json(request.app.state.document, headers={"cache-control": "private, max-age=3600"})


async def show_docs(request: Request) -> Response:
    """Tell the same as a page."""
    return HTMLResponse(page(request.app.state.document), headers={"content-security-policy": POLICY})


OPERATIONS = (
    *(
        Operation(
            method="GET", path=path, run=run, tag="service", is_open=True, takes_others=True, media="text/plain",
            misses=() if run is livez else (503,),
        )
        for path, run in (("/livez", livez), ("/readyz", readyz), ("/healthz", healthz))
    ),
    Operation(
        method="GET", path="/metrics", run=show_metrics, tag="service", scope="metrics:read", takes_others=True,
        media="text/plain",
    ),
    Operation(method="GET", path="/openapi.json", run=show_openapi, tag="service", answer=dict),
    Operation(method="GET", path="/docs", run=show_docs, tag="service", media="text/html"),
)  # fmt: skip
