"""Fair queues: keys take turns by what their jobs run, whatever number of them waits."""

from __future__ import annotations

from streamq.broker.orders import Orders
from streamq.broker.partition import NewJob
from streamq.broker.repairs import Repairs
from streamq.codec import encode_envelope
from streamq.gates import Gates
from streamq.job import Envelope

FAIR = Gates.of("h", 0, None, 0, None, fair=True)
FAIR_AND_ONE_PER_KEY = Gates.of("h", 1, None, 0, None, fair=True)


async def add(board, key, *job_ids, weight=1, gates=FAIR, lane=2):
    """Add jobs of a key in one call."""
    board.calls += 1
    envelope = encode_envelope(Envelope("h", key=key, gates=gates.of_job(key, weight)))
    await board.partition.add("producer", board.calls, [NewJob(job_id, lane, envelope) for job_id in job_ids])


async def run(board, ms=10, slow=(), most=1000):
    """Run jobs one after another, `ms` each, and a hundred times that of slow keys; return whose they were."""
    keys, ended, markers = [], [], []
    while len(keys) < most:
        reply = await board.cycle("w1", 1, settled=ended, markers=markers)
        ended, markers = [], reply.markers
        for job in reply.deliveries:
            keys.append(job.id.decode()[0])
            took = ms * (100 if keys[-1] in slow else 1)
            ended = [job.token, job.id, b'{"s":"completed","l":"normal","e":1,"b":1000,"f":%d}' % (1000 + took)]
        if not reply.deliveries and not markers and not 0 <= reply.next_due_ms <= reply.server_ms:
            return keys
    await board.cycle("w1", settled=ended)
    return keys


async def test_a_key_with_few_jobs_does_not_wait_for_one_with_many(board):
    await board.join("w1")
    await add(board, "a", *(f"a{n:02}" for n in range(100)))
    await add(board, "b", "b1", "b2", "b3")
    await add(board, "c", "c1", "c2", "c3")
    started = await run(board)
    assert sorted(started[:9]) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert started[9:] == ["a"] * 97
    assert await board.redis.exists(board.keys.gates, board.keys.places, board.keys.payload, board.keys.index) == 0


async def test_a_key_is_charged_with_what_its_jobs_ran(board):
    await board.join("w1")
    await add(board, "s", *(f"s{n:02}" for n in range(50)))
    await add(board, "f", *(f"f{n:02}" for n in range(50)))
    started = await run(board, slow="s", most=52)
    assert started.count("f") == 50


async def test_a_weight_of_three_gets_three_times_as_much(board):
    await board.join("w1")
    await add(board, "a", *(f"a{n:02}" for n in range(60)))
    await add(board, "b", *(f"b{n:02}" for n in range(60)), weight=3)
    started = await run(board, most=40)
    assert 27 <= started.count("b") <= 33


async def test_a_key_that_comes_late_saves_up_nothing(board):
    await board.join("w1")
    await add(board, "a", *(f"a{n:02}" for n in range(90)))
    assert await run(board, most=40) == ["a"] * 40
    await add(board, "b", *(f"b{n:02}" for n in range(40)))
    started = await run(board, most=20)
    assert 8 <= started.count("b") <= 12


async def test_each_worker_gets_as_many_as_it_wants_and_the_others_keep_their_place(board):
    await board.join("w1", "w2")
    await add(board, "a", *(f"a{n:02}" for n in range(20)))
    reply = await board.cycle("w1", 5)
    assert [job.id for job in reply.deliveries] == [b"a00", b"a01", b"a02", b"a03"]  # and what would wake a reader
    assert len(reply.markers) == 2
    again = await board.cycle("w1", 5, markers=reply.markers)
    assert [job.id for job in again.deliveries] == [b"a04", b"a05", b"a06", b"a07", b"a08"]
    assert again.next_due_ms == -1
    assert len((await board.cycle("w2", 128)).deliveries) == 11


async def test_a_job_that_is_tried_again_takes_its_turn(board):
    await board.join("w1")
    await add(board, "a", "a1", "a2")
    job = (await board.cycle("w1", 2)).deliveries[0]
    await board.cycle("w1", requeued=[job.token, job.id, 0, 2, job.enqueued_ms, job.raw, b""])
    again = []
    for _ in range(3):
        again += [job.id for job in (await board.cycle("w1", 1)).deliveries]
    assert b"a1" in again


async def test_a_job_that_comes_out_of_a_lane_to_wait_for_its_turn_has_it_at_once(board):
    """One that is tried again, was delayed, or came without gates; a worker with room would notice it with its next beat."""
    await board.join("w1")
    await add(board, "a", "a1")
    job = next(job for job in (await board.cycle("w1", 2)).deliveries)
    reply = await board.cycle("w1", 1, requeued=[job.token, job.id, 0, 2, job.enqueued_ms, job.raw, b""])
    while not reply.deliveries:
        assert 0 <= reply.next_due_ms <= reply.server_ms
        reply = await board.cycle("w1", 1, markers=reply.markers)
    assert [job.id for job in reply.deliveries] == [b"a1"]


async def test_a_fair_job_passes_the_gates_of_its_handler_as_well(board):
    await board.join("w1")
    await add(board, "a", "a1", "a2", gates=FAIR_AND_ONE_PER_KEY)
    await add(board, "b", "b1", gates=FAIR_AND_ONE_PER_KEY)
    started, due = [], True
    while due:
        reply = await board.cycle("w1", 9)
        started += reply.deliveries
        due = 0 <= reply.next_due_ms <= reply.server_ms
    assert sorted(job.id for job in started) == [b"a1", b"b1"]
    first = next(job for job in started if job.id == b"a1")
    assert [job.id for job in (await board.settle("w1", first, want=9)).deliveries] == [b"a2"]


async def test_a_cancelled_job_leaves_the_turns_to_others(board):
    await board.join("w1")
    await add(board, "a", "a1")
    await add(board, "b", "b1")
    assert await Orders(board.partition.wire, board.keys).cancel("a1") == "cancelled"
    assert await run(board) == ["b"]
    assert await board.redis.exists(board.keys.index) == 0


async def test_turns_that_were_lost_are_restored_by_the_repair(board):
    await board.join("w1")
    await add(board, "a", "a1")
    await board.redis.delete(board.keys.fair)
    await Repairs(board.partition, "me").gates(repair=True)
    assert await run(board) == ["a"]
