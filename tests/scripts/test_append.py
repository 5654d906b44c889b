"""append: the short way of a single plain job; what it leaves is what add would leave."""

from __future__ import annotations

import pytest

from streamq.broker.partition import CallRepeated, NewJob


async def began(board) -> str:
    """Make the first call of the producer `p`; return what Redis keeps of it behind the number."""
    return (await board.partition.add("p", 1, [])).kept


async def test_a_single_plain_job_leaves_what_it_would_leave_among_others(board):
    """Whoever looks into Redis cannot tell by which way it came."""
    kept = (await board.partition.add("p", 1, [NewJob("first", 2, b"<first>")])).kept
    assert await board.partition.append("p", 1, 2, kept, NewJob("short", 2, b"<short>"))
    short = await board.redis.hget(board.keys.producers, "p")
    added = await board.partition.add("p", 3, [NewJob(name, 2, f"<{name}>".encode()) for name in ("among", "others")])
    assert short == f"2{kept}"
    assert await board.redis.hget(board.keys.producers, "p") == f"3{added.kept}"
    entries = await board.redis.xrange(board.keys.lanes[1])
    assert [fields for _, fields in entries] == [
        {"j": name, "d": f"<{name}>"} for name in ("first", "short", "among", "others")
    ]
    assert await board.token("short") == f"2{entries[1][0]}"
    assert await board.redis.hget(board.keys.counts, "enqueued") == "4"


async def test_what_is_kept_of_a_producer_is_told_when_the_short_way_may_follow(board):
    """A cursor is another call's to follow, and what became of its jobs need not be sent again and again."""
    kept = await began(board)
    until_ms = int(kept.split("|")[1])
    assert abs(until_ms - await board.now_ms() - 86_400_000) < 60_000
    assert (await board.partition.add("p", 2, [NewJob("a", 2, b"{}")], cursor="page 2")).kept == ""
    assert (await board.partition.add("p", 3, [NewJob("a", 2, b"{}")])).kept == ""


async def test_a_producer_that_is_new_or_forgotten_takes_the_long_way(board):
    """There those are forgotten that have not been seen for long."""
    assert not await board.partition.append("p", 1, 2, "|1|0|", NewJob("a", 2, b"{}"))
    assert await board.snapshot() == {}


@pytest.mark.parametrize("digit", [1, 2])
async def test_an_id_that_is_known_takes_the_long_way(board, digit):
    """Its job lives, and is told to be present. What the short way wrote is gone before anybody could read it."""
    kept = (await board.partition.add("p", 1, [NewJob("a", 2, b"{}")])).kept
    token = await board.token("a")
    again = NewJob("a", digit, b"{}")
    assert not await board.partition.append("p", 1, 2, kept, again)
    assert [await board.lane(lane) for lane in ("high", "normal")] == [[], ["a"]]
    assert await board.token("a") == token
    assert await board.redis.hget(board.keys.producers, "p") == f"1{kept}"
    assert await board.redis.hget(board.keys.counts, "enqueued") == "1"
    assert (await board.partition.add("p", 2, [again])).results == ["p"]


async def test_a_single_plain_job_that_is_sent_again_is_one_job(board):
    """By its number, also when it has ended."""
    await board.join("w1")
    job = NewJob("a", 2, b"{}")
    kept = await began(board)
    assert await board.partition.append("p", 1, 2, kept, job)
    for delivery in await board.read("w1", 2):
        await board.settle("w1", delivery)
    assert not await board.partition.append("p", 1, 2, kept, job)
    with pytest.raises(CallRepeated) as repeated:
        await board.partition.add("p", 2, [job])
    assert (repeated.value.last, repeated.value.cursor, repeated.value.results) == (2, "", "")
    assert await board.lane() == []


async def test_a_job_of_a_slow_key_takes_the_long_way(board):
    """That leads into a slow lane."""
    kept = await began(board)
    await board.redis.hset(board.keys.cost, "h|ada", "812|1")
    assert await board.partition.append("p", 1, 2, kept, NewJob("a", 2, b"x", whose="-h|bob"))
    slow = NewJob("b", 2, b"x", whose="-h|ada")
    assert not await board.partition.append("p", 2, 3, kept, slow)
    await board.partition.add("p", 3, [slow])
    assert [await board.lane(lane) for lane in ("normal", "normal.slow")] == [["a"], ["b"]]
