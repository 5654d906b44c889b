"""The example application: every hour, each user's activity is read, added up, and stored as a summary.

    streamq dev --demo
    streamq worker streamq.demo:app

The work is real: the activity lies in MongoDB, and a slow user has about a hundred times as much of it. One thing is
made up, the provider that the activity would come from in life: for each page of it a refresh waits `PROVIDER_S`, as it
would for an answer over the network.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from streamq import Cancel, RetryPolicy, StreamQ, current_job
from streamq.clock import utc_now
from streamq.demo.activity import Tally
from streamq.demo.store import USERS_PER_PAGE, Store

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["PROVIDER_S", "ProviderUnavailable", "all_users", "app", "process_user_data", "store"]

PROVIDER_S = 0.002
"""How long the provider takes for a page."""

app = StreamQ()

_stores: WeakKeyDictionary[AbstractEventLoop, Store] = WeakKeyDictionary()


class ProviderUnavailable(Exception):
    """The provider did not serve us this time."""


@app.handler(
    key="user_id",
    dedup="user_id",
    timeout=timedelta(minutes=2),
    retry=RetryPolicy(base=timedelta(seconds=0.5), cap=timedelta(seconds=5)),
)
async def process_user_data(user_id: str) -> dict[str, int]:
    """Refresh the summary of one user.

    Returns:
        How many events there were, on how many pages.

    Raises:
        ProviderUnavailable: At the first attempt for one user in a hundred; the second goes well.
        Cancel: There is no such user any more.
    """
    user = await store().user(user_id)
    if user is None:
        raise Cancel(f"user {user_id} is gone")
    if user["is_flaky"] and current_job().attempt == 1:
        raise ProviderUnavailable(f"the provider answered 503 Service Unavailable for user {user_id}")
    tally, pages = Tally(), 0
    async for events in store().activity(user_id):
        await asyncio.sleep(PROVIDER_S)
        tally.add(events)
        pages += 1
    await store().save(user_id, tally.summary() | {"refreshed_at": utc_now()})
    return {"events": tally.events, "pages": pages}


@app.cron("0 * * * *", handler=process_user_data)
async def all_users(page: str | None) -> tuple[list[str], str | None]:
    """Give the ids of the next users after `page`, and the last of them, from which to go on; None at the end."""
    ids = await store().page(page)
    return ids, ids[-1] if len(ids) == USERS_PER_PAGE else None


def store() -> Store:
    """Return the demo's data, over connections of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _stores:
        _stores[loop] = Store(app.settings.mongodb_url)
    return _stores[loop]
