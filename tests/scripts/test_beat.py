"""beat: says that workers live, without anything else."""

from __future__ import annotations


async def test_a_beat_makes_workers_young_again(board):
    """The parent vouches for its children in one call."""
    await board.join("w1", "w2")
    await board.die("w1")
    await board.die("w2")
    before_ms = await board.now_ms()
    assert await board.partition.beat(["w1", "w2"]) == []
    for consumer in ("w1", "w2"):
        assert await board.redis.zscore(board.keys.workers, consumer) >= before_ms


async def test_a_beat_tells_the_servers_time(board):
    """A parent learns from it how far its own clock is off."""
    now_ms, fenced = await board.run("beat", [board.keys.workers])
    assert abs(now_ms - await board.now_ms()) < 5_000
    assert fenced == []


async def test_workers_that_were_given_up_are_told_to_stop_and_stay_given_up(board):
    """Their jobs are free to take; a beat must not bring the name back."""
    await board.join("w1", "w2")
    await board.partition.bury(["w1"])
    assert await board.partition.beat(["w1", "w2", "stranger"]) == ["w1", "stranger"]
    assert await board.redis.zscore(board.keys.workers, "w1") == 0
    assert await board.redis.zscore(board.keys.workers, "stranger") is None
