"""Reads the queues of BullMQ 4 to 6 as they lie in Redis. Nothing is ever written.

`PREFIX:QUEUE:wait` and `paused` are lists whose oldest job is on the right, `delayed` and `failed` sorted sets, `prioritized` one
by priority and age, and each job a hash `PREFIX:QUEUE:ID`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from streamq.broker.wire import Wire

__all__ = ["BullJob", "BullQueue", "BullState"]

BullState = Literal["waiting", "prioritized", "delayed", "failed"]
"""Those that can be read as jobs."""

_LISTS = {"waiting": ("wait", "paused"), "active": ("active",)}
_SETS = {
    "prioritized": "prioritized", "delayed": "delayed", "failed": "failed", "completed": "completed",
    "waiting_children": "waiting-children",
}  # fmt: skip
_PAGE = 500
_DUE_SHIFT = 4096
"""A delayed job's score is its due time in ms times this, and a counter."""
_MARKER = b"0:"
"""Version 4 keeps entries in its lists that only wake a worker."""


@dataclass(frozen=True, slots=True)
class BullJob:
    """A job of BullMQ's."""

    id: str
    state: BullState
    name: str
    data: Any
    options: dict[str, Any]
    attempts_made: int
    added_ms: int
    due_ms: int
    """When a delayed one is due; else 0."""
    priority: int
    """0: none; else 1 is the most urgent."""
    failed_reason: str
    fault: str = ""
    """Why its hash cannot be read; then the rest is empty."""


class BullQueue:
    """One queue."""

    def __init__(self, wire: Wire, name: str, *, prefix: str = "bull") -> None:
        self._wire = wire
        self._base = f"{prefix}:{name}"

    async def counts(self) -> dict[str, int]:
        """Count the jobs of each state, those that cannot be imported as well. All zero: there is no such queue."""
        names = [*_LISTS, *_SETS]
        commands = [("LLEN", f"{self._base}:{key}") for keys in _LISTS.values() for key in keys]
        commands += [("ZCARD", f"{self._base}:{key}") for key in _SETS.values()]
        waiting, paused, *others = map(int, await self._wire.pipeline(commands))
        return dict(zip(names, [waiting + paused, *others], strict=True))

    async def jobs(self, state: BullState) -> AsyncGenerator[BullJob]:
        """Yield the jobs of a state in the order in which BullMQ would start them.

        A job that moves while this reads may be missed or come twice: stop the old workers first.
        """
        if state == "waiting":
            for key in _LISTS["waiting"]:
                async for ids in self._from_list(f"{self._base}:{key}"):
                    for job in await self._read([(job_id, 0) for job_id in ids], state):
                        yield job
        else:
            async for rows in self._from_set(f"{self._base}:{_SETS[state]}"):
                for job in await self._read(rows, state):
                    yield job

    async def _from_list(self, key: str) -> AsyncGenerator[list[bytes]]:
        end = int(await self._wire.call("LLEN", key))
        while end > 0:
            start = max(0, end - _PAGE)
            ids = await self._wire.call("LRANGE", key, start, end - 1)
            yield [job_id for job_id in reversed(ids) if not job_id.startswith(_MARKER)]
            end = start

    async def _from_set(self, key: str) -> AsyncGenerator[list[tuple[bytes, int]]]:
        start = 0
        while True:
            flat = await self._wire.call("ZRANGE", key, start, start + _PAGE - 1, "WITHSCORES")
            if not flat:
                return
            yield [(flat[i], int(float(flat[i + 1]))) for i in range(0, len(flat), 2)]
            start += _PAGE

    async def _read(self, rows: list[tuple[bytes, int]], state: BullState) -> list[BullJob]:
        if not rows:
            return []
        hashes = await self._wire.pipeline([("HGETALL", f"{self._base}:{job_id.decode()}") for job_id, _ in rows])
        return [_job(job_id.decode(), score, state, flat) for (job_id, score), flat in zip(rows, hashes, strict=True)]


def _job(job_id: str, score: int, state: BullState, flat: list[bytes]) -> BullJob:
    fields = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    try:
        return BullJob(
            id=job_id,
            state=state,
            name=fields["name"].decode(),
            data=orjson.loads(fields.get("data", b"{}")),
            options=orjson.loads(fields.get("opts", b"{}")),
            attempts_made=int(fields.get("atm", fields.get("attemptsMade", b"0"))),
            added_ms=int(fields.get("timestamp", b"0")),
            due_ms=score // _DUE_SHIFT if state == "delayed" else 0,
            priority=int(fields.get("priority", b"0")),
            failed_reason=fields.get("failedReason", b"").decode(errors="replace"),
        )
    except (KeyError, ValueError) as error:
        why = "its hash is gone" if not fields else f"its hash cannot be read: {type(error).__name__} {error}"
        return BullJob(job_id, state, "", None, {}, 0, 0, 0, 0, "", why)
