"""renew: keeps every delivery of a worker whose event loop is busy."""

from __future__ import annotations


async def idle_ms(board, lane: int = 1) -> list[int]:
    """Return how long each delivery of a lane has not been renewed."""
    rows = await board.redis.xpending_range(board.keys.lanes[lane], "g", "-", "+", 2000)
    return [row["time_since_delivered"] for row in rows]


async def age(board, consumer: str, *lanes: int) -> None:
    """Wind time forward for a worker's deliveries."""
    for lane in lanes or (1,):
        stream = board.keys.lanes[lane]
        for row in await board.redis.xpending_range(stream, "g", "-", "+", 2000, consumer):
            command = ("XCLAIM", stream, "g", consumer, 0, row["message_id"], "IDLE", 50_000, "JUSTID")
            await board.redis.execute_command(*command)


async def test_deliveries_of_every_lane_are_kept(board):
    """Whoever vouches for the process does not know what it holds."""
    await board.join("w1")
    await board.add("a", "b")
    await board.add("c", lane="low.slow")
    await board.read("w1")
    await age(board, "w1", 1, 5)
    assert await board.partition.renew("w1") == 3
    assert max(await idle_ms(board) + await idle_ms(board, 5)) < 10_000


async def test_tokens_and_delivery_counts_stay(board):
    """The worker does not know that it was renewed, and settles as it would have."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.partition.renew("w1")
    assert (await board.settle("w1", delivery)).refused == []


async def test_other_workers_deliveries_are_left_alone(board):
    """To renew them would be to take them."""
    await board.join("w1", "w2")
    await board.take("w2", "a")
    await age(board, "w2")
    assert await board.partition.renew("w1") == 0
    assert await board.held("w2") == ["a"]
    assert min(await idle_ms(board)) >= 50_000


async def test_a_worker_that_was_given_up_keeps_nothing(board):
    """Its jobs are others' now."""
    await board.join("w1")
    await board.take("w1", "a")
    await age(board, "w1")
    await board.partition.bury(["w1"])
    assert await board.partition.renew("w1") == 0
    assert await board.partition.renew("stranger") == 0
    assert min(await idle_ms(board)) >= 50_000


async def test_as_many_are_kept_as_one_worker_can_hold(board):
    """A thousand in each lane, in one bounded call."""
    await board.join("w1")
    for first in range(0, 1100, 100):
        await board.add(*(f"j{number}" for number in range(first, first + 100)))
        await board.read("w1")
    assert await board.partition.renew("w1") == 1000
