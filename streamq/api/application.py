"""The API put together: its operations, what stands before them, and what is behind them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from streamq.api import bulk, events, following, jobs, original, people, producing, queues, service, timetable
from streamq.api.answers import Problem, on_error, on_http_error, on_problem
from streamq.api.auditor import Auditor
from streamq.api.door import Door
from streamq.api.events import Hub
from streamq.api.gate import Gate, Headers
from streamq.api.openapi import document
from streamq.api.running import Runner
from streamq.api.stores import Stores
from streamq.api.table import routes_of
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from starlette.requests import HTTPConnection

    from streamq.app import StreamQ
    from streamq.settings import Settings

__all__ = ["OPERATIONS", "create_app"]

UPKEEP_EVERY_S = 5.0

OPERATIONS = (
    *original.OPERATIONS, *producing.OPERATIONS, *following.OPERATIONS, *jobs.OPERATIONS, *bulk.OPERATIONS, *events.OPERATIONS,
    *queues.OPERATIONS, *timetable.OPERATIONS, *people.OPERATIONS, *service.OPERATIONS,
)  # fmt: skip
"""All that can be asked. Of two whose paths fit, the first counts."""


def create_app(
    settings: Settings,
    application: StreamQ | None = None,
    *,
    authenticate: Callable[[HTTPConnection], Any] | None = None,
) -> Starlette:
    """Make the ASGI application. It opens its connections when it is started, and needs neither server for that.

    Args:
        settings: Where the servers are, and the bootstrap token.
        application: Whose handlers and schedules are served; None: jobs can be looked at, and none can be enqueued.
        authenticate: The host application's login: given the request, it returns a `Principal`, or None for somebody
            that it does not know. It is asked, plain or async, about whoever shows no token of ours.

    Raises:
        ConfigurationError: Nobody could be let in, or an address is none.
    """
    if not settings.api_token and authenticate is None:
        raise ConfigurationError(
            "the API has no token: anybody who reaches it could read every job",
            hint="set STREAMQ_API_TOKEN, or STREAMQ_API_TOKEN_FILE to a file that holds it",
        )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        stores = app.state.stores = Stores(settings)
        app.state.door = Door(stores, settings.api_token, authenticate)
        app.state.auditor = Auditor(stores)
        app.state.logins = people.logins()
        app.state.runner = Runner(stores)
        app.state.hub = Hub(stores)
        app.state.followers = following.Followers()
        stores.start()
        upkeep = asyncio.create_task(_keep_up(app))
        try:
            yield
        finally:
            upkeep.cancel()
            app.state.hub.close()
            await app.state.runner.close()
            await asyncio.gather(upkeep, return_exceptions=True)
            await _store_rest(app)
            await stores.close()

    app = Starlette(
        routes=routes_of(OPERATIONS),
        lifespan=lifespan,
        middleware=_middleware(settings),
        exception_handlers={Problem: on_problem, HTTPException: on_http_error, Exception: on_error},
    )
    app.state.document = document(OPERATIONS)
    app.state.application = application
    app.state.is_behind_proxy = settings.api_behind_proxy
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    open_to_all = [(each.method, each.path) for each in OPERATIONS if each.is_open]
    gate = Middleware(Gate, open_to_all=open_to_all, a_minute=settings.api_rate_limit)
    if not settings.api_cors_origins:
        return [Middleware(Headers), gate]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.api_cors_origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=[
            "authorization",
            "content-type",
            "idempotency-key",
            "if-match",
            "if-none-match",
            "last-event-id",
        ],
        expose_headers=["etag", "link", "retry-after", "location", "ratelimit", "ratelimit-policy"],
    )
    return [Middleware(Headers), cors, gate]


async def _keep_up(app: Starlette) -> None:
    """Bring to MongoDB what was noted meanwhile."""
    while True:
        await asyncio.sleep(UPKEEP_EVERY_S)
        await _store_rest(app)


async def _store_rest(app: Starlette) -> None:
    await app.state.auditor.flush()
    await app.state.door.note_uses()
