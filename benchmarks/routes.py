"""How fast the API answers: documents in place, one process, requests at fixed times."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import uvloop

from benchmarks import app
from benchmarks.processes import Child
from benchmarks.waits import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.mongo import MongoServer
    from benchmarks.servers import RedisServer

__all__ = ["ROUTES", "measure_routes", "store"]

TOKEN = "token-of-the-benchmark"  # noqa: S105 - of a server that lives for a minute
REQUESTS_PER_S = 200
USERS = 100_000
BATCH = 10_000

ROUTES: dict[str, Callable[[random.Random], str]] = {
    "stats": lambda _: "/app/job-status/queue/stats",
    "user": lambda dice: f"/app/job-status/status/user/u{dice.randrange(USERS)}",
    "recent": lambda _: "/app/job-status/recent?limit=20",
    "failed": lambda _: "/app/job-status/failed?limit=20",
}


def store(mongo: MongoServer, database: str, count: int) -> None:
    """Write statuses as the recorder would, of jobs that ended during the last day; one in a hundred is dead."""
    dawn = datetime.now(UTC) - timedelta(hours=20)
    with mongo.client() as client:
        jobs = client[database].get_collection("job_status")
        for first in range(0, count, BATCH):
            jobs.insert_many(
                [_document(number, dawn, count) for number in range(first, min(count, first + BATCH))], ordered=False
            )


def _document(number: int, dawn: datetime, count: int) -> dict[str, Any]:
    enqueued_at = dawn + timedelta(hours=19) * (number / count)
    state = "completed" if number % 100 else "dead"
    started_at, finished_at = enqueued_at + timedelta(seconds=1), enqueued_at + timedelta(seconds=2)
    attempt = {
        "number": 1, "state": state, "worker": "w1", "version": number, "started_at": started_at, "finished_at": finished_at,
    }  # fmt: skip
    document = {
        "_id": f"{number:026d}", "queue": "bench", "handler": "process_user_data", "user": f"u{number % USERS}",
        "state": state, "attempt": 1, "max_attempts": 5, "lane": "normal", "crashes": 0, "enqueued_at": enqueued_at,
        "started_at": started_at, "finished_at": finished_at, "wait_ms": 1000, "run_ms": 1000, "worker": "w1",
        "attempts": [attempt], "version": number, "expires_at": finished_at + timedelta(days=30),
    }  # fmt: skip
    error = {"type": "ValueError", "message": "bad SKU", "traceback": "x" * 600, "fingerprint": "0123456789ab"}
    return document | ({"result": {"events": number}} if number % 100 else {"error": error})


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
