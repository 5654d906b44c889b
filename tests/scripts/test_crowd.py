"""crowd: who has a place at gates, who waits there, and whose turn it is; looked at by people and Prometheus."""

from __future__ import annotations

import pytest

from streamq.broker.inspection import Inspection
from streamq.broker.partition import NewJob
from streamq.codec import encode_envelope
from streamq.gates import GateName, Gates
from streamq.job import Envelope


async def add(board, gates, *job_ids, key="ada", weight=1, lane=2, handler="refresh"):
    """Add jobs of a handler with these gates in one call."""
    board.calls += 1
    envelope = encode_envelope(Envelope(handler, key=key, gates=gates.of_job(key, weight)))
    await board.partition.add("producer", board.calls, [NewJob(job_id, lane, envelope) for job_id in job_ids])


@pytest.fixture
def view(board):
    """The partition as people see it."""
    return Inspection(board.partition.wire, board.keys)


async def park(board, gates, *job_ids, **options):
    """Add jobs and let a worker read them, so that those which may not start wait."""
    await add(board, gates, *job_ids, **options)
    return await board.read("w1")


async def test_an_empty_partition_has_no_gates_and_none_is_made_by_looking(board, view):
    crowd = await view.crowd()
    assert (crowd.gates, crowd.turns, crowd.parked, crowd.keys, crowd.is_whole) == ([], [], 0, 0, True)
    assert crowd.longest() is None
    assert await board.redis.keys("*") == []


async def test_a_gate_is_told_with_its_limit_who_has_a_place_and_who_waits(board, view):
    await board.join("w1")
    await park(board, Gates.of("refresh", 1, None, 2, None), "a1", "a2", "a3")
    await park(board, Gates.of("refresh", 1, None, 2, None), "b1", key="b o:b")
    seen = {str(gate.name): gate for gate in (await view.crowd()).gates}
    ada = seen["concurrency_per_key of refresh for ada"]
    assert (ada.running, ada.parked, ada.limit, ada.opens_in_ms) == (1, 2, 1, None)
    assert seen["concurrency_per_key of refresh for b o:b"].name == ("concurrency_per_key", "refresh", "b o:b")
    everybody = seen["concurrency of refresh"]
    assert (everybody.running, everybody.parked, everybody.limit) == (2, 0, 2)
    assert (await view.counts()).parked == (await view.crowd()).parked == 2
    only = (await view.crowd(handlers_only=True)).gates
    assert [str(gate.name) for gate in only] == ["concurrency of refresh"]


async def test_a_rate_is_told_with_when_it_lets_the_next_one_in(board, view):
    await board.join("w1")
    await park(board, Gates.of("call", 0, None, 0, "1/m"), "a", "b", "c", handler="call")
    [rate] = (await view.crowd()).gates
    assert (rate.name, rate.parked, rate.running, rate.limit, rate.interval_ms) == (
        GateName("rate", "call", None), 2, None, 1, 60_000.0,
    )  # fmt: skip
    assert rate.opens_in_ms is not None
    assert 0 < rate.opens_in_ms <= 60_000


async def test_who_waits_for_a_turn_is_told_with_the_most_work_first(board, view):
    fair = Gates.of("refresh", 0, None, 0, None, fair=True)
    await board.join("w1")
    await add(board, fair, *(f"a{n}" for n in range(5)), key="ada")
    await add(board, fair, "b1", "b2", key="bob", weight=3)
    await add(board, fair, "n1", key=None)
    crowd = await view.crowd()
    assert [(turn.name.key, turn.parked, turn.weight) for turn in crowd.turns] == [
        ("ada", 5, 1), ("bob", 2, 3), (None, 1, 1),
    ]  # fmt: skip
    assert (crowd.keys, crowd.parked, crowd.virtual_ms, crowd.mean_ms) == (3, 8, 0.0, 1.0)
    assert {turn.virtual_ms for turn in crowd.turns} == {0.0}
    assert str(crowd.turns[2].name) == "the turn of jobs without a key"
    assert crowd.longest() is None, "a long wait for a turn is a long queue"


async def test_since_when_a_job_waits_counts_from_the_gate_and_not_from_its_enqueue(board, view):
    await board.join("w1")
    await park(board, Gates.of("refresh", 1, None, 0, None), "a1")
    gates = Gates.of("refresh", 1, None, 0, None).of_job("ada")
    envelope = encode_envelope(Envelope("refresh", key="ada", gates=gates)).decode()
    await board.redis.hset(board.keys.payload, "a2", f"2|1000|{envelope}")
    await board.redis.zadd(board.keys.delayed, {"a2": 1})
    await board.redis.hset(board.keys.index, "a2", "z")
    await board.read("w1")
    place = await view.locate("a2")
    assert (place.state, place.before, place.enqueued_ms, str(place.gate)) == (
        "queued", 0, 1000, "concurrency_per_key of refresh for ada",
    )  # fmt: skip
    now_ms = await board.now_ms()
    assert now_ms - 60_000 < place.parked_ms <= now_ms
    assert (await view.crowd()).gates[0].longest_ms < 60_000


async def test_how_many_come_before_a_job_goes_by_priority_and_then_by_its_enqueue(board, view):
    await board.join("w1")
    one = Gates.of("refresh", 1, None, 0, None)
    await park(board, one, "first")
    await park(board, one, "b", lane=2)
    await park(board, one, "c", lane=3)
    await park(board, one, "a", lane=1)
    places = await view.locate_many(["a", "b", "c", "first"])
    assert {name: place.before for name, place in places.items()} == {"a": 0, "b": 1, "c": 2, "first": 0}
    assert places["first"].gate is None


async def test_where_most_wait_is_found_among_thousands_of_gates(board, view):
    """Looked at is a bounded number of them; chance finds the crowd, whatever its name is."""
    await board.join("w1")
    one = Gates.of("refresh", 1, None, 0, None)
    for first in range(0, 1000, 100):
        for number in range(first, first + 100):
            await add(board, one, f"u{number}", key=f"u{number:04}")
        await board.read("w1")
    for part in range(10):
        await park(board, one, *(f"z{part}-{number}" for number in range(100)), key="zoe")
    crowd = await view.crowd()
    assert (crowd.gates[0].name.key, crowd.gates[0].parked) == ("zoe", 999)
    assert not crowd.is_whole
    assert len(crowd.gates) <= 3 * 128


async def test_a_place_that_is_held_by_nobody_known_is_told_without_a_limit(board, view):
    """What a repair will free is seen before."""
    await board.redis.zadd(board.keys.gates, {"h:gone\0hghost": 0})
    [gate] = (await view.crowd()).gates
    assert (str(gate.name), gate.running, gate.parked, gate.limit) == ("concurrency of gone", None, 0, None)
    await board.redis.delete(board.keys.gates)


async def test_explain_says_where_the_holder_of_a_dedup_key_waits(board, view):
    """Otherwise it would be a job that simply does not start."""
    await board.join("w1")
    gates = Gates.of("refresh", 1, None, 0, None).of_job("ada")
    envelope = encode_envelope(Envelope("refresh", key="ada", gates=gates, dedup="k"))
    await park(board, Gates.of("refresh", 1, None, 0, None), "first")
    await board.partition.add("other", 1, [NewJob("held", 2, envelope, dedup="k")])
    await board.read("w1")
    told = await view.explain("k")
    assert (told.state, told.holder) == ("queued", "held")
    assert told.why == (
        "the holder waits at a gate, concurrency_per_key of refresh for ada, with 0 before it: a call returns it"
    )


async def test_jobs_that_wait_at_gates_are_listed_page_by_page_without_those_that_have_a_place(board, view):
    await board.join("w1")
    assert await view.parked(limit=2) == ([], b"")
    await park(board, Gates.of("refresh", 1, None, 2, None), "a1", "a2", "a3", key="a p1")
    await add(board, Gates.of("refresh", 0, None, 0, None, fair=True), "f1", "f2", key="bob", lane=6)
    found, after, pages = [], b"", 0
    while pages == 0 or after:
        jobs, after = await view.parked(limit=2, after=after)
        found += jobs
        pages += 1
    assert pages > 2
    assert {(job.job_id, job.lane, job.due_ms) for job in found} == {
        ("a2", "normal", 0), ("a3", "normal", 0), ("f1", "low.slow", 0), ("f2", "low.slow", 0),
    }  # fmt: skip
    assert len(found) == 4
    assert (await view.parked(limit=100)) == (found, b"")
