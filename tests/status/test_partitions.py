"""The history of a queue with several partitions: each is recorded and reconciled by itself."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import msgspec
import pytest

from streamq.app import StreamQ
from streamq.broker.partition import Report
from streamq.broker.server import Broker
from streamq.mongo import Ledger
from streamq.recorder import Mode, Reconciler, reconciler as module
from streamq.recorder.role import run
from streamq.settings import Settings

NAMES = ("users:0", "users:1", "users:2")


@pytest.fixture
def settings(redis_url, mongodb_url, mongo_database):
    """A queue of three partitions."""
    return Settings(
        redis_url=redis_url, mongodb_url=mongodb_url, mongodb_database=mongo_database, queues=("users",),
        partitions=("users=3",),
    )  # fmt: skip


@pytest.fixture
async def app(settings):
    """An application whose jobs nobody runs."""
    app = StreamQ(settings)

    @app.handler(queue="users", key="user")
    async def refresh(user: str) -> None: ...

    app.refresh = refresh
    yield app
    await app.close()


async def test_what_happens_in_each_partition_is_recorded_under_its_name(app, settings, statuses, eventually):
    """So the history says where a job that lives is to be found."""
    jobs = await app.refresh.enqueue_many([f"u{number}" for number in range(30)])
    assert {job.queue for job in jobs} == set(NAMES)
    await _end_one_of_each(settings)
    stop = asyncio.Event()
    recording = asyncio.create_task(run(settings, stop))

    async def known():
        assert not recording.done(), recording
        return {each["_id"]: each for each in await statuses.find({})} if await _count(statuses) == 30 else {}

    documents = await eventually(known, "all are recorded")
    assert {each["_id"]: each["queue"] for each in documents.values()} == {job.id: job.queue for job in jobs}
    assert sorted(each["queue"] for each in documents.values() if each["state"] == "completed") == list(NAMES)
    stop.set()
    await recording


async def _count(statuses):
    return len(await statuses.find({}))


async def _end_one_of_each(settings):
    broker = Broker(settings.redis_url)
    for name in NAMES:
        partition = broker.partition(name)
        await partition.register("w1")
        call = {"dead_after_ms": 10_000, "control_cursor": b"0-0", "limits": (1000, 1000), "now": 0.0}
        [delivery] = (await partition.cycle("w1", Report(), want=1, reads=[(2, 1, 0)], **call)).deliveries
        # Of long ago it would be past its time to be kept, and MongoDB removes such documents each minute.
        now_ms = time.time_ns() // 1_000_000
        record = b'{"s":"completed","h":"refresh","n":1,"m":5,"l":"normal","e":%d,"b":%d,"f":%d}' % ((now_ms,) * 3)
        report = Report(settled=[delivery.token, delivery.id, record])
        await partition.cycle("w1", report, want=0, reads=[], **call)
        await partition.leave("w1")
        await partition.wire.close()
    await broker.close()


async def test_the_api_shows_each_partition_and_finds_a_job_in_whichever_it_is(app, settings, statuses, serving):
    """Enqueued over HTTP it goes where the same user's jobs go that come from code."""
    settings = msgspec.structs.replace(settings, api_token="token-of-the-tests")
    own = await app.refresh.enqueue("u7")
    async with serving(settings, app) as api:
        queues = (await api.get("/v1/queues")).json()["items"]
        assert [queue["name"] for queue in queues] == list(NAMES)
        body = {"handler": "refresh", "args": ["u7"]}
        made = await api.post("/v1/jobs", json=body)
        assert (made.status_code, made.json()["queue"]) == (201, own.queue)
        shown = (await api.get(f"/v1/jobs/{made.json()['id']}")).json()
        assert (shown["state"], shown["queue"]) == ("queued", own.queue)
        assert (await api.post(f"/v1/queues/{own.queue}:pause", json={"reason": "look"})).status_code == 200
        assert (await api.get(f"/v1/queues/{own.queue}")).json()["paused"]["reason"] == "look"
        assert (await api.post(f"/v1/jobs/{own.id}:cancel", json={"reason": "x"})).status_code in (200, 202)
        assert (await api.get("/v1/queues/users")).status_code == 404


async def test_an_api_that_goes_by_another_number_puts_no_job_where_nobody_looks(app, settings, mongo, serving):
    """Its caller may try again when it has been started with the right one; all else goes on."""
    await app.refresh.enqueue("u1")
    wrong = msgspec.structs.replace(settings, api_token="token-of-the-tests", partitions=("users=2",))
    other = StreamQ(wrong)

    @other.handler(queue="users", key="user")
    async def refresh(user: str) -> None: ...

    async with serving(wrong, other) as api:
        before = await _waiting(api)
        for ledger in (False, True):
            body = {"handler": "refresh", "args": ["u7"], "ledger": ledger}
            refused = await api.post("/v1/jobs", json=body)
            told = refused.json()
            assert (refused.status_code, told["type"]) == (503, "urn:streamq:problem:queue-divided-otherwise")
            assert told["detail"] == "queue 'users' has 3 partitions, and the settings say 2 partitions"
            assert told["hint"].startswith("set STREAMQ_PARTITIONS=users=3")
            [item] = (await api.post("/v1/jobs:batch", json={"jobs": [body]})).json()["items"]
            assert (item["status"], item["error"]["detail"]) == ("refused", told["detail"])
        assert await _waiting(api) == before
    assert await Ledger(mongo).count() == 0
    await other.close()


async def _waiting(api):
    return {queue["name"]: queue["waiting"] for queue in (await api.get("/v1/queues")).json()["items"]}


async def test_a_job_is_looked_for_in_its_own_partition_alone(app, settings, statuses, mongo, monkeypatch):
    """All others do not know it, and it is not lost for that."""
    monkeypatch.setattr(module, "SETTLED_AFTER", timedelta(seconds=-5))
    await app.refresh.enqueue_many([f"u{number}" for number in range(30)])
    written = [await app.refresh.options(ledger=True).enqueue(f"v{number}") for number in range(6)]
    assert {job.queue for job in written} == set(NAMES)
    stop = asyncio.Event()
    recording = asyncio.create_task(run(settings, stop))
    while await _count(statuses) < 36:  # noqa: ASYNC110 - it asks a server
        await asyncio.sleep(0.02)
    stop.set()
    await recording
    broker = Broker(settings.redis_url)
    for name in NAMES:
        reconciler = Reconciler(broker.partition(name), statuses, Ledger(mongo), settings)
        assert await reconciler.round(Mode.MEND) == []
        assert not reconciler.is_suspicious
        assert await reconciler.round(Mode.REPAIR) == []
        await reconciler.close()
    await broker.close()
