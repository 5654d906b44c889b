"""An application whose handlers do to their worker what handlers should not do. Imported by real workers."""

import asyncio
import contextlib
import ctypes
import os
import time
from datetime import timedelta
from pathlib import Path

from streamq import StreamQ
from streamq.worker import service, slots

app = StreamQ()
slots.STUCK_S = 0.3
service.RECYCLE_AFTER_S = 1.0
BRIEF = timedelta(milliseconds=100)


@app.handler
async def beside(x: int) -> int:
    return x


@app.handler(timeout=None)
async def holds(folder: str) -> str:
    """Hold its slot until the file `go` is there."""
    note(folder, "holds")
    while not (Path(folder) / "go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return "went"


@app.handler(timeout=BRIEF, max_attempts=1)
async def deaf_async() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(60)


@app.handler(timeout=BRIEF, max_attempts=1)
def deaf_plain() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


@app.handler
async def kills_worker(folder: str, how: str) -> None:
    note(folder, "kills")
    if how == "segfault":
        ctypes.string_at(0)
    os._exit(3)


@app.handler
async def blocks(folder: str, seconds: float) -> str:
    note(folder, "blocks")
    time.sleep(seconds)  # noqa: ASYNC251 - this is what it does wrong
    return "done"


@app.handler
async def forks_async(folder: str) -> str:
    os.fork()
    note(folder, "forks")
    return "done"


@app.handler
def forks_plain(folder: str) -> str:
    os.fork()
    note(folder, "forks")
    return "done"


def note(folder: str, what: str) -> None:
    """Write down in which process something happened."""
    with (Path(folder) / what).open("a") as file:
        file.write(f"{os.getpid()}\n")
