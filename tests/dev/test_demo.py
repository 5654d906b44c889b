"""The demo application against MongoDB: the data it makes, and the work it does on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from streamq import demo
from streamq.context import Place, place
from streamq.demo.store import USERS_PER_PAGE, Check, Store
from streamq.demo.users import EVENTS_PER_PAGE, made_up
from streamq.job import Cancel, Delivery, Envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
async def store(mongodb_url: str, mongo_database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """The demo's data in a database of this test, for the handlers as well."""
    store = Store(mongodb_url, mongo_database)
    monkeypatch.setitem(demo._stores, asyncio.get_running_loop(), store)
    yield store
    await store.close()


@pytest.fixture
def running_job() -> Iterator[Envelope]:
    """Let the handler believe that it runs as a job; its envelope may be changed."""
    envelope = Envelope(handler="process_user_data")
    delivery = Delivery(2, b"21-1", b"job", b"", 0, 0.0)
    delivery.envelope = envelope
    here = Place()
    here.delivery, here.max_attempts = delivery, 5
    token = place.set(here)
    yield envelope
    place.reset(token)


async def test_a_refresh_adds_up_everything_that_the_user_did(store: Store):
    """The work of the demo is real: the summary is compared with the events themselves."""
    await store.create(made_up(3))  # the third is slow

    result = await demo.process_user_data("user-000003")

    events = [event for page in [page async for page in store.activity("user-000003")] for event in page]
    summary = await store.mongo.collection("summaries").find_one({"_id": "user-000003"})
    assert summary is not None
    assert result == {"events": len(events), "pages": len(events) // EVENTS_PER_PAGE}
    assert summary["events"] == len(events) == sum(summary["by_kind"].values()) == sum(summary["by_day"].values())
    assert summary["seconds"] == sum(event["seconds"] for event in events)
    assert summary["cents"] == sum(event.get("cents", 0) for event in events) > 0
    assert summary["first_seen"] == min(event["at"] for event in events)
    assert summary["last_seen"] == max(event["at"] for event in events)
    assert summary["by_day"][summary["busiest_day"]] == max(summary["by_day"].values())


async def test_a_second_refresh_replaces_the_summary(store: Store):
    """At least once means that a second run must do no harm."""
    await store.create(made_up(1))

    await demo.process_user_data("user-000001")
    await demo.process_user_data("user-000001")

    assert await store.check() == Check(summaries=1, events_stored=EVENTS_PER_PAGE, events_summarised=EVENTS_PER_PAGE)


async def test_a_user_without_activity_gets_an_empty_summary(store: Store):
    """New users have none."""
    await store.create(made_up(1))
    await store.mongo.collection("activity").delete_many({})

    assert await demo.process_user_data("user-000001") == {"events": 0, "pages": 0}
    summary = await store.mongo.collection("summaries").find_one({"_id": "user-000001"})
    assert summary is not None
    assert (summary["last_seen"], summary["busiest_day"]) == (None, None)


async def test_a_flaky_user_fails_at_the_first_attempt_and_heals_at_the_second(store: Store, running_job: Envelope):
    """So that a newcomer sees a retry without waiting for a mishap."""
    await store.create(made_up(4))

    with pytest.raises(
        demo.ProviderUnavailable, match="the provider answered 503 Service Unavailable for user user-000004"
    ):
        await demo.process_user_data("user-000004")
    running_job.attempt = 2
    assert (await demo.process_user_data("user-000004"))["pages"] == 1


async def test_a_job_of_a_user_that_is_gone_ends_cancelled(store: Store):
    """Jobs of an interrupted run may outlive its users."""
    await store.create(made_up(1))

    with pytest.raises(Cancel, match="user user-000009 is gone"):
        await demo.process_user_data("user-000009")


async def test_the_fan_out_gives_every_user_once_in_pages(store: Store):
    """The last page has no cursor, which ends the fan-out."""
    ids = made_up(2 * USERS_PER_PAGE + 1)
    users = store.mongo.collection("users")
    await users.insert_many([{"_id": user_id} for user_id in ids])

    pages, cursor = [], None
    while True:
        page, cursor = await demo.all_users(cursor)
        pages.append(page)
        if cursor is None:
            break

    assert [len(page) for page in pages] == [500, 500, 1]
    assert [user_id for page in pages for user_id in page] == ids


async def test_the_fan_out_of_nobody_is_one_empty_page(store: Store):
    """No users is no error."""
    assert await demo.all_users(None) == ([], None)


async def test_creating_the_same_users_again_touches_nothing(store: Store):
    """The second start is quick, and the summaries stay."""
    assert await store.create(made_up(3)) is True
    await demo.process_user_data("user-000001")

    assert await store.create(made_up(3)) is False
    assert (await store.check()).summaries == 1


async def test_creating_others_replaces_all(store: Store):
    """Figures of a run must not count the users of an earlier one."""
    await store.create(made_up(3))
    await demo.process_user_data("user-000001")

    assert await store.create(["a", "b"]) is True
    assert await store.slow_users() == {"a": False, "b": False}
    assert await store.check() == Check(summaries=0, events_stored=2 * EVENTS_PER_PAGE, events_summarised=0)


async def test_an_interrupted_creation_is_repeated(store: Store):
    """Ctrl-C in the middle leaves no half of the users behind."""

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await store.create(made_up(3), interrupt)

    assert await store.create(made_up(3)) is True


async def test_progress_is_told_up_to_the_end(store: Store):
    """A bar that stops short of its end looks like a fault."""
    told: list[tuple[int, int]] = []

    await store.create(made_up(60), lambda done, total: told.append((done, total)))

    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == (await store.check()).events_stored
