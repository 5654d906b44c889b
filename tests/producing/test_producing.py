"""Producing: what a call of `enqueue` and its kin comes to, one by one and by the million."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streamq import Dedup, StreamQ
from streamq.broker.partition import BATCH_BYTES, Partition
from streamq.codec import decode_envelope
from streamq.errors import (
    BadArguments,
    BrokerUnavailable,
    ConfigurationError,
    JobFailed,
    PayloadTooLarge,
    QueueFull,
    UnknownHandler,
)
from streamq.keys import Keys

HOUR = timedelta(hours=1)
KEPT = timedelta(seconds=60)


async def envelopes(redis, queue="default", lane="normal"):
    """Return the envelopes that lie in a lane."""
    lane_key = Keys(queue).lanes[("high", "normal", "low").index(lane)]
    return [decode_envelope(fields[3]) for _, fields in await redis("XRANGE", lane_key, "-", "+")]


# ---- one


@pytest.mark.parametrize("has_arrived", [True, False])
async def test_a_single_job_whose_call_got_no_reply_is_enqueued_once(app, redis, monkeypatch, has_arrived):
    """The call is repeated with its number: Redis knows whether it was accepted."""

    @app.handler
    async def refresh(user: str): ...

    await refresh.enqueue("first")
    append = Partition.append

    async def lost(*args, **kwargs):
        monkeypatch.setattr(Partition, "append", append)
        if has_arrived:
            assert await append(*args, **kwargs)
        raise BrokerUnavailable("the reply was lost")

    monkeypatch.setattr(Partition, "append", lost)
    assert [(await refresh.enqueue(user)).status for user in ("ada", "bob")] == ["new", "new"]
    assert [found.args for found in await envelopes(redis)] == [["first"], ["ada"], ["bob"]]


async def test_single_jobs_make_the_index_a_table_before_it_is_long(app, redis):
    """As a list, which small hashes are, it would be searched from end to end for each job."""

    @app.handler
    async def refresh(user: str): ...

    for number in range(70):
        await refresh.enqueue(f"u{number}")
    index = Keys("default").index
    assert await redis("OBJECT", "ENCODING", index) == b"hashtable"
    assert await redis("HLEN", index) == 70


async def test_single_jobs_renew_until_when_their_producer_is_remembered(app, redis, eventually):
    """It is remembered for a day after its last call, or nearly: for so long a repeated call is known."""

    @app.handler
    async def refresh(user: str): ...

    async def kept_until(user: str) -> int:
        await refresh.enqueue(user)
        (kept,) = await redis("HVALS", Keys("default").producers)
        return int(kept.split(b"|")[1])

    async def is_later() -> bool:
        seconds, us = await redis("TIME")
        return int(seconds) * 1000 + int(us) // 1000 > first - 86_400_000

    first = await kept_until("first")
    await eventually(is_later)
    assert await kept_until("second") == first
    app.client.producer("default")._renew_at = 0.0  # as after an hour
    assert await kept_until("third") > first


async def test_a_single_job_that_is_sent_twice_is_there_the_second_time(app, redis):
    """The short way finds that its id is known, before it has written anything."""

    @app.handler
    async def refresh(user: str): ...

    await refresh.enqueue("first")
    item = refresh.draft("ada")
    assert (await app.client.send(item)).status == "new"
    assert (await app.client.send(item)).status == "present"
    assert [found.args for found in await envelopes(redis)] == [["first"], ["ada"]]


async def test_a_producer_that_redis_has_forgotten_goes_on(app, redis):
    """After FLUSHALL, or on a server that took over without its last calls."""

    @app.handler
    async def refresh(user: str): ...

    for user in ("ada", "bob"):
        await refresh.enqueue(user)
    await redis("DEL", Keys("default").producers)
    assert [(await refresh.enqueue(user)).status for user in ("cem", "dan")] == ["new", "new"]
    assert [found.args for found in await envelopes(redis)] == [["ada"], ["bob"], ["cem"], ["dan"]]


async def test_a_single_job_gives_up_when_no_call_gets_a_reply_in_time(app, monkeypatch):
    """Whoever called knows best what to do then."""

    @app.handler
    async def refresh(user: str): ...

    await refresh.enqueue("first")
    app.client.producer("default")._give_up_s = 0

    async def lost(*_args, **_kwargs):
        raise BrokerUnavailable("the reply was lost")

    monkeypatch.setattr(Partition, "append", lost)
    with pytest.raises(BrokerUnavailable, match="the reply was lost"):
        await refresh.enqueue("ada")


async def test_a_single_job_of_a_key_that_is_known_as_slow_goes_into_the_slow_lane(app, redis):
    """The short way into a lane asks for it."""

    @app.handler(key="user")
    async def refresh(user: str): ...

    await refresh.enqueue("first")
    await redis("HSET", Keys("default").cost, f"{refresh.spec.name}|ada", "812|1")
    assert [(await refresh.enqueue(user)).status for user in ("ada", "bob")] == ["new", "new"]
    assert [found.key for found in await envelopes(redis)] == ["first", "bob"]
    assert await redis("XLEN", Keys("default").lanes[4]) == 1


# ---- many


async def test_each_of_many_jobs_has_its_own_result_in_order(app, redis):
    """New, duplicate, refused: nothing of the rest is lost."""

    @app.handler(dedup="user")
    async def refresh(user: str, limit: int = 0) -> None: ...

    first = await refresh.enqueue("u2")
    jobs = await refresh.enqueue_many(["u1", "u2", ("u3", 1, 2), {"user": "u4"}, float("nan"), {1: 2}, "u1"])
    assert [job.status for job in jobs] == ["new", "duplicate", "refused", "new", "refused", "refused", "duplicate"]
    assert (jobs[1].id, jobs[6].id) == (first.id, jobs[0].id)
    assert [envelope.kwargs or envelope.args for envelope in await envelopes(redis)] == [
        ["u2"], ["u1"], {"user": "u4"},
    ]  # fmt: skip
    assert [str(jobs[place].error) for place in (2, 4, 5)] == [
        "refresh(user: 'str', limit: 'int' = 0) -> 'None': too many positional arguments",
        "the arguments are not JSON: NaN and infinity are not JSON",
        "refresh(user: 'str', limit: 'int' = 0) -> 'None': keywords must be strings",
    ]
    assert all(isinstance(jobs[place].error, BadArguments) for place in (2, 4, 5))
    assert "error=BadArguments" in repr(jobs[2])


async def test_jobs_that_find_no_room_are_refused_one_by_one(redis_url, app, redis):
    """What fits is enqueued, and the figure says how full it is."""
    small = StreamQ(redis_url=redis_url, max_depth=200)

    @small.handler
    async def refresh(user: str) -> None: ...

    jobs = await refresh.enqueue_many(f"u{i}" for i in range(300))
    assert Counter(job.status for job in jobs) == {"new": 200, "refused": 100}
    assert [job.status for job in jobs[:200]] == ["new"] * 200
    error = jobs[-1].error
    assert isinstance(error, QueueFull)
    assert str(error) == "queue 'default' holds 200 jobs and may hold 200"
    assert (error.depth, error.max_depth, error.hint) == (200, 200, "add workers, or raise max_depth")
    with pytest.raises(QueueFull, match="holds 200 jobs and may hold 200"):
        await refresh.enqueue("one more")
    assert await redis("HLEN", Keys("default").index) == 200
    await small.close()


async def test_concurrent_calls_share_what_room_there_is(redis_url, app):
    """They go out together; that some find no room must not cost the others theirs."""
    small = StreamQ(redis_url=redis_url, max_depth=10)

    @small.handler
    async def refresh(user: str) -> None: ...

    outcomes = await asyncio.gather(*(refresh.enqueue(f"u{i}") for i in range(40)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
    assert (len(outcomes) - len(refused), len(refused)) == (10, 30)
    await small.close()


async def test_a_stream_of_jobs_is_sent_and_answered_as_it_is_read(app, redis):
    """Ten million users fit into no list: at most two batches are read ahead of the results."""
    read = 0

    @app.handler
    async def refresh(user: int) -> None: ...

    def users():
        nonlocal read
        for number in range(1, 5_001):
            read = number
            yield number

    seen = 0
    async for job in refresh.enqueue_stream(users()):
        seen += 1
        assert job.is_new
        assert read - seen <= 3 * 128
    assert seen == 5_000
    assert await redis("HLEN", Keys("default").index) == 5_000


async def test_a_stream_that_is_left_early_has_sent_what_it_was_given(app, redis, eventually):
    """No batch is cut in the middle."""

    @app.handler
    async def refresh(user: int) -> None: ...

    stream = refresh.enqueue_stream(range(1_000))
    async for _ in stream:
        break
    await stream.aclose()
    assert await redis("HLEN", Keys("default").index) in (128, 256)


async def test_many_jobs_may_come_from_an_async_iterator(app):
    """A cursor of a database is one."""

    @app.handler
    async def refresh(user: int) -> None: ...

    async def users():
        for number in range(300):
            yield number

    jobs = await refresh.enqueue_many(users())
    assert [job.status for job in jobs] == ["new"] * 300


async def test_an_iterable_that_fails_keeps_what_went_before(app, redis):
    """Its error is the caller's; whole batches before it are enqueued."""

    @app.handler
    async def refresh(user: int) -> None: ...

    def users():
        yield from range(200)
        raise RuntimeError("the database is away")

    with pytest.raises(RuntimeError, match="the database is away"):
        await refresh.enqueue_many(users())
    assert await redis("HLEN", Keys("default").index) == 128


async def test_jobs_of_several_queues_keep_their_order(app):
    """Each queue gets its own call; the results are put together again."""

    @app.handler(queue="a")
    async def one(n: int) -> None: ...

    @app.handler(queue="b")
    async def two(n: int) -> None: ...

    drafts = [handler.options(id=f"{handler.__name__}{n}").draft(n) for n in range(3) for handler in (one, two)]
    jobs = await app.client.send_many(drafts)
    assert [job.id for job in jobs] == ["one0", "two0", "one1", "two1", "one2", "two2"]
    assert [job.queue for job in jobs] == ["a", "b"] * 3


# ---- without an event loop


async def in_thread(work):
    """Run plain code beside the loop of the test."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def test_all_who_wait_for_a_result_have_it_and_who_asks_later_too(app, redis, eventually, work):
    """However often it is read, it is there for as long as it was to be kept."""

    @app.handler
    async def double(x: int) -> int:
        return 2 * x

    job = await double.options(keep_result=KEPT).enqueue(4)
    waiting = [asyncio.create_task(job.result(timedelta(seconds=50))) for _ in range(3)]

    async def all_wait():
        clients = await redis("INFO", "clients")
        return int(clients.partition(b"blocked_clients:")[2].partition(b"\r")[0]) >= 3

    await eventually(all_wait)
    await work()
    assert await asyncio.gather(*waiting) == [8, 8, 8]
    assert await job.result() == 8
    key = Keys(job.queue).result(job.id)
    assert await redis("LLEN", key) == 1
    assert 0 < await redis("PTTL", key) <= KEPT / timedelta(milliseconds=1)


async def test_plain_code_enqueues_waits_and_cancels(app, work):
    """Django and Flask have no event loop."""

    @app.handler
    async def double(x: int) -> int:
        return 2 * x

    await work()
    kept = double.options(keep_result=KEPT)
    assert await in_thread(lambda: kept.enqueue_sync(4).result_sync()) == 8

    def cancel() -> None:
        job = double.options(delay=HOUR, keep_result=KEPT).enqueue_sync(4)
        assert job.cancel_sync("not needed") == "cancelled"

    await in_thread(cancel)


async def test_plain_code_enqueues_many_and_its_iterable_stays_in_its_thread(app, redis):
    """A cursor of an ORM belongs to the thread that opened it."""

    @app.handler
    async def refresh(user: int) -> None: ...

    threads = set()

    def users():
        for number in range(1_000):
            threads.add(threading.get_ident())
            yield number if number != 500 else float("inf")

    def produce():
        jobs = refresh.enqueue_many_sync(users())
        assert threads == {threading.get_ident()}
        return jobs

    jobs = await in_thread(produce)
    assert Counter(job.status for job in jobs) == {"new": 999, "refused": 1}
    assert jobs[500].status == "refused"
    assert await redis("HLEN", Keys("default").index) == 999


# ---- by name


async def test_a_producer_by_name_needs_no_code_of_the_handler(app, redis_url, work, eventually):
    """The web application does not import what the worker runs."""
    runs = []

    @app.handler(queue="default")
    async def refresh(user_id: str, limit: int = 0) -> int:
        runs.append((user_id, limit))
        return limit

    web = StreamQ(redis_url=redis_url)
    refresh_there = web.producer("refresh", dedup="user_id", key="user_id")
    job = await refresh_there.options(keep_result=KEPT).enqueue(user_id="u1", limit=3)
    assert (await refresh_there.enqueue(user_id="u1")).id == job.id
    jobs = await refresh_there.enqueue_many([{"user_id": "u2"}, {"user_id": "u1"}])
    assert [job.status for job in jobs] == ["new", "duplicate"]
    await work()
    assert await job.result() == 3
    await eventually(lambda: len(runs) == 2, "both have run")
    sync = await in_thread(lambda: refresh_there.enqueue_sync(user_id="u3", priority="high"))
    assert sync.is_new
    await eventually(lambda: len(runs) == 3, "the third has run")
    await in_thread(web.close_sync)
    await web.close()


async def test_a_call_by_name_that_fits_no_signature_fails_in_the_worker(app, redis_url, work):
    """Only there it is known."""

    @app.handler(max_attempts=1)
    async def refresh(user_id: str) -> None: ...

    web = StreamQ(redis_url=redis_url)
    job = await web.producer("refresh").enqueue("u1", "too many", keep_result=KEPT)
    await work()
    with pytest.raises(JobFailed, match="TypeError"):
        await job.result()
    await web.close()


async def test_by_name_what_makes_a_key_must_be_given_by_name(app):
    """Nobody here knows which argument stands where."""
    with pytest.raises(BadArguments, match="'refresh' is known by name only: 'user_id' makes its key") as refusal:
        await app.producer("refresh", key="user_id").enqueue("u1")
    assert refusal.value.hint == "write user_id=..."


async def test_a_handler_known_by_name_cannot_be_called(app):
    """Its code is elsewhere."""
    with pytest.raises(UnknownHandler, match="the code of this handler is not here: it can be enqueued, not called"):
        app.producer("refresh")("u1")


@pytest.mark.parametrize("name", ["a:b", "a\nb", "", "1a", "a b", "lane:normal"])
async def test_a_name_that_no_handler_can_have_is_refused(app, name):
    """It would wait for ever."""
    with pytest.raises(ConfigurationError, match="a name is letters, digits and '_'"):
        app.producer(name)


async def test_a_queue_that_cannot_be_is_refused(app):
    """Its name becomes part of every key."""
    with pytest.raises(ConfigurationError, match="cannot be the name of a queue"):
        app.producer("refresh", queue="a:b")


# ---- options


async def test_a_job_carries_what_was_said_of_it(app, redis):
    """All options at once."""

    @app.handler
    async def refresh(user: str) -> None: ...

    job = await refresh.enqueue(
        "u1", key="u1", priority="low", headers={"traceparent": "00-é"}, max_attempts=2, id="my:id", keep_result=KEPT,
        deadline=datetime(2100, 1, 1, tzinfo=UTC), dedup="refresh u1",
    )  # fmt: skip
    assert (job.id, job.status) == ("my:id", "new")
    (envelope,) = await envelopes(redis, lane="low")
    assert (envelope.key, envelope.headers, envelope.max_attempts) == ("u1", {"traceparent": "00-é"}, 2)
    assert (envelope.deadline_ms, envelope.keep_result_ms) == (4_102_444_800_000, 60_000)
    assert envelope.dedup == "refresh u1"
    assert (await refresh.enqueue("u1", id="my:id")).status == "present"


async def test_a_job_is_due_at_the_time_that_was_given(app, redis):
    """By the server's clock, to the millisecond."""

    @app.handler
    async def refresh(user: str) -> None: ...

    at = datetime(2100, 1, 1, tzinfo=UTC)
    job = await refresh.enqueue("u1", at=at)
    assert float(await redis("ZSCORE", Keys("default").delayed, job.id)) == 4_102_444_800_000
    between = await refresh.enqueue("u3", at=at + timedelta(microseconds=1))
    assert float(await redis("ZSCORE", Keys("default").delayed, between.id)) == 4_102_444_800_001, "never early"
    past = await refresh.enqueue("u2", at=datetime(1999, 1, 1, tzinfo=UTC))
    seconds, _ = await redis("TIME")
    assert float(await redis("ZSCORE", Keys("default").delayed, past.id)) <= (int(seconds) + 1) * 1000


async def test_large_jobs_are_sent_about_a_megabyte_at_a_time(app, monkeypatch):
    """Redis serves nobody else while a script handles them."""
    add, sizes = Partition.add, []

    async def noting(self, producer, number, jobs, **options):
        sizes.append(sum(len(job.envelope) for job in jobs))
        return await add(self, producer, number, jobs, **options)

    monkeypatch.setattr(Partition, "add", noting)

    @app.handler
    async def refresh(text: str) -> None: ...

    assert {job.status for job in await refresh.enqueue_many(["x" * 200_000] * 40)} == {"new"}
    assert max(sizes) <= BATCH_BYTES
    assert sum(sizes) > 8_000_000
    sizes.clear()
    assert {job.status for job in await refresh.enqueue_many(["x"] * 256)} == {"new"}
    assert len(sizes) == 2


async def test_a_payload_that_is_too_large_is_refused_before_redis_is_touched():
    """There is no Redis at this address."""
    app = StreamQ(redis_url="redis://127.0.0.1:1", max_payload_bytes=1000)

    @app.handler
    async def refresh(text: str) -> None: ...

    with pytest.raises(PayloadTooLarge, match="a job of 'refresh' is 1,030 bytes; at most 1,000 are allowed"):
        await refresh.enqueue("x" * 1_000)
    assert await refresh.enqueue_many([]) == []


# ---- dedup keys


async def test_a_key_of_several_arguments_keeps_them_apart(app):
    """("a:b", "c") and ("a", "b:c") are not the same."""

    @app.handler(dedup=["a", "b"])
    async def pair(a: str, b: str) -> None: ...

    jobs = await pair.enqueue_many([("a:b", "c"), ("a", "b:c"), ("a\\", ":b"), ("a\\:", "b"), ("a:b", "c")])
    assert [job.status for job in jobs] == ["new", "new", "new", "new", "duplicate"]


async def test_one_call_may_have_a_rule_of_its_own_with_the_key_of_the_handler(app, redis):
    """The rule is replaced, what makes jobs the same stays."""

    @app.handler(dedup="user")
    async def refresh(user: str) -> None: ...

    job = await refresh.enqueue("u1", dedup=Dedup.throttle(HOUR))
    assert 0 < await redis("PTTL", Keys("default").dedup("refresh:u1")) <= 3_600_000
    assert (await refresh.enqueue("u1")).id == job.id
    assert (await refresh.enqueue("u1", dedup=Dedup.until_done(key="another"))).is_new


async def test_a_key_given_for_one_call_keeps_the_rule_of_the_handler(app, redis):
    """Only what makes jobs the same is replaced."""

    @app.handler(dedup=Dedup.throttle(HOUR, "user"))
    async def refresh(user: str) -> None: ...

    await refresh.enqueue("u1", dedup="mine")
    assert 0 < await redis("PTTL", Keys("default").dedup("mine")) <= 3_600_000


def test_a_rule_without_a_key_is_refused_where_the_handler_has_none():
    """Nothing would say what makes jobs the same."""
    app = StreamQ(redis_url="redis://127.0.0.1:1")

    @app.handler
    async def refresh(user: str) -> None: ...

    with pytest.raises(BadArguments, match="nothing says what makes jobs the same") as refusal:
        refresh.draft("u1", dedup=Dedup.until_started())
    assert "pass key=" in refusal.value.hint
    with pytest.raises(ConfigurationError, match="dedup needs the names of the arguments"):
        app.handler(name="x", dedup=Dedup.throttle(HOUR))(lambda user: None)
    with pytest.raises(ConfigurationError, match="has no argument 'nobody'"):
        app.handler(name="x", dedup=Dedup.throttle(HOUR, "nobody"))(lambda user: None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dedup.window(timedelta(0), "user"), "a window is a timedelta from 1 ms to 36,500 days, and datetime"),
        (lambda: Dedup.throttle(5, "user"), "the interval of a throttle is a timedelta from 1 ms to .*, and 5 came"),  # type: ignore[arg-type]
        (lambda: Dedup.per(-HOUR, "user"), "a period is a timedelta from 1 ms"),
        (
            lambda: Dedup.debounce(HOUR, max_wait=timedelta(seconds=1)),
            "max_wait=0:00:01 is shorter than the wait of 1:00:00",
        ),
        (lambda: Dedup.debounce(timedelta.max, max_wait=HOUR), "the wait of a debounce is a timedelta"),
        (lambda: Dedup.until_done("user", key="k"), r"by=\('user',\) and key='k' both make the key"),
    ],
    ids=lambda value: "" if callable(value) else value[:20],
)
def test_a_rule_that_makes_no_sense_is_refused(make, words):
    """When it is written, not when it is used."""
    with pytest.raises(ConfigurationError, match=words):
        make()


@pytest.mark.parametrize("rule", [Dedup.debounce(HOUR, "user", max_wait=HOUR), Dedup.keep_last("user")])
def test_a_rule_that_sets_the_time_goes_with_no_delay(rule):
    """Both say when."""
    app = StreamQ(redis_url="redis://127.0.0.1:1")

    @app.handler(dedup=rule)
    async def refresh(user: str) -> None: ...

    with pytest.raises(BadArguments, match="has its own time; leave out delay= and at="):
        refresh.draft("u1", delay=HOUR)


async def test_no_module_of_a_handler_is_imported_to_enqueue_by_name():
    """A producer stays as light as it is."""
    program = (
        "import sys; from streamq import StreamQ; StreamQ().producer('refresh'); print('streamq.worker' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    said, _ = await process.communicate()
    assert said.strip() == b"False"
