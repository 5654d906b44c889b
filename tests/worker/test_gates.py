"""Handlers with limits: per user key, per handler, at once and per time; as an application meets them."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from streamq import StreamQ
from streamq.broker.letters import Edits
from streamq.codec import decode_envelope
from streamq.errors import BadArguments, ConfigurationError, JobFailed
from streamq.gates import Gates, Rate
from streamq.job import Dead, Delivery, Envelope, Limited
from streamq.retry import RetryPolicy
from streamq.worker.run import limited


def test_a_rate_is_never_more_than_it_says_in_any_period():
    """So many at once, and then one by one until the period has passed."""
    for text, at_once, interval_us in [
        ("1/s", 1, 1_000_000), ("10/s", 1, 100_000), ("100/s", 5, 10_417), ("5/10s", 1, 2_000_000), ("1/m", 1, 60_000_000),
    ]:  # fmt: skip
        rate = Rate.parse(text, "here")
        assert (rate.at_once, rate.interval_us) == (at_once, interval_us)
        in_any_period = rate.at_once + (rate.period_us - 1) // rate.interval_us
        assert in_any_period <= rate.most


@pytest.mark.parametrize("text", ["", "10", "0/s", "10/0s", "10/w", "ten/s", "1/400d"])
def test_a_rate_that_is_none_is_refused_with_what_came(text):
    with pytest.raises(
        ConfigurationError, match=r"^here is a number of starts and a period, at most 365d, and .* came"
    ):
        Rate.parse(text, "here")


@pytest.mark.parametrize("limits", [{"concurrency": -1}, {"concurrency_per_key": 1.5}, {"concurrency": True}])
def test_a_limit_that_is_none_is_refused_when_the_handler_is_registered(limits):
    app = StreamQ(redis_url="redis://nowhere")
    with pytest.raises(ConfigurationError, match=r"handler 'h': concurrency\S* is a whole number from 1 to 1,000,000"):
        app.handler(name="h", **limits)(lambda: None)


def test_a_handler_without_limits_has_no_gates():
    assert Gates.of("h", 0, None, 0, None) is None


def test_the_gates_of_a_job_are_one_word_each_whatever_its_key_is():
    gates = Gates.of("h", 2, "1/s", 3, "2/s")
    assert gates is not None
    assert gates.of_job("u") == "c2,0=k:h:u r1000000,1=rk:h:u c3,0=h:h r500000,1=rh:h"
    odd = gates.of_job('a "b"\\c\n\0%é=#').split(" ")
    assert odd[0] == "c2,0=k:h:a%20%22b%22%5Cc%0A%00%25%C3%A9%3D%23"
    assert len(odd) == 4


async def test_a_job_without_a_key_is_refused_by_a_handler_with_a_limit_per_key(app):
    @app.handler(concurrency_per_key=1)
    async def refresh(user: str) -> None: ...

    with pytest.raises(BadArguments, match="'refresh' has a limit per user key, and this job has no key"):
        await refresh.enqueue("ada")


async def test_two_workers_run_one_job_of_a_user_at_a_time_and_those_of_others_meanwhile(app, work):
    running, most, together = dict[str, int](), dict[str, int](), set[frozenset[str]]()

    @app.handler(key="user", concurrency_per_key=1)
    async def refresh(user: str, number: int) -> int:
        running[user] = running.get(user, 0) + 1
        most[user] = max(most.get(user, 0), running[user])
        together.add(frozenset(name for name, count in running.items() if count))
        await asyncio.sleep(0.005)
        running[user] -= 1
        return number

    kept = refresh.options(keep_result=timedelta(minutes=1))
    await work()
    await work()
    jobs = [await kept.enqueue(user, n) for n in range(8) for user in ("ada", "bob")]
    assert [await job.result() for job in jobs] == [n for n in range(8) for _ in range(2)]
    assert most == {"ada": 1, "bob": 1}
    assert frozenset({"ada", "bob"}) in together


async def test_a_handler_with_a_rate_starts_no_more_than_it_says(app, work):
    starts: list[float] = []

    @app.handler(rate="20/s")
    async def call() -> None:
        starts.append(asyncio.get_running_loop().time())

    kept = call.options(keep_result=timedelta(minutes=1))
    await work()
    jobs = [await kept.enqueue() for _ in range(6)]
    for job in jobs:
        await job.result()
    assert len(starts) == 6
    assert starts[-1] - starts[0] >= 5 * 0.05 - 0.01


async def test_a_failed_job_lets_the_next_of_its_key_start_and_gets_its_turn_again(app, work):
    order: list[str] = []

    @app.handler(key="user", concurrency_per_key=1, max_attempts=2, retry=RetryPolicy(timedelta(0)))
    async def refresh(user: str, name: str) -> None:
        order.append(name)
        if order == ["a"]:
            raise RuntimeError("not yet")

    kept = refresh.options(keep_result=timedelta(minutes=1))
    first, second = await kept.enqueue("ada", "a"), await kept.enqueue("ada", "b")
    await work()
    await second.result()
    await first.result()
    assert order == ["a", "b", "a"]


async def test_a_producer_that_knows_a_handler_by_its_name_only_does_not_get_past_its_limits(app, work, redis_url):
    """Its jobs have no gates when they come; the worker gives them those of the handler, and puts them back to wait."""
    running, most = 0, 0

    @app.handler(key="user", concurrency_per_key=1)
    async def refresh(user: str, number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return number

    web = StreamQ(redis_url=redis_url)
    by_name = web.producer("refresh").options(keep_result=timedelta(minutes=1))
    assert by_name.draft("ada", 0).envelope.startswith(b'{"v":1,'), "nothing here knows of a limit"
    jobs = [await by_name.enqueue("ada", n) for n in range(10)]
    worker = await work()
    await work()
    assert sorted([await job.result() for job in jobs]) == list(range(10))
    assert most == 1
    assert worker.slots.counters["limited"] <= 10
    await web.close()


async def test_a_job_of_a_producer_by_name_gets_key_and_weight_at_the_gate_of_its_turn(app):
    """The key from the argument that the handler names, the weight from the producer."""

    @app.handler(key="user", fair=True)
    async def refresh(user: str, number: int) -> None: ...

    draft = app.producer("refresh").options(weight=3).draft("bob", 1)
    delivery = Delivery(2, b"21-1", b"a", draft.envelope, 0, 0.0)
    delivery.envelope = decode_envelope(draft.envelope)
    assert limited(delivery, refresh.spec) == Limited()
    assert (delivery.envelope.gates, delivery.envelope.key) == ("f3,0=f:bob", "bob")
    assert limited(delivery, refresh.spec) is None, "the next worker runs it"


async def test_a_call_by_name_that_does_not_fit_a_handler_with_limits_dies_with_the_signature(app):
    @app.handler(key="user", fair=True)
    async def refresh(user: str) -> None: ...

    draft = app.producer("refresh").draft(person="bob")
    delivery = Delivery(2, b"21-1", b"a", draft.envelope, 0, 0.0)
    delivery.envelope = decode_envelope(draft.envelope)
    outcome = limited(delivery, refresh.spec)
    assert isinstance(outcome, Dead)
    assert outcome.failure.message.startswith("refresh(user: 'str') -> 'None': ")


async def test_a_job_without_a_key_that_gets_past_its_producer_dies_at_a_limit_per_key_and_says_why(
    app, work, redis_url
):
    """To run it would be to pass the limit unseen; a dead letter can be edited and retried."""

    @app.handler(concurrency_per_key=1)
    async def refresh(user: str) -> None: ...

    web = StreamQ(redis_url=redis_url)
    by_name = web.producer("refresh").options(keep_result=timedelta(minutes=1))
    job = await by_name.enqueue("ada")
    await work()
    with pytest.raises(JobFailed, match="BadArguments: 'refresh' has a limit per user key, and this job has no key"):
        await job.result()
    assert (await (await by_name.options(key="ada").enqueue("ada")).result()) is None
    await web.close()


async def test_a_job_that_was_enqueued_before_its_handler_had_a_limit_gets_it(app, work, redis_url):
    before = StreamQ(redis_url=redis_url)

    @before.handler(name="call")
    async def call_before() -> None: ...

    jobs = [await call_before.options(keep_result=timedelta(minutes=1)).enqueue() for _ in range(4)]
    starts: list[float] = []

    @app.handler(name="call", rate="20/s")
    async def call() -> None:
        starts.append(asyncio.get_running_loop().time())

    begun = asyncio.get_running_loop().time()
    worker = await work()
    for job in jobs:
        await job.result()
    assert worker.slots.counters["limited"] == 4
    assert starts[-1] - begun >= 3 * 0.05 - 0.01
    await before.close()


async def test_a_dead_job_that_is_replayed_for_another_key_waits_at_the_gate_of_that_key():
    edits = Edits(key="bob")
    envelope = Envelope("refresh", key="ada", gates="c1,0=k:refresh:ada")
    assert edits.applied_to(envelope) == Envelope("refresh", key="bob")
    assert Edits(max_attempts=3).applied_to(envelope).gates == "c1,0=k:refresh:ada"


async def test_a_user_with_many_jobs_takes_turns_with_one_who_has_few(app, work):
    order: list[str] = []

    @app.handler(key="user", fair=True)
    async def refresh(user: str, number: int) -> None:
        order.append(user)
        await asyncio.sleep(0.002)

    await refresh.enqueue_many([("ada", n) for n in range(200)])
    kept = refresh.options(keep_result=timedelta(minutes=1))
    jobs = [await kept.enqueue("bob", n) for n in range(5)]
    await work()
    for job in jobs:
        await job.result()
    assert len(order) < 200


async def test_a_weight_is_a_whole_number_up_to_a_hundred(app):
    @app.handler(key="user", fair=True)
    async def refresh(user: str) -> None: ...

    with pytest.raises(BadArguments, match="weight of 'refresh' is a whole number from 1 to 100, and 0 came"):
        await refresh.options(weight=0).enqueue("ada")
    assert refresh.options(weight=3).draft("ada").envelope.startswith(b'{"gt":"f3,0=f:ada","v":1,')
