"""Mend: what the index knows and nobody can ever run leaves the index; nothing else does."""

from __future__ import annotations

from streamq.broker.repairs import Repairs


async def test_a_job_that_lies_nowhere_leaves_the_index(board):
    """Somebody deleted its entry by hand; its id and its key would be taken for ever."""
    await board.add("kept", "gone")
    await board.add("later", "payload-gone", delay_ms=60_000)
    (entry,) = [
        entry for entry, fields in await board.redis.xrange(board.keys.lanes[1]) if fields["j"] == "gone"
    ]  # fmt: skip
    await board.redis.xdel(board.keys.lanes[1], entry)
    await board.redis.hdel(board.keys.payload, "payload-gone")
    repairs = Repairs(board.partition, "me")
    names = await repairs.indexed(100)
    assert sorted(names) == [b"gone", b"kept", b"later", b"payload-gone"]

    before = await board.snapshot()
    assert sorted((await repairs.mend(names, repair=False)).orphaned) == ["gone", "payload-gone"]
    assert await board.snapshot() == before, "a look changes nothing"

    assert sorted((await repairs.mend(names, repair=True)).orphaned) == ["gone", "payload-gone"]
    assert await board.token("gone") is None
    assert await board.redis.zscore(board.keys.delayed, "payload-gone") is None
    assert await board.token("kept")
    assert await board.token("later") == "z"
    assert await repairs.mend(names, repair=True) == ([], [])


async def test_a_job_that_is_being_run_or_was_taken_over_lies_where_the_index_says(board):
    """Its token has more than the place of its entry."""
    await board.join("w1", "w2")
    await board.take("w1", "job")
    await board.die("w1")
    assert await board.take_over("w2")
    assert "*" in await board.token("job")
    assert await Repairs(board.partition, "me").mend([b"job", b"never-was"], repair=True) == ([], [])
    assert await board.token("job")


async def test_the_walk_through_a_large_index_goes_on_where_it_stopped(board):
    """A round is bounded; all rounds together see every job."""
    for first in range(0, 3000, 100):
        await board.add(*(f"job{number}" for number in range(first, first + 100)))
    repairs = Repairs(board.partition, "me")
    seen = set()
    for _ in range(10):
        names = await repairs.indexed(1000)
        assert len(names) < 2500
        seen.update(names)
    assert len(seen) == 3000


async def test_a_job_kept_behind_one_that_does_not_live_any_more_is_due_now(board):
    """Nobody would ever wake it."""
    await board.add("kept", "waits", delay_ms=60_000)
    await board.add("ahead")
    await board.redis.hset(board.keys.index, mapping={"kept": "z>gone", "waits": "z>ahead"})
    repairs = Repairs(board.partition, "me")
    for repair in (False, True):
        assert await repairs.mend([b"kept", b"waits"], repair=repair) == ([], ["kept"])
    assert await board.token("kept") == "z"
    assert await board.redis.zscore(board.keys.delayed, "kept") == 0
    assert await board.token("waits") == "z>ahead"
