"""An application whose handlers run in processes of their own, and misbehave there. Imported by real workers."""

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streamq import Depends, Retry, RetryPolicy, Snooze, StreamQ, current_job

app = StreamQ()
AT_ONCE = RetryPolicy(base=timedelta(milliseconds=1))
MB = 1 << 20


@app.lifespan
async def shared() -> AsyncIterator[dict[str, int]]:
    yield {"pid": os.getpid()}


@app.middleware
async def marked(job, call):
    result = await call()
    return {**result, "around": job.handler} if isinstance(result, dict) else result


def lifespans_pid(state: dict[str, int]) -> int:
    return state["pid"]


def caged(**options):
    return app.handler(isolation="process", retry=AT_ONCE, **options)


@caged(key="user")
async def who(user: str, opener: int = Depends(lifespans_pid)) -> dict[str, object]:
    job = current_job()
    return {"pid": os.getpid(), "opener": opener, "key": job.key, "attempt": job.attempt, "fence": job.fence}


@caged()
def plain_who(x: int) -> dict[str, object]:
    return {"pid": os.getpid(), "attempt": current_job().attempt, "x": x}


@caged()
async def traced() -> str:
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


@caged(max_attempts=1)
async def fails() -> None:
    raise ValueError("in there")


@caged()
async def asks(folder: str) -> int:
    marks = Path(folder) / "asked"
    count = len(marks.read_text()) if marks.exists() else 0
    marks.write_text("x" * (count + 1))
    if count == 0:
        raise Snooze(timedelta(milliseconds=1))
    if count == 1:
        raise Retry(timedelta(milliseconds=1))
    return current_job().attempt


@caged()
def tells(folder: str) -> None:
    current_job().progress(0.5, "half")
    current_job().log("in there")
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    current_job().progress(1.0)


@caged()
async def odd() -> object:
    return object()


@caged(max_attempts=5)
def ends_itself(how: str) -> None:
    """Take the process down, one way or another."""
    match how:
        case "os._exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "kill -9":
            os.kill(os.getpid(), 9)


@caged(memory_limit=200 * MB, max_attempts=1)
def hungry(megabytes: int) -> int:
    return len(bytearray(megabytes * MB))


@caged()
def deaf(folder: str) -> None:
    """Swallow whatever comes to interrupt it, beside a process that it has started."""
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say(folder, f"{os.getpid()} {helper.pid}")
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


@caged()
async def blocks(folder: str) -> None:
    say(folder, str(os.getpid()))
    while True:
        time.sleep(60)  # noqa: ASYNC251 - this is what it does wrong


@caged(timeout=None)
async def endless(folder: str) -> None:
    say(folder, str(os.getpid()))
    await asyncio.Event().wait()


@caged(timeout=timedelta(milliseconds=100), max_attempts=1)
async def late() -> None:
    await asyncio.Event().wait()


def say(folder: str, text: str) -> None:
    """Let the test know that the job runs, and in which processes."""
    (Path(folder) / "new").write_text(text)
    (Path(folder) / "new").rename(Path(folder) / "pids")


@caged()
async def forks_async() -> int:
    """Come back twice, in two processes."""
    os.fork()
    return current_job().attempt


@caged()
def forks_plain() -> int:
    os.fork()
    return current_job().attempt


@caged()
async def multiprocesses() -> int:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.01,))
    child.start()
    child.join()
    return child.exitcode or 0


@app.handler
async def beside(x: int) -> int:
    return x
