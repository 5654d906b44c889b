"""add, cycle and cancel together: who stands in for a new job, by the scope of its dedup key."""

from __future__ import annotations

import pytest

from streamq.broker.orders import Orders
from streamq.broker.partition import CallRepeated, NewJob

HOUR_MS = 3_600_000
KEPT_TILL = 253_370_764_800_000


async def holder(board) -> str | None:
    """Return who holds the key of these tests."""
    return await board.redis.get(board.keys.dedup("k"))


async def due(board, job_id: str) -> int:
    """Return the due time of a delayed job."""
    return int(await board.redis.zscore(board.keys.delayed, job_id))


async def payload(board, job_id: str) -> str:
    """Return the envelope of a delayed job."""
    return (await board.redis.hget(board.keys.payload, job_id)).split("|")[2]


async def end(board, delivery, window_ms: int = 0) -> list:
    """Report the end of a job that has the key; return what the cycle brought."""
    reply = await board.settle("w1", delivery, dedups=[(delivery.id, "k", window_ms)], want=8)
    return [found.id.decode() for found in reply.deliveries]


async def add_with_envelope(board, job_id: str, scope: str, delay_ms: int = 0) -> list[str]:
    """Add a job that can be cancelled: its envelope names the key."""
    board.calls += 1
    job = NewJob(job_id, 2, b'{"h":"h","g":"k","gs":"%s"}' % scope[:1].encode(), delay_ms, "k", scope)
    return list((await board.partition.add("producer", board.calls, [job])).results)


# ---- until started


async def test_until_started_a_waiting_job_stands_in_and_a_running_one_does_not(board):
    """What changed while it runs, it may have read before."""
    await board.add("a", dedup="k", scope="s")
    assert (await board.add("b", dedup="k", scope="s")).results == ["da"]
    await board.join("w1")
    (delivery,) = await board.read("w1")
    assert (await board.add("c", dedup="k", scope="s")).results == "n"
    assert await holder(board) == "c"
    assert await end(board, delivery) == ["c"]
    assert await holder(board) == "c"


async def test_until_started_a_job_that_was_handed_back_stands_in_again(board):
    """Its run has yet to begin."""
    await board.join("w1")
    await board.add("a", dedup="k", scope="s")
    deliveries = await board.read("w1")
    await board.partition.release("w1", deliveries)
    assert (await board.add("b", dedup="k", scope="s")).results == ["da"]


async def test_until_started_a_job_that_waits_for_its_retry_stands_in(board):
    """It will start after this call."""
    await board.join("w1")
    await board.add("a", dedup="k", scope="s")
    (delivery,) = await board.read("w1")
    await board.requeue("w1", delivery, HOUR_MS)
    assert (await board.add("b", dedup="k", scope="s")).results == ["da"]
    await end_all(board)


async def end_all(board) -> None:
    """Free the key for the check that nothing is left."""
    await board.redis.delete(board.keys.dedup("k"))


# ---- throttle and period


async def test_a_throttled_key_is_taken_from_acceptance_for_its_interval_and_no_longer(board):
    """Whether the job has ended or still waits."""
    await board.join("w1")
    await board.add("a", dedup="k", scope="t60000")
    assert 59_000 < await board.redis.pttl(board.keys.dedup("k")) <= 60_000
    (delivery,) = await board.read("w1")
    await end(board, delivery, -1)
    assert (await board.add("b", dedup="k", scope="t60000")).results == ["da"]
    await board.redis.pexpire(board.keys.dedup("k"), 0)
    assert (await board.add("c", dedup="k", scope="t60000")).results == "n"


async def test_a_throttled_job_that_still_waits_does_not_hold_the_key_longer(board):
    """At most one in each interval is not at most one at a time."""
    await board.add("a", dedup="k", scope="t60000")
    await board.redis.delete(board.keys.dedup("k"))
    assert (await board.add("b", "c", dedup="k", scope="t60000")).results == ["n", "db"]
    assert await board.lane() == ["a", "b"]


async def test_a_throttled_key_whose_time_was_lost_is_freed_with_its_job(board):
    """A replay takes the key without a time; nothing may be left behind."""
    await board.join("w1")
    await board.add("a", dedup="k", scope="t60000")
    await board.redis.persist(board.keys.dedup("k"))
    (delivery,) = await board.read("w1")
    await end(board, delivery, -1)
    assert await holder(board) is None


async def test_a_debounced_call_does_not_take_the_key_from_a_job_that_is_kept(board):
    """It could not be found any more when the one before it ends."""
    await running(board)
    await board.add("b", dedup="k", scope="k")
    assert (await board.add("c", dedup="k", scope="d60000", delay_ms=1)).results == ["db"]


async def test_a_period_ends_for_all_at_the_same_time_of_the_servers(board):
    """One per hour is one from full hour to full hour."""
    before_ms = await board.now_ms()
    await board.add("a", dedup="k", scope=f"p{HOUR_MS}")
    ends_ms = await board.redis.pexpiretime(board.keys.dedup("k"))
    assert ends_ms in {(at // HOUR_MS + 1) * HOUR_MS for at in (before_ms, await board.now_ms())}
    assert (await board.add("b", dedup="k", scope=f"p{HOUR_MS}")).results == ["da"]


# ---- debounce


async def test_a_debounced_job_gets_the_arguments_and_the_time_of_the_last_call(board):
    """Three keystrokes, one search."""
    assert (await board.add("a", dedup="k", scope="d600000", delay_ms=1_000)).results == "n"
    first_ms = await due(board, "a")
    _, enqueued_ms, _ = (await board.redis.hget(board.keys.payload, "a")).split("|")
    assert (await board.add("b", dedup="k", scope="d600000", delay_ms=5_000, lane="high")).results == ["ra"]
    assert await due(board, "a") >= first_ms + 4_000
    assert await board.redis.hget(board.keys.payload, "a") == f"1|{enqueued_ms}|<b>"
    assert await board.redis.hgetall(board.keys.index) == {"a": "z~"}
    assert await holder(board) == "a"


async def test_a_debounced_job_is_put_off_to_its_maximum_and_no_further(board):
    """A steady stream of calls must not starve it."""
    await board.add("a", dedup="k", scope="d7000", delay_ms=5_000)
    first_ms = await due(board, "a") - 5_000
    for _ in range(3):
        await board.add("b", dedup="k", scope="d7000", delay_ms=6_999)
    assert first_ms + 6_999 <= await due(board, "a") <= first_ms + 7_000
    await board.redis.hset(board.keys.payload, "a", f"2|{first_ms - 60_000}|<a>")
    await board.add("c", dedup="k", scope="d7000", delay_ms=5_000)
    assert await due(board, "a") == first_ms - 53_000


async def test_calls_of_one_batch_debounce_each_other(board):
    """The first is not yet written when the second is judged."""
    added = await board.add("a", "b", "c", dedup="k", scope="d600000", delay_ms=1_000)
    assert added.results == ["n", "ra", "ra"]
    assert await payload(board, "a") == "<c>"
    assert await board.redis.zcard(board.keys.delayed) == 1


async def test_a_debounced_job_that_is_due_is_not_changed_any_more(board):
    """Calls had stopped for long enough; the next one begins anew."""
    await board.join("w1")
    await board.add("a", dedup="k", scope="d600000", delay_ms=1_000)
    await board.make_due("a")
    (delivery,) = await board.read("w1")
    assert (await board.add("b", dedup="k", scope="d600000", delay_ms=1_000)).results == "n"
    await end(board, delivery)
    assert await holder(board) == "b"


async def test_a_debounced_job_that_waits_for_its_retry_is_left_alone(board):
    """Its attempts and its fence are its own."""
    await board.join("w1")
    await board.add("a", dedup="k", scope="d600000", delay_ms=1_000)
    await board.make_due("a")
    (delivery,) = await board.read("w1")
    await board.requeue("w1", delivery, HOUR_MS)
    assert (await board.add("b", dedup="k", scope="d600000", delay_ms=1_000)).results == "n"
    assert await payload(board, "a") == "again"


# ---- keep last


async def running(board):
    """Add a job that keeps the last call, and read it."""
    await board.join("w1")
    await add_with_envelope(board, "a", "k")
    (delivery,) = await board.read("w1")
    return delivery


async def test_while_a_job_runs_the_newest_call_is_kept_and_runs_after_it(board):
    """With the arguments of the last call, once, at once."""
    delivery = await running(board)
    assert (await board.add("b", dedup="k", scope="k")).results == "n"
    assert (await board.add("c", dedup="k", scope="k")).results == ["rb"]
    assert await board.token("b") == "z>a"
    assert (await due(board, "b"), await payload(board, "b")) == (KEPT_TILL, "<c>")
    assert (await board.cycle("w1", 8)).deliveries == []
    assert await end(board, delivery) == ["b"]
    assert await holder(board) == "b"


async def test_the_end_of_a_job_that_keeps_the_last_frees_the_key_when_nobody_called(board):
    """Nothing is left behind."""
    assert await end(board, await running(board)) == []
    assert await holder(board) is None


async def test_a_waiting_job_stands_in_where_the_last_is_kept(board):
    """It has not begun."""
    assert (await board.add("a", "b", dedup="k", scope="k")).results == ["n", "da"]


async def test_behind_a_job_that_waits_for_its_retry_the_newest_call_is_kept(board):
    """Its arguments are older, and it has begun."""
    delivery = await running(board)
    await board.requeue("w1", delivery, HOUR_MS)
    assert (await board.add("b", dedup="k", scope="k")).results == "n"
    assert await board.token("b") == "z>a"


async def test_calls_of_one_batch_are_kept_as_one(board):
    """The first is not yet written when the second is judged."""
    await running(board)
    assert (await board.add("b", "c", dedup="k", scope="k")).results == ["n", "rb"]
    assert await payload(board, "b") == "<c>"


async def test_a_kept_job_whose_forerunner_vanished_is_due_with_the_next_call(board):
    """Nobody else would start it."""
    await running(board)
    await board.add("b", dedup="k", scope="k")
    await board.redis.hdel(board.keys.index, "a")
    assert (await board.add("c", dedup="k", scope="k")).results == ["rb"]
    assert (await board.token("b"), await payload(board, "b")) == ("z", "<c>")
    assert await due(board, "b") <= await board.now_ms()


async def test_a_kept_job_that_is_cancelled_gives_the_key_back(board):
    """Else the next call would run beside the job that still runs."""
    await running(board)
    await add_with_envelope(board, "b", "k")
    assert await Orders(board.partition.wire, board.keys).cancel("b") == "cancelled"
    assert await holder(board) == "a"
    assert await board.redis.exists(board.keys.delayed, board.keys.payload) == 0


async def test_a_kept_job_whose_forerunner_has_vanished_frees_the_key_when_it_is_cancelled(board):
    """There is nobody to give it back to."""
    await running(board)
    await add_with_envelope(board, "b", "k")
    await board.redis.hdel(board.keys.index, "a")
    assert await Orders(board.partition.wire, board.keys).cancel("b") == "cancelled"
    assert await holder(board) is None


async def test_cancelling_a_job_before_its_retry_starts_the_one_behind_it(board):
    """Every way to end counts; a blocked reader is woken."""
    delivery = await running(board)
    row = (delivery.token, delivery.id, HOUR_MS, 2, 0, b'{"h":"h","g":"k","gs":"k"}', b"")
    await board.cycle("w1", requeued=list(row))
    await board.add("b", dedup="k", scope="k")
    before = await board.markers()
    assert await Orders(board.partition.wire, board.keys).cancel("a") == "cancelled"
    assert await board.markers() == before + 1
    assert [found.id for found in await board.read("w1")] == [b"b"]


# ---- all scopes


@pytest.mark.parametrize("scope", ["", "s", "d5000", "k"])
async def test_a_holder_that_no_longer_exists_is_taken_over_and_counted(board, scope):
    """It must not block its key for ever, and somebody should know."""
    await board.redis.set(board.keys.dedup("k"), "ghost")
    assert (await board.add("a", dedup="k", scope=scope)).results == "n"
    assert await holder(board) == "a"
    assert await board.redis.hget(board.keys.counts, "dedup_taken_over") == "1"


@pytest.mark.parametrize("scope", ["", "s", "t60000", "p60000", "d5000", "k"])
async def test_a_window_after_the_end_holds_whatever_the_scope_of_the_call(board, scope):
    """It is the holder's promise."""
    await board.redis.set(board.keys.dedup("k"), "ended", px=60_000)
    assert (await board.add("a", dedup="k", scope=scope)).results == ["dended"]
    assert await board.redis.hget(board.keys.counts, "dedup_taken_over") is None


@pytest.mark.parametrize("scope", ["", "s", "t60000", "p3600000", "d5000", "k"])
async def test_a_repeated_call_is_told_the_same_whatever_the_scope(board, scope):
    """Its reply was lost; nothing may happen twice."""
    first = await board.add("a", "b", dedup="k", scope=scope)
    before = await board.snapshot()
    board.calls -= 1
    with pytest.raises(CallRepeated) as repeated:
        await board.add("a", "b", dedup="k", scope=scope)
    assert repeated.value.results.split("\n") == list(first.results)
    assert await board.snapshot() == before


# ---- due times


async def test_a_due_time_is_the_servers_whatever_the_producers_clock_says(board):
    """A delay made of the difference to a wrong clock would be wrong by as much."""
    at_ms = await board.now_ms() + 60_000
    await board.partition.add("p", 1, [NewJob("a", 2, b"{}", at_ms=at_ms), NewJob("b", 2, b"{}", at_ms=1)])
    assert await due(board, "a") == at_ms
    assert await due(board, "b") <= await board.now_ms()
