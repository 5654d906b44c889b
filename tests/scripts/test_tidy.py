"""Tidy: dedup keys and names that belong to nobody go; those that somebody has stay."""

from __future__ import annotations

from streamq.broker.repairs import Repairs
from tests.scripts.conftest import LONG_MS


async def test_a_dedup_key_whose_job_has_ended_is_freed_and_others_stay(board):
    """It would do no harm, since add looks whether the holder lives; but it would stay for ever."""
    await board.add("lives", dedup="alive")
    await board.redis.set(board.keys.dedup("dangling"), "long gone")
    await board.redis.set(board.keys.dedup("window"), "just ended", px=LONG_MS)
    repairs = Repairs(board.partition, "me")

    assert (await repairs.tidy(idle_ms=LONG_MS, repair=False)).dedup_keys == [board.keys.dedup("dangling")]
    assert await board.redis.exists(board.keys.dedup("dangling"))

    assert (await repairs.tidy(idle_ms=LONG_MS, repair=True)).dedup_keys == [board.keys.dedup("dangling")]
    assert not await board.redis.exists(board.keys.dedup("dangling"))
    assert await board.redis.get(board.keys.dedup("alive")) == "lives"
    assert await board.redis.get(board.keys.dedup("window")) == "just ended"


async def test_names_that_hold_something_or_beat_stay(board):
    """Deleting a consumer with deliveries would lose these for ever."""
    await board.join("beats", "left", "holds")
    await board.take("holds", "job")
    await board.read("beats")
    # Before Redis 7.2 a read that brings nothing leaves no name.
    await board.redis.xgroup_createconsumer(board.keys.lanes[1], "g", "left")
    for name in ("left", "holds"):
        await board.redis.zrem(board.keys.workers, name)
    repairs = Repairs(board.partition, "me")

    assert (await repairs.tidy(idle_ms=LONG_MS, repair=True)).workers == [], "it gave a sign just now"
    assert (await repairs.tidy(idle_ms=-1, repair=False)).workers == ["left"]
    assert (await repairs.tidy(idle_ms=-1, repair=True)).workers == ["left"]
    names = {row["name"] for row in await board.redis.xinfo_consumers(board.keys.lanes[1], "g")}
    assert names - {"beats"} == {"holds"}
    assert await board.held("holds") == ["job"]


async def test_before_any_worker_there_is_nothing_to_tidy(board):
    """There is no group yet."""
    await board.add("job")
    assert await Repairs(board.partition, "me").tidy(idle_ms=-1, repair=True) == ([], [])
