"""cycle: a worker's whole conversation with a partition, in one call."""

from __future__ import annotations

import asyncio

import pytest
import redis.exceptions

from streamq.broker.partition import BATCH, NewJob, Unregistered
from streamq.broker.wire import Fault, ServerRefused
from streamq.keys import HANDBACK, LANES

# ---- the fence of the worker


async def test_a_worker_that_never_registered_is_fenced(board):
    """Nobody beats for it, so nobody would notice its death."""
    await board.add("a")
    before = await board.snapshot()
    with pytest.raises(Unregistered):
        await board.cycle("w1", 5)
    assert await board.snapshot() == before


async def test_a_worker_that_was_given_up_is_fenced_and_nothing_of_its_report_is_written(board):
    """Its jobs are free to take, and may run elsewhere by now."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.partition.bury(["w1"])
    before = await board.snapshot()
    with pytest.raises(Unregistered):
        await board.settle("w1", delivery)
    assert await board.snapshot() == before


async def test_a_cycle_is_a_beat(board):
    """A worker that works needs no other sign of life."""
    await board.join("w1")
    await board.die("w1")
    reply = await board.cycle("w1")
    assert await board.redis.zscore(board.keys.workers, "w1") == reply.server_ms


# ---- settle


async def test_a_settled_job_leaves_nothing_but_its_record(board):
    """A million finished jobs must not fill the memory."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    reply = await board.settle("w1", delivery)
    assert reply.refused == []
    assert await board.lane() == []
    assert await board.held("w1") == []
    assert await board.redis.exists(board.keys.index) == 0
    assert await board.outbox() == [{"w": "w1", "a": '{"s":"completed"}'}]


async def test_all_records_of_a_cycle_are_one_entry_of_the_outbox(board):
    """In the order in which they were reported: jobs that ended first, then those that go on."""
    await board.join("w1")
    await board.add("a", "b", "c")
    a, b, c = await board.read("w1")
    again = (b.token, b.id, 1000, 2, b.enqueued_ms, b"{}", b'{"s":"retrying"}')
    await board.settle("w1", c, a, requeued=list(again))
    (entry,) = await board.outbox()
    assert list(entry.items()) == [
        ("w", "w1"), ("c", '{"s":"completed"}'), ("a", '{"s":"completed"}'), ("b", '{"s":"retrying"}'),
    ]  # fmt: skip


async def test_a_cycle_without_records_writes_no_entry(board):
    """An idle worker must not fill the outbox."""
    await board.join("w1")
    await board.cycle("w1", 5)
    await board.requeue("w1", await board.take("w1", "a"), 1000)
    assert await board.outbox() == []


async def test_without_an_outbox_jobs_end_all_the_same(board):
    """That is what history=false means."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    assert (await board.settle("w1", delivery, limits=(0, 10))).refused == []
    assert await board.outbox() == []
    assert await board.token("a") is None


async def test_the_outbox_is_bounded(board):
    """A recorder that is away for days must not fill the memory. Redis trims whole blocks of 100 entries."""
    await board.join("w1")
    for number in range(250):
        await board.settle("w1", await board.take("w1", f"j{number}"), limits=(100, 10))
    assert 100 <= await board.redis.xlen(board.keys.outbox) < 250


async def test_a_repeated_report_is_refused_and_writes_nothing(board):
    """The reply to the first one was lost; it had been taken."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.settle("w1", delivery)
    before = await board.outbox()
    reply = await board.settle("w1", delivery)
    assert reply.refused == [b"a"]
    assert await board.outbox() == before


async def test_the_outcome_of_an_old_holder_is_refused(board):
    """Another worker runs the job now; its outcome is the one that counts."""
    await board.join("w1", "w2")
    old = await board.take("w1", "a")
    await board.die("w1")
    (new,) = await board.take_over("w2")
    await board.redis.zadd(board.keys.workers, {"w1": await board.now_ms()})  # as if it had registered anew
    assert (await board.settle("w1", old)).refused == [b"a"]
    assert await board.outbox() == []
    assert (await board.settle("w2", new)).refused == []


async def test_one_job_twice_in_a_report_counts_once(board):
    """Whatever the worker got wrong, a job has one outcome."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    again = (delivery.token, delivery.id, 0, 2, 0, b"{}", b'{"s":"retrying"}')
    reply = await board.settle("w1", delivery, delivery, requeued=list(again))
    assert reply.refused == [b"a", b"a"]
    assert await board.lane() == []
    assert len(await board.outbox()) == 1


async def test_a_bad_report_does_not_take_good_ones_with_it(board):
    """Each row stands for itself."""
    await board.join("w1")
    await board.add("a", "b")
    a, b = await board.read("w1")
    b.token = b.token[:-1] + b"9"
    reply = await board.settle("w1", a, b)
    assert reply.refused == [b"b"]
    assert await board.held("w1") == ["b"]


@pytest.mark.parametrize("lane", LANES)
async def test_jobs_of_every_lane_are_settled_in_their_lane(board, lane):
    """The token says where the entry is."""
    await board.join("w1")
    delivery = await board.take("w1", "a", lane)
    await board.settle("w1", delivery)
    assert await board.lane(lane) == []
    assert await board.held("w1") == []


# ---- dedup keys, results and dead letters of what was settled


async def test_a_dedup_key_is_freed_with_its_job(board):
    """In the same call: nothing may come between."""
    await board.join("w1")
    await board.add("a", dedup="k")
    (delivery,) = await board.read("w1")
    await board.settle("w1", delivery, dedups=[(b"a", "k", 0)])
    assert await board.redis.exists(board.keys.dedup("k")) == 0


async def test_a_dedup_key_with_a_window_is_kept_for_that_long(board):
    """And then goes by itself."""
    await board.join("w1")
    await board.add("a", dedup="k")
    (delivery,) = await board.read("w1")
    await board.settle("w1", delivery, dedups=[(b"a", "k", 60_000)])
    assert 0 < await board.redis.pttl(board.keys.dedup("k")) <= 60_000


async def test_a_dedup_key_of_another_job_is_left_alone(board):
    """It was taken over; freeing it would let a third job in."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.add("b", dedup="k")
    await board.settle("w1", delivery, dedups=[(b"a", "k", 0)])
    assert await board.redis.get(board.keys.dedup("k")) == "b"


async def test_a_refused_job_frees_no_dedup_key(board):
    """It still lives, with another worker."""
    await board.join("w1")
    await board.add("a", dedup="k")
    (delivery,) = await board.read("w1")
    delivery.token += b"*9*9"
    await board.settle("w1", delivery, dedups=[(b"a", "k", 0)])
    assert await board.redis.get(board.keys.dedup("k")) == "a"


async def test_a_result_is_kept_for_as_long_as_was_asked(board):
    """Who waits for it moves it to where it is, so that it can wait inside Redis."""
    await board.join("w1")
    await board.settle("w1", await board.take("w1", "a"), results=[(b"a", 60_000, b"42")])
    key = board.keys.result("a")
    assert await board.redis.lrange(key, 0, -1) == ["42"]
    assert 0 < await board.redis.pttl(key) <= 60_000


async def test_a_dead_letter_has_envelope_and_record(board):
    """What is needed to replay it, and to see why it is there."""
    await board.join("w1")
    await board.settle("w1", await board.take("w1", "a"), letters=[b"a", b"<a>", b'{"s":"dead"}'])
    assert [fields for _, fields in await board.redis.xrange(board.keys.dead)] == [
        {"j": "a", "d": "<a>", "r": '{"s":"dead"}'}
    ]


async def test_dead_letters_are_bounded(board):
    """Redis trims whole blocks of 100 entries."""
    await board.join("w1")
    for number in range(250):
        letter = [b"j%d" % number, b"{}", b"{}"]
        await board.settle("w1", await board.take("w1", f"j{number}"), letters=letter, limits=(1000, 100))
    assert 100 <= await board.redis.xlen(board.keys.dead) < 250


async def test_a_refused_job_leaves_no_result_and_no_letter(board):
    """Else a zombie would write what the job did not come to."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    delivery.token += b"*9*9"
    await board.settle("w1", delivery, results=[(b"a", 60_000, b"42")], letters=[b"a", b"<a>", b"{}"])
    assert await board.redis.exists(board.keys.result("a"), board.keys.dead) == 0


# ---- requeue


async def test_a_requeued_job_waits_for_its_time(board):
    """With the envelope of its next attempt, and its first enqueue time."""
    await board.join("w1")
    delivery = await board.take("w1", "a", "low")
    reply = await board.requeue("w1", delivery, 60_000)
    assert reply.refused == []
    assert await board.token("a") == "z"
    assert await board.redis.hget(board.keys.payload, "a") == f"3|{delivery.enqueued_ms}|again"
    due_ms = await board.redis.zscore(board.keys.delayed, "a")
    assert reply.server_ms + 60_000 <= due_ms <= reply.server_ms + 60_001
    assert reply.next_due_ms == due_ms
    assert await board.lane("low") == []
    assert await board.held("w1") == []


async def test_a_job_comes_again_no_sooner_than_asked_for_not_even_by_a_part_of_a_millisecond(board):
    """The time of a call without its microseconds lies before the call."""
    await board.join("w1")
    for number in range(30):
        delivery = await board.take("w1", f"j{number}")
        before_us = await board.now_us()
        await board.requeue("w1", delivery, 60_000)
        assert 1_000 * await board.redis.zscore(board.keys.delayed, f"j{number}") >= before_us + 60_000_000


async def test_a_job_requeued_without_delay_goes_to_the_end_of_its_lane(board):
    """Under a new entry, and so a new token."""
    await board.join("w1", "w2")
    delivery = await board.take("w1", "a")
    await board.add("b")
    await board.requeue("w1", delivery, 0)
    assert await board.lane() == ["b", "a"]
    b, again = await board.read("w2")
    assert (b.id, again.id, again.raw, again.enqueued_ms) == (b"b", b"a", b"again", delivery.enqueued_ms)
    assert again.token != delivery.token
    assert (again.delivery, again.crashes) == (1, 0)


async def test_a_requeued_job_keeps_its_dedup_key(board):
    """It lives on."""
    await board.join("w1")
    await board.add("a", dedup="k")
    (delivery,) = await board.read("w1")
    await board.requeue("w1", delivery, 60_000)
    assert (await board.add("b", dedup="k")).results == ["da"]


async def test_a_requeue_is_repeated_without_effect(board):
    """The job must not run twice because a reply was lost."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    await board.requeue("w1", delivery, 0)
    reply = await board.requeue("w1", delivery, 0, b'{"s":"retrying"}')
    assert reply.refused == [b"a"]
    assert await board.lane() == ["a"]
    assert await board.outbox() == []


# ---- renew


async def test_a_renewed_delivery_counts_as_new(board):
    """Else the sweep would hand back a job that runs for long."""
    await board.join("w1")
    delivery = await board.take("w1", "a", "high.slow")
    lane = board.keys.lanes[3]
    await board.redis.xclaim(lane, "g", "w1", 0, [delivery.token[1:]], idle=50_000, justid=True)
    reply = await board.cycle("w1", renewed=[delivery.token, delivery.id])
    assert reply.lost == []
    (row,) = await board.redis.xpending_range(lane, "g", "-", "+", 10)
    assert row["time_since_delivered"] < 10_000
    assert row["times_delivered"] == 1


async def test_a_job_that_is_another_workers_is_lost_and_not_renewed(board):
    """To take it back would be to steal it from whoever runs it now."""
    await board.join("w1", "w2")
    delivery = await board.take("w1", "a")
    await board.die("w1")
    (claimed,) = await board.take_over("w2")
    await board.redis.zadd(board.keys.workers, {"w1": await board.now_ms()})
    reply = await board.cycle("w1", renewed=[delivery.token, delivery.id])
    assert reply.lost == [b"a"]
    assert await board.held("w2") == ["a"]
    assert (await board.cycle("w2", renewed=[claimed.token, claimed.id])).lost == []


async def test_a_job_that_is_settled_in_the_same_call_is_lost(board):
    """There is nothing to renew; the worker has forgotten it anyway."""
    await board.join("w1")
    delivery = await board.take("w1", "a")
    assert (await board.settle("w1", delivery, renewed=[delivery.token, delivery.id])).lost == [b"a"]


# ---- wake-up entries


async def test_wake_up_entries_are_brought_and_thrown_away(board):
    """They are no jobs, and nobody else removes them."""
    await board.join("w1")
    await board.add("later", delay_ms=60_000)
    reply = await board.cycle("w1", 5)
    assert reply.deliveries == []
    assert reply.markers[0] == 1
    await board.cycle("w1", markers=reply.markers)
    assert await board.markers() == 0
    assert await board.held("w1") == []


# ---- promote


@pytest.mark.parametrize("lane", LANES)
async def test_a_job_that_is_due_moves_into_its_lane_and_is_read_at_once(board, lane):
    """In the same call: a due job waits for nobody."""
    await board.join("w1")
    await board.add("a", lane=lane, delay_ms=60_000)
    _, enqueued_ms, _ = (await board.redis.hget(board.keys.payload, "a")).split("|")
    await board.make_due("a")
    (delivery,) = await board.read("w1")
    assert (delivery.id, delivery.raw, delivery.digit) == (b"a", b"<a>", LANES.index(lane) + 1)
    assert delivery.enqueued_ms == int(enqueued_ms)
    assert await board.token("a") == delivery.token.decode()
    assert await board.redis.exists(board.keys.delayed, board.keys.payload) == 0


async def test_a_job_is_never_promoted_early(board):
    """Only the server's clock says when it is due."""
    await board.join("w1")
    await board.add("a", delay_ms=60_000)
    reply = await board.cycle("w1", 5)
    assert reply.deliveries == []
    assert reply.next_due_ms == await board.redis.zscore(board.keys.delayed, "a")


async def test_a_worker_is_told_to_the_microsecond_how_long_it_may_sleep(board):
    """Whole milliseconds would let it sleep up to one too long."""
    await board.join("w1")
    await board.add("a", delay_ms=60_000)
    for _ in range(5):
        before_us = await board.now_us()
        reply = await board.cycle("w1", 5)
        told_us = reply.server_ms * 1000 + reply.past_us
        assert before_us <= told_us <= await board.now_us()
        assert reply.due_in_s == pytest.approx((reply.next_due_ms * 1000 - told_us) / 1e6, abs=1e-6)


async def test_a_worker_that_wants_nothing_promotes_for_others(board):
    """A blocked reader elsewhere is woken by the new entry."""
    await board.join("w1")
    await board.add("a", delay_ms=60_000)
    await board.make_due("a")
    assert (await board.cycle("w1")).deliveries == []
    assert await board.lane() == ["a"]


async def test_no_more_than_half_a_batch_is_promoted_in_one_call(board):
    """A million due jobs must not hold up the server; the due time in the past makes the worker call again."""
    await board.join("w1")
    await board.add(*(f"j{number}" for number in range(BATCH)), delay_ms=60_000)
    for job_id in await board.redis.hkeys(board.keys.index):
        await board.make_due(job_id)
    reply = await board.cycle("w1")
    assert len(await board.lane()) == BATCH // 2
    assert reply.next_due_ms == 1
    assert (await board.cycle("w1")).next_due_ms == -1
    assert len(await board.lane()) == BATCH


# ---- pause


@pytest.mark.parametrize("until", ["0", "99999999999999"])
async def test_a_paused_queue_gives_out_nothing_and_takes_everything_back(board, until):
    """What runs is finished; only nothing new starts."""
    await board.join("w1", "w2")
    await board.add("a", "b")
    await board.read("w2")
    await board.die("w2")
    await board.add("c", "d")
    running = (await board.read("w1", 1, dead_after_ms=99_999_999_999_999))[0]
    await board.redis.hset(board.keys.pause, "queue", f"{until}|{{}}")
    reply = await board.settle("w1", running, want=5)
    assert (reply.is_paused, reply.deliveries, reply.refused) == (True, [], [])
    assert sorted(await board.held("w2")) == ["a", "b"]


async def test_a_pause_ends_by_itself(board):
    """And leaves nothing behind."""
    await board.join("w1")
    await board.add("a")
    await board.redis.hset(board.keys.pause, "queue", "1|{}")
    reply = await board.cycle("w1", 5)
    assert (reply.is_paused, len(reply.deliveries)) == (False, 1)
    assert await board.redis.exists(board.keys.pause) == 0


async def test_a_pause_that_cannot_be_read_holds(board):
    """Somebody wanted the queue to stand still."""
    await board.join("w1")
    await board.add("a")
    await board.redis.hset(board.keys.pause, "queue", "for ever")
    assert (await board.cycle("w1", 5)).is_paused


# ---- take over


async def test_the_jobs_of_a_dead_worker_are_taken_over_with_new_tokens_and_a_crash_more(board):
    """Whoever held them may yet wake up."""
    await board.join("w1", "w2")
    old = await board.take("w1", "a", "low")
    await board.die("w1")
    (new,) = await board.take_over("w2")
    assert (new.id, new.raw, new.digit, new.enqueued_ms) == (b"a", b"<a>", 3, old.enqueued_ms)
    assert new.token == old.token + b"*2*1"
    assert (new.delivery, new.crashes) == (2, 1)
    assert await board.token("a") == new.token.decode()
    assert await board.held("w2") == ["a"]


async def test_each_further_death_counts(board):
    """Three are the end, says the worker; the script only counts."""
    await board.join("w1", "w2", "w3")
    old = await board.take("w1", "a")
    await board.die("w1")
    await board.take_over("w2")
    await board.die("w2")
    (third,) = await board.take_over("w3")
    assert third.token == old.token + b"*3*2"
    assert (third.delivery, third.crashes) == (3, 2)


async def test_what_was_handed_back_is_taken_with_a_new_token_but_no_crash(board):
    """Nobody died."""
    await board.join("w1", "w2")
    old = await board.take("w1", "a")
    await board.partition.release("w1", [old])
    (new,) = await board.take_over("w2")
    assert (new.token, new.delivery, new.crashes) == (old.token + b"*2*0", 2, 0)
    assert await board.redis.zscore(board.keys.workers, HANDBACK) is None


async def test_a_worker_whose_beat_is_young_enough_keeps_its_jobs(board):
    """It lives."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    assert await board.read("w2", dead_after_ms=60_000) == []
    await board.redis.zadd(board.keys.workers, {"w1": await board.now_ms() - 60_001})
    await board.cycle("w2")
    (taken,) = await board.read("w2", dead_after_ms=60_000)
    assert taken.crashes == 1


async def test_a_worker_that_was_away_itself_takes_only_what_was_given_up(board):
    """After an outage every beat looks old, and nobody has died."""
    await board.join("w1", "w2", "w3")
    await board.take("w1", "a")
    await board.take("w3", "b")
    await board.partition.bury(["w3"])
    await board.die("w1")
    await board.die("w2")
    assert [delivery.id for delivery in await board.take_over("w2")] == [b"b"]
    assert [delivery.id for delivery in await board.take_over("w2")] == [b"a"]


async def test_a_dead_worker_that_held_nothing_goes_off_the_books(board):
    """The list of workers must not grow with every restart."""
    await board.join("w1", "w2")
    await board.add("a")
    await board.read("w1")
    await board.die("w1")
    await board.take_over("w2")
    assert await board.redis.zrange(board.keys.workers, 0, -1) == ["w2"]
    for lane in board.keys.lanes:
        assert "w1" not in [row["name"] for row in await board.redis.xinfo_consumers(lane, "g")]


async def test_no_more_is_taken_over_than_can_run_here(board):
    """The rest waits for a free worker, and one is woken; the name is void from the first job taken."""
    await board.join("w1", "w2", "w3")
    await board.add("a", "b", "c", "d")
    await board.add("e", lane="low")
    await board.read("w1")
    await board.die("w1")
    assert [delivery.id for delivery in await board.take_over("w2", 2)] == [b"a", b"b"]
    assert await board.redis.zscore(board.keys.workers, "w1") == 0
    assert await board.markers() == 1
    assert [delivery.id for delivery in await board.take_over("w3", 1)] == [b"c"]
    assert [delivery.id for delivery in await board.take_over("w2", 2)] == [b"d", b"e"]
    assert await board.redis.zscore(board.keys.workers, "w1") is None


async def test_what_was_handed_back_is_given_out_in_parts_as_well(board):
    """As many as each worker can run."""
    await board.join("w1", "w2")
    await board.add(*(f"j{number}" for number in range(5)))
    await board.partition.release("w1", await board.read("w1"))
    taken = [await board.take_over("w2", 2) for _ in range(3)]
    assert [len(deliveries) for deliveries in taken] == [2, 2, 1]
    assert await board.redis.zscore(board.keys.workers, HANDBACK) is None


async def test_a_delivery_whose_job_has_ended_is_thrown_away(board):
    """It belongs to no job, so nobody would ever settle it."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    await board.redis.hdel(board.keys.index, "a")
    await board.die("w1")
    assert await board.take_over("w2") == []
    assert await board.lane() == []
    assert await board.held("w2") == []


async def test_a_delivery_of_a_job_that_lies_elsewhere_is_thrown_away(board):
    """The index says which of two entries is the job."""
    await board.join("w1", "w2")
    await board.take("w1", "a")
    await board.redis.hset(board.keys.index, "a", "z")
    await board.die("w1")
    assert await board.take_over("w2") == []
    assert await board.lane() == []


async def test_a_wake_up_entry_that_a_dead_worker_had_read_is_thrown_away(board):
    """Else it would keep the name on the books for ever."""
    await board.join("w1", "w2")
    await board.add("later", delay_ms=60_000)
    await board.cycle("w1", 5)
    await board.die("w1")
    assert await board.take_over("w2") == []
    assert await board.markers() == 0


async def test_dead_workers_that_held_nothing_do_not_delay_the_jobs_of_the_next_one(board):
    """Each would cost a beat, and a host has many processes."""
    await board.join("a1", "a2", "a3", "holder", "w")
    await board.take("holder", "job")
    await board.partition.bury(["a1", "a2", "a3", "holder"])
    assert [delivery.id for delivery in await board.take_over("w")] == [b"job"]
    assert await board.redis.zrange(board.keys.workers, 0, -1) == ["w"]


async def test_no_more_than_eight_dead_workers_are_looked_at_in_one_call(board):
    """It bounds how long Redis is busy with it."""
    await board.join(*(f"a{number}" for number in range(10)), "w")
    await board.partition.bury([f"a{number}" for number in range(10)])
    assert await board.take_over("w") == []
    assert await board.redis.zcard(board.keys.workers) == 3


async def test_a_delivery_whose_entry_is_gone_does_not_stop_the_take_over(board):
    """Somebody deleted it by hand; the rest is still work."""
    await board.join("w1", "w2")
    await board.add("a", "b")
    a, _ = await board.read("w1")
    await board.redis.xdel(board.keys.lanes[1], a.token[1:])
    await board.die("w1")
    assert [delivery.id for delivery in await board.take_over("w2")] == [b"b"]


# ---- read


async def test_lanes_are_read_in_the_order_that_was_asked(board):
    """High priority first, unless it is another lane's turn."""
    await board.join("w1")
    for lane in ("low", "high", "normal"):
        await board.add(f"{lane}1", f"{lane}2", lane=lane)
    first = await board.read("w1", 3, reads=[(1, 128, 0), (2, 128, 0), (3, 128, 0)])
    assert [delivery.id for delivery in first] == [b"high1", b"high2", b"normal1"]
    rest = await board.read("w1", 2, reads=[(3, 128, 0), (2, 128, 0)])
    assert [delivery.id for delivery in rest] == [b"low1", b"low2"]


async def test_a_lane_gives_no_more_than_its_share_while_others_have_work(board):
    """Slow jobs must not hold all slots."""
    await board.join("w1")
    await board.add("s1", "s2", "s3", lane="normal.slow")
    await board.add("n1", "n2", "n3")
    found = await board.read("w1", 4, reads=[(5, 1, 4), (2, 128, 0)])
    assert [delivery.id for delivery in found] == [b"s1", b"n1", b"n2", b"n3"]


async def test_what_a_lane_leaves_over_goes_to_the_lanes_that_have_more(board):
    """When there is nothing else to do, slow jobs may have every slot."""
    await board.join("w1")
    await board.add("s1", "s2", "s3", lane="normal.slow")
    await board.add("n1")
    found = await board.read("w1", 4, reads=[(5, 1, 4), (2, 128, 0)])
    assert [delivery.id for delivery in found] == [b"s1", b"n1", b"s2", b"s3"]


async def test_what_is_left_over_goes_to_slow_lanes_only_as_far_as_slots_are_free(board):
    """A slow job that is read ahead would wait behind nothing but its like."""
    await board.join("w1")
    await board.add("s1", "s2", "s3", lane="normal.slow")
    found = await board.read("w1", 4, reads=[(5, 1, 2), (2, 128, 0)])
    assert [delivery.id for delivery in found] == [b"s1", b"s2"]


async def test_slow_lanes_share_what_slow_jobs_may_have(board):
    """Three priorities with a share each would be more than all slots."""
    await board.join("w1")
    for lane in ("high.slow", "normal.slow", "low.slow"):
        await board.add(f"{lane}1", f"{lane}2", lane=lane)
    await board.add("n1", "n2", "n3")
    found = await board.read("w1", 4, reads=[(4, 1, 4), (5, 1, 4), (6, 1, 4), (2, 128, 0)])
    assert [delivery.id for delivery in found] == [b"high.slow1", b"n1", b"n2", b"n3"]


async def test_a_delayed_job_goes_by_what_is_known_of_its_key_when_it_is_due(board):
    """Who was shown to be slow meanwhile, perhaps by this very job's last attempt, is slow."""
    await board.join("w1")
    envelopes = {
        "a": b'{"v":1,"h":"h","u":"ada"}',
        "b": b'{"v":1,"h":"h","u":"bob"}',
        "c": b'{"v":1,"h":"h"}',
        "d": b"no",
    }
    for number, (job_id, envelope) in enumerate(envelopes.items(), 1):
        await board.partition.add("p", number, [NewJob(job_id, 3, envelope, 3_600_000)])
        await board.make_due(job_id)
    await board.redis.hset(board.keys.cost, "h|ada", "812|1")
    found = await board.read("w1")
    assert {delivery.id: (delivery.digit, delivery.why) for delivery in found} == {
        b"a": (6, "learned 812"), b"b": (3, ""), b"c": (3, ""), b"d": (3, ""),
    }  # fmt: skip
    assert all(delivery.enqueued_ms > 1e12 for delivery in found)


async def test_a_worker_gets_no_more_than_it_wants(board):
    """It has no room for them."""
    await board.join("w1")
    await board.add(*(f"j{number}" for number in range(10)))
    assert await board.read("w1", 0) == []
    assert len(await board.read("w1", 3)) == 3
    assert len(await board.read("w1", 128)) == 7


# ---- orders


async def test_each_order_reaches_a_worker_once(board):
    """From the newest one that it has seen."""
    await board.join("w1")
    first = await board.redis.xadd(board.keys.control, {"do": "quiet", "to": "*"})
    second = await board.redis.xadd(board.keys.control, {"do": "cancel", "job": "a"})
    reply = await board.cycle("w1")
    assert reply.control == [
        (first.encode(), {b"do": b"quiet", b"to": b"*"}),
        (second.encode(), {b"do": b"cancel", b"job": b"a"}),
    ]
    assert (await board.cycle("w1", control_cursor=second.encode())).control == []


async def test_many_orders_come_in_several_calls(board):
    """Each call is bounded."""
    await board.join("w1")
    for _ in range(40):
        await board.redis.xadd(board.keys.control, {"do": "dump"})
    first = (await board.cycle("w1")).control
    rest = (await board.cycle("w1", control_cursor=first[-1][0])).control
    assert (len(first), len(rest)) == (32, 8)


# ---- bad calls


KEYS_OF_A_CYCLE = ("delayed", "payload", "index", "outbox", "workers", "dead", "control", "pause")


@pytest.mark.parametrize(
    "sections",
    [
        (),
        (0, 0, 0, 0, 0, 0, 0),  # one is missing
        (0, 0, 0, 0, 0, 0, 0, 0, "more"),
        (1, 0, 0, 0, 0, 0, 0, 0),  # rows are missing
        ("x", 0, 0, 0, 0, 0, 0, 0),
        (129, *["x"] * 129 * 3, 0, 0, 0, 0, 0, 0, 0),  # more than a batch
    ],
)
async def test_sections_that_do_not_add_up_are_refused_before_anything_is_written(board, sections):
    """Redis rolls nothing back, so everything is checked first."""
    await board.join("w1")
    keys = [*board.keys.lanes, *(getattr(board.keys, name) for name in KEYS_OF_A_CYCLE)]
    before = await board.snapshot()
    with pytest.raises(redis.exceptions.ResponseError, match=r"cycle: the sections of .* arguments do not add up"):
        await board.run("cycle", keys, "w1", 0, 1000, "0-0", 10, 10, *sections)
    assert await board.snapshot() == before


async def test_a_lane_without_its_group_makes_the_worker_register_again(board):
    """Somebody has emptied the database, or restored an old one."""
    await board.join("w1")
    await board.redis.xgroup_destroy(board.keys.lanes[0], "g")
    with pytest.raises(ServerRefused, match="NOGROUP") as refusal:
        await board.cycle("w1", 5)
    assert refusal.value.fault is Fault.REJOIN
    with pytest.raises(Unregistered):
        await board.partition.wait("w1", 1, 10, lambda: 0.0)


# ---- waiting inside Redis, which no script can


async def test_a_reader_waits_for_the_next_job_of_any_lane(board):
    """An idle worker starts a job the moment it is there."""
    await board.join("w1")
    waiting = asyncio.create_task(board.partition.wait("w1", 3, 5_000, lambda: 7.0))
    await asyncio.sleep(0)
    await board.redis.xadd(board.keys.lanes[5], {"j": "a", "d": "<a>"})
    deliveries, markers, stopped = await waiting
    assert [(d.id, d.raw, d.digit, d.token[:1], d.taken_at) for d in deliveries] == [(b"a", b"<a>", 6, b"6", 7.0)]
    assert (markers, stopped) == ([], [])


async def test_a_reader_that_was_woken_has_a_wake_up_entry_to_throw_away(board):
    """It was an earlier due time."""
    await board.join("w1")
    await board.add("later", delay_ms=60_000)
    deliveries, markers, _ = await board.partition.wait("w1", 3, 5_000, lambda: 0.0)
    assert (deliveries, markers[0]) == ([], 1)


async def test_a_reader_waits_no_longer_than_it_was_told(board):
    """It comes back with nothing, and the worker looks after its other affairs."""
    await board.join("w1")
    assert await board.partition.wait("w1", 3, 1, lambda: 0.0) == ([], [], [])
