"""The four original routes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streamq.api import shapes
from streamq.api.answers import Json, Problem
from streamq.api.desk import stores_of
from streamq.api.legacy import Desk
from streamq.api.parameters import Parameter, bad
from streamq.api.paths import ANYTHING
from streamq.api.table import Operation, users_seen

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["OPERATIONS"]

DEFAULT_LIMIT, MOST = 20, 100
_BASE = "/app/job-status"
_NUMBER = re.compile(r"0*[1-9][0-9]*", re.ASCII)


async def queue_stats(request: Request) -> Response:
    """Count the jobs of each kind, together and by queue."""
    return Json(await Desk(stores_of(request)).stats(), headers={"cache-control": "max-age=1"})


async def status_of_user(request: Request) -> Response:
    """Tell the latest job of a user, and up to nine before it."""
    user, users = request.path_params["user_id"], users_seen(request)
    if users is not None and user not in users:
        raise Problem(404, "no job of this user is known", kind="user-unknown")
    return Json(await Desk(stores_of(request)).user(user))


async def recent(request: Request) -> Response:
    """List the jobs that were enqueued last."""
    return Json(await Desk(stores_of(request)).recent(_limit(request)))


async def failed(request: Request) -> Response:
    """List the jobs that failed for good, the last one first."""
    return Json(await Desk(stores_of(request)).failed(_limit(request)))


def _limit(request: Request) -> int:
    """Read `limit`: a number from 1; what is above the most counts as the most, as it always did here."""
    given = request.query_params.getlist("limit")
    if not given:
        return DEFAULT_LIMIT
    if len(given) > 1 or not _NUMBER.fullmatch(given[0]):
        raise bad("limit", f"limit must be a whole number from 1, not {', '.join(given)[:40]!r}")
    return min(MOST, int(given[0][:9]) if len(given[0]) < 10 else MOST)


_LIMIT = Parameter(
    "limit", f"The most to list; above {MOST} counts as {MOST}.",
    {"type": "integer", "minimum": 1, "default": DEFAULT_LIMIT},
)  # fmt: skip

OPERATIONS = (
    Operation(
        method="GET", path=f"{_BASE}/queue/stats", run=queue_stats, tag="original", scope="jobs:read",
        answer=shapes.LegacyStats, takes_others=True,
    ),
    Operation(
        method="GET", path=f"{_BASE}/status/user/{{user_id:{ANYTHING}}}", run=status_of_user, tag="original",
        scope="jobs:read", by_user=True, answer=shapes.LegacyUser, takes_others=True, misses=(404,),
    ),
    *(
        Operation(
            method="GET", path=f"{_BASE}/{run.__name__}", run=run, tag="original", scope="jobs:read",
            parameters=(_LIMIT,), answer=shapes.LegacyList, takes_others=True,
        )
        for run in (recent, failed)
    ),
)  # fmt: skip
