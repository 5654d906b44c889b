"""Looking into a partition: counts are right, nothing is changed, nothing is unbounded."""

from __future__ import annotations

from streamq.keys import HANDBACK


async def test_an_empty_partition_has_nothing_and_is_not_created_by_looking(hand):
    counts = await hand.inspection.counts()
    assert (counts.waiting, counts.in_flight, counts.delayed, counts.dead, counts.jobs, counts.outbox) == (0,) * 6
    assert (counts.next_due_ms, counts.pause, list(counts.workers), counts.oldest_wait_ms) == (None, None, [], 0)
    assert await hand.inspection.newest(10) == []
    assert (await hand.inspection.flights(limit=10))[1] == []
    assert await hand.inspection.delayed(limit=10) == []
    assert await hand.inspection.dead(10) == []
    assert await hand.inspection.locate("nobody") is None
    assert await hand.wire.call("DBSIZE") == 0


async def test_counts_tell_waiting_from_in_flight_lane_by_lane(hand):
    for number in range(3):
        await hand.enqueue(f"n{number}")
    await hand.enqueue("s", lane="low.slow", at="1000-1")
    await hand.take("w1", 1)
    await hand.delay("later", 9_999_999_999_999)

    counts = await hand.inspection.counts()

    assert (counts.waiting, counts.in_flight, counts.delayed, counts.jobs) == (3, 1, 1, 5)
    assert counts.lanes["normal"] == (2, 1)
    assert counts.lanes["low.slow"] == (1, 0)
    assert counts.next_due_ms == 9_999_999_999_999
    assert counts.oldest_wait_ms == counts.now_ms - 1000
    [worker] = counts.workers
    assert (worker.name, worker.held, worker.given_up) == ("w1", 1, False)
    assert counts.workers_alive(5_000) == 1
    assert counts.workers_alive(-1) == 0


async def test_a_wake_up_entry_is_not_a_job(hand):
    await hand.wire.call("XADD", hand.keys.lanes[0], "*", "w", "1")
    assert (await hand.inspection.counts()).waiting == 0
    assert await hand.inspection.newest(10) == []
    assert await hand.inspection.tail("high", b"0-0", limit=10) == []


async def test_what_was_handed_back_waits_again(hand):
    await hand.enqueue("a")
    await hand.take(HANDBACK)
    counts = await hand.inspection.counts()
    assert (counts.waiting, counts.in_flight, list(counts.workers)) == (1, 0, [])
    place = await hand.inspection.locate("a")
    assert (place.state, place.worker) == ("queued", "")


async def test_a_worker_that_was_given_up_is_not_alive(hand):
    await hand.wire.call("ZADD", hand.keys.workers, 0, "ghost")
    counts = await hand.inspection.counts()
    assert counts.workers[0].given_up
    assert counts.workers_alive(10**15) == 0


async def test_a_pause_is_told_with_its_reason_until_it_is_over(hand):
    await hand.wire.call("HSET", hand.keys.pause, "queue", '0|{"reason":"deploy","by":"ada"}')
    assert (await hand.inspection.counts()).pause == (0, "deploy", "ada")
    await hand.wire.call("HSET", hand.keys.pause, "queue", "9999999999999|not json")
    assert (await hand.inspection.counts()).pause == (9999999999999, "", "")
    await hand.wire.call("HSET", hand.keys.pause, "queue", "5|{}")
    assert (await hand.inspection.counts()).pause is None


async def test_the_tail_of_a_lane_goes_on_after_the_last_entry_known(hand):
    for number in (1, 2, 3):
        await hand.enqueue(f"j{number}", at=f"{number}000-0")
    first = await hand.inspection.tail("normal", b"0-0", limit=2)
    assert [(entry.job_id, entry.enqueued_ms) for entry in first] == [("j1", 1000), ("j2", 2000)]
    assert [entry.job_id for entry in await hand.inspection.tail("normal", first[-1].id, limit=9)] == ["j3"]
    assert await hand.inspection.tail("normal", first[-1].id, limit=9, until_ms=2999) == []


async def test_a_promoted_job_keeps_the_time_at_which_it_was_enqueued(hand):
    await hand.wire.call("XADD", hand.keys.lanes[1], "9000-0", "j", "p", "d", "{}", "q", "1234")
    [entry] = await hand.inspection.newest(5)
    assert entry.enqueued_ms == 1234


async def test_the_newest_jobs_come_first_from_all_lanes(hand):
    for number, lane in enumerate(("normal", "low", "high", "normal"), 1):
        await hand.enqueue(f"j{number}", lane=lane, at=f"{number}000-0")
    assert [entry.job_id for entry in await hand.inspection.newest(3)] == ["j4", "j3", "j2"]


async def test_flights_are_listed_with_their_worker_and_looked_up_afterwards(hand):
    await hand.enqueue("a")
    await hand.enqueue("b")
    await hand.take("w1", 2)
    now_ms, flights = await hand.inspection.flights(limit=10)
    assert now_ms > 10**12
    assert [(flight.worker, flight.deliveries, flight.is_handed_back) for flight in flights] == [("w1", 1, False)] * 2
    await hand.wire.call("XDEL", hand.keys.lanes[1], flights[0].id)
    gone, there = await hand.inspection.entries(flights)
    assert gone is None
    assert there.job_id == "b"
    assert [flight.id for flight in (await hand.inspection.flights(limit=1))[1]] == [flights[0].id]
    assert (await hand.inspection.flights(limit=9, start={"normal": flights[1].id}))[1][0].id == flights[1].id
    assert (await hand.inspection.flights(limit=9, least_idle_ms=60_000))[1] == []
    assert await hand.inspection.entries([]) == []


async def test_jobs_are_located_wherever_they_are(hand):
    await hand.enqueue("waits")
    await hand.take("w1")
    await hand.enqueue("later", lane="high")
    await hand.delay("due", 4_000_000_000_000, 1_000)
    found = await hand.inspection.locate_many(["waits", "later", "due", "gone", "\ud800"])
    assert {job: place.state for job, place in found.items()} == {
        "waits": "running",
        "later": "queued",
        "due": "scheduled",
    }
    assert (found["waits"].worker, found["later"].lane) == ("w1", "high")
    assert (found["due"].due_ms, found["due"].enqueued_ms) == (4_000_000_000_000, 1_000)


async def test_more_jobs_than_one_call_may_look_up_are_located_all_the_same(hand):
    for number in range(150):
        await hand.enqueue(f"j{number}")
    assert len(await hand.inspection.locate_many([f"j{number}" for number in range(300)])) == 150


async def test_an_index_entry_without_its_job_is_no_live_job(hand):
    await hand.wire.call("HSET", hand.keys.index, "half", "29-9")
    await hand.wire.call("HSET", hand.keys.index, "halfz", "z")
    assert await hand.inspection.locate_many(["half", "halfz"]) == {}


async def test_delayed_jobs_come_by_due_time_and_page_by_page(hand):
    for number in (3, 1, 2):
        await hand.delay(f"d{number}", number * 1000)
    assert [job.job_id for job in await hand.inspection.delayed(limit=2)] == ["d1", "d2"]
    assert [job.due_ms for job in await hand.inspection.delayed(limit=2, offset=2)] == [3000]


async def test_dead_letters_come_newest_first(hand):
    for number in (1, 2):
        await hand.wire.call("XADD", hand.keys.dead, "*", "j", f"d{number}", "d", "{}", "r", '{"s":"dead"}')
    [letter] = await hand.inspection.dead(1)
    assert (letter.job_id, letter.envelope, letter.record) == ("d2", b"{}", b'{"s":"dead"}')


async def test_the_holders_of_dedup_keys_are_found(hand):
    await hand.wire.call("SET", hand.keys.dedup("refresh:u1"), "job9", "PX", 60_000)
    await hand.wire.call("SET", hand.keys.dedup("refresh:u3"), "job8", "PX", 60_000)
    await hand.wire.call("LPUSH", hand.keys.dedup("odd"), "x")
    assert await hand.inspection.holders(["refresh:u1", "refresh:u2", "odd", "refresh:u3"]) == ["job9", "job8"]
    assert await hand.inspection.holders([]) == []
    await hand.wire.call("DEL", hand.keys.dedup("odd"))
