"""The programs that `benchmarks.schedule` starts: one that fires an hour, and one that looks after a simulated one.

They print one JSON document. Their application has a job for every user of a MongoDB collection, deduplicated.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import uvloop

from streamq.app import StreamQ
from streamq.cron.minder import Minder
from streamq.mongo import UserPages
from streamq.schedules import fire_now
from streamq.schedules.desks import desks
from streamq.schedules.occurrence import checked
from streamq.settings import Settings

__all__ = ["COLLECTION", "DATABASE", "QUEUE", "SIMULATED_FROM"]

DATABASE, COLLECTION, QUEUE = "streamq_bench", "users", "users"
SIMULATED_FROM = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)


def application(redis_url: str, mongodb_url: str) -> tuple[StreamQ, Settings]:
    """Return the application, with the schedule `hour` over the whole collection."""
    settings = Settings(redis_url=redis_url, history=False)
    app = StreamQ(settings)

    @app.handler(queue=QUEUE, key="user_id", dedup="user_id")
    async def refresh(user_id: str) -> None: ...

    app.cron("0 0 1 1 *", handler=refresh, name="hour")(  # so that no hour begins while it is measured
        UserPages(mongodb_url, DATABASE, COLLECTION, size=1000)
    )
    return app, settings


async def fire(redis_url: str, mongodb_url: str) -> dict[str, Any]:
    """Enqueue everybody, or what an earlier run has left."""
    app, settings = application(redis_url, mongodb_url)
    begun = time.monotonic()
    (fired,) = await fire_now(settings, app, schedule="hour")
    seconds = time.monotonic() - begun
    await app.cron_entries["hour"].page.close()  # type: ignore[attr-defined]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds, "added": fired.added_here, "users": fired.state.users, "pages": fired.state.pages,
        "peak_mb": peak_mb,
    }  # fmt: skip


async def mind(redis_url: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Look after an hourly schedule while the hours pass quickly, with a clock that is wrong, and a loop that blocks."""
    app = StreamQ(Settings(redis_url=redis_url, history=False))

    @app.handler(queue=QUEUE, key="user_id")
    async def refresh(user_id: str) -> None: ...

    async def users(cursor: str | None) -> tuple[list[str], None]:  # noqa: ARG001 - as pages are
        return [f"u{number}" for number in range(sizes["users"])], None

    app.cron("0 * * * *", handler=refresh, name="hour", misfire="all")(users)
    hour_s, begun = sizes["hour_s"], sizes["begun"]
    end = begun + (sizes["hours"] + 0.2) * hour_s

    def now_ms() -> int:
        moment = SIMULATED_FROM + timedelta(hours=(min(time.time(), end) - begun) / hour_s, seconds=sizes["skew_s"])
        return int(moment.timestamp() * 1000)

    checks, stop, dice = 0, asyncio.Event(), random.Random(sizes["seed"])
    async with desks(app.settings, stop, now_ms=now_ms) as bureau:
        minder = Minder(checked(app.cron_entries["hour"]), bureau.desk(QUEUE))
        await asyncio.sleep(max(0.0, begun - time.time()))
        while time.time() < end:
            await minder.check()
            checks += 1
            if sizes["blocks"]:
                time.sleep(dice.random() * 2 * hour_s)  # noqa: ASYNC251 - that is what is measured
            await asyncio.sleep(hour_s / 20)
        await minder.check()
    return {"checks": checks}


if __name__ == "__main__":
    mode, redis_url, *rest = sys.argv[1:]
    work = fire(redis_url, rest[0]) if mode == "fire" else mind(redis_url, json.loads(rest[0]))
    print(json.dumps(uvloop.run(work)))  # as `streamq cron` does
