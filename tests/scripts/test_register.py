"""register: a worker joins a partition."""

from __future__ import annotations

import pytest

from streamq.broker.partition import Unregistered
from streamq.broker.wire import Fault, ServerRefused


async def test_a_worker_is_on_the_books_with_a_fresh_beat(board):
    """Its first beat must not look like a dead worker's."""
    server_ms, _ = await board.partition.register("w1")
    assert await board.redis.zscore(board.keys.workers, "w1") == server_ms
    assert abs(await board.now_ms() - server_ms) < 5_000


async def test_every_lane_and_the_outbox_get_their_groups(board):
    """A blocking read names all lanes, so all must be there."""
    await board.join("w1")
    for stream in board.keys.lanes:
        assert [group["name"] for group in await board.redis.xinfo_groups(stream)] == ["g"]
    assert [group["name"] for group in await board.redis.xinfo_groups(board.keys.outbox)] == ["rec"]


async def test_what_was_enqueued_before_the_first_worker_is_delivered(board):
    """A group that starts at the end would never deliver it."""
    await board.add("early")
    await board.join("w1")
    assert [delivery.id for delivery in await board.read("w1")] == [b"early"]


async def test_a_second_worker_leaves_the_groups_as_they_are(board):
    """To make them anew would deliver everything again."""
    await board.join("w1")
    await board.add("a")
    assert len(await board.read("w1")) == 1
    await board.join("w2")
    assert await board.read("w2") == []


async def test_a_name_in_use_is_taken(board):
    """Two workers under one name would settle each other's jobs."""
    await board.join("w1")
    before = await board.snapshot()
    with pytest.raises(Unregistered):
        await board.join("w1")
    assert await board.snapshot() == before


async def test_a_name_that_was_given_up_stays_taken(board):
    """Its deliveries are not taken over yet; the name's new owner would hold them without knowing."""
    await board.join("w1")
    await board.partition.bury(["w1"])
    with pytest.raises(Unregistered):
        await board.join("w1")


async def test_a_worker_starts_after_the_newest_order(board):
    """Orders from before it was there are not meant for it."""
    assert (await board.partition.register("w1"))[1] == b"0-0"
    newest = await board.redis.xadd(board.keys.control, {"do": "quiet", "to": "*"})
    assert (await board.partition.register("w2"))[1] == newest.encode()


async def test_a_key_of_another_type_is_reported_and_the_worker_is_not_registered(board):
    """Somebody else's data in the way is for a person to look at."""
    await board.redis.set(board.keys.lanes[3], "not a stream")
    with pytest.raises(ServerRefused, match="WRONGTYPE") as refusal:
        await board.join("w1")
    assert refusal.value.fault is Fault.EXIT
    assert await board.redis.zcard(board.keys.workers) == 0
    await board.redis.delete(board.keys.lanes[3])


async def test_an_outbox_of_another_type_is_reported_too(board):
    """It would fail the first report, after the jobs were run."""
    await board.redis.set(board.keys.outbox, "not a stream")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await board.join("w1")
    assert await board.redis.zcard(board.keys.workers) == 0
