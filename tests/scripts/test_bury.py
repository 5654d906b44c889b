"""bury: somebody saw these workers die; what they held is free to take now."""

from __future__ import annotations


async def test_what_a_buried_worker_held_is_free_at_once(board):
    """Nobody need wait until its beat is old."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    assert await board.partition.bury(["w1"]) == 1
    (taken,) = await board.read("w2", dead_after_ms=3_600_000)
    assert (taken.id, taken.crashes) == (b"a", 1)


async def test_a_burial_wakes_a_blocked_reader(board):
    """It would not see that there is something to take over."""
    await board.join("w1")
    await board.partition.bury(["w1"])
    assert await board.markers() == 1


async def test_only_workers_on_the_books_are_buried(board):
    """A name that left, or never was, is nothing to take over; and nobody is woken for it."""
    await board.join("w1")
    assert await board.partition.bury(["gone", "w1", "stranger"]) == 1
    assert await board.redis.zrange(board.keys.workers, 0, -1) == ["w1"]
    assert await board.partition.bury(["gone"]) == 0
    assert await board.markers() == 1


async def test_to_bury_twice_is_harmless(board):
    """The parent repeats a call whose reply was lost."""
    await board.join("w1")
    await board.partition.bury(["w1"])
    assert await board.partition.bury(["w1"]) == 1
    assert await board.redis.zscore(board.keys.workers, "w1") == 0
