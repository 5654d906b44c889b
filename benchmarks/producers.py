"""How fast one process enqueues: streamq and plain redis-py in turns, in one interpreter, on one server.

Run as a program: `python -m benchmarks.producers MODE URL '{"sizes"...}'`; the last line is JSON. Modes: `race` (all ways to
enqueue, in turns), `fill`, `users`, `fill_when_told`, `pings` (one job at a time to idle workers of both sides), `delays`,
`steady`, `paced`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis.asyncio
import uvloop

from benchmarks import raw
from benchmarks.app import app, journaled, long, noop, noop_of, punctual, short, stopwatch, visit
from benchmarks.raw import ARGUMENT
from streamq.errors import StreamQError

if TYPE_CHECKING:
    from streamq.queue import Draft

SLICES = 8
LOOPS = 20
"""Concurrent loops of `await enqueue` in the scenario of that name."""

Redis = redis.asyncio.Redis
Way = Callable[[Redis, int, int], Awaitable[Any]]
"""Given how many jobs, and in which turn of the round."""


async def _raw_one(client: Redis, count: int, _turn: int) -> None:
    await raw.enqueue_one(client, [ARGUMENT] * count)


async def _raw_pipelines(client: Redis, count: int, _turn: int) -> None:
    await raw.enqueue_pipelines(client, [ARGUMENT] * count)


async def _one(_client: Redis, count: int, _turn: int = 0) -> None:
    for _ in range(count):
        await noop.enqueue(ARGUMENT)


async def _concurrent(_client: Redis, count: int, _turn: int = 0) -> None:
    await asyncio.gather(*(_one(_client, count // LOOPS) for _ in range(LOOPS)))


async def _many(_client: Redis, count: int, _turn: int = 0) -> None:
    await noop.enqueue_many([ARGUMENT] * count)


async def _many_dedup(_client: Redis, count: int, turn: int) -> None:
    argument = ARGUMENT[:110]
    await noop_of.enqueue_many([(f"user{turn}{i:05}", argument) for i in range(count)])


WAYS: dict[str, Way] = {
    "raw_one": _raw_one,
    "raw_pipelines": _raw_pipelines,
    "one": _one,
    "concurrent": _concurrent,
    "many": _many,
    "many_dedup": _many_dedup,
}


async def race(client: Redis, sizes: dict[str, int], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measure each way in every round, in slices that alternate, so that a loud moment of the machine falls on all.

    A first round is for warming up.
    """
    gc.freeze()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    names = list(WAYS)
    for number in range(rounds + 1):
        await app.close()
        await client.flushall()
        dice = random.Random(number)
        spent = {name: [0.0, 0.0] for name in names}
        for turn in range(SLICES if number else 1):
            dice.shuffle(names)
            for name in names:
                cpu, begun = time.process_time(), time.perf_counter()
                await WAYS[name](client, sizes[name] // SLICES, turn)
                spent[name][0] += time.perf_counter() - begun
                spent[name][1] += time.process_time() - cpu
        if number:
            for name, (seconds, cpu) in spent.items():
                size = sizes[name]
                found[name].append({"per_second": size / seconds, "cpu_us": cpu / size * 1e6})
    await app.close()
    return found


async def fill(count: int, handler: str = "noop", delay_ms: int = 0) -> dict[str, float]:
    """Put jobs in place."""
    begun = time.perf_counter()
    chosen = app.handler_named(handler)
    if delay_ms:
        chosen = chosen.options(delay=timedelta(milliseconds=delay_ms))
    for start in range(0, count, 10_000):
        places = range(start, min(start + 10_000, count))
        calls = (
            [(f"user{place}", ARGUMENT) for place in places]
            if handler in {"keyed", "gated"}
            else [ARGUMENT] * len(places)
        )
        await chosen.enqueue_many(calls)
    await app.close()
    return {"per_second": count / (time.perf_counter() - begun)}


async def users(count: int) -> dict[str, float]:
    """Put a job of each user in place, with its dedup key, in pages as a schedule does."""
    cpu, begun = time.process_time(), time.perf_counter()
    for start in range(0, count, 1_000):
        some = range(start, min(count, start + 1_000))
        await noop_of.enqueue_many([(f"user{number:07}", ARGUMENT[:108]) for number in some])
    spent = time.perf_counter() - begun
    await app.close()
    return {"per_second": count / spent, "cpu_us": (time.process_time() - cpu) / count * 1e6}


async def visits(file: str) -> dict[str, int]:
    """Enqueue the visits of a file, and say when that began. A hint is an option of each."""
    rows = json.loads(Path(file).read_text())  # noqa: ASYNC240 - a local file, once
    began_ns = time.monotonic_ns()
    await app.client.send_many(visit.options(cost=hint).draft(user, ms) for user, ms, hint in rows)
    await app.close()
    return {"began_ns": began_ns}


async def turns(file: str) -> dict[str, int]:
    """Enqueue jobs of a fair queue: user, ms, name."""
    rows = json.loads(Path(file).read_text())  # noqa: ASYNC240 - a local file, once
    began_ns = time.monotonic_ns()
    await app.handler_named("turn").enqueue_many([tuple(row) for row in rows])
    await app.close()
    return {"began_ns": began_ns}


async def fill_when_told(folder: str, count: int) -> dict[str, float]:
    """Warm up, say so with a file, wait for another one, and only then put the jobs in place."""
    await noop.enqueue_many([ARGUMENT] * 256)
    await _say_and_wait(Path(folder), "ready", "go")
    for _ in range(0, count, 1_000):
        await noop.enqueue_many([ARGUMENT] * 1_000)
    await _say_and_wait(Path(folder), "done", "bye")
    await app.close()
    return {}


async def _say_and_wait(folder: Path, said: str, awaited: str) -> None:
    (folder / said).touch()
    while not (folder / awaited).exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.2)


async def pings(client: Redis, count: int) -> dict[str, float]:
    """Send one job to each side in turn, when its worker has nothing to do; the pauses are uneven."""
    await raw.make_group(client)
    dice = random.Random(7)
    for number in range(count):
        sides = [_ping_raw, _ping] if number % 2 else [_ping, _ping_raw]
        for side in sides:
            await side(client)
            await asyncio.sleep(dice.uniform(0.004, 0.012))
    await app.close()
    return {}


async def _ping_raw(client: Redis) -> None:
    await client.xadd(raw.STREAM, {"d": f"{time.monotonic_ns()} ".ljust(120, "x")})


async def _ping(_client: Redis) -> None:
    await stopwatch.enqueue(f"{time.monotonic_ns()} ".ljust(120, "x"))


async def delays(count: int, shortest_ms: int, longest_ms: int) -> dict[str, float]:
    """Enqueue delayed jobs one by one, with uneven delays. Each carries its own."""
    dice = random.Random(11)
    for _ in range(count):
        delay_ms = dice.randrange(shortest_ms, longest_ms)
        await punctual.options(delay=timedelta(milliseconds=delay_ms)).enqueue(delay_ms, ARGUMENT[:110])
        await asyncio.sleep(0.002)
    await app.close()
    return {}


async def bursts(bursts: int, size: int, pause_s: float, long_s: float) -> dict[str, int]:
    """Send short jobs in bursts, and in the middle of the third one a long job. A short job carries when it was sent."""
    for number in range(bursts):
        calls: list[Draft] = [short.draft(time.monotonic_ns()) for _ in range(size)]
        if number == 2:
            calls.insert(size // 2, long.draft(long_s))
        await app.client.send_many(calls)
        await asyncio.sleep(pause_s)
    await app.close()
    return {"short": bursts * size}


async def steady(per_second: float, job_s: float, accepted: str, stop: str) -> dict[str, float]:
    """Enqueue at a constant rate until a file appears; write down each job that was accepted."""
    with Path(accepted).open("a", buffering=1) as kept:  # noqa: ASYNC230 - a local file, once
        begun, number, refused, waiting = time.monotonic(), 0, 0, set[asyncio.Task[bool]]()

        async def send(name: str) -> bool:
            try:
                await journaled.enqueue(name, job_s)
            except StreamQError:
                return False
            kept.write(f"{name}\n")
            return True

        while not os.path.exists(stop):  # noqa: ASYNC240, PTH110 - a local look, once per job
            number += 1
            task = asyncio.ensure_future(send(f"j{os.getpid()}-{number}"))
            waiting.add(task)
            await asyncio.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            ended = {task for task in waiting if task.done()}
            waiting -= ended
            refused += sum(not task.result() for task in ended)
        refused += sum(not sent for sent in await asyncio.gather(*waiting))
    await app.close()
    return {"sent": number, "refused": refused}


async def paced(per_second: float, seconds: float, handler: str = "noop") -> dict[str, float]:
    """Enqueue at a constant rate, a batch each 10 ms; job n has the id `p<n>` and belongs to one of a thousand users."""
    chosen, begun, sent = app.handler_named(handler), time.monotonic(), 0
    while (now := time.monotonic() - begun) < seconds:
        due = int(now * per_second)
        calls = [
            chosen.options(id=f"p{number}", key=f"u{number % 1000}").draft(ARGUMENT) for number in range(sent, due)
        ]
        if calls:
            await app.client.send_many(calls)
        sent = due
        await asyncio.sleep(0.01)
    await app.close()
    return {"sent": sent}


async def _main(mode: str, url: str, sizes: dict[str, Any]) -> Any:
    modes: dict[str, Callable[[Redis], Coroutine[Any, Any, Any]]] = {
        "race": lambda client: race(client, **sizes),
        "fill": lambda _client: fill(**sizes),
        "users": lambda _client: users(**sizes),
        "visits": lambda _client: visits(**sizes),
        "turns": lambda _client: turns(**sizes),
        "fill_when_told": lambda _client: fill_when_told(**sizes),
        "pings": lambda client: pings(client, **sizes),
        "delays": lambda _client: delays(**sizes),
        "bursts": lambda _client: bursts(**sizes),
        "steady": lambda _client: steady(**sizes),
        "paced": lambda _client: paced(**sizes),
    }
    async with redis.asyncio.Redis.from_url(url) as client:
        return await modes[mode](client)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))))
