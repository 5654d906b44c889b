"""A queue that is spread over several partitions is one queue for all who use it."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from streamq import RetryPolicy, StreamQ, current_job
from streamq.broker.inspection import Inspection
from streamq.errors import (
    BadArguments,
    BrokerUnavailable,
    ConfigurationError,
    JobNotFound,
    PartlyDone,
    QueueFull,
    StreamQError,
)
from streamq.keys import Keys, partition_for, partition_names, queue_of
from streamq.worker import Worker

KEPT = timedelta(seconds=60)
NAMES = ("default:0", "default:1", "default:2")


@pytest.fixture
async def app(redis_url):
    """Give an application whose queues have three partitions."""
    made = StreamQ(
        redis_url=redis_url, worker_concurrency=4, dead_after_ms=2_000, beat_ms=100, grace_ms=2_000, partitions=("3",)
    )
    yield made
    await made.close()


@pytest.fixture
async def view(app):
    """Look into the partitions, by name."""
    wire = app.client.broker.wire()
    yield {name: Inspection(wire, Keys(name)) for name in NAMES}
    await wire.close()


def test_a_token_belongs_to_the_same_partition_for_ever():
    """Another hash would put the next job of a user beside the one that runs."""
    assert [partition_for("q", token, 3) for token in ("u1", "u2", "u3", "ü", "")] == [
        "q:2",
        "q:0",
        "q:2",
        "q:1",
        "q:0",
    ]
    assert partition_for("q", "u1", 1) == "q"
    assert partition_names("q", 1) == ("q",)
    assert [queue_of(name) for name in ("q", "q:2")] == ["q", "q"]
    assert Keys("q").tag == Keys("q:0").tag == "{sq:q:0}"
    assert Keys("q:12").lanes[0] == "{sq:q:12}:lane:high"


@pytest.mark.parametrize("name", ["q:", "q:x", "q:1:2", "q:1234", ":1"])
def test_what_is_no_partition_of_a_queue_has_no_keys(name):
    """It would be a queue that nobody can name."""
    with pytest.raises(ConfigurationError, match="cannot be the name of a queue"):
        Keys(name)


async def test_jobs_are_spread_and_one_worker_runs_them_all(app, work, eventually):
    ran = Counter()

    @app.handler(key="user")
    async def refresh(user: str) -> None:
        ran[user] += 1

    users = [f"u{number}" for number in range(300)]
    jobs = await refresh.enqueue_many(users)
    assert [job.queue for job in jobs] == [partition_for("default", user, 3) for user in users]
    assert min(Counter(job.queue for job in jobs).values()) > 70
    assert {job.status for job in jobs} == {"new"}
    last = await refresh.options(keep_result=KEPT).enqueue("u7")
    await work()
    await last.result()
    other = await refresh.options(keep_result=KEPT, priority="low").enqueue("u8")
    await other.result()
    await eventually(lambda: sum(ran.values()) == 302, "all have run")
    assert set(ran) == set(users)


@pytest.mark.parametrize("options", [{"key": "user", "dedup": "user"}, {"dedup": "user"}])
async def test_a_dedup_key_lies_in_the_partition_of_its_job_with_or_without_a_user_key(app, work, options):
    """Whoever comes with the same key looks there."""

    @app.handler(**options)
    async def refresh(user: str) -> str:
        return user

    first = [await refresh.options(keep_result=KEPT).enqueue(f"x{number}") for number in range(12)]
    again = [await refresh.enqueue(f"x{number}") for number in range(12)]
    assert [(job.id, job.status) for job in again] == [(job.id, "duplicate") for job in first]
    assert {job.queue for job in first} == set(NAMES)
    assert (await refresh.explain("x3")).holder == first[3].id
    await work()
    await asyncio.gather(*(job.result() for job in first))
    assert (await refresh.enqueue("x3")).is_new


async def test_retries_and_delayed_jobs_come_back_in_their_partition(app, work):
    @app.handler(key="user", retry=RetryPolicy(base=timedelta(milliseconds=1)))
    async def flaky(user: str) -> int:
        if current_job().attempt < 3:
            raise RuntimeError("not yet")
        return current_job().attempt

    jobs = [await flaky.options(keep_result=KEPT).enqueue(f"u{number}") for number in range(6)]
    jobs += [
        await flaky.options(keep_result=KEPT, delay=timedelta(milliseconds=50)).enqueue(f"d{number}")
        for number in range(6)
    ]
    assert len({job.queue for job in jobs}) == 3
    await work()
    assert await asyncio.gather(*(job.result() for job in jobs)) == [3] * 12


@pytest.mark.parametrize("slots", [1, 2])
async def test_partitions_take_turns_when_each_has_more_than_there_are_slots(app, work, slots, eventually):
    """One that is full must not starve the others."""
    order = []

    @app.handler(key="user")
    async def slow(user: str) -> None:
        order.append(partition_for("default", user, 3))
        await asyncio.sleep(0.01)

    users = {name: [] for name in NAMES}
    number = 0
    while min(len(each) for each in users.values()) < 12:
        user, number = f"u{number}", number + 1
        users[partition_for("default", user, 3)].append(user)
    chosen = [user for each in users.values() for user in each[:12]]
    await slow.enqueue_many(chosen)
    app.settings = StreamQ(**{**_flags(app), "worker_concurrency": slots}).settings
    await work()
    await eventually(lambda: len(order) == 36, "all have run")
    half = Counter(order[:18])
    assert min(half[name] for name in NAMES) >= 3, order


def _flags(app):
    settings = app.settings
    return {
        name: getattr(settings, name) for name in ("redis_url", "dead_after_ms", "beat_ms", "grace_ms", "partitions")
    }


async def test_a_queue_is_paused_blocked_and_let_go_whole(app, work, view):
    @app.handler(key="user")
    async def refresh(user: str) -> str:
        return user

    await app.operator.pause("default", reason="looking")
    jobs = [await refresh.options(keep_result=KEPT).enqueue(f"u{number}") for number in range(9)]
    assert all(counts.pause.reason == "looking" for counts in (await app.operator.counts()).values())
    assert tuple(await app.operator.counts()) == NAMES
    assert await app.operator.cancel(jobs[0].id) == "cancelled"
    with pytest.raises(JobNotFound, match=r"waits or runs in default:0, default:1, default:2"):
        await app.operator.cancel("nobody")
    await jobs[1].cancel()
    await work()
    await app.operator.block(key="u5", reason="theirs")
    assert await app.operator.resume("default")
    assert not await app.operator.resume("default")
    results = await asyncio.gather(*(job.result() for job in [*jobs[2:5], *jobs[6:]]))
    assert results == ["u2", "u3", "u4", "u6", "u7", "u8"]
    assert (await view[jobs[5].queue].locate(jobs[5].id)).state in ("queued", "scheduled")
    assert await app.operator.unblock(key="u5")
    assert await jobs[5].result() == "u5"


async def test_an_order_from_code_goes_to_all_partitions_and_says_which_did_not_take_it(app):
    """One that is away must not keep it from the others; repeated when that is back, it is done everywhere."""

    @app.handler(key="user")
    async def refresh(user: str) -> None: ...

    jobs = await refresh.enqueue_many([f"u{number}" for number in range(9)])
    elsewhere = next(job for job in jobs if job.queue == NAMES[2])
    wire = app.client.broker.wire()
    broken = Keys(NAMES[0])
    await wire.call("SET", broken.pause, "of the wrong type")
    with pytest.raises(PartlyDone, match="done in default:1, default:2, and not in default:0: .*WRONGTYPE") as told:
        await app.operator.pause("default", reason="deploy")
    assert (told.value.done, told.value.failed) == ([NAMES[1], NAMES[2]], [NAMES[0]])
    assert told.value.hint == "do it once more; what is done stays done"
    with pytest.raises(PartlyDone):
        await app.operator.block(handler="refresh")
    with pytest.raises(PartlyDone):
        await app.operator.unblock(handler="refresh")
    await wire.call("DEL", broken.pause)
    await app.operator.pause("default", reason="deploy")
    assert {counts.pause.reason for counts in (await app.operator.counts()).values()} == {"deploy"}
    assert await app.operator.resume("default")

    index = await wire.call("DUMP", broken.index)
    await wire.call("SET", broken.index, "of the wrong type")
    assert await app.operator.cancel(elsewhere.id) == "cancelled"
    with pytest.raises(StreamQError, match="WRONGTYPE"):
        await app.operator.cancel("nobody")
    await wire.call("RESTORE", broken.index, 0, index, "REPLACE")
    with pytest.raises(JobNotFound):
        await app.operator.cancel("nobody")
    await wire.close()


async def test_a_dead_letter_lies_in_the_partition_of_its_key(app, work, view, eventually):
    @app.handler(key="user", max_attempts=1)
    async def broken(user: str) -> None:
        raise ValueError("never")

    job = await broken.enqueue("u1")
    await work()
    await eventually(lambda: _has_letter(view[job.queue]), "the job is dead")
    async with app.operator.dead_letters(job.queue) as letters:
        assert (await letters.find(job.id)).error == "never"


async def _has_letter(view):
    return bool(await view.dead(1))


async def test_a_producer_with_another_number_of_partitions_is_refused(app, redis_url):
    """It would look for dedup keys where they do not lie."""

    @app.handler(key="user")
    async def refresh(user: str) -> None: ...

    await refresh.enqueue("u1")
    for said in ("1", "2", "4,mail=3"):
        other = StreamQ(redis_url=redis_url, partitions=tuple(said.split(",")))
        handler = other.handler(key="user")(refresh.spec.function)
        for user in ("u1", "u2", "u3", "u6"):
            with pytest.raises(ConfigurationError, match="queue 'default' has 3 partitions, and the settings say"):
                await handler.enqueue(user)
        await other.close()
    good = StreamQ(redis_url=redis_url, partitions=("2", "default=3"))
    assert (await good.handler(key="user")(refresh.spec.function).enqueue("u2")).is_new
    await good.close()


async def test_a_worker_with_another_number_of_partitions_does_not_start(app, redis_url):
    @app.handler
    async def nothing() -> None: ...

    await nothing.enqueue()
    other = StreamQ(redis_url=redis_url)
    with pytest.raises(ConfigurationError, match="queue 'default' has 3 partitions, and the settings say 1 partition"):
        await Worker(other, other.settings).run()
    await other.close()


async def test_a_limit_over_all_jobs_of_a_handler_needs_a_queue_that_is_not_divided(app):
    """Each partition would keep it for itself, and so three times as many would run."""

    @app.handler(concurrency=2)
    async def limited() -> None: ...

    with pytest.raises(ConfigurationError, match="handler 'limited' has a limit over all its jobs, and its queue") as e:
        await Worker(app, app.settings).run()
    assert "a queue that is not divided" in e.value.hint


async def test_each_partition_holds_its_part_of_the_most_jobs(app, redis_url):
    small = StreamQ(redis_url=redis_url, partitions=("3",), max_depth=7)

    @small.handler
    async def nothing(number: int) -> None: ...

    jobs = await nothing.enqueue_many(range(60))
    assert Counter(job.status for job in jobs) == {"new": 9, "refused": 51}
    assert isinstance(jobs[-1].error, QueueFull)
    await small.close()


async def test_a_job_in_a_partition_that_cannot_be_reached_is_told_as_such():
    lost = StreamQ(redis_url="redis://127.0.0.1:1/0", partitions=("3",))
    lost.client.give_up_s = 0.1

    @lost.handler
    async def nothing() -> None: ...

    with pytest.raises(BrokerUnavailable, match="cannot reach Redis at redis://127.0.0.1:1/0"):
        await nothing.enqueue()
    with pytest.raises(BadArguments, match="have no dedup key"):
        await nothing.explain()
    await lost.close()
