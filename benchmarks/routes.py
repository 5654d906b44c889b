"""How fast the API answers: documents in place, one process, requests at fixed times."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import uvloop

from benchmarks import app
from benchmarks.harness import quiet
from benchmarks.processes import Child
from benchmarks.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pymongo.database import Database

    from benchmarks.mongo import MongoServer
    from benchmarks.servers import RedisServer

__all__ = ["ROUTES", "measure_routes", "store"]

TOKEN = "token-of-the-benchmark"  # noqa: S105 - of a server that lives for a minute
REQUESTS_PER_S = 200
USERS = 100_000
SEEDS = 1_000
BYTES_A_DOCUMENT = 1_000
"""On disk, with its entries in the indexes and while these are built: a third of that was seen in the end."""

ROUTES: dict[str, Callable[[random.Random], str]] = {
    "stats": lambda _: "/app/job-status/queue/stats",
    "user": lambda dice: f"/app/job-status/status/user/u{dice.randrange(USERS)}",
    "recent": lambda _: "/app/job-status/recent?limit=20",
    "failed": lambda _: "/app/job-status/failed?limit=20",
}


def store(mongo: MongoServer, database: str, count: int, tell: Callable[[str, int, int], None] = quiet) -> None:
    """Write statuses as the recorder would, of jobs that ended during the last day; one in a hundred is dead.

    The server makes them of a few seeds, which is several times as quick as sending them.

    Args:
        mongo: Where.
        database: Its database.
        count: How many.
        tell: Hears how far it is.

    Raises:
        RuntimeError: There is too little space for so many.
    """
    _check_space(mongo.folder, count * BYTES_A_DOCUMENT)
    dawn = datetime.now(UTC) - timedelta(hours=20)
    with mongo.client() as client:
        there = client[database]
        there["seeds"].insert_many({"_id": number} for number in range(SEEDS))
        making = threading.Thread(
            target=there["seeds"].aggregate, args=(_pipeline(count, dawn),), kwargs={"allowDiskUse": True}
        )
        making.start()
        while making.is_alive():
            making.join(0.5)
            tell("documents", _made(there), count)
        there["seeds"].drop()
        found = there["job_status"].estimated_document_count()
    if found != count:
        raise RuntimeError(f"{found:,} of {count:,} documents were made")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RuntimeError(
            f"{needed / 1e9:.1f} GB are needed in {folder}, and {free / 1e9:.1f} GB are free: set TMPDIR"
        )


def _made(there: Database[dict[str, Any]]) -> int:
    """Count what lies in the collection that is being written; it gets its name at the end."""
    names = there.list_collection_names(filter={"name": {"$regex": "^tmp.agg_out"}})
    return sum(there[name].estimated_document_count() for name in names)


def _pipeline(count: int, dawn: datetime) -> list[dict[str, Any]]:
    """Make `count` numbers, and a status of each."""
    ages = {"$floor": {"$divide": [{"$subtract": [count - 1 + SEEDS, "$_id"]}, SEEDS]}}  # how many numbers a seed has
    number = {"$toLong": {"$add": ["$_id", {"$multiply": ["$round", SEEDS]}]}}
    offset_ms = {"$toLong": {"$multiply": ["$number", timedelta(hours=19).total_seconds() * 1000 / count]}}
    is_dead = {"$eq": [{"$mod": ["$number", 100]}, 0]}
    return [
        {"$project": {"round": {"$range": [0, {"$toInt": ages}]}}},
        {"$unwind": "$round"},
        {"$project": {"_id": 0, "number": number}},
        {"$project": {
            "number": 1,
            "text": {"$toString": "$number"},
            "at": {"$add": [dawn, offset_ms]},
            "state": {"$cond": [is_dead, "dead", "completed"]},
        }},
        {"$project": _document()},
        {"$out": "job_status"},
    ]  # fmt: skip


def _document() -> dict[str, Any]:
    """Say what a status is made of, in the server's words."""
    started_at, finished_at = {"$add": ["$at", 1000]}, {"$add": ["$at", 2000]}
    attempt = {
        "number": _just(1), "state": "$state", "worker": "w1", "started_at": started_at, "finished_at": finished_at,
        "version": "$number",
    }  # fmt: skip
    error = {"type": "ValueError", "message": "bad SKU", "traceback": "x" * 600, "fingerprint": "0123456789ab"}
    is_dead = {"$eq": ["$state", "dead"]}
    return {
        "_id": {"$concat": [{"$substrCP": ["0" * 26, 0, {"$subtract": [26, {"$strLenCP": "$text"}]}]}, "$text"]},
        "queue": "bench", "handler": "process_user_data",
        "user": {"$concat": ["u", {"$toString": {"$mod": ["$number", USERS]}}]},
        "state": "$state", "attempt": _just(1), "max_attempts": _just(5), "lane": "normal", "crashes": _just(0),
        "enqueued_at": "$at", "started_at": started_at, "finished_at": finished_at,
        "wait_ms": _just(1000), "run_ms": _just(1000), "worker": "w1", "attempts": [attempt], "version": "$number",
        "expires_at": {"$add": ["$at", timedelta(days=30) // timedelta(milliseconds=1)]},
        "error": {"$cond": [is_dead, _just(error), "$$REMOVE"]},
        "result": {"$cond": [is_dead, "$$REMOVE", {"events": "$number"}]},
    }  # fmt: skip


def _just(value: Any) -> dict[str, Any]:
    """Keep a number from being read as "with this field"."""
    return {"$literal": value}


def measure_routes(
    server: RedisServer, mongo: MongoServer, database: str, documents: int, *, seconds: float
) -> dict[str, list[float]]:
    """Return per route how long each answer took, in ms, from when its request was due."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = app.environment(
        server.url, mongodb_url=mongo.url, mongodb_database=database, api_token=TOKEN, api_port=str(port)
    )
    base = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with Child("-m", "streamq", "api", environment=environment) as child:

        def has_counted() -> bool:
            try:
                told = httpx.get(f"{base}/app/job-status/queue/stats", headers=headers, timeout=10).json()
            except httpx.HTTPError:
                return False
            return (told.get("completed") or 0) + (told.get("failed") or 0) == documents

        wait_until(has_counted, "the API knows all documents", child, limit_s=120)
        return uvloop.run(_load(base, headers, seconds))


async def _load(base: str, headers: dict[str, str], seconds: float) -> dict[str, list[float]]:
    dice = random.Random(5)
    found: dict[str, list[float]] = {}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30) as client:
        for name, path in ROUTES.items():
            await _at_fixed_times(client, partial(path, dice), min(1.0, seconds))  # warm up
            found[name] = await _at_fixed_times(client, partial(path, dice), seconds)
    return found


async def _at_fixed_times(client: httpx.AsyncClient, path: Callable[[], str], seconds: float) -> list[float]:
    took_ms: list[float] = []

    async def ask(due: float) -> None:
        answer = await client.get(path())
        took_ms.append((time.perf_counter() - due) * 1000)
        assert answer.status_code in (200, 404), answer.text

    begun = time.perf_counter()
    tasks = []
    for number in range(int(REQUESTS_PER_S * seconds)):
        due = begun + number / REQUESTS_PER_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(ask(due)))
    await asyncio.gather(*tasks)
    return took_ms
