"""One job as it goes on: server-sent events, each the whole job, for whoever waits for it before a screen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from streamq.api import events
from streamq.api.answers import Problem
from streamq.api.jobs import JOB, whole, with_etag
from streamq.api.parameters import Parameter
from streamq.api.table import Operation
from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

__all__ = ["OPERATIONS", "Followers"]

MOST_FOLLOWERS = 100
LOOK_EVERY_S = 0.5
GONE_AFTER_S = 10.0
"""A job that has ended is away from Redis a moment before it is in MongoDB."""


class Followers:
    """How many follow a job in this process."""

    def __init__(self) -> None:
        self.count = 0


async def follow_job(request: Request) -> Response:
    """Tell how a job goes on, as server-sent events, until it has ended.

    `job`: all about it, as GET tells it, at once and whenever anything has changed. `gone`: its status was deleted or has
    expired. Each event is the whole job, so that nothing is missed between two; its id is the job's ETag, and who comes
    back with it as Last-Event-ID, to any API process, hears only what is new. A browser that comes back to a job that has
    ended gets 204 and stays away.
    """
    followers: Followers = request.app.state.followers
    if followers.count >= MOST_FOLLOWERS:
        detail = f"{MOST_FOLLOWERS} follow a job already"
        raise Problem(503, detail, kind="too-many", headers={"retry-after": "30"})
    last = request.headers.get("last-event-id", "")
    job, is_stale = await whole(request)
    if State(job.state).is_terminal and last == with_etag(job, is_stale=is_stale)[1].strip('"'):
        return Response(status_code=204)
    return EventSourceResponse(
        _followed(request, followers, last), ping=events.PING_S, send_timeout=10, headers={"cache-control": "no-store"}
    )


OPERATIONS = (
    Operation(
        method="GET", path=f"{JOB}/events", run=follow_job, tag="events", scope="jobs:read", by_user=True,
        media="text/event-stream", also=(204,), misses=(404,),
        headers=(Parameter("Last-Event-ID", "The id of the last event that was read.", {"type": "string"}),),
    ),
)  # fmt: skip


async def _followed(request: Request, followers: Followers, last: str) -> AsyncIterator[ServerSentEvent]:
    followers.count += 1
    loop = asyncio.get_running_loop()
    missing_since: float | None = None
    try:
        async with asyncio.timeout(events.LONGEST_S):
            while missing_since is None or loop.time() - missing_since < GONE_AFTER_S:
                try:
                    job, is_stale = await whole(request)
                except Problem as problem:
                    # While a server is away nobody can tell that it is gone.
                    missing_since = (missing_since or loop.time()) if problem.status == 404 else None
                else:
                    missing_since = None
                    answer, etag = with_etag(job, is_stale=is_stale)
                    if (event_id := etag.strip('"')) != last:
                        last = event_id
                        yield ServerSentEvent(bytes(answer.body).decode(), event="job", id=last)
                    if State(job.state).is_terminal and not is_stale:
                        return
                await asyncio.sleep(LOOK_EVERY_S)
            yield ServerSentEvent("{}", event="gone")
    except TimeoutError:
        return
    finally:
        followers.count -= 1
