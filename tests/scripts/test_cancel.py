"""cancel: a job that waits ends as cancelled at once; a job that runs is told to stop by its worker."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from streamq.broker.orders import Orders
from streamq.broker.partition import NewJob
from streamq.errors import JobNotFound
from streamq.keys import LANES


@pytest.fixture
def orders(board):
    """The operators' side of the partition."""
    return Orders(board.partition.wire, board.keys)


async def add(board, job_id: str = "a", *, digit: int = 2, delay_ms: int = 0, dedup: str | None = None) -> None:
    """Add a job with an envelope that can be read."""
    board.calls += 1
    more = b',"g":"%s"' % dedup.encode() if dedup else b""
    envelope = b'{"v":1,"h":"greet","u":"u7","o":"hourly:1"' + more + b"}"
    await board.partition.add("producer", board.calls, [NewJob(job_id, digit, envelope, delay_ms, dedup)])


async def leaves_nothing(board) -> bool:
    """Whether no trace of a job is left but in the outbox."""
    keys = board.keys
    lanes = [await board.redis.xlen(lane) for lane in keys.lanes]
    return sum(lanes) == await board.markers() and await board.redis.exists(keys.index, keys.delayed, keys.payload) == 0


@pytest.mark.parametrize("lane", LANES)
async def test_a_job_that_nobody_has_read_ends_at_once(board, orders, lane):
    """Whether a worker was ever there or not."""
    await add(board, digit=LANES.index(lane) + 1)
    assert await orders.cancel("a") == "cancelled"
    assert await leaves_nothing(board)
    await board.join("w1")
    assert await board.read("w1") == []


async def test_a_delayed_job_ends_at_once(board, orders):
    """It is never due."""
    await add(board, delay_ms=60_000)
    assert await orders.cancel("a") == "cancelled"
    assert await leaves_nothing(board)


async def test_a_cancelled_job_is_recorded_with_the_reason(board, orders):
    """Somebody will ask why it did not run."""
    await add(board)
    await orders.cancel("a", reason="the user is gone")
    (entry,) = await board.outbox()
    assert entry["w"] == "operator"
    for part in ('"s":"cancelled"', '"m":"the user is gone"', '"h":"greet"', '"u":"u7"', '"o":"hourly:1"', '"n":1'):
        assert part in entry["a"]


async def test_without_an_outbox_nothing_is_recorded(board):
    """That is what history=false means."""
    await add(board)
    assert await Orders(board.partition.wire, board.keys, outbox_max=0).cancel("a") == "cancelled"
    assert await board.outbox() == []


@pytest.mark.parametrize("delay_ms", [0, 60_000])
async def test_a_cancelled_job_frees_its_dedup_key(board, orders, delay_ms):
    """It lives no more."""
    await add(board, dedup="k", delay_ms=delay_ms)
    await orders.cancel("a")
    assert await board.redis.exists(board.keys.dedup("k")) == 0


async def test_a_dedup_key_of_another_job_is_left_alone(board, orders):
    """It was taken over."""
    await add(board, dedup="k")
    await board.redis.set(board.keys.dedup("k"), "b")
    await orders.cancel("a")
    assert await board.redis.getdel(board.keys.dedup("k")) == "b"


async def test_a_running_job_is_left_to_its_worker_which_is_told(board, orders):
    """Only the worker can interrupt the handler; until then the job runs."""
    await add(board)
    await board.join("w1")
    (delivery,) = await board.read("w1")
    assert await orders.cancel("a", reason="enough") == "asked"
    reply = await board.cycle("w1")
    assert [message for _, message in reply.control] == [{b"do": b"cancel", b"job": b"a", b"why": b"enough"}]
    assert await board.markers() == 1
    assert (await board.settle("w1", delivery)).refused == []


async def test_a_job_that_was_handed_back_runs_nowhere_and_ends_at_once(board, orders):
    """No worker would hear the order, and the next one would run it."""
    await add(board)
    await board.join("w1")
    await board.partition.release("w1", await board.read("w1"))
    assert await orders.cancel("a") == "cancelled"
    assert await board.read("w1") == []
    assert (await board.redis.xpending(board.keys.lanes[1], "g"))["pending"] == 0


async def test_a_job_that_was_swept_ends_at_once_too(board, orders):
    """Its token is a longer one."""
    await add(board)
    await board.join("w1")
    await board.read("w1")
    await board.partition.sweep(2, lease_ms=0, cursor=b"0-0")
    assert await orders.cancel("a") == "cancelled"
    assert await leaves_nothing(board)


@pytest.mark.parametrize("job_id", ["a", "a\nb", "", "*"])
async def test_a_job_that_does_not_live_is_not_found(board, orders, job_id):
    """It ended, or never was."""
    with pytest.raises(JobNotFound, match=r"no job .* waits or runs in queue"):
        await orders.cancel(job_id)
    assert await board.snapshot() == {}


async def test_a_job_that_moved_meanwhile_is_left_where_it_is(board):
    """What was read of it belongs to the place where it was: the caller looks again."""
    await add(board)
    keys = board.keys
    before = await board.snapshot()
    assert await board.run("cancel", names_of(keys), 10, "", "0", "a", "z", "{}", 0, 15, 0) == ["MOVED"]
    assert await board.snapshot() == before


def names_of(keys) -> list[str]:
    """Return the keys that the script wants for a job without a dedup key."""
    return [
        *keys.lanes, keys.delayed, keys.payload, keys.index, keys.outbox, keys.control, keys.gates, keys.places,
        keys.openings, keys.result("a"),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 129])
async def test_more_jobs_than_a_call_may_have_are_refused(board, count):
    """Each call keeps the server busy for a bounded time."""
    rows = [word for number in range(count) for word in (f"j{number}", "z", "{}", 0, 15, 0)]
    with pytest.raises(ResponseError, match=rf"cancel: {3 + 6 * count} arguments are not 1 to 128 jobs"):
        await board.run("cancel", names_of(board.keys), 10, "", "0", *rows)


async def test_a_purge_ends_all_that_wait_wherever_they_are(board, orders):
    """More of them than one call takes, and one entry of the outbox for each call."""
    for start in range(0, 300, 100):
        await board.add(*[f"n{number}" for number in range(start, start + 100)])
    for number in range(3):
        await add(board, f"d{number}", delay_ms=60_000, dedup=f"k{number}")
        await add(board, f"h{number}", digit=4, dedup=f"l{number}")
    told: list[int] = []
    await board.redis.delete(board.keys.lanes[1])  # those jobs are listed, and lie nowhere: they go as well
    assert await orders.purge(reason="a mistake", on_progress=told.append) == 306
    assert told[-1] == 306
    assert await leaves_nothing(board)
    assert await board.redis.keys(board.keys.dedup("*")) == []
    ended = [job_id for entry in await board.outbox() for job_id in entry if job_id != "w"]
    assert len(ended) == len(set(ended)) == 306
    assert len(await board.outbox()) < 10


async def test_a_purge_leaves_what_runs_and_what_comes_meanwhile(board, orders):
    """It runs to its end, nobody is told to stop, and the next jobs are none of this order's business."""
    await add(board, "a", dedup="k")
    await board.join("w1")
    (delivery,) = await board.read("w1")
    await add(board, "b")
    later = await board.now_ms() + 60_000
    await board.redis.xadd(board.keys.lanes[1], {"j": "c", "d": '{"v":1,"h":"greet"}'}, id=f"{later}-1")
    await board.redis.hset(board.keys.index, "c", f"2{later}-1")
    assert await orders.purge() == 1
    assert (await board.cycle("w1")).control == []
    assert await board.token("b") is None
    assert await board.token("c") == f"2{later}-1"
    assert await board.redis.get(board.keys.dedup("k")) == "a"
    assert (await board.settle("w1", delivery, dedups=[(b"a", "k", 0)])).refused == []
    assert await orders.cancel("c") == "cancelled"


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_job_that_is_kept_behind_another_is_purged_with_it(board, orders, first):
    """In whatever order they are met, neither they nor their key are left."""
    await add(board, "a", dedup="k")
    await board.join("w1")
    (delivery,) = await board.read("w1")
    envelope = b'{"v":1,"h":"greet","g":"k"}'
    await board.partition.add("producer", 99, [NewJob("b", 2, envelope, 0, "k", "k")])
    assert await board.token("b") == "z>a"
    await board.partition.release("w1", [delivery])
    rows = {name: (name.encode(), (await board.token(name)).encode()) for name in "ab"}
    order = [rows.pop(first), *rows.values()]
    assert await orders._cancel(order, "", spares_running=True) == [b"CANCELLED", b"CANCELLED"]
    assert await leaves_nothing(board)
    assert await board.redis.exists(board.keys.dedup("k")) == 0
