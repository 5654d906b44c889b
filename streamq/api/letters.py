"""Dead letters, as the API looks for them and replays them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq.api.stores import letter_status
from streamq.keys import LANES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamq.api.stores import Stores
    from streamq.broker.inspection import DeadLetter
    from streamq.broker.orders import Replayed

__all__ = ["all_letters", "find_letter", "replay"]

PAGE = 200


async def all_letters(stores: Stores, queue: str) -> AsyncIterator[DeadLetter]:
    """Give the dead letters of a queue, newest first."""
    before: bytes | None = None
    while letters := await stores.letters(queue, limit=PAGE, before=before):
        for letter in letters:
            yield letter
        before = letters[-1].id


async def find_letter(stores: Stores, job_id: str) -> tuple[str, DeadLetter] | None:
    """Find the dead letter of a job, and its queue. A queue keeps a bounded number of letters; all may be looked at."""
    for queue in stores.queues:
        async for letter in all_letters(stores, queue):
            if letter.job_id == job_id:
                return queue, letter
    return None


async def replay(stores: Stores, queue: str, letter: DeadLetter) -> tuple[Replayed, str]:
    """Make a dead letter a job again, in the lane that it was in; see `Orders.replay`."""
    lane = letter_status(queue, letter).lane
    return await stores.order(
        queue,
        lambda orders: orders.replay(
            letter.id.decode(), letter.job_id, letter.envelope, lane if lane in LANES else "normal"
        ),
    )
