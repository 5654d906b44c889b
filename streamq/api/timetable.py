"""The schedules of the application, in code and stored: when they fire, one stored, fired by hand, paused, removed."""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from starlette.responses import Response

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import application_of, auditor_of, or_503, stores_of
from streamq.api.parameters import IF_MATCH, Parameter, bad, body, check_match
from streamq.api.running import operation_json
from streamq.api.table import Operation, principal_of
from streamq.clock import utc_now
from streamq.errors import ConfigurationError
from streamq.mongo import Seen
from streamq.schedules import book, fire_now
from streamq.schedules.book import every_schedule
from streamq.schedules.stored import Definition, schedule_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from streamq.api.running import Progress, Runner
    from streamq.broker.fanout import FanOutState
    from streamq.schedules import Book, Listed

__all__ = ["OPERATIONS"]

NEXT = 3
_IF_NEW = Parameter("If-None-Match", "`*`: only if there is none of that name.", {"type": "string", "enum": ["*"]})


class PauseReason(msgspec.Struct, forbid_unknown_fields=True):
    """Why a schedule is to fire no more."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=r"\S")]


async def list_schedules(request: Request) -> Response:
    """List the schedules of the application, in code and stored, and when each fires next.

    While MongoDB is away, only those in code.
    """
    every, is_complete = await _every(request)
    return Json({"items": [_schedule(listed) for listed in every], "stale": not is_complete})


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


async def show_schedule(request: Request) -> Response:
    """Tell all about a schedule. Its ETag changes with what is said of it, not with the time."""
    listed = await _known(request)
    return Json(_schedule(listed), headers={"etag": _etag(listed)})


async def put_schedule(request: Request) -> Response:
    """Store a schedule, new or instead of the one of that name. Cron processes notice within two seconds.

    With `If-None-Match: *` only a new one, with If-Match only instead of the one that is known. One in code is changed
    in code.
    """
    definition, name = await body(request, Definition), request.path_params["schedule"]
    before = await _find(request)
    _check_stored(before)
    seen = _seen(request, before)

    async def put(opened: Book) -> bool:
        try:
            _check_times(request, name, definition)
            return bool(await opened.put(name, definition, seen))
        except (ConfigurationError, OverflowError, ValueError) as error:
            raise bad("body", str(error)) from None

    is_new = await _with_book(request, put)
    told = {"before": before and _definition(before), "after": msgspec.to_builtins(definition)}
    await auditor_of(request).note(request, "schedule.put", name, **told)
    after = await _known(request)
    return Json(_schedule(after), 201 if is_new else 200, {"etag": _etag(after)})


async def delete_schedule(request: Request) -> Response:
    """Remove a stored schedule. The jobs that it has made go on. One in code is removed there, or paused."""
    before = await _known(request)
    _check_stored(before)
    seen = _seen(request, before)
    await _with_book(request, lambda opened: opened.remove(before.name, seen), "Redis or MongoDB")
    await auditor_of(request).note(request, "schedule.delete", before.name, before=_definition(before))
    return Response(status_code=204)


async def pause_schedule(request: Request) -> Response:
    """Let a schedule fire no more until it is resumed. Fire times that pass meanwhile are not made up for."""
    reason, by = (await body(request, PauseReason)).reason, principal_of(request).name
    before = await _known(request)
    seen = _seen(request, before)
    await _with_book(request, lambda opened: opened.pause(before.name, reason=reason, by=by, seen=seen))
    told = {"before": _pause(before), "after": {"reason": reason}}
    await auditor_of(request).note(request, "schedule.pause", before.name, **told)
    return await show_schedule(request)


async def resume_schedule(request: Request) -> Response:
    """Let a paused schedule fire again, from its next fire time on."""
    before = await _known(request)
    seen = _seen(request, before)
    if await _with_book(request, lambda opened: opened.resume(before.name, seen)):
        await auditor_of(request).note(request, "schedule.resume", before.name, before=_pause(before))
    return await show_schedule(request)


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
        scope="queues:write", body=PauseReason, headers=(IF_MATCH,), answer=shapes.Schedule, misses=(404, 412),
    ),
    Operation(
        method="POST", path="/v1/schedules/{schedule}:resume", run=resume_schedule, tag="schedules",
        scope="queues:write", headers=(IF_MATCH,), answer=shapes.Schedule, misses=(404, 412),
    ),
    Operation(
        method="GET", path="/v1/schedules/{schedule}", run=show_schedule, tag="schedules", scope="jobs:read",
        answer=shapes.Schedule, misses=(404,),
    ),
    Operation(
        method="PUT", path="/v1/schedules/{schedule}", run=put_schedule, tag="schedules", scope="admin",
        body=Definition, headers=(IF_MATCH, _IF_NEW), answer=shapes.Schedule, also=(201,), misses=(404, 409, 412),
    ),
    Operation(
        method="DELETE", path="/v1/schedules/{schedule}", run=delete_schedule, tag="schedules", scope="admin",
        headers=(IF_MATCH,), status=204, misses=(404, 409, 412),
    ),
)  # fmt: skip


async def _every(request: Request) -> tuple[list[Listed], bool]:
    """List the schedules, and tell whether these are all: while MongoDB is away, only those in code are known."""
    app = application_of(request)
    has_mongodb = app.settings.history and stores_of(request).mongodb.is_up
    missing: list[str] = [] if has_mongodb or not app.settings.history else ["MongoDB is known to be away"]
    # Else every request would wait for a server that is known to be away.
    settings = msgspec.structs.replace(app.settings, history=has_mongodb)
    return await every_schedule(app, settings, tell=missing.append), not missing


async def _find(request: Request) -> Listed | None:
    """Return the schedule that is named in the path; None if there is none.

    Raises:
        Problem: 503; it is not known whether there is.
    """
    every, is_complete = await _every(request)
    found = next((listed for listed in every if listed.name == request.path_params["schedule"]), None)
    if found is None and not is_complete:
        raise Problem(503, "MongoDB is away, and with it the stored schedules", kind="store-away")
    return found


async def _known(request: Request) -> Listed:
    found = await _find(request)
    if found is None:
        name = request.path_params["schedule"]
        raise Problem(404, f"no schedule {name!r:.80} is known here", kind="schedule-unknown")
    return found


async def _with_book(request: Request, work: Callable[[Book], Awaitable[Any]], servers: str = "MongoDB") -> Any:
    app = application_of(request)

    async def opened() -> Any:
        async with book(app, app.settings) as pages:
            return await work(pages)

    return await or_503(opened(), servers)


def _check_times(request: Request, name: str, definition: Definition) -> None:
    """Look for fire times of a definition before it is stored: what breaks here would break every list.

    Raises:
        ConfigurationError: It cannot work with the application. What else goes wrong is raised as it comes.
    """
    app = application_of(request)
    timing = schedule_of(name, definition, app, app.settings).timing
    list(islice(timing.after(utc_now()), NEXT))


def _check_stored(listed: Listed | None) -> None:
    """Refuse to change what is written in code.

    Raises:
        Problem: 409.
    """
    if listed is not None and listed.source == "code":
        detail = f"schedule {listed.name!r} is written in code: change it there, or pause it"
        raise Problem(409, detail, kind="schedule-in-code")


def _seen(request: Request, before: Listed | None) -> Seen | None:
    """Return what has to be there still when it is written; None: whatever is.

    Raises:
        Problem: 412; it is not there already.
    """
    only_new = request.headers.get("if-none-match") if request.method == "PUT" else None
    if only_new is not None and only_new.strip() != "*":
        raise bad("If-None-Match", f"If-None-Match is * here, for a new one only, not {only_new!r:.40}")
    if only_new is not None:
        if before is not None:
            raise Problem(412, f"schedule {before.name!r} exists", kind="changed-meanwhile")
        return Seen()
    if before is None:
        if "if-match" in request.headers:
            raise Problem(412, "there is no schedule of that name", kind="changed-meanwhile")
        return None
    return before.seen if check_match(request, _etag(before)) else None


def _etag(listed: Listed) -> str:
    told = {name: value for name, value in _schedule(listed).items() if name != "next_at"}
    return f'"{hashlib.sha256(repr((listed.version, told)).encode()).hexdigest()[:24]}"'


def _definition(listed: Listed) -> dict[str, Any] | None:
    return msgspec.to_builtins(listed.definition) if listed.definition is not None else None


def _schedule(listed: Listed) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": listed.name, "source": listed.source, "error": listed.error or None, "paused": _pause(listed),
        "expression": "", "words": "", "timezone": "UTC", "handler": "", "queue": "", "misfire": "", "next_at": [],
        "definition": _definition(listed),
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
