"""append: the short way of a single plain job; what it leaves is what add would leave."""

from __future__ import annotations

import pytest

from streamq.broker.partition import CallRepeated, NewJob


async def test_a_single_plain_job_leaves_what_it_would_leave_among_others(board):
    """Whoever looks into Redis cannot tell by which way it came."""
    await board.add("first")
    assert (
        abs(await board.partition.append("producer", 2, NewJob("short", 2, b"<short>")) - await board.now_ms()) < 5_000
    )
    short = (await board.redis.hget(board.keys.producers, "producer")).split("|")
    await board.partition.add("producer", 3, [NewJob(name, 2, f"<{name}>".encode()) for name in ("among", "others")])
    among = (await board.redis.hget(board.keys.producers, "producer")).split("|")
    assert (short[0], short[2:]) == ("2", ["0", ""])
    assert (among[0], among[2:]) == ("3", ["0", ""])
    assert 0 <= int(among[1]) - int(short[1]) < 5_000
    entries = await board.redis.xrange(board.keys.lanes[1])
    assert [fields for _, fields in entries] == [
        {"j": name, "d": f"<{name}>"} for name in ("first", "short", "among", "others")
    ]
    assert await board.token("short") == f"2{entries[1][0]}"
    assert await board.redis.hget(board.keys.counts, "enqueued") == "4"


async def test_a_producer_that_is_new_takes_the_long_way(board):
    """There those are forgotten that have not been seen for long."""
    assert await board.partition.append("p", 1, NewJob("a", 2, b"{}")) == 0
    assert await board.snapshot() == {}


async def test_an_id_that_is_known_takes_the_long_way(board):
    """Its job lives, and is told to be present."""
    job = NewJob("a", 2, b"{}")
    await board.partition.add("p", 1, [job])
    before = await board.snapshot()
    assert await board.partition.append("p", 2, job) == 0
    assert await board.snapshot() == before
    assert (await board.partition.add("p", 2, [job])).results == ["p"]


async def test_a_single_plain_job_that_is_sent_again_is_one_job(board):
    """By its number, also when it has ended."""
    await board.join("w1")
    job = NewJob("a", 2, b"{}")
    await board.partition.add("p", 1, [])
    await board.partition.append("p", 2, job)
    for delivery in await board.read("w1", 2):
        await board.settle("w1", delivery)
    assert await board.partition.append("p", 2, job) == 0
    with pytest.raises(CallRepeated) as repeated:
        await board.partition.add("p", 2, [job])
    assert (repeated.value.last, repeated.value.cursor, repeated.value.results) == (2, "", "")
    assert await board.lane() == []


async def test_a_job_of_a_slow_key_takes_the_long_way(board):
    """That leads into a slow lane."""
    await board.partition.add("p", 1, [])
    await board.redis.hset(board.keys.cost, "h|ada", "812|1")
    assert await board.partition.append("p", 2, NewJob("a", 2, b"x", whose="-h|bob"))
    slow = NewJob("b", 2, b"x", whose="-h|ada")
    assert await board.partition.append("p", 3, slow) == 0
    await board.partition.add("p", 3, [slow])
    assert [await board.lane(lane) for lane in ("normal", "normal.slow")] == [["a"], ["b"]]


async def test_single_jobs_make_the_index_a_table_before_it_is_long(board):
    """As a list, which small hashes are, it would be searched from end to end for each job."""
    await board.partition.add("p", 1, [])
    for number in range(2, 22):
        await board.partition.append("p", number, NewJob(f"j{number}", 2, b"{}"))
    assert await board.redis.object("encoding", board.keys.index) == "hashtable"
    assert await board.redis.hlen(board.keys.index) == 20
