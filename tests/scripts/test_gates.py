"""gates: how many jobs of a key or a handler run at once, and how often one starts; kept by the cycle, cancel and repairs."""

from __future__ import annotations

import pytest

from streamq.broker.inspection import Inspection
from streamq.broker.orders import Orders
from streamq.broker.partition import NewJob
from streamq.broker.repairs import Repairs
from streamq.codec import encode_envelope
from streamq.gates import Gates
from streamq.job import Envelope

ONE_PER_KEY = Gates.of("h", 1, None, 0, None)
TWO_PER_KEY = Gates.of("h", 2, None, 0, None)
TWO_OF_HANDLER = Gates.of("h", 0, None, 2, None)
BOTH = Gates.of("h", 1, None, 2, None)
ONE_A_MINUTE = Gates.of("h", 0, None, 0, "1/m")


async def add(board, gates, *job_ids, key="u", lane=2, delay_ms=0):
    """Add jobs of a handler with these gates in one call."""
    board.calls += 1
    envelope = encode_envelope(Envelope("h", key=key, gates=gates.of_job(key)))
    jobs = [NewJob(job_id, lane, envelope, delay_ms) for job_id in job_ids]
    return await board.partition.add("producer", board.calls, jobs)


def ids(deliveries):
    """The ids of deliveries."""
    return [delivery.id.decode() for delivery in deliveries]


async def is_empty(board):
    """Whether nothing is left of gates, and nothing of jobs."""
    keys = board.keys
    return await board.redis.exists(keys.gates, keys.places, keys.payload, keys.index) == 0


async def test_one_job_of_a_key_runs_at_a_time_and_the_next_starts_in_the_cycle_that_settles_it(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b", "c")
    await add(board, ONE_PER_KEY, "other", key="v")
    first, other = await board.read("w1")
    assert ids([first, other]) == ["a", "other"]
    (second,) = (await board.settle("w1", first, want=9)).deliveries
    assert second.id == b"b"
    (third,) = (await board.settle("w1", second, want=9)).deliveries
    assert third.id == b"c"
    assert (await board.settle("w1", third, other, want=9)).deliveries == []
    assert await is_empty(board)


async def test_a_limit_of_a_handler_holds_over_all_workers(board):
    await board.join("w1", "w2")
    await add(board, TWO_OF_HANDLER, "a", "b", "c", "d")
    assert ids(await board.read("w1", 1)) == ["a"]
    (second,) = await board.read("w2")
    assert second.id == b"b"
    assert ids((await board.settle("w2", second, want=9)).deliveries) == ["c"]


@pytest.mark.parametrize("beside", [0, 60])
async def test_of_a_batch_start_those_whose_gates_are_open_in_the_order_of_their_enqueue(board, beside):
    """Most jobs of a batch find nobody at their gate, and are not looked at one by one."""
    await board.join("w1", "w2")
    for number in range(beside):
        await add(board, ONE_PER_KEY, f"beside{number}", key=f"beside{number}")
    await add(board, ONE_PER_KEY, "held", key="k0")
    held = await board.read("w1")
    assert len(held) == beside + 1
    await add(board, ONE_PER_KEY, "behind held", key="k0")
    for number in range(1, 20):
        await add(board, ONE_PER_KEY, f"first{number}", key=f"k{number}")
    await add(board, BOTH, "behind first2", key="k2")
    await add(board, BOTH, "of two gates", key="k20")
    await add(board, ONE_PER_KEY, "behind first3", key="k3")
    await add(board, ONE_PER_KEY, "behind of two gates", key="k20")
    await add(board, TWO_PER_KEY, "one of two", key="k21")
    await add(board, TWO_PER_KEY, "two of two", key="k21")
    await add(board, TWO_PER_KEY, "third of two", key="k21")
    started = await board.read("w2")
    assert ids(started) == [*(f"first{number}" for number in range(1, 20)), "of two gates", "one of two", "two of two"]
    rest = (await board.settle("w2", *started, want=99)).deliveries
    assert sorted(ids(rest)) == ["behind first2", "behind first3", "behind of two gates", "third of two"]
    (last,) = (await board.settle("w1", *held, want=99)).deliveries
    assert last.id == b"behind held"
    await board.settle("w2", *rest)
    await board.settle("w1", last)
    assert await is_empty(board)


async def test_who_waits_at_the_gate_of_its_key_takes_no_place_of_the_handler(board):
    await board.join("w1")
    await add(board, BOTH, "a1", "a2", "a3", key="a")
    await add(board, BOTH, "b1", "b2", key="b")
    await add(board, BOTH, "c1", key="c")
    a1, b1 = await board.read("w1")
    assert ids([a1, b1]) == ["a1", "b1"]
    waiting = [member for member in await board.redis.zrange(board.keys.gates, 0, -1) if "\0p" in member]
    assert [member.partition("\0")[0] for member in waiting] == ["h:h", "k:h:a", "k:h:a", "k:h:b"]
    # c1 has passed the gate of its key. At that of the handler those come first that were enqueued first.
    (a2,) = (await board.settle("w1", a1, want=9)).deliveries
    (b2,) = (await board.settle("w1", b1, want=9)).deliveries
    (a3,) = (await board.settle("w1", a2, want=9)).deliveries
    (c1,) = (await board.settle("w1", b2, want=9)).deliveries
    assert ids([a2, b2, a3, c1]) == ["a2", "b2", "a3", "c1"]
    await board.settle("w1", a3, c1)
    assert await is_empty(board)


async def test_jobs_of_high_priority_pass_a_gate_first_and_the_others_in_the_order_of_their_enqueue(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    await add(board, ONE_PER_KEY, "c")
    await add(board, ONE_PER_KEY, "high", lane=1)
    started = []
    deliveries = await board.read("w1")
    while deliveries:
        started += ids(deliveries)
        deliveries = (await board.settle("w1", *deliveries, want=9)).deliveries
    assert started == ["high", "a", "b", "c"]


async def test_a_rate_lets_the_next_one_start_when_it_is_due_and_says_when_that_is(board):
    await board.join("w1")
    await add(board, ONE_A_MINUTE, "a", "b")
    reply = await board.cycle("w1", 9)
    assert ids(reply.deliveries) == ["a"]
    assert 59_000 < reply.next_due_ms - reply.server_ms <= 60_001
    assert (await board.settle("w1", *reply.deliveries, want=9)).deliveries == []
    await wind(board)
    reply = await board.cycle("w1", 9)
    assert ids(reply.deliveries) == ["b"]
    await board.settle("w1", *reply.deliveries)
    await wind(board)
    assert (await board.cycle("w1", 9)).next_due_ms == -1
    assert await board.redis.exists(board.keys.openings) == 0
    assert await is_empty(board)


async def wind(board):
    """Let a minute pass for the rates."""
    for member, score in await board.redis.zrange(board.keys.openings, 0, -1, withscores=True):
        await board.redis.zadd(board.keys.openings, {member: score - 60_000_001})


async def test_a_full_worker_is_not_told_of_rates_and_lets_nobody_pass(board):
    await board.join("w1")
    await add(board, ONE_A_MINUTE, "a", "b")
    await board.read("w1")
    await wind(board)
    reply = await board.cycle("w1", 0)
    assert reply.next_due_ms == -1
    assert ids(await board.read("w1", 1)) == ["b"]


async def test_a_job_that_is_retried_gives_its_place_up_and_needs_it_again(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    (first,) = await board.read("w1")
    row = (first.token, first.id, 5_000, first.digit, first.enqueued_ms, first.raw, b"")
    (second,) = (await board.cycle("w1", 9, requeued=list(row))).deliveries
    assert second.id == b"b"
    await board.redis.zadd(board.keys.delayed, {"a": 1})
    assert await board.read("w1") == []
    (again,) = (await board.settle("w1", second, want=9)).deliveries
    assert (again.id, again.enqueued_ms) == (b"a", first.enqueued_ms)


async def test_the_place_of_a_job_whose_worker_died_stays_its_own(board):
    await board.join("w1", "w2")
    await add(board, ONE_PER_KEY, "a", "b")
    await board.read("w1")
    assert await board.read("w2") == []
    await board.die("w1")
    (again,) = await board.take_over("w2")
    assert (again.id, again.crashes) == (b"a", 1)
    assert ids((await board.settle("w2", again, want=9)).deliveries) == ["b"]


async def test_a_job_that_was_read_without_a_cycle_passes_its_gates_when_it_is_taken_over(board):
    await board.join("w1", "w2")
    await add(board, ONE_PER_KEY, "a", "b")
    deliveries, _, _ = await board.partition.wait("w1", 9, 1, lambda: 0.0)
    assert ids(deliveries) == ["a", "b"]
    await board.partition.release("w1", deliveries)
    (first,) = await board.read("w2")
    assert (first.id, first.crashes) == (b"a", 0)
    assert ids((await board.settle("w2", first, want=9)).deliveries) == ["b"]


async def test_a_job_that_waits_at_a_gate_is_seen_as_queued(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    await board.read("w1")
    view = Inspection(board.partition.wire, board.keys)
    place = await view.locate("b")
    assert (place.state, place.lane, str(place.gate), place.due_ms) == (
        "queued", "normal", "concurrency_per_key of h for u", 0,
    )  # fmt: skip
    counts = await view.counts()
    assert (counts.jobs, counts.delayed) == (2, 0)


@pytest.mark.parametrize("which", ["waits", "has passed"])
async def test_a_cancelled_job_leaves_the_gate(board, which):
    await board.join("w1")
    orders = Orders(board.partition.wire, board.keys)
    await add(board, ONE_PER_KEY, "a", "b", "c")
    (first,) = await board.read("w1")
    if which == "has passed":
        await board.settle("w1", first)  # b lies in a lane, and has the place
        assert await board.redis.zcard(board.keys.gates) == 2
    assert await orders.cancel("b") == "cancelled"
    if which == "has passed":
        (third,) = await board.read("w1")
    else:
        (third,) = (await board.settle("w1", first, want=9)).deliveries
    assert third.id == b"c"
    await board.settle("w1", third)
    assert await is_empty(board)


async def test_more_jobs_than_a_cycle_may_move_are_parked_in_several_and_nobody_behind_them_waits(board):
    await board.join("w1")
    for first in range(0, 512, 128):
        await add(board, ONE_PER_KEY, *(f"a{n:03}" for n in range(first, first + 128)))
    await add(board, ONE_PER_KEY, "other", key="v")
    started, cycles, due = [], 0, True
    while due:
        reply = await board.cycle("w1", 9)
        started += ids(reply.deliveries)
        due = 0 <= reply.next_due_ms <= reply.server_ms
        cycles += 1
    assert started == ["a000", "other"]
    assert 4 <= cycles <= 6


async def test_a_limit_that_was_changed_holds_for_those_that_come_and_starves_nobody(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    (first,) = await board.read("w1")
    await add(board, Gates.of("h", 3, None, 0, None), "c", "d")
    assert await board.read("w1") == []
    assert ids((await board.settle("w1", first, want=9)).deliveries) == ["b", "c", "d"]


async def test_places_of_jobs_that_are_not_there_are_found_and_freed_and_the_next_one_starts(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    await board.read("w1")
    await board.redis.hdel(board.keys.index, "a")
    repairs = Repairs(board.partition, "me")
    assert await repairs.gates(repair=False) == ["a"]
    assert await board.redis.zcard(board.keys.gates) == 2
    assert await repairs.gates(repair=True) == ["a"]
    assert await repairs.gates(repair=True) == []
    assert ids(await board.read("w1")) == ["b"]
    assert await board.redis.hkeys(board.keys.places) == ["b"]


async def test_a_job_that_waits_where_no_gate_knows_it_is_made_due(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    (first,) = await board.read("w1")
    await board.settle("w1", first)
    await add(board, ONE_PER_KEY, "c")
    await board.read("w1")
    await board.redis.delete(board.keys.gates)
    repairs = Repairs(board.partition, "me")
    assert (await repairs.mend([b"b", b"c"], repair=True)).stranded == ["c"]
    assert ids(await board.read("w1")) == ["c"]


async def test_somebody_who_waits_at_an_open_gate_is_let_in_by_the_repair(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b")
    await board.read("w1")
    await board.redis.zrem(board.keys.gates, "k:h:u\0ha")
    assert await board.read("w1") == []
    assert await Repairs(board.partition, "me").gates(repair=True) == []
    assert ids(await board.read("w1")) == ["b"]


async def test_what_waits_at_a_gate_and_lies_nowhere_lets_the_next_one_pass(board):
    await board.join("w1")
    await add(board, ONE_PER_KEY, "a", "b", "c")
    (first,) = await board.read("w1")
    await board.redis.hdel(board.keys.payload, "b")
    assert ids((await board.settle("w1", first, want=9)).deliveries) == ["c"]
    assert (await Repairs(board.partition, "me").mend([b"b"], repair=True)).orphaned == ["b"]
    assert await board.redis.hkeys(board.keys.places) == ["c"]
