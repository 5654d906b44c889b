"""learn: what a worker saw of run times since it last said so."""

from __future__ import annotations

import pytest
import redis.exceptions

from streamq.broker.wire import Fault, ServerRefused


async def costs(board) -> dict[str, int]:
    """Return the smoothed ms of each slow key."""
    return {field: int(value.split("|")[0]) for field, value in (await board.redis.hgetall(board.keys.cost)).items()}


async def test_counts_add_up_and_come_back_with_what_other_workers_saw(board):
    """So that all of them draw the same line."""
    await board.partition.learn(counts=["t2", 3, "f20", 1])
    times = await board.partition.learn(counts=["t2", 1, "s26", 2])
    assert {field: times[field] for field in ("t2", "f20", "s26")} == {"t2": "4", "f20": "1", "s26": "2"}


async def test_asking_without_news_writes_nothing(board):
    await board.partition.learn(20.0, 3, counts=["t2", 3])
    before = await board.snapshot()
    assert (await board.partition.learn())["limit"] == "20.0"
    assert await board.snapshot() == before


async def test_the_limit_and_the_cut_are_kept_for_those_who_look(board):
    await board.partition.learn(22.6, 25, counts=["t2", 1])
    assert await board.redis.hmget(board.keys.times, "limit", "cut") == ["22.6", "25"]
    await board.partition.learn(counts=["t2", 1])
    assert await board.redis.hmget(board.keys.times, "limit", "cut") == [None, None]


async def test_only_slow_keys_are_kept(board):
    """A million fast users cost nothing."""
    await board.partition.learn(20, runs=["h|ada", 812.4, "h|bob", 3, "h|eve", 20])
    assert await costs(board) == {"h|ada": 812, "h|eve": 20}


async def test_nobody_is_slow_before_there_is_a_limit(board):
    await board.partition.learn(runs=["h|ada", 812.4])
    assert await costs(board) == {}


async def test_run_times_are_smoothed_in_the_logarithm(board):
    """One odd run moves the mean no further than half the way."""
    await board.partition.learn(20, runs=["h|ada", 400])
    await board.partition.learn(20, runs=["h|ada", 100])
    assert await costs(board) == {"h|ada": 200}


async def test_a_key_that_has_become_fast_leaves(board):
    """And it is not thrown out by one fast run, nor for being a little below the limit."""
    await board.partition.learn(20, runs=["h|ada", 200])
    await board.partition.learn(20, runs=["h|ada", 2])
    assert await costs(board) == {"h|ada": 20}
    await board.partition.learn(20, runs=["h|ada", 10])
    assert await costs(board) == {"h|ada": 14}
    await board.partition.learn(20, runs=["h|ada", 2])
    assert await costs(board) == {}


async def test_keys_that_have_not_run_for_a_month_are_forgotten(board):
    """Whoever brings news looks at a few of them."""
    month_ms = 30 * 86_400_000
    now_ms = await board.now_ms()
    old, young = f"900|{now_ms - month_ms - 1}", f"900|{now_ms - month_ms + 60_000}"
    await board.redis.hset(board.keys.cost, mapping={"h|old": old, "h|young": young})
    await board.partition.learn(20, runs=["h|ada", 200])
    assert set(await costs(board)) == {"h|young", "h|ada"}


async def test_the_table_is_bounded_and_the_least_slow_go_first(board):
    """Keys that never come again, as those of a test or of an attack, must not fill the memory."""
    await board.partition.learn(20, runs=["h|a", 900, "h|b", 30, "h|c", 500], most=2)
    assert await costs(board) == {"h|a": 900, "h|c": 500}


async def test_counts_are_halved_every_six_hours(board):
    """What was true last month must not outvote today."""
    await board.partition.learn(counts=["t2", 9, "t15", 1, "f20", 8])
    six_hours_ms = 6 * 3_600_000
    await board.redis.hset(board.keys.times, "since", (await board.now_ms()) - 2 * six_hours_ms - 1000)
    times = await board.partition.learn(counts=["t3", 1])
    assert {field: times.get(field) for field in ("t2", "t15", "f20", "t3")} == {
        "t2": "2", "t15": None, "f20": "2", "t3": "1",
    }  # fmt: skip
    again = await board.partition.learn(counts=["t3", 1])
    assert again["t2"] == "2"


async def test_forgetting_leaves_nobody_slow(board):
    await board.partition.learn(20, counts=["t2", 1], runs=["h|ada", 200])
    await board.partition.forget_costs()
    assert await board.redis.exists(board.keys.cost, board.keys.times) == 0


@pytest.mark.parametrize("sections", [[1], [1, "t2"], [0, 1, "h|a"], [0], [], [129, *["t2", 1] * 129, 0], ["x", 0]])
async def test_sections_that_do_not_add_up_are_refused(board, sections):
    """A caller of another version would have its words taken for others."""
    before = await board.snapshot()
    with pytest.raises(redis.exceptions.ResponseError, match="learn: the sections of .* arguments do not add up"):
        await board.run("learn", [board.keys.cost, board.keys.times], "20", "", 9, *sections)
    assert await board.snapshot() == before


async def test_a_refusal_of_the_server_is_told_as_one(board):
    await board.redis.set(board.keys.cost, "text")
    with pytest.raises(ServerRefused) as refused:
        await board.partition.learn(20, runs=["h|ada", 200])
    assert refused.value.fault is Fault.EXIT
    await board.redis.delete(board.keys.cost)
