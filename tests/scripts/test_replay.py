"""replay: a dead letter becomes a job again, under its old id."""

from __future__ import annotations

import pytest

from streamq.broker.orders import Orders
from streamq.codec import decode_envelope

ENVELOPE = b'{"v":1,"h":"greet","n":5,"s":4,"x":12345}'


@pytest.fixture
def orders(board):
    """The operators' side of the partition."""
    return Orders(board.partition.wire, board.keys)


async def bury_job(board, job_id: str = "a") -> str:
    """Make a job dead; return the id of its letter."""
    await board.join("w1")
    await board.settle("w1", await board.take("w1", job_id), letters=[job_id.encode(), ENVELOPE, b"{}"])
    ((letter, _),) = await board.redis.xrange(board.keys.dead)
    return letter


async def test_a_replayed_job_starts_a_new_life(board, orders):
    """With its first attempt and without its deadline; its fence rises on, so that an old holder stays out."""
    letter = await bury_job(board)
    assert await orders.replay(letter, "a", ENVELOPE, "low") == ("replayed", "")
    assert await board.redis.xlen(board.keys.dead) == 0
    (delivery,) = await board.read("w1")
    envelope = decode_envelope(delivery.raw)
    assert (delivery.id, delivery.digit) == (b"a", 3)
    assert (envelope.attempt, envelope.starts, envelope.deadline_ms) == (1, 5, 0)


async def test_a_letter_is_replayed_once(board, orders):
    """A second click, or a lost reply, makes no second job."""
    letter = await bury_job(board)
    await orders.replay(letter, "a", ENVELOPE, "low")
    assert await orders.replay(letter, "a", ENVELOPE, "low") == ("gone", "")
    assert await board.lane("low") == ["a"]


async def test_a_letter_of_another_job_is_not_taken_for_this_one(board, orders):
    """Both ids must fit."""
    letter = await bury_job(board)
    before = await board.snapshot()
    assert await orders.replay(letter, "b", ENVELOPE, "low") == ("gone", "")
    assert await board.snapshot() == before


async def test_a_letter_whose_job_lives_again_is_kept(board, orders):
    """Somebody enqueued the same id; two jobs under one id cannot be."""
    letter = await bury_job(board)
    await board.add("a")
    before = await board.snapshot()
    assert await orders.replay(letter, "a", ENVELOPE, "low") == ("alive", "")
    assert await board.snapshot() == before


async def test_a_letter_whose_dedup_key_is_held_is_kept(board, orders):
    """The job that holds it does the work."""
    letter = await bury_job(board)
    await board.add("b", dedup="k")
    before = await board.snapshot()
    assert await orders.replay(letter, "a", ENVELOPE[:-1] + b',"g":"k"}', "low") == ("held", "b")
    assert await board.snapshot() == before


async def test_a_replayed_job_holds_its_dedup_key(board, orders):
    """Without a TTL, though it was in its window."""
    letter = await bury_job(board)
    await board.redis.set(board.keys.dedup("k"), "a", px=60_000)
    assert await orders.replay(letter, "a", ENVELOPE[:-1] + b',"g":"k"}', "low") == ("replayed", "")
    assert (await board.add("b", dedup="k")).results == ["da"]
    assert await board.redis.pttl(board.keys.dedup("k")) == -1


async def test_letters_are_deleted_for_good(board, orders):
    """And counted."""
    letter = await bury_job(board)
    assert await orders.delete_letters([]) == 0
    assert await orders.delete_letters([letter, letter, "1-1"]) == 1
    assert await board.redis.xlen(board.keys.dead) == 0
