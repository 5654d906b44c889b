"""The schedules of the application, in code and stored: when they fire, one fired by hand, and a pause."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import application_of, auditor_of, or_503, stores_of
from streamq.api.parameters import body
from streamq.api.running import operation_json
from streamq.api.table import Operation, principal_of
from streamq.clock import utc_now
from streamq.schedules import book, fire_now
from streamq.schedules.book import every_schedule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.api.running import Progress, Runner
    from streamq.broker.fanout import FanOutState
    from streamq.schedules import Book, Listed

__all__ = ["OPERATIONS"]

NEXT = 3


class PauseReason(msgspec.Struct, forbid_unknown_fields=True):
    """Why a schedule is to fire no more."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=r"\S")]


async def list_schedules(request: Request) -> Response:
    """List the schedules of the application, in code and stored, and when each fires next.

    While MongoDB is away, only those in code.
    """
    return Json({"items": [_schedule(listed) for listed in await _every(request)]})


async def run_schedule(request: Request) -> Response:
    """Fire the current occurrence of a schedule now.

    A repeat adds nothing, or goes on where the last one stopped. It goes on after the answer, which tells where to look.
    """
    app, name = application_of(request), (await _known(request)).name

    async def work(progress: Progress) -> None:
        def count(_: object, state: FanOutState) -> None:
            progress.done, progress.refused = state.users - state.refused, state.refused

        for fired in await fire_now(app.settings, app, schedule=name, stop=progress.stopping, on_progress=count):
            count(None, fired.state)
            progress.total = fired.state.users

    runner: Runner = request.app.state.runner
    stored = await runner.start(request, "run", {"schedule": name}, work)
    return Json(operation_json(stored), 202, {"location": f"/v1/bulk/{stored['_id']}"})


async def pause_schedule(request: Request) -> Response:
    """Let a schedule fire no more until it is resumed. Fire times that pass meanwhile are not made up for."""
    reason, by = (await body(request, PauseReason)).reason, principal_of(request).name
    before = await _known(request)
    await _with_book(request, lambda opened: opened.pause(before.name, reason=reason, by=by))
    told = {"before": _pause(before), "after": {"reason": reason}}
    await auditor_of(request).note(request, "schedule.pause", before.name, **told)
    return Json(_schedule(await _known(request)))


async def resume_schedule(request: Request) -> Response:
    """Let a paused schedule fire again, from its next fire time on."""
    before = await _known(request)
    if await _with_book(request, lambda opened: opened.resume(before.name)):
        await auditor_of(request).note(request, "schedule.resume", before.name, before=_pause(before))
    return Json(_schedule(await _known(request)))


OPERATIONS = (
    Operation(
        method="GET", path="/v1/schedules", run=list_schedules, tag="schedules", scope="jobs:read",
        answer=shapes.Schedules, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/schedules/{schedule}:run", run=run_schedule, tag="schedules", scope="jobs:write",
        answer=shapes.Operation, status=202, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/schedules/{schedule}:pause", run=pause_schedule, tag="schedules",
        scope="queues:write", body=PauseReason, answer=shapes.Schedule, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/schedules/{schedule}:resume", run=resume_schedule, tag="schedules",
        scope="queues:write", answer=shapes.Schedule, misses=(404,),
    ),
)  # fmt: skip


async def _every(request: Request) -> list[Listed]:
    app = application_of(request)
    has_mongodb = app.settings.history and stores_of(request).mongodb.is_up
    # Else every request would wait for a server that is known to be away.
    return await every_schedule(app, msgspec.structs.replace(app.settings, history=has_mongodb))


async def _known(request: Request) -> Listed:
    name = request.path_params["schedule"]
    for listed in await _every(request):
        if listed.name == name:
            return listed
    raise Problem(404, f"no schedule {name!r:.80} is known here", kind="schedule-unknown")


async def _with_book(request: Request, work: Callable[[Book], Awaitable[Any]]) -> Any:
    app = application_of(request)

    async def opened() -> Any:
        async with book(app, app.settings) as pages:
            return await work(pages)

    return await or_503(opened(), "MongoDB")


def _schedule(listed: Listed) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": listed.name, "source": listed.source, "error": listed.error or None, "paused": _pause(listed),
        "expression": "", "words": "", "timezone": "UTC", "handler": "", "queue": "", "misfire": "", "next_at": [],
    }  # fmt: skip
    if listed.schedule is None:
        return told
    entry, timing = listed.schedule.entry, listed.schedule.timing
    return told | {
        "expression": timing.text,
        "words": timing.words,
        "timezone": str(timing.timezone),
        "handler": entry.handler.name,
        "queue": entry.handler.queue,
        "misfire": entry.misfire,
        "next_at": [iso(moment) for moment in islice(timing.after(utc_now()), NEXT)],
    }


def _pause(listed: Listed) -> dict[str, Any] | None:
    pause = listed.pause
    return {"reason": pause.reason, "by": pause.by, "at": iso(pause.at)} if pause else None
