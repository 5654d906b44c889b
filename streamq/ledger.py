"""Enqueueing by the ledger: a job is on disk at a majority of MongoDB's servers before Redis hears of it.

Whatever then happens to Redis, the reconciler finds the job there and enqueues it again, under the same id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.clock import from_ms, now_ms
from streamq.errors import ConfigurationError, DividedOtherwise, HistoryUnavailable
from streamq.keys import LANES
from streamq.mongo import Ledger, LedgerEntry, Mongo, Schema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from streamq.errors import QueueFull
    from streamq.queue import Draft

__all__ = ["Notary"]


class Notary:
    """Writes drafts down, on one event loop. It connects with the first."""

    def __init__(self, url: str, database: str) -> None:
        """Note where MongoDB is; an empty URL is no MongoDB.

        Raises:
            ConfigurationError: There is none.
        """
        if not url:
            raise ConfigurationError(
                "ledger=True writes jobs to MongoDB first, and history is off",
                hint="set STREAMQ_HISTORY=true and MONGODB_URL, or enqueue without ledger",
            )
        self._mongo = Mongo(url, database)
        self._ledger = Ledger(self._mongo)
        self._is_prepared = False

    async def enqueue(
        self, drafts: Sequence[Draft], add: Callable[[Sequence[Draft]], Awaitable[Sequence[str | QueueFull]]]
    ) -> Sequence[str | QueueFull]:
        """Write jobs down, then enqueue them with `add`.

        Jobs that Redis refuses, and those in whose place another stands, are struck out again. When Redis does not answer
        they stay: the reconciler enqueues them, unless they are there.

        Raises:
            HistoryUnavailable: They may not be written down. Nothing was enqueued.
            DividedOtherwise: The queue is not as the settings say. Nothing was enqueued.
        """
        await self._write(drafts)
        try:
            results = await add(drafts)
        except DividedOtherwise:
            await self._ledger.strike([item.id for item in drafts])
            raise
        accepted = [(item, result) for item, result in zip(drafts, results, strict=True) if isinstance(result, str)]
        kept = {item.id for item, result in accepted if result[0] in "np"}
        # Where a waiting job got the arguments, that is the one to be enqueued again.
        await self._ledger.rewrite(
            [_entry(item)._replace(id=result[1:]) for item, result in accepted if result[0] == "r"]
        )
        await self._ledger.strike([item.id for item in drafts if item.id not in kept])
        return results

    async def _write(self, drafts: Sequence[Draft]) -> None:
        try:
            if not self._is_prepared:
                await Schema(self._mongo).prepare()
                self._is_prepared = True
            await self._ledger.write([_entry(item) for item in drafts if item.ledger])
        except HistoryUnavailable as error:
            error.hint = "nothing was enqueued; try again with the same id, or enqueue without ledger"
            raise

    async def close(self) -> None:
        """Close the connections."""
        await self._mongo.close()


def _entry(item: Draft) -> LedgerEntry:
    # From the next millisecond on: counted from the one that has begun, a delay would end too soon.
    due_ms = item.at_ms or (now_ms() + 1 + item.delay_ms if item.delay_ms else 0)
    due_at = from_ms(due_ms) if due_ms else None
    return LedgerEntry(item.id, item.queue, LANES[item.digit - 1], item.envelope, item.dedup, item.scope, due_at)
