"""What a worker does while a queue is paused, or a handler or a user is blocked; and with jobs that it does not know."""

import asyncio
from datetime import timedelta

import msgspec
import pytest

from streamq import StreamQ
from streamq.broker.orders import Orders
from streamq.errors import JobFailed
from streamq.keys import Keys

KEPT = timedelta(seconds=60)


@pytest.fixture
async def orders(app):
    """The operators' side of the queue."""
    wire = app.client.broker.wire()
    yield Orders(wire, Keys("default"))
    await wire.close()


@pytest.fixture
def ran(app):
    """Handlers that note whom they ran for."""
    users: list[str] = []

    @app.handler(key="user")
    async def refresh(user: str) -> str:
        users.append(user)
        return user

    @app.handler(key="user")
    async def greet(user: str) -> str:
        users.append(user)
        return user

    return users


async def start(app, name: str, *args: str):
    """Enqueue a job whose result is kept."""
    return await app.handler_named(name).options(keep_result=KEPT).enqueue(*args)


def is_waiting(worker) -> bool:
    """Whether its only pump waits inside Redis."""
    pump = worker.slots.pumps[0] if worker.slots and worker.slots.pumps else None
    return bool(pump and pump._reader is not None and not pump._reader.done() and pump._reading.wire.is_connected)


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_job_that_is_enqueued_after_a_pause_is_not_started_by_a_worker_that_was_waiting(
    app, work, orders, ran, eventually, workers
):
    """Each of them sits in its blocking read, and the pause wakes one."""
    crowd = [await work(name=f"w{n}") for n in range(workers)]
    for round_ in range(10):
        await eventually(lambda: all(is_waiting(worker) for worker in crowd), "all wait for jobs")
        await orders.pause(reason="deploy", by="test")
        jobs = [await start(app, "refresh", f"{round_}.{n}") for n in range(workers)]
        # Every worker has seen the pause, and none has begun anything.
        await eventually(lambda: all(worker.slots.pumps[0]._paused for worker in crowd), "all have seen it")
        assert not [user for user in ran if user.startswith(f"{round_}.")]
        assert await orders.resume()
        assert [await job.result() for job in jobs] == [f"{round_}.{n}" for n in range(workers)]


async def test_a_resumed_queue_goes_on_at_once(app, work, orders, ran, eventually):
    """Though a worker's next beat is far away."""
    settings = msgspec.structs.replace(app.settings, lease_ms=600_000, beat_ms=60_000, dead_after_ms=120_000)
    worker = await work(settings=settings)
    await eventually(lambda: is_waiting(worker), "it waits for jobs")
    await orders.pause(reason="deploy", by="test")
    job = await start(app, "refresh", "u1")
    await eventually(lambda: worker.slots.pumps[0]._paused and is_waiting(worker), "it waits for operators")
    await orders.resume()
    assert await job.result() == "u1"


async def test_a_pause_with_an_end_ends(app, work, orders, ran, view):
    """Without anybody's doing."""
    await work()
    now_ms = (await view.counts()).now_ms
    await orders.pause(reason="short", by="test", until_ms=now_ms + 300)
    job = await start(app, "refresh", "u1")
    assert await job.result() == "u1"
    assert (await view.counts()).now_ms >= now_ms + 300


async def test_jobs_of_a_blocked_handler_wait_and_others_run(app, work, orders, view, ran, eventually):
    """And when it is lifted, they run in their order."""
    await orders.block(handler="refresh", reason="bad release", by="test")
    await work()
    blocked = [await start(app, "refresh", f"b{n}") for n in range(20)]
    assert await (await start(app, "greet", "free")).result() == "free"

    async def all_are_parked() -> bool:
        return (await view.counts()).blocked == 20

    await eventually(all_are_parked)
    assert ran == ["free"]
    assert await orders.unblock(handler="refresh")
    assert [await job.result() for job in blocked] == [f"b{n}" for n in range(20)]
    assert ran == ["free", *(f"b{n}" for n in range(20))]


async def test_jobs_of_a_blocked_user_wait_until_the_block_is_over(app, work, orders, view, ran):
    """Whatever their handler."""
    await work()
    await orders.block(key="u1", reason="asked for it", by="test")
    jobs = [await start(app, name, "u1") for name in ("refresh", "greet")]
    assert await (await start(app, "greet", "u2")).result() == "u2"
    assert ran == ["u2"]
    now_ms = (await view.counts()).now_ms
    await orders.block(key="u1", reason="asked for it", by="test", until_ms=now_ms + 400)
    assert [await job.result() for job in jobs] == ["u1", "u1"]
    assert (await view.counts()).now_ms >= now_ms + 400


async def test_a_job_that_no_worker_knows_waits_is_seen_and_runs_when_one_does(app, work, redis_url, view, eventually):
    """A producer was deployed before the workers."""
    newer = StreamQ(redis_url=redis_url, worker_concurrency=1, beat_ms=100)

    @newer.handler
    async def brand_new() -> str:
        return "ran"

    job = await brand_new.options(keep_result=KEPT).enqueue()
    await work()

    async def is_seen() -> bool:
        return [one.what for one in (await view.counts()).unknown] == ["brand_new"]

    await eventually(is_seen)
    await work(app=newer)
    with pytest.raises(TimeoutError):
        await job.result(timedelta(milliseconds=50))
    wire = app.client.broker.wire()
    await wire.call("ZADD", Keys("default").delayed, 1, job.id)
    assert await job.result() == "ran"
    await wire.close()
    await newer.close()


async def test_a_cancelled_job_wakes_who_waits_for_its_result(app):
    """No worker is there to do it."""

    @app.handler
    async def never() -> None: ...

    for options in ({}, {"delay": timedelta(hours=1)}):
        job = await never.options(keep_result=KEPT, **options).enqueue()
        waiting = asyncio.create_task(job.result(timedelta(seconds=15)))
        await asyncio.sleep(0)
        assert await job.cancel("not needed") == "cancelled"
        with pytest.raises(JobFailed, match="is cancelled: Cancelled: not needed"):
            await waiting


async def test_code_of_the_application_can_stop_and_let_go(app, work, ran):
    """As the command line can; in every queue of the application."""

    @app.handler(queue="mail", key="user")
    async def mail(user: str) -> str:
        return user

    operator = app.operator
    await operator.block(key="u1", reason="asked for it")
    await operator.block(handler="greet", lasting=timedelta(hours=1))
    await operator.pause("default", reason="deploy", lasting=timedelta(hours=1))
    counts = await operator.counts()
    assert sorted(counts) == ["default", "mail"]
    assert [(block.kind, block.name, block.reason) for block in counts["mail"].blocks] == [
        ("handler", "greet", ""),
        ("key", "u1", "asked for it"),
    ]
    assert counts["default"].pause is not None
    assert 3_300_000 < counts["default"].pause.until_ms - counts["default"].now_ms <= 3_600_000
    job = await start(app, "greet", "u1")
    await work()
    assert await operator.resume("default")
    assert not await operator.resume("default")
    assert await operator.unblock(key="u1")
    assert await operator.unblock(handler="greet")
    assert not await operator.unblock(handler="greet")
    assert await job.result() == "u1"
