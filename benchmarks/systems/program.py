"""One side of a system, in its own interpreter: `python -m benchmarks.systems.program NAME MODE URL '{"..."}'`.

Modes: `work`; `one`, `concurrent`, `many` (enqueue for so many seconds: the last line is JSON with the rate), `fill` (put jobs in
place), `listed` (those of a file), `pings` (one job at a time at a steady rate), `delays`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.systems import SYSTEMS
from benchmarks.systems.bodies import arguments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = 20
"""Concurrent loops of `enqueue` in the mode of that name."""
CHUNK = 1_000


class Side:
    """The producing side of a system, asynchronous or not, behind one face."""

    def __init__(self, module: Any, opened: Any) -> None:
        self._module = module
        self._opened = opened
        self.is_async = inspect.iscoroutinefunction(module.one)
        self.has_many = hasattr(module, "many")
        self.has_delays = hasattr(module, "later")

    async def one(self, job: str, argument: str) -> None:
        """Enqueue one job as a user does."""
        await _awaited(self._module.one(self._opened, job, argument))

    async def many(self, job: str, some: list[str]) -> None:
        """Enqueue many in the system's own way, or one by one if it has none."""
        if self.has_many:
            await _awaited(self._module.many(self._opened, job, some))
        else:
            for argument in some:
                await self.one(job, argument)

    async def later(self, job: str, argument: str, delay_s: float) -> None:
        """Enqueue a delayed job."""
        await _awaited(self._module.later(self._opened, job, argument, delay_s))


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _timed(step: Callable[[], Awaitable[int]], seconds: float) -> dict[str, float]:
    """Repeat a step for so long; a tenth of the time before that is for warming up."""
    until = time.perf_counter() + seconds / 10
    while time.perf_counter() < until:
        await step()
    cpu, begun, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        count += await step()
    spent = time.perf_counter() - begun
    return {"per_second": count / spent, "cpu_us": (time.process_time() - cpu) / count * 1e6, "count": count}


async def one(side: Side, seconds: float, size: int = 120) -> dict[str, float]:
    """Await one enqueue after another."""
    (argument,) = arguments("noop", 1, size)

    async def step() -> int:
        await side.one("noop", argument)
        return 1

    return await _timed(step, seconds)


async def concurrent(side: Side, seconds: float, size: int = 120) -> dict[str, float]:
    """Await one enqueue after another, in twenty loops at once; a plain system has only one."""
    (argument,) = arguments("noop", 1, size)
    if not side.is_async:
        return await one(side, seconds, size)

    async def loop() -> None:
        for _ in range(10):
            await side.one("noop", argument)

    async def step() -> int:
        await asyncio.gather(*(loop() for _ in range(LOOPS)))
        return LOOPS * 10

    return await _timed(step, seconds)


async def many(side: Side, seconds: float, size: int = 120) -> dict[str, float]:
    """Enqueue in bulk, a thousand at a time, by the system's own way; one by one where it has none."""
    some = arguments("noop", CHUNK if side.has_many else 100, size)

    async def step() -> int:
        await side.many("noop", some)
        return len(some)

    return {**await _timed(step, seconds), "has_bulk": side.has_many}


async def fill(side: Side, count: int, job: str = "noop", size: int = 120, words: str = "") -> dict[str, float]:
    """Put jobs in place; `words` begin each argument, with the number of the job behind them."""
    some = [f"{words} j{n} ".ljust(size, "x") for n in range(count)] if words else arguments(job, count, size)
    begun = time.perf_counter()
    for start in range(0, count, CHUNK):
        await side.many(job, some[start : start + CHUNK])
    return {"per_second": count / (time.perf_counter() - begun)}


async def listed(side: Side, file: str, job: str) -> dict[str, float]:
    """Enqueue the arguments of a file in their order, and say when that began."""
    some: list[str] = json.loads(Path(file).read_text())  # noqa: ASYNC240 - a local file, once
    began_ns = time.monotonic_ns()
    await side.many(job, some)
    return {"began_ns": began_ns}


async def pings(side: Side, count: int, per_second: float) -> dict[str, float]:
    """Send at fixed times whatever the answer takes, each with the time at which it was *due*: nothing is omitted."""
    begun = time.monotonic() + 0.05
    for number in range(count):
        due = begun + number / per_second
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await side.one("clock", f"{int(due * 1e9)} ".ljust(120, "x"))
    return {}


async def delays(side: Side, count: int, shortest_s: float, longest_s: float) -> dict[str, float]:
    """Enqueue delayed jobs, each with the time at which it should start."""
    dice = random.Random(11)
    for _ in range(count):
        delay_s = dice.uniform(shortest_s, longest_s)
        due = time.monotonic_ns() + int(delay_s * 1e9)
        await side.later("clock", f"{due} ".ljust(120, "x"), delay_s)
        await asyncio.sleep(0.002)
    return {}


MODES: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    "one": one, "concurrent": concurrent, "many": many, "fill": fill, "pings": pings, "listed": listed, "delays": delays,
}  # fmt: skip


async def _produce(module: Any, mode: str, url: str, sizes: dict[str, Any]) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        opened = module.open(url)
        if hasattr(opened, "__aenter__"):
            opened = await stack.enter_async_context(opened)
        return await MODES[mode](Side(module, await _awaited(opened)), **sizes)


def _run(coroutine: Any) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


def main(name: str, mode: str, url: str, sizes: dict[str, Any]) -> None:
    """Be one side of a system."""
    system = SYSTEMS[name]
    module = importlib.import_module(f"benchmarks.systems.{system.module or name.replace('-', '_')}")
    if mode == "work":
        module.work(url, **sizes)
    else:
        print(json.dumps(_run(_produce(module, mode, url, sizes))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
