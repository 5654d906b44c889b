"""Dedup, from the decorator to the worker: who runs, with which arguments, and what `explain` says of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from streamq import Dedup, Fail, Retry
from streamq.errors import BadArguments
from streamq.keys import Keys

HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=300)


@pytest.fixture
def gate():
    """What holds a handler until the test lets it go on."""
    return asyncio.Event()


async def state_of(handler, *args) -> str:
    """Return what `explain` says of the key of a call."""
    return (await handler.explain(*args)).state


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (Dedup.until_done("user"), "duplicate"),
        (Dedup.until_started("user"), "new"),
        (Dedup.window(HOUR, "user"), "duplicate"),
        (Dedup.throttle(HOUR, "user"), "duplicate"),
        (Dedup.per(timedelta(days=36_500), "user"), "duplicate"),
        (Dedup.keep_last("user"), "new"),
    ],
    ids=lambda value: value.scope if isinstance(value, Dedup) else "",
)
async def test_a_call_while_the_job_runs_meets_its_rule(app, work, eventually, gate, rule, status):
    """And the worker ends both, whatever the rule."""
    runs = []

    @app.handler(dedup=rule)
    async def refresh(user: str, n: int) -> None:
        runs.append(n)
        await gate.wait()

    await work()
    await refresh.enqueue("u1", 1)
    await eventually(lambda: runs == [1], "the first runs")
    assert (await refresh.enqueue("u1", 2)).status == status
    gate.set()
    expected = [1, 2] if status == "new" else [1]
    index = Keys("default").index
    wire = app.client.broker.wire()

    async def all_ended() -> bool:
        return await wire.call("HLEN", index) == 0

    await eventually(all_ended, "all have ended")
    assert runs == expected
    expected_state = "ended" if rule.scope in ("window", "throttle", "period") else "free"
    assert await state_of(refresh, "u1", 0) == expected_state
    await wire.close()


async def test_while_a_job_runs_only_the_newest_call_is_kept_and_it_never_runs_beside(app, work, eventually, gate):
    """Ten saves while a sync runs are one more sync, after it, with the last state."""
    runs, together = [], 0

    @app.handler(dedup=Dedup.keep_last("user"))
    async def sync(user: str, version: int) -> None:
        nonlocal together
        together += 1
        assert together == 1
        runs.append(version)
        await gate.wait()
        together -= 1

    await work()
    first = await sync.enqueue("u1", 1)
    await eventually(lambda: runs == [1], "the first runs")
    jobs = [await sync.enqueue("u1", version) for version in (2, 3, 4)]
    assert [job.status for job in jobs] == ["new", "replaced", "replaced"]
    told = await sync.explain("u1", 0)
    assert (told.state, told.holder, told.kept_behind) == ("kept", jobs[0].id, first.id)
    gate.set()
    await eventually(lambda: runs == [1, 4], "the newest runs after it")


@pytest.mark.parametrize("end", ["done", "dead", "cancelled", "timed out"])
async def test_the_kept_call_runs_however_the_one_before_it_ends(app, work, eventually, gate, end):
    """Each way to end frees what waits behind it."""
    runs = []

    @app.handler(
        dedup=Dedup.keep_last("user"),
        max_attempts=1,
        timeout=timedelta(milliseconds=200) if end == "timed out" else None,
    )
    async def sync(user: str, version: int) -> None:
        runs.append(version)
        if version == 1:
            await gate.wait()
            if end == "dead":
                raise Fail("hopeless")

    await work()
    job = await sync.enqueue("u1", 1)
    await eventually(lambda: runs == [1], "the first runs")
    await sync.enqueue("u1", 2)
    if end == "cancelled":
        assert await job.cancel() == "asked"
    elif end != "timed out":
        gate.set()
    await eventually(lambda: runs == [1, 2], "the kept one runs")


async def test_a_kept_call_waits_until_retries_are_over(app, work, eventually):
    """The job before it has not ended."""
    runs = []

    @app.handler(dedup=Dedup.keep_last("user"), max_attempts=2)
    async def sync(user: str, version: int) -> None:
        runs.append(version)
        if runs == [1]:
            assert (await sync.enqueue("u1", 2)).is_new
            raise Retry(timedelta(milliseconds=20))

    await work()
    await sync.enqueue("u1", 1)
    await eventually(lambda: len(runs) == 3, "all have run")
    assert runs == [1, 1, 2]


async def test_debounced_calls_run_once_with_the_arguments_of_the_last(app, work, redis, eventually):
    """Once they have stopped."""
    runs = []

    @app.handler(dedup=Dedup.debounce(HOUR, "user", max_wait=2 * HOUR))
    async def search(user: str, text: str) -> None:
        runs.append(text)

    await work()
    jobs = [await search.enqueue("u1", text) for text in ("a", "ab", "abc")]
    assert [job.status for job in jobs] == ["new", "replaced", "replaced"]
    assert len({job.id for job in jobs}) == 1
    assert await state_of(search, "u1", "") == "debounced"
    await redis("ZADD", Keys("default").delayed, 1, jobs[0].id)
    await eventually(lambda: runs == ["abc"], "it runs")
    assert (await search.enqueue("u1", "next")).is_new


async def test_calls_that_never_stop_are_debounced_to_the_maximum(app, work, eventually):
    """Else they would never run."""
    runs = []

    @app.handler(dedup=Dedup.debounce(MOMENT, "user", max_wait=MOMENT))
    async def search(user: str, number: int) -> None:
        runs.append(number)

    await work()
    number = 0

    async def goes_on() -> bool:
        nonlocal number
        number += 1
        await search.enqueue("u1", number)
        return len(runs) >= 2

    await eventually(goes_on, "it runs again and again")
    assert number > len(runs)


async def test_explain_tells_what_became_of_a_holder(app, work, eventually, gate):
    """From free to running to ended, with the times that are left."""

    @app.handler(dedup=Dedup.window(HOUR, "user"))
    async def refresh(user: str) -> None:
        await gate.wait()

    assert await state_of(refresh, "u1") == "free"
    job = await refresh.enqueue("u1")
    told = await app.explain("refresh:u1")
    assert (told.state, told.holder, told.handler, told.left_ms) == ("queued", job.id, "refresh", None)
    worker = await work()

    async def runs() -> bool:
        return await state_of(refresh, "u1") == "running"

    await eventually(runs, "it runs")
    assert (await refresh.explain("u1")).worker.startswith(worker.name)
    gate.set()

    async def ended() -> bool:
        return await state_of(refresh, "u1") == "ended"

    await eventually(ended, "it has ended")
    told = await refresh.explain("u1")
    assert told.why == "the holder has ended, and its window, throttle or period has not: a call returns it"
    assert told.left_ms is not None
    assert 3_300_000 < told.left_ms <= 3_600_000


async def test_explain_tells_of_a_holder_that_vanished_and_of_one_that_is_throttled(app, redis):
    """The first is taken over and counted, the second is held by time."""

    @app.handler(dedup="user")
    async def refresh(user: str) -> None: ...

    await redis("SET", Keys("default").dedup("refresh:u1"), "ghost")
    assert (await refresh.explain("u1")).why == "the holder no longer exists: the next call takes the key over"
    await refresh.enqueue("u1")
    told = await refresh.explain("u1")
    assert (told.state, told.taken_over) == ("queued", 1)
    await refresh.options(dedup=Dedup.throttle(HOUR)).enqueue("u2")
    assert (await refresh.explain("u2")).why == "the key is throttled: a call returns the holder, which is queued"
    await refresh.options(delay=HOUR).enqueue("u3")
    assert (await refresh.explain("u3")).state == "scheduled"


async def test_jobs_without_a_key_have_nothing_to_explain(app):
    """It says what to do."""

    @app.handler
    async def plain() -> None: ...

    with pytest.raises(BadArguments, match="jobs of 'plain' have no dedup key") as refusal:
        await plain.explain()
    assert refusal.value.hint == "say dedup= on the handler or here"
