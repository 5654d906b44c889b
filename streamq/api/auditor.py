"""Who changed what: a line in the log at once, and an entry in MongoDB as soon as it is there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from streamq.api.table import principal_of
from streamq.clock import utc_now
from streamq.errors import StreamQError
from streamq.logs import event
from streamq.queue import new_job_id

if TYPE_CHECKING:
    from starlette.requests import Request

    from streamq.api.stores import Stores

__all__ = ["Auditor"]

MOST_KEPT = 10_000
"""Entries that wait for MongoDB; beyond, the oldest are in the log only."""
BATCH = 500

_log = logging.getLogger(__name__)


class Auditor:
    """Writes down every change."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MOST_KEPT)
        self._turn = asyncio.Lock()

    async def note(self, request: Request, action: str, target: str, **told: Any) -> None:
        """Write down that somebody has changed something. MongoDB being away holds nobody up.

        Args:
            request: Who.
            action: What, such as `queue.pause`.
            target: To what.
            told: Of `count`, `filter`, `before`, `after`, what there is.
        """
        principal = principal_of(request)
        entry: dict[str, Any] = {
            "_id": new_job_id(),
            "at": utc_now(),
            "who": principal.name,
            "token_id": principal.token_id,
            "action": action,
            "target": target,
            "count": told.get("count", 1),
            "filter": told.get("filter"),
            "before": told.get("before"),
            "after": told.get("after"),
            "address": request.client.host if request.client else "",
        }
        event(_log, logging.WARNING, "api.write", **{name: value for name, value in entry.items() if name != "at"})
        self._waiting.append(entry)
        await self.flush()

    async def flush(self) -> None:
        """Bring what waits to MongoDB. A repeat stores nothing twice."""
        async with self._turn:
            with contextlib.suppress(StreamQError):
                while self._waiting:
                    batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
                    await self._stores.ask_audit(lambda audit, batch=batch: audit.add(batch))  # type: ignore[misc]
                    for entry in batch:
                        if self._waiting and self._waiting[0] is entry:
                            self._waiting.popleft()
