"""The doctor's comparison of MongoDB with Redis, and its repairs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamq.recorder import Finding, Reconciler
    from streamq.settings import Settings

__all__ = ["reconciled", "schema_changes"]

MOST = 200_000
SECOND_LOOK_S, LONGEST_S = 0.5, 5.0
"""Nothing is judged by one look; the second comes when what was reported before the first has been written."""


async def reconciled(settings: Settings, queue: str, *, repair: bool) -> list[Finding]:
    """Compare both servers for one queue, twice, and repair if asked to.

    Returns:
        What was found in the second look, and `repaired` says what was done about it.

    Raises:
        StreamQError: A server is away, or refuses us.
    """
    from streamq.broker.server import Broker
    from streamq.mongo import Ledger, Mongo, Statuses
    from streamq.recorder import Mode, Reconciler

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    broker = Broker(settings.redis_url, allow_eviction=True)
    reconciler = Reconciler(broker.partition(queue), Statuses(mongo), Ledger(mongo), settings)
    try:
        await reconciler.round(Mode.LOOK, most=MOST)
        if reconciler.is_suspicious:
            await _until_written(reconciler)
        return await reconciler.round(Mode.REPAIR if repair else Mode.LOOK, most=MOST)
    finally:
        await reconciler.close()
        await broker.close()
        await mongo.close()


async def _until_written(reconciler: Reconciler) -> None:
    """Wait until the recorder has caught up with the first look, or it is clear that none does."""
    for _ in range(int(LONGEST_S / SECOND_LOOK_S)):
        await asyncio.sleep(SECOND_LOOK_S)
        if await reconciler.can_judge():
            return


async def schema_changes(settings: Settings) -> int:
    """Count what this version wants otherwise in MongoDB than it is."""
    from streamq.mongo import Mongo, Schema

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        return len(await Schema(mongo).changes())
    finally:
        await mongo.close()
