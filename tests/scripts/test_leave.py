"""leave: a worker ends. What it still holds is handed back, then its name goes."""

from __future__ import annotations

from streamq.keys import HANDBACK


async def consumers(board) -> set[str]:
    """Return the names that the groups of all lanes know."""
    return {row["name"] for lane in board.keys.lanes for row in await board.redis.xinfo_consumers(lane, "g")}


async def test_a_worker_that_holds_nothing_goes_without_a_trace(board):
    """Neither beat nor consumer."""
    await board.join("w1")
    await board.settle("w1", await board.take("w1", "a"))
    await board.partition.leave("w1")
    assert await board.redis.exists(board.keys.workers) == 0
    assert await consumers(board) == set()
    assert await board.markers() == 0


async def test_what_a_worker_still_holds_is_handed_back_without_a_crash(board):
    """A deploy costs no job an attempt, and nobody is blamed."""
    await board.join("w1", "w2")
    await board.add("a", lane="high")
    await board.add("b", lane="low.slow")
    await board.read("w1")
    await board.partition.leave("w1")
    assert await consumers(board) == {HANDBACK}
    assert await board.markers() == 1
    taken = await board.read("w2")
    assert [(delivery.id, delivery.crashes) for delivery in taken] == [(b"a", 0), (b"b", 0)]


async def test_to_delete_the_name_loses_no_delivery(board):
    """Redis drops what a deleted consumer holds; so all of it must be handed back first."""
    await board.join("w1", "w2")
    total = 300
    for first in range(0, total, 100):
        await board.add(*(f"j{number}" for number in range(first, first + 100)))
        await board.read("w1")
    await board.partition.leave("w1")
    taken = [delivery for _ in range(3) for delivery in await board.read("w2")]
    assert len({delivery.id for delivery in taken}) == total


async def test_one_call_hands_back_a_bounded_part(board):
    """And says that it must be called again; until then the worker is on the books."""
    await board.join("w1")
    await board.add("a", "b", "c")
    await board.read("w1")
    keys = [*board.keys.lanes, board.keys.workers]
    assert await board.run("leave", keys, "w1", 2) == 0
    assert await board.handed_back() == ["a", "b"]
    assert await board.redis.zscore(board.keys.workers, "w1") > 0
    assert await board.run("leave", keys, "w1", 2) == 1
    assert await board.redis.zscore(board.keys.workers, "w1") is None


async def test_a_worker_may_leave_twice(board):
    """The first reply may be lost."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    await board.partition.leave("w1")
    await board.partition.leave("w1")
    assert await board.handed_back() == ["a"]


async def test_a_worker_may_leave_where_no_lane_is_left(board):
    """The database was emptied under it; that is no reason to hang at the end."""
    await board.partition.leave("w1")
    assert await board.snapshot() == {}


async def test_a_worker_that_was_given_up_may_leave(board):
    """What it held and nobody took yet is handed back."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    await board.partition.bury(["w1"])
    await board.partition.leave("w1")
    (taken,) = await board.read("w2")
    assert taken.crashes == 0
