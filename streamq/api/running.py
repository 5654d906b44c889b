"""Orders that take longer than a request: begun, looked at from any process, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from streamq.api.answers import Problem, iso
from streamq.api.desk import auditor_of, or_503, stores_of
from streamq.api.table import principal_of
from streamq.clock import utc_now
from streamq.errors import StreamQError
from streamq.logs import event
from streamq.queue import new_job_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from streamq.api.stores import Stores

__all__ = ["Progress", "Runner", "operation_json"]

TELL_EVERY_S = 0.5
LOST_AFTER_S = 30.0
MOST_AT_ONCE = 4
END_TRIES = 30
CLOSE_WITHIN_S = 5.0

_log = logging.getLogger(__name__)


class Progress:
    """How far an order is."""

    def __init__(self, stores: Stores, operation_id: str) -> None:
        self._stores = stores
        self._id = operation_id
        self._is_over = False
        self.total: int | None = None
        self.done = 0
        self.refused = 0
        self.stopping = asyncio.Event()
        """Set once it is to stop at its next step."""

    @property
    def is_stopped(self) -> bool:
        """Whether it is to stop at its next step."""
        return self.stopping.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until it is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    def step(self, *, is_done: bool) -> None:
        """Count one thing."""
        self.done, self.refused = self.done + is_done, self.refused + (not is_done)

    async def tell(self, more: Mapping[str, Any]) -> None:
        """Store how far it is, and hear whether it is to stop."""
        counts = {"total": self.total, "done": self.done, "refused": self.refused, "updated_at": utc_now()}
        stored = await self._stores.ask_operations(lambda operations: operations.change(self._id, {**counts, **more}))
        if stored and stored.get("stop"):
            self.stopping.set()

    async def keep_telling(self) -> None:
        """Tell again and again until it is over. MongoDB being away stops nothing."""
        while not self._is_over:
            await asyncio.sleep(TELL_EVERY_S)
            with contextlib.suppress(StreamQError):
                if not self._is_over:
                    await self.tell({})

    async def end(self, ended: Mapping[str, Any]) -> None:
        """Store how it ended; after a minute without MongoDB it will look lost."""
        self._is_over = True
        for _ in range(END_TRIES):
            try:
                await self.tell(ended)
            except StreamQError:
                await asyncio.sleep(2)
            else:
                return


class Runner:
    """Runs orders beside requests."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Progress] = {}

    async def start(
        self, request: Request, action: str, which: Mapping[str, Any], work: Callable[[Progress], Awaitable[None]]
    ) -> dict[str, Any]:
        """Begin an order. Returns it as it is stored.

        Args:
            request: Who orders it.
            action: The word for it.
            which: What it is done to.
            work: Does it, and tells `Progress` of every step.

        Raises:
            Problem: 429 if too many run already, 503 while MongoDB is away.
        """
        if len(self._tasks) >= MOST_AT_ONCE:
            detail = f"{MOST_AT_ONCE} orders run already"
            raise Problem(429, detail, kind="too-many", headers={"retry-after": "10"})
        now = utc_now()
        stored: dict[str, Any] = {
            "_id": new_job_id(), "action": action, "filter": dict(which), "state": "running", "total": None, "done": 0,
            "refused": 0, "by": principal_of(request).name, "started_at": now, "updated_at": now, "finished_at": None,
            "error": None,
        }  # fmt: skip
        await or_503(stores_of(request).ask_operations(lambda operations: operations.add(stored)), "MongoDB")
        progress = self._progress[stored["_id"]] = Progress(self._stores, stored["_id"])
        self._tasks[stored["_id"]] = asyncio.create_task(self._run(request, stored, work, progress))
        return stored

    def stop(self, operation_id: str) -> None:
        """Have an order of this process stop at its next step."""
        if progress := self._progress.get(operation_id):
            progress.stopping.set()

    async def close(self) -> None:
        """Stop all orders, at their next step."""
        for progress in self._progress.values():
            progress.stopping.set()
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_WITHIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, request: Request, stored: dict[str, Any], work: Callable[[Progress], Awaitable[None]], progress: Progress
    ) -> None:
        telling = asyncio.create_task(progress.keep_telling())
        try:
            error = await _error_of(work(progress), f"{stored['action']} {stored['_id']}")
            state = "failed" if error else "stopped" if progress.is_stopped else "done"
            await progress.end({"state": state, "error": error, "finished_at": utc_now()})
            after = {"state": state, "refused": progress.refused, "operation": stored["_id"]}
            told = {"count": progress.done, "filter": stored["filter"], "after": after}
            await auditor_of(request).note(request, f"bulk.{stored['action']}", stored["_id"], **told)
        finally:
            telling.cancel()
            self._tasks.pop(stored["_id"], None)
            self._progress.pop(stored["_id"], None)


async def _error_of(work: Awaitable[None], what: str) -> str | None:
    """Run it to its end, and return what went wrong."""
    try:
        await work
    except StreamQError as failure:
        return str(failure)
    except Exception as failure:  # noqa: BLE001 - the outermost frame of the task; a page function is the user's
        event(_log, logging.ERROR, "api.order_failed", f"{what}: {failure!r}")
        return f"{type(failure).__name__}: {failure}"
    return None


def operation_json(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Write down an order; one whose process is silent is lost."""
    told = {name: value for name, value in stored.items() if name not in ("_id", "stop")}
    silent_s = (utc_now() - stored["updated_at"]).total_seconds()
    if stored["state"] == "running" and silent_s > LOST_AFTER_S:
        told["state"] = "lost"
    moments = {name: iso(stored[name]) for name in ("started_at", "updated_at", "finished_at")}
    return {"id": stored["_id"], **told, **moments}
