"""Jobs of the ledger: on disk at a majority of MongoDB's servers before Redis hears of them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from streamq.app import StreamQ
from streamq.dedup import Dedup
from streamq.errors import BrokerUnavailable, ConfigurationError, HistoryUnavailable, QueueFull
from streamq.mongo import Ledger


@pytest.fixture
async def app(settings, queue_name):
    """An application with one handler."""
    app = StreamQ(settings)

    @app.handler(queue=queue_name, name="refresh", dedup="user_id", key="user_id")
    async def refresh(user_id: str, call: int = 0) -> None: ...

    app.refresh = refresh
    yield app
    await app.close()


async def written(mongo):
    """Return what is written down, by id."""
    return {each["_id"]: each async for each in mongo.collection("ledger").find()}


async def test_a_job_of_the_ledger_is_written_down_and_enqueued(app, mongo, hand):
    """Both, in this order."""
    job = await app.refresh.enqueue("u1", ledger=True)
    assert job.is_new
    assert await hand.wire.call("HEXISTS", hand.keys.index, job.id)
    entry = (await written(mongo))[job.id]
    assert (entry["queue"], entry["lane"], entry["dedup"]) == (hand.keys.queue, "normal", "refresh:u1")
    await app.refresh.enqueue("u2")
    assert set(await written(mongo)) == {job.id}, "others are not"
    await hand.wire.call("FLUSHDB")


async def test_many_jobs_are_written_down_together(app, mongo, hand):
    """A round trip to MongoDB for each batch, not for each job."""
    jobs = await app.refresh.options(ledger=True).enqueue_many([f"u{number}" for number in range(300)])
    assert set(await written(mongo)) == {job.id for job in jobs}
    await hand.wire.call("FLUSHDB")


async def test_a_job_in_whose_place_another_stands_is_struck_out(app, mongo, hand):
    """Else it would be enqueued as soon as the other one has ended."""
    first = await app.refresh.enqueue("u1", ledger=True)
    second = await app.refresh.enqueue("u1", ledger=True)
    assert (second.status, second.id) == ("duplicate", first.id)
    assert set(await written(mongo)) == {first.id}
    await hand.wire.call("FLUSHDB")


async def test_arguments_that_a_waiting_job_got_are_written_down_under_its_id(app, mongo, hand):
    """It is this job that would have to be enqueued again."""
    debounced = app.refresh.options(
        dedup=Dedup.debounce(timedelta(hours=1), "user_id", max_wait=timedelta(hours=2)), ledger=True
    )
    first = await debounced.enqueue("u1", 1)
    second = await debounced.enqueue("u1", 2)
    assert second.id == first.id
    [entry] = (await written(mongo)).values()
    assert (entry["_id"], entry["scope"][0]) == (first.id, "d")
    assert b'"a":["u1",2]' in entry["envelope"]
    await hand.wire.call("FLUSHDB")


async def test_a_job_that_redis_refuses_is_struck_out(settings, app, mongo, hand):
    """The caller was told that nothing was enqueued."""
    app.client.max_depth = 1
    await app.refresh.enqueue("u1", ledger=True)
    with pytest.raises(QueueFull, match="holds 1 jobs and may hold 1"):
        await app.refresh.enqueue("u2", ledger=True)
    assert len(await written(mongo)) == 1
    await hand.wire.call("FLUSHDB")


async def test_a_job_of_which_redis_said_nothing_stays_written_down(app, mongo, monkeypatch):
    """It may be enqueued or not; the reconciler will see to it that it is, once."""
    client = app.client
    client.url, client.give_up_s = "redis://127.0.0.1:1/0", 0.0
    with pytest.raises(BrokerUnavailable, match="cannot reach Redis") as told:
        await app.refresh.enqueue("u1", ledger=True, id="mine")
    assert told.value.hint == "is Redis running?  redis-cli -u redis://127.0.0.1:1/0 ping"
    assert set(await written(mongo)) == {"mine"}


async def test_without_mongodb_nothing_is_enqueued(app, hand, absent_server):
    """The promise was to write it down first."""
    app.client.mongodb = ("mongodb://127.0.0.1:9", "streamq")
    with pytest.raises(HistoryUnavailable, match="cannot reach MongoDB at") as caught:
        await app.refresh.enqueue("u1", ledger=True)
    assert caught.value.hint == "nothing was enqueued; try again with the same id, or enqueue without ledger"
    assert not await hand.wire.call("EXISTS", hand.keys.index)


async def test_with_history_off_the_ledger_is_a_configuration_error(app):
    """There is no MongoDB to write to."""
    app.client.mongodb = ("", "")
    with pytest.raises(ConfigurationError, match="ledger=True writes jobs to MongoDB first, and history is off"):
        await app.refresh.enqueue("u1", ledger=True)


async def test_an_entry_is_claimed_by_one_and_again_after_a_while(app, mongo, hand):
    """Two reconcilers may both think that they lead."""
    job = await app.refresh.enqueue("u1", ledger=True)
    ledger = Ledger(mongo)
    assert await ledger.claim(job.id, every=timedelta(hours=1))
    assert not await ledger.claim(job.id, every=timedelta(hours=1))
    assert await ledger.claim(job.id, every=timedelta(0))
    assert not await ledger.claim("nobody", every=timedelta(0))
    assert await ledger.count() == 1
    await hand.wire.call("FLUSHDB")
