"""strays: after a lost reply, hand back the deliveries that never reached the worker."""

from __future__ import annotations

from streamq.broker.partition import BATCH
from streamq.keys import HANDBACK


async def test_deliveries_that_the_worker_does_not_hold_are_handed_back(board):
    """Redis believes that it has them; nobody would run them until the lease is over."""
    await board.join("w1", "w2")
    await board.add("held", "lost")
    held, _ = await board.read("w1")
    assert await board.partition.strays("w1", [held.token]) == 1
    assert await board.held("w1") == ["held"]
    (taken,) = await board.read("w2")
    assert (taken.id, taken.crashes) == (b"lost", 0)


async def test_claimed_deliveries_are_known_by_their_place(board):
    """Their tokens are longer than the entry's id."""
    await board.join("w1", "w2")
    await board.add("a", "b")
    await board.read("w1")
    await board.die("w1")
    held, _ = await board.take_over("w2")
    assert await board.partition.strays("w2", [held.token]) == 1
    assert await board.held("w2") == ["a"]


async def test_every_lane_is_looked_through(board):
    """The reply that was lost may have held jobs of each."""
    await board.join("w1")
    for lane in ("high", "low.slow"):
        await board.add(lane, lane=lane)
    await board.read("w1")
    assert await board.partition.strays("w1", []) == 2
    assert await board.handed_back() == ["high", "low.slow"]


async def test_an_entry_of_the_same_id_in_another_lane_is_not_taken_for_held(board):
    """Two lanes may have entries of one id."""
    await board.join("w1")
    for lane, job_id in ((0, "a"), (1, "b")):
        await board.redis.xadd(board.keys.lanes[lane], {"j": job_id, "d": "{}"}, id="5-5")
        await board.redis.hset(board.keys.index, job_id, f"{lane + 1}5-5")
    await board.read("w1")
    assert await board.partition.strays("w1", [b"15-5"]) == 1
    assert await board.held("w1") == ["a"]


async def test_who_holds_everything_hands_nothing_back(board):
    """Nor wakes anybody."""
    await board.join("w1")
    deliveries = [await board.take("w1", job_id) for job_id in ("a", "b")]
    before = await board.snapshot()
    assert await board.partition.strays("w1", [delivery.token for delivery in deliveries]) == 0
    assert await board.snapshot() == before


async def test_a_handback_wakes_one_reader(board):
    """For all lanes together."""
    await board.join("w1")
    await board.add("a", "b")
    await board.read("w1")
    await board.partition.strays("w1", [])
    assert await board.markers() == 1
    assert await board.redis.zscore(board.keys.workers, HANDBACK) == 0


async def test_other_workers_deliveries_are_left_alone(board):
    """They are nobody's strays."""
    await board.join("w1", "w2")
    await board.take("w2", "a")
    assert await board.partition.strays("w1", []) == 0
    assert await board.held("w2") == ["a"]


async def test_a_worker_that_was_given_up_hands_nothing_back(board):
    """Its deliveries count as a crash, which is for the take-over to say."""
    await board.join("w1")
    await board.take("w1", "a")
    await board.partition.bury(["w1"])
    assert await board.partition.strays("w1", []) == 0
    assert await board.partition.strays("stranger", []) == 0
    assert await board.held("w1") == ["a"]


async def test_many_strays_are_handed_back_in_several_calls(board):
    """Each call looks at a bounded part, and says whether there is more."""
    await board.join("w1")
    for first in range(0, 3 * BATCH, BATCH):
        await board.add(*(f"j{number}" for number in range(first, first + BATCH)))
        await board.read("w1", BATCH)
    held = await board.take("w1", "held")
    keys = [*board.keys.lanes, board.keys.workers]
    assert await board.run("strays", keys, "w1", 10, held.token) == [10, 1]
    assert await board.partition.strays("w1", [held.token]) == 3 * BATCH - 10
    assert await board.held("w1") == ["held"]
    assert await board.run("strays", keys, "w1", 10, held.token) == [0, 0]


async def test_strays_behind_many_held_deliveries_are_found(board):
    """The look is as long as what is held, and a batch more."""
    await board.join("w1")
    held = []
    for first in range(0, 3 * BATCH, BATCH):
        await board.add(*(f"j{number}" for number in range(first, first + BATCH)))
        held += [delivery.token for delivery in await board.read("w1", BATCH)]
    await board.take("w1", "lost")
    assert await board.partition.strays("w1", held) == 1
