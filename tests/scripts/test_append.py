"""append: the short way of a single plain job; what it leaves is what add would leave."""

from __future__ import annotations

import pytest

from streamq.broker.partition import CallRepeated, NewJob
from streamq.errors import QueueFull


async def test_a_single_plain_job_leaves_what_it_would_leave_among_others(board):
    """It takes a short way through the script, from the second call of a producer on."""
    await board.add("first")
    await board.add("short")
    short = (await board.redis.hget(board.keys.producers, "producer")).split("|")
    await board.add("among", "others")
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


async def test_a_single_plain_job_that_is_sent_again_is_one_job(board):
    """By its number, also when it has ended; and by its id, while it lives."""
    await board.join("w1")
    jobs = [NewJob("a", 2, b"{}")]
    await board.partition.add("p", 1, [])
    await board.partition.add("p", 2, jobs)
    assert (await board.partition.add("p", 3, jobs)).results == ["p"]
    await board.partition.add("p", 4, [NewJob("b", 2, b"{}")])
    for delivery in await board.read("w1", 2):
        await board.settle("w1", delivery)
    with pytest.raises(CallRepeated) as repeated:
        await board.partition.add("p", 4, [NewJob("b", 2, b"{}")])
    assert (repeated.value.last, repeated.value.cursor, repeated.value.results) == (4, "", "")
    assert await board.lane() == []


async def test_a_single_job_is_found_slow_as_soon_as_somebody_is(board):
    """Only while nobody is known as slow need nobody be asked for."""
    await board.partition.add("p", 1, [])
    await board.partition.add("p", 2, [NewJob("a", 2, b"x", whose="-h|ada")])
    await board.redis.hset(board.keys.cost, "h|ada", "812|1")
    await board.partition.add("p", 3, [NewJob("b", 2, b"x", whose="-h|ada")])
    assert [await board.lane(lane) for lane in ("normal", "normal.slow")] == [["a"], ["b"]]


async def test_single_jobs_make_the_index_a_table_before_it_is_long(board):
    """As a list, which small hashes are, it would be searched from end to end for each job."""
    for number in range(1, 22):
        await board.partition.add("p", number, [NewJob(f"j{number}", 2, b"{}")])
    assert await board.redis.object("encoding", board.keys.index) == "hashtable"
    assert await board.redis.hlen(board.keys.index) == 21


async def test_a_single_job_that_waits_at_a_gate_or_for_its_time_takes_the_long_way(board):
    """The short one knows lanes alone."""
    await board.partition.add("p", 1, [])
    await board.partition.add("p", 2, [NewJob("a", 2, b"{}", at_ms=1)])
    await board.partition.add("p", 3, [NewJob("b", 2, b'{"gt":"f1,0=f:ada","h":"h"}')])
    await board.partition.add("p", 4, [NewJob("c", 2, b"{}", dedup="k")])
    assert (await board.token("a"), (await board.token("b"))[:2]) == ("z", "z=")
    assert await board.redis.get(board.keys.dedup("k")) == "c"


async def test_a_single_job_counts_towards_the_most_that_a_queue_may_hold(board):
    """The short way asks nobody."""
    await board.partition.add("p", 1, [NewJob("a", 2, b"{}")], max_depth=1)
    with pytest.raises(QueueFull, match="holds 1 jobs and may hold 1"):
        await board.partition.add("p", 2, [NewJob("b", 2, b"{}")], max_depth=1)
