"""The schedules of the application: when they fire, and one fired by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamq.api import shapes
from streamq.api.answers import Json, Problem, iso
from streamq.api.desk import application_of
from streamq.api.running import operation_json
from streamq.api.table import Operation
from streamq.clock import utc_now
from streamq.schedules import fire_now, next_times

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.api.running import Progress, Runner
    from streamq.app import CronEntry
    from streamq.broker.fanout import FanOutState

__all__ = ["OPERATIONS"]

NEXT = 3


async def list_schedules(request: Request) -> Response:
    """List the schedules of the application, and when each fires next."""
    app = application_of(request)
    return Json({"items": [_schedule(entry) for entry in app.cron_entries.values()]})


async def run_schedule(request: Request) -> Response:
    """Fire the current occurrence of a schedule now.

    A repeat adds nothing, or goes on where the last one stopped. It goes on after the answer, which tells where to look.
    """
    app, name = application_of(request), request.path_params["schedule"]
    if name not in app.cron_entries:
        raise Problem(404, f"no schedule {name!r:.80} is known here", kind="schedule-unknown")

    async def work(progress: Progress) -> None:
        def count(_: object, state: FanOutState) -> None:
            progress.done, progress.refused = state.users - state.refused, state.refused

        for fired in await fire_now(app.settings, app, schedule=name, stop=progress.stopping, on_progress=count):
            count(None, fired.state)
            progress.total = fired.state.users

    runner: Runner = request.app.state.runner
    stored = await runner.start(request, "run", {"schedule": name}, work)
    return Json(operation_json(stored), 202, {"location": f"/v1/bulk/{stored['_id']}"})


OPERATIONS = (
    Operation(
        method="GET", path="/v1/schedules", run=list_schedules, tag="schedules", scope="jobs:read",
        answer=shapes.Schedules, misses=(404,),
    ),
    Operation(
        method="POST", path="/v1/schedules/{schedule}:run", run=run_schedule, tag="schedules", scope="jobs:write",
        answer=shapes.Operation, status=202, misses=(404,),
    ),
)  # fmt: skip


def _schedule(entry: CronEntry) -> dict[str, Any]:
    times = next_times(entry.expression, entry.timezone, NEXT, utc_now())
    return {
        "name": entry.name,
        "expression": entry.expression,
        "timezone": entry.timezone,
        "handler": entry.handler.name,
        "queue": entry.handler.queue,
        "misfire": entry.misfire,
        "next_at": [iso(moment) for moment in times],
    }
