"""sweep: the third net. Deliveries that nobody renewed within the lease are handed back, whoever holds them."""

from __future__ import annotations

import pytest

from streamq.keys import HANDBACK, LANES

LEASE_MS = 60_000


async def let_lease_run_out(board, *job_ids: str) -> None:
    """Wind time forward for the deliveries of these jobs, or of all."""
    tokens = tuple([await board.token(job_id) for job_id in job_ids])
    for digit, lane in enumerate(board.keys.lanes, 1):
        for row in await board.redis.xpending_range(lane, "g", "-", "+", 5000):
            if not tokens or f"{digit}{row['message_id']}".startswith(tokens):
                command = ("XCLAIM", lane, "g", row["consumer"], 0, row["message_id"], "IDLE", 2 * LEASE_MS, "JUSTID")
                await board.redis.execute_command(*command)


async def sweep(board, lane: str = "normal", cursor: bytes = b"0-0"):
    """Sweep one lane, with an ordinary lease."""
    return await board.partition.sweep(LANES.index(lane) + 1, lease_ms=LEASE_MS, cursor=cursor)


async def sweep_all(board) -> tuple[int, int]:
    """Sweep from the beginning to the end. Returns how much was handed back, in how many calls."""
    cursor, handed_back, calls = b"0-0", 0, 0
    while calls == 0 or cursor != b"0-0":
        cursor, handed, _ = await sweep(board, cursor=cursor)
        handed_back += handed
        calls += 1
    return handed_back, calls


@pytest.mark.parametrize("lane", LANES)
async def test_a_delivery_whose_lease_ran_out_is_handed_back_and_no_crash_is_counted(board, lane):
    """Its reply was lost; the worker lives, and knows nothing of the job."""
    await board.join("w1")
    old = await board.take("w1", "a", lane)
    await let_lease_run_out(board)
    assert await sweep(board, lane) == (b"0-0", 1, 0)
    assert await board.held("w1") == []
    (taken,) = await board.read("w1")
    assert (taken.id, taken.crashes) == (b"a", 0)
    assert taken.token != old.token


async def test_the_late_outcome_of_a_swept_job_is_refused(board):
    """Its token is void the moment it is swept, before anybody takes it."""
    await board.join("w1")
    old = await board.take("w1", "a")
    await let_lease_run_out(board)
    await sweep(board)
    assert (await board.settle("w1", old)).refused == [b"a"]
    assert await board.handed_back() == ["a"]


async def test_a_sweep_keeps_the_crashes_that_a_job_has(board):
    """A poison job must not be washed clean."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    await board.die("w1")
    await board.take_over("w2")
    await let_lease_run_out(board)
    await sweep(board)
    (taken,) = await board.read("w2")
    assert (taken.delivery, taken.crashes) == (4, 1)


async def test_a_delivery_within_its_lease_is_left_alone(board):
    """Somebody runs it, and renews it."""
    await board.join("w1")
    await board.add("a", "b")
    await board.read("w1")
    await let_lease_run_out(board, "b")
    assert await sweep(board) == (b"0-0", 1, 0)
    assert await board.held("w1") == ["a"]


async def test_a_sweep_wakes_a_blocked_reader_if_it_found_something(board):
    """And only then."""
    await board.join("w1")
    await board.take("w1", "a")
    await sweep(board)
    assert await board.markers() == 0
    assert await board.redis.zscore(board.keys.workers, HANDBACK) is None
    await let_lease_run_out(board)
    await sweep(board)
    assert await board.markers() == 1
    assert await board.redis.zscore(board.keys.workers, HANDBACK) == 0


async def test_other_lanes_are_left_alone(board):
    """A call looks at one lane."""
    await board.join("w1")
    await board.take("w1", "a", "low")
    await let_lease_run_out(board)
    assert await sweep(board, "high") == (b"0-0", 0, 0)
    assert await board.held("w1") == ["a"]


async def test_the_cursor_leads_through_a_lane_that_is_longer_than_one_look(board):
    """To start at the beginning each time would never reach the end."""
    await board.join("w1")
    for first in range(0, 300, 100):
        await board.add(*(f"j{number}" for number in range(first, first + 100)))
        await board.read("w1")
    await let_lease_run_out(board)
    assert await sweep_all(board) == (300, 3)


async def test_a_delivery_behind_many_live_ones_is_found(board):
    """Redis looks at ten times as many as were asked for, at most; the cursor must go on."""
    await board.join("w1")
    for first in range(0, 2000, 100):
        await board.add(*(f"j{number}" for number in range(first, first + 100)))
        await board.read("w1")
    await let_lease_run_out(board, "j1999")
    assert await sweep_all(board) == (1, 2)


async def test_entries_that_no_longer_exist_are_counted_and_forgotten(board):
    """Somebody deleted them by hand. Each is an incident, and told."""
    await board.join("w1")
    await board.add("a", "b")
    a, _ = await board.read("w1")
    await let_lease_run_out(board)
    await board.redis.xdel(board.keys.lanes[1], a.token[1:])
    assert await sweep(board) == (b"0-0", 1, 1)
    assert (await board.redis.xpending(board.keys.lanes[1], "g"))["pending"] == 1


async def test_a_delivery_that_belongs_to_no_job_is_thrown_away(board):
    """It would be swept for ever."""
    await board.join("w1")
    await board.add("a", "b")
    await board.read("w1")
    await board.redis.hdel(board.keys.index, "a")
    await board.redis.hset(board.keys.index, "b", "z")
    await let_lease_run_out(board)
    assert await sweep(board) == (b"0-0", 0, 0)
    assert await board.lane() == []
    assert await board.handed_back() == []


async def test_a_wake_up_entry_that_nobody_threw_away_is(board):
    """Its reader died with it."""
    await board.join("w1")
    await board.add("later", delay_ms=60_000)
    await board.cycle("w1", 5)
    await let_lease_run_out(board)
    assert await sweep(board, "high") == (b"0-0", 0, 0)
    assert await board.markers() == 0
