"""release: a worker hands deliveries back that it will not run."""

from __future__ import annotations

from streamq.broker.partition import BATCH
from streamq.keys import HANDBACK


async def test_what_is_released_is_free_for_the_next_worker_that_asks(board):
    """No attempt and no crash is counted."""
    await board.join("w1", "w2")
    delivery = await board.take("w1", "a")
    assert await board.partition.release("w1", [delivery]) == 1
    assert await board.held("w1") == []
    assert await board.handed_back() == ["a"]
    (taken,) = await board.read("w2")
    assert (taken.id, taken.raw, taken.crashes) == (b"a", b"<a>", 0)


async def test_a_blocked_reader_is_woken(board):
    """It waits for new entries, and this is an old one."""
    await board.join("w1")
    await board.partition.release("w1", [await board.take("w1", "a")])
    assert await board.markers() == 1


async def test_jobs_of_several_lanes_are_released_together(board):
    """Each in its own lane."""
    await board.join("w1")
    for lane in ("high", "low", "normal.slow"):
        await board.add(lane, lane=lane)
    assert await board.partition.release("w1", await board.read("w1")) == 3
    assert await board.handed_back() == ["high", "low", "normal.slow"]


async def test_a_claimed_job_is_released_with_its_longer_token(board):
    """It keeps the crashes that it had."""
    await board.join("w1", "w2", "w3")
    await board.take("w1", "a")
    await board.die("w1")
    (claimed,) = await board.take_over("w2")
    assert await board.partition.release("w2", [claimed]) == 1
    (taken,) = await board.read("w3")
    assert (taken.delivery, taken.crashes) == (3, 1)


async def test_a_delivery_that_is_no_longer_this_workers_is_left_alone(board):
    """Another one runs it."""
    await board.join("w1", "w2")
    delivery = await board.take("w1", "a")
    await board.die("w1")
    await board.take_over("w2")
    await board.redis.zadd(board.keys.workers, {"w1": await board.now_ms()})
    assert await board.partition.release("w1", [delivery]) == 0
    assert await board.held("w2") == ["a"]
    assert await board.redis.zscore(board.keys.workers, HANDBACK) is None
    assert await board.markers() == 0


async def test_a_job_that_has_ended_is_not_released(board):
    """It would run once more."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.settle("w1", delivery)
    assert await board.partition.release("w1", [delivery]) == 0


async def test_a_worker_that_was_given_up_releases_nothing(board):
    """What it held is on its way to others."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.partition.bury(["w1"])
    before = await board.snapshot()
    assert await board.partition.release("w1", [delivery]) == 0
    assert await board.partition.release("stranger", [delivery]) == 0
    assert await board.snapshot() == before


async def test_to_release_nothing_writes_nothing(board):
    """Not even a wake-up."""
    await board.join("w1")
    before = await board.snapshot()
    assert await board.partition.release("w1", []) == 0
    assert await board.run("release", [*board.keys.lanes, board.keys.index, board.keys.workers], "w1") == 0
    assert await board.snapshot() == before


async def test_any_number_is_released_a_batch_at_a_time(board):
    """Each call is bounded."""
    await board.join("w1")
    deliveries = []
    for first in (0, 100):
        await board.add(*(f"j{number}" for number in range(first, first + 100)))
        deliveries += await board.read("w1", BATCH)
    assert await board.partition.release("w1", deliveries) == 200
    assert await board.markers() == 2
