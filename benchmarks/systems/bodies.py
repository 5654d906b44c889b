"""What the jobs do, the same in every system. An argument carries what a body needs in its first word.

* `noop`: nothing but being counted.
* `io`: waits 50 ms.
* `cpu`: computes for as many ms as its argument says.
* `clock`: keeps how long ago it was sent, in ns (or how late it is, if it was to start later).
* `long`: writes into the journal that it began and ended, and waits between for as many ms as its argument says.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

from benchmarks import tally

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JOBS", "arguments", "asynchronous", "plain"]

JOBS = ("noop", "io", "cpu", "clock", "long")
IO_S = 0.05

_lock = threading.Lock()
_tools: dict[str, object] = {}
_owner = 0


def _tool(make: Callable[[], object]) -> object:
    """Make a counter, a recorder or a journal once a process: a system may fork between two jobs."""
    global _owner
    if _owner != os.getpid():
        _tools.clear()
        _owner = os.getpid()
    found = _tools.get(make.__name__)
    if found is None:
        with _lock:
            found = _tools.setdefault(make.__name__, make())
    return found


def _count(_argument: str = "") -> None:
    _tool(tally.counter_for_threads)()  # type: ignore[operator]


def _keep(argument: str) -> None:
    now = time.monotonic_ns()
    keep = _tool(tally.recorder_of_values)
    with _lock:
        keep(now - int(argument.split()[0]))  # type: ignore[operator]


def _write(what: str, argument: str) -> None:
    _tool(tally.journal)(what, argument.split()[1], 1)  # type: ignore[operator]


def _compute(argument: str) -> None:
    until = time.thread_time_ns() + int(float(argument.split()[0]) * 1e6)
    while time.thread_time_ns() < until:
        sum(range(500))
    _count()


async def _async_noop(_argument: str) -> None:
    _count()


async def _async_io(_argument: str) -> None:
    await asyncio.sleep(IO_S)
    _count()


async def _async_cpu(argument: str) -> None:
    _compute(argument)


async def _async_clock(argument: str) -> None:
    _keep(argument)


async def _async_long(argument: str) -> None:
    _write("start", argument)
    await asyncio.sleep(float(argument.split()[0]) / 1000)
    _write("end", argument)


def _plain_io(_argument: str) -> None:
    time.sleep(IO_S)
    _count()


def _plain_long(argument: str) -> None:
    _write("start", argument)
    time.sleep(float(argument.split()[0]) / 1000)
    _write("end", argument)


asynchronous = {"noop": _async_noop, "io": _async_io, "cpu": _async_cpu, "clock": _async_clock, "long": _async_long}
"""Coroutine functions by the name of the job; each takes its argument, a text."""
plain = {"noop": _count, "io": _plain_io, "cpu": _compute, "clock": _keep, "long": _plain_long}
"""The same as plain functions."""

for _bodies in (asynchronous, plain):
    for _name, _body in _bodies.items():
        _body.__name__ = _body.__qualname__ = _name


def arguments(job: str, count: int, size: int = 120) -> list[str]:
    """Make the arguments of so many jobs, each a text of that many characters."""
    first = {"cpu": "1.0"}.get(job, "x")
    return [f"{first} {number} ".ljust(size, "x") for number in range(count)]
