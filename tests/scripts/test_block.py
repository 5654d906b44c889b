"""block: a queue, a handler or one user key is stopped, or let go again; and what the cycle does with it."""

from __future__ import annotations

import orjson
import pytest

from streamq.broker.inspection import Inspection
from streamq.broker.orders import Orders
from streamq.codec import encode_envelope
from streamq.errors import BadInput
from streamq.job import Envelope, Parked
from streamq.worker.settle import reported, settle

BLOCK = "h:greet"


@pytest.fixture
def orders(board):
    """The operators' side of the partition."""
    return Orders(board.partition.wire, board.keys)


@pytest.fixture
def view(board):
    """What is seen from outside."""
    return Inspection(board.partition.wire, board.keys)


async def park(board, consumer: str, delivery, what: str = BLOCK):
    """Report that a job was not run; what it was given stays its envelope."""
    row = (delivery.token, delivery.id, what, delivery.digit, delivery.enqueued_ms, delivery.raw, b"")
    return await board.cycle(consumer, requeued=list(row))


async def parked(board, orders, *job_ids: str) -> None:
    """Block the handler, and park jobs under it."""
    await board.join("w1")
    await orders.block(handler="greet", reason="bad release", by="ada")
    for job_id in job_ids:
        await park(board, "w1", await board.take("w1", job_id))


async def test_a_blocked_job_lies_among_the_delayed_and_is_never_due(board, orders, view):
    """It is in exactly one place, and no clock moves it."""
    await parked(board, orders, "a")
    assert await board.token("a") == "z"
    reply = await board.cycle("w1", 5)
    assert (reply.deliveries, reply.next_due_ms, reply.stopped) == ([], -1, [b"h:greet"])
    counts = await view.counts()
    assert (counts.blocked, counts.delayed, counts.waiting, counts.next_due_ms) == (1, 0, 0, None)
    assert [tuple(block) for block in counts.blocks] == [("handler", "greet", 0, "bad release", "ada")]
    assert [job.due_ms for job in await view.delayed(limit=5)] == [0]


async def test_when_a_block_is_lifted_its_jobs_come_back_in_their_order(board, orders):
    """The oldest first, whatever the order in which they met the block."""
    await board.join("w1")
    await orders.block(handler="greet", reason="", by="me")
    taken = [await board.take("w1", job_id) for job_id in "abc"]
    for number, delivery in enumerate(taken):
        delivery.enqueued_ms = 1000 + number
    for delivery in (taken[2], taken[0], taken[1]):
        await park(board, "w1", delivery)
    assert await orders.unblock(handler="greet")
    assert [delivery.id for delivery in await board.read("w1")] == [b"a", b"b", b"c"]
    assert await board.redis.exists(board.keys.pause, board.keys.delayed, board.keys.payload) == 0


async def test_a_block_ends_by_itself_and_a_worker_is_told_when(board, orders):
    """The reply says when to ask again."""
    await board.join("w1")
    until_ms = await board.now_ms() + 60_000
    await orders.block(handler="greet", reason="", by="me", until_ms=until_ms)
    await park(board, "w1", await board.take("w1", "a"))
    assert (await board.cycle("w1", 5)).next_due_ms == until_ms
    await board.redis.hset(board.keys.pause, BLOCK, "5|1|{}")
    assert [delivery.id for delivery in await board.read("w1")] == [b"a"]


async def test_many_blocked_jobs_come_back_in_batches_and_the_block_stays_until_the_last(board, orders):
    """No call takes long; its number is not given to another block before."""
    await board.join("w1")
    await orders.block(key="u1", reason="", by="me")
    await board.redis.zadd(board.keys.delayed, {f"j{n:03}": 2**48 + 2**42 + n for n in range(200)})
    await board.redis.hset(board.keys.payload, mapping={f"j{n:03}": f"2|{n}|<e>" for n in range(200)})
    await board.redis.hset(board.keys.index, mapping={f"j{n:03}": "z" for n in range(200)})
    assert await orders.unblock(key="u1")
    await orders.block(key="u2", reason="", by="me")
    reply = await board.cycle("w1", 0)
    assert reply.next_due_ms == reply.server_ms
    assert len(await board.lane()) == 128
    assert (await board.redis.hget(board.keys.pause, "k:u2")).startswith("0|2|")
    await board.cycle("w1", 0)
    assert await board.lane() == [f"j{n:03}" for n in range(200)]
    assert await board.redis.hkeys(board.keys.pause) == ["k:u2"]


async def test_jobs_of_one_block_stay_when_another_is_lifted(board, orders):
    """Each waits for its own."""
    await parked(board, orders, "a")
    await orders.block(key="u1", reason="", by="me")
    await park(board, "w1", await board.take("w1", "b"), "k:u1")
    await orders.unblock(key="u1")
    assert [delivery.id for delivery in await board.read("w1")] == [b"b"]
    assert await board.token("a") == "z"


@pytest.mark.parametrize("rule", ["1|1|{}", None], ids=["being lifted", "gone"])
async def test_a_job_that_is_parked_too_late_goes_straight_back(board, rule):
    """The block was lifted meanwhile: nobody would ever free it."""
    await board.join("w1")
    if rule:
        await board.redis.hset(board.keys.pause, BLOCK, rule)
    await park(board, "w1", await board.take("w1", "a"))
    assert await board.lane() == ["a"]
    assert [delivery.id for delivery in await board.read("w1")] == [b"a"]


async def test_a_blocked_job_can_be_cancelled(board, orders):
    """Like any that waits."""
    await board.join("w1")
    await orders.block(handler="greet", reason="", by="me")
    delivery = await board.take("w1", "a")
    delivery.raw = encode_envelope(Envelope("greet"))
    await park(board, "w1", delivery)
    assert await orders.cancel("a") == "cancelled"
    await orders.unblock(handler="greet")
    assert await board.read("w1") == []


async def test_a_blocked_job_uses_no_attempt_and_its_fence_rises(board, orders):
    """It was not run; but it may have been run before, by a worker that died."""
    await board.join("w1")
    await orders.block(handler="greet", reason="", by="me")
    delivery = await board.take("w1", "a")
    delivery.raw, delivery.envelope = b"", Envelope("greet", attempt=3, starts=2)
    item = settle(delivery, Parked(BLOCK), 1, 2)
    assert item is not None
    assert item.record == b""
    assert orjson.loads(item.requeue[3]) == {"h": "greet", "n": 3, "s": 3}


async def test_blocking_again_changes_reason_and_time_and_keeps_the_jobs(board, orders, view):
    """Also when it was just being lifted."""
    await parked(board, orders, "a")
    await orders.unblock(handler="greet")
    await orders.block(handler="greet", reason="still bad", by="me")
    assert await board.read("w1") == []
    counts = await view.counts()
    assert (counts.blocked, counts.blocks[0].reason) == (1, "still bad")


async def test_what_is_not_blocked_cannot_be_let_go(board, orders):
    """The answer says so, and nothing is written."""
    assert not await orders.unblock(handler="greet")
    assert not await orders.resume()
    assert await board.snapshot() == {}


async def test_a_queue_has_at_most_128_blocks(board, orders):
    """Each cycle looks at all of them."""
    for number in range(128):
        await orders.block(key=f"u{number}", reason="", by="me")
    with pytest.raises(BadInput, match="has 128 blocks already"):
        await orders.block(key="one more", reason="", by="me")
    await orders.block(key="u7", reason="known", by="me")
    await orders.pause(reason="a pause is none of them", by="me")
    await board.join("w1")
    assert len((await board.cycle("w1")).stopped) == 129


@pytest.mark.parametrize("named", [{}, {"handler": "greet", "key": "u1"}])
async def test_a_block_is_of_a_handler_or_of_a_key(orders, named):
    """Both at once would be a third thing."""
    with pytest.raises(BadInput, match="name a handler or a user key"):
        await orders.block(**named, reason="", by="me")


async def test_a_moment_long_past_is_not_taken_for_an_order_to_lift(board, orders):
    """1 on the wire means that."""
    await orders.block(handler="greet", reason="", by="me", until_ms=1)
    assert (await board.redis.hget(board.keys.pause, BLOCK)).startswith("2|1|")


async def test_a_job_that_nobody_knows_is_offered_again_and_seen(board, view):
    """For as long as it takes; since when is remembered, and forgotten a minute after the last one was met."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    before_ms = await board.now_ms()
    await park(board, "w1", delivery, "?send")
    assert before_ms + 5000 <= await board.redis.zscore(board.keys.delayed, "a") <= await board.now_ms() + 5000
    (unknown,) = (await view.counts()).unknown
    assert unknown.what == "send"
    assert before_ms <= unknown.since_ms <= await board.now_ms()
    assert (await board.cycle("w1")).stopped == []
    await board.redis.hset(board.keys.pause, "?send", f"{await board.now_ms() + 1000}|0|" + '{"since":77}')
    await board.make_due("a")
    await park(board, "w1", (await board.read("w1"))[0], "?send")
    assert (await view.counts()).unknown[0].since_ms == 77
    await board.redis.hset(board.keys.pause, "?send", '5|0|{"since":77}')
    assert (await view.counts()).unknown == []
    await board.cycle("w1")
    assert await board.redis.exists(board.keys.pause) == 0


async def test_names_that_nobody_knows_are_noted_up_to_a_number(board):
    """A producer gone wild fills nothing; its jobs are parked all the same."""
    await board.join("w1")
    await board.redis.hset(board.keys.pause, mapping={f"?h{n}": "99999999999999|0|{}" for n in range(256)})
    await park(board, "w1", await board.take("w1", "a"), "?one more")
    assert await board.redis.hlen(board.keys.pause) == 256
    assert await board.token("a") == "z"


async def test_the_report_carries_what_a_job_waits_for(board):
    """In the place of its delay."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    delivery.envelope = Envelope("greet")
    item = settle(delivery, Parked("k:u1"), 1, 2)
    assert item is not None
    assert reported([item]).requeued[2] == "k:u1"
