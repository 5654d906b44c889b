"""The application that streamq's workers run in the benchmarks, and how its workers are started."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import tally
from benchmarks.processes import Child
from streamq.app import StreamQ
from streamq.context import current_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.servers import RedisServer
    from benchmarks.tally import Tallies

__all__ = ["QUEUE", "SLOWED", "app", "environment", "worker"]

QUEUE = "bench"
IO_JOB_S = 0.05
RELEASE = "release"
"""A file of this name in the folder of the tallies lets the jobs that hold a slot go."""

app = StreamQ()

SLOWED = "STREAMQ_BENCH_SLOWED"
"""The environment variable that says how many times slower than usual a worker runs, under callgrind."""


def _slow_down(times: float) -> None:
    """Make the waits that decide how far a worker reads ahead, and when it hands back, as much longer as the jobs are."""
    from streamq.worker import pump, slots

    slots.AHEAD_S *= times
    pump.STALE_S *= times


if SLOWED in os.environ:
    _slow_down(float(os.environ[SLOWED]))

done: Callable[[], None] | None = None


def _count() -> None:
    global done
    done = tally.counter()
    done()


@app.handler(queue=QUEUE)
async def noop(x: str) -> None:  # noqa: ARG001 - it is the payload
    """Do nothing but count."""
    done() if done is not None else _count()


@app.handler(queue=QUEUE, dedup="user")
async def noop_of(user: str, x: str) -> None:  # noqa: ARG001
    """Do nothing but count; one per user at a time."""
    done() if done is not None else _count()


@app.handler(queue=QUEUE, key="user")
async def visit(user: str, ms: float) -> None:
    """Wait, as for an answer of another service; write down start and end."""
    _note("start", user)
    await asyncio.sleep(ms / 1000)
    _note("end", user)


@app.handler(queue=QUEUE, key="user")
async def keyed(user: str, x: str) -> None:  # noqa: ARG001
    """Do nothing but count; each job is of a user."""
    done() if done is not None else _count()


@app.handler(queue=QUEUE, key="user", fair=True)
async def turn(user: str, ms: float, name: str) -> None:  # noqa: ARG001
    """Wait, as for an answer of another service, when it is the user's turn; write down start and end by the job's name."""
    _note("start", name)
    await asyncio.sleep(ms / 1000)
    _note("end", name)


@app.handler(queue=QUEUE, key="user", concurrency_per_key=1)
async def gated(user: str, x: str) -> None:  # noqa: ARG001
    """Do nothing but count; one job of a user at a time."""
    done() if done is not None else _count()


@app.handler(queue=QUEUE)
async def io(x: str) -> None:  # noqa: ARG001
    """Wait, as for an answer of another service."""
    await asyncio.sleep(IO_JOB_S)
    done() if done is not None else _count()


@app.handler(queue=QUEUE)
def io_in_thread(x: str) -> None:  # noqa: ARG001
    """Wait in a thread."""
    time.sleep(IO_JOB_S)
    _done_in_thread()()


_first_call = threading.Lock()


def _done_in_thread() -> Callable[[], None]:
    with _first_call:
        return _counter_for_threads()


@cache
def _counter_for_threads() -> Callable[[], None]:
    return tally.counter_for_threads()


@cache
def _keep() -> Callable[[int], None]:
    return tally.recorder_of_values()


@cache
def _journal() -> Callable[[str, str, int], None]:
    return tally.journal()


@app.handler(queue=QUEUE)
async def stopwatch(x: str) -> None:
    """Note how long ago the job was sent, in ns."""
    _keep()(time.monotonic_ns() - int(x.split()[0]))


@app.handler(queue=QUEUE)
async def punctual(delay_ms: int, x: str) -> None:  # noqa: ARG001
    """Note how late the job is, in µs; negative when it is early. Redis runs on this machine and has the same clock."""
    now_us = time.time_ns() // 1_000
    _keep()(now_us - round(current_job().enqueued_at.timestamp() * 1e6) - delay_ms * 1_000)


@app.handler(queue=QUEUE)
async def short(sent_ns: int) -> None:
    """Work 1 ms; note how long ago the job was sent, in ns."""
    _keep()(time.monotonic_ns() - sent_ns)
    await asyncio.sleep(0.001)


@app.handler(queue=QUEUE)
async def long(seconds: float) -> None:
    """Hold a slot."""
    await asyncio.sleep(seconds)


@app.handler(queue=QUEUE, timeout=None)
async def held(name: str) -> None:
    """Write down the start; the first time, hold the slot until released."""
    _note("start", name)
    folder = Path(os.environ[tally.FOLDER])
    try:
        os.close(os.open(folder / f"held-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        while not (folder / RELEASE).exists():  # noqa: ASYNC110 - the signal comes from another process
            await asyncio.sleep(0.05)
    _note("end", name)


@app.handler(queue=QUEUE)
async def journaled(name: str, seconds: float) -> None:
    """Write down start and end."""
    _note("start", name)
    await asyncio.sleep(seconds)
    _note("end", name)


def _note(what: str, name: str) -> None:
    _journal()(what, name, current_job().attempt)


def environment(server_url: str, **settings: str) -> dict[str, str]:
    """Return what a program of streamq finds in its environment; settings are named as in Python."""
    fixed = {"REDIS_URL": server_url, "STREAMQ_QUEUES": QUEUE, "STREAMQ_LOG_LEVEL": "warning"}
    return fixed | {f"STREAMQ_{name.upper()}": value for name, value in settings.items()}


def worker(
    concurrency: int, *arguments: str, url: str | None = None, **settings: str
) -> Callable[[RedisServer, Tallies], Child]:
    """Say how to start a worker: by default one process without a parent.

    Args:
        concurrency: Jobs at once.
        arguments: More of `streamq worker`, in place of `--no-parent`.
        url: Another way to the server, for example through a proxy.
        settings: As `environment` takes them.
    """
    line = ["-m", "streamq", "worker", "benchmarks.app:app", *(arguments or ("--no-parent",)), "-c", str(concurrency)]
    return lambda server, tallies: Child(
        *line, environment=tallies.environment | environment(url or server.url, **settings)
    )
