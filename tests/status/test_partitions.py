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
from streamq.keys import Keys
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


@pytest.fixture
async def api(app, settings, serving):
    """The API of that queue."""
    async with serving(msgspec.structs.replace(settings, api_token="token-of-the-tests"), app) as client:
        yield client


async def test_the_api_finds_a_job_in_whichever_partition_it_is(app, api):
    """Enqueued over HTTP it goes where the same user's jobs go that come from code."""
    own = await app.refresh.enqueue("u7")
    body = {"handler": "refresh", "args": ["u7"]}
    made = await api.post("/v1/jobs", json=body)
    assert (made.status_code, made.json()["queue"]) == (201, own.queue)
    shown = (await api.get(f"/v1/jobs/{made.json()['id']}")).json()
    assert (shown["state"], shown["queue"]) == ("queued", own.queue)
    assert (await api.post(f"/v1/queues/{own.queue}:pause", json={"reason": "look"})).status_code == 200
    assert (await api.get(f"/v1/queues/{own.queue}")).json()["paused"]["reason"] == "look"
    assert (await api.get("/v1/queues/users")).json()["paused"] is None, "only a part of it is"
    assert (await api.post(f"/v1/jobs/{own.id}:cancel", json={"reason": "x"})).status_code in (200, 202)
    assert (await api.get("/v1/queues/users:3")).status_code == 404


async def test_a_divided_queue_is_told_as_one_with_its_partitions_beside(app, api, settings):
    """Numbers are added up, and of ages the worst counts."""
    await app.refresh.enqueue_many([f"u{number}" for number in range(30)])
    broker = Broker(settings.redis_url)
    for name in NAMES[:2]:  # a worker that has come to two of them
        partition = broker.partition(name)
        await partition.register("w1")
        await partition.wire.close()
    listed = (await api.get("/v1/queues")).json()["items"]
    shown = (await api.get("/v1/queues/users")).json()
    assert [queue["name"] for queue in listed] == ["users"]
    assert [part["name"] for part in shown["partitions"]] == list(NAMES)
    assert listed[0].keys() == shown.keys()
    parts = shown["partitions"]
    assert shown["waiting"] == sum(part["waiting"] for part in parts) == 30
    assert shown["lanes"]["normal"]["waiting"] == 30
    assert max(part["oldest_wait_ms"] for part in parts) == shown["oldest_wait_ms"] > 0
    assert (shown["workers"], [part["workers"] for part in parts]) == (1, [1, 1, 0])
    assert [worker["queue"] for worker in (await api.get("/v1/workers")).json()["items"]] == ["users"]
    part = (await api.get("/v1/queues/users:1")).json()
    assert (part["waiting"], part["partitions"]) == (parts[1]["waiting"], [])
    stats = (await api.get("/app/job-status/queue/stats")).json()
    assert (list(stats["queues"]), stats["waiting"], stats["queues"]["users"]["waiting"]) == (["users"], 30, 30)
    assert {job["queue"] for job in (await api.get("/app/job-status/recent")).json()["jobs"]} == {"users"}
    assert (await api.get("/v1/queues/users/gates")).json()["is_whole"] is True
    await broker.close()


async def test_the_history_of_a_divided_queue_is_that_of_all_its_partitions(app, api, settings, statuses, eventually):
    """Whoever asks for users means all of it."""
    await app.refresh.enqueue_many([f"u{number}" for number in range(30)])
    await _end_one_of_each(settings)
    stop = asyncio.Event()
    recording = asyncio.create_task(run(settings, stop))

    async def listed(which):
        return (await api.get("/v1/jobs", params={"limit": 100, **which})).json()["items"]

    async def known():
        return len(await listed({"queue": "users"})) == 30

    await eventually(known, "all are there")
    assert {job["queue"] for job in await listed({"queue": "users", "state": "completed"})} == set(NAMES)
    assert {job["queue"] for job in await listed({"queue": "users:1"})} == {"users:1"}
    series = (await api.get("/v1/stats/series", params={"queue": "users"})).json()
    assert sum(sum(point["jobs"].values()) for point in series["points"]) == 30
    stop.set()
    await recording


async def test_orders_to_a_divided_queue_are_carried_out_in_all_its_partitions(app, api, eventually):
    """Half a pause would be none."""
    await app.refresh.enqueue_many([f"u{number}" for number in range(30)])
    told = (await api.post("/v1/queues/users:pause", json={"reason": "deploy", "for_s": 600})).json()
    assert [part["paused"]["reason"] for part in (told, *told["partitions"])] == ["deploy"] * 4
    assert (await api.get("/app/job-status/queue/stats")).json()["queues"]["users"]["isPaused"] is True
    told = (await api.post("/v1/queues/users:resume")).json()
    assert [part["paused"] for part in (told, *told["partitions"])] == [None] * 4
    block = {"kind": "handler", "name": "refresh", "reason": "broken"}
    told = (await api.post("/v1/queues/users:block", json=block)).json()
    assert [[each["name"] for each in part["blocks"]] for part in (told, *told["partitions"])] == [["refresh"]] * 4
    told = (await api.post("/v1/queues/users:unblock", json={"kind": "handler", "name": "refresh"})).json()
    assert told["blocks"] == []
    begun = await api.post("/v1/queues/users:purge", json={"confirm": "users"})

    async def ended():
        found = (await api.get(begun.headers["location"])).json()
        return found if found["state"] != "running" else None

    purged = await eventually(ended, "it has been purged")
    assert (purged["state"], purged["done"], purged["total"]) == ("done", 30, 30)
    assert (await api.get("/v1/queues/users")).json()["waiting"] == 0


async def test_an_order_that_some_partitions_refuse_tells_where_it_was_done(api, settings, mongo, eventually):
    """It is repeated when the cause is gone: what is done stays done."""
    wire = Broker(settings.redis_url).wire()
    await api.get("/v1/queues")
    await wire.call("SET", Keys("users:1").pause, "of the wrong type")
    refused = await api.post("/v1/queues/users:pause", json={"reason": "deploy"})
    told = refused.json()
    assert (refused.status_code, told["type"]) == (503, "urn:streamq:problem:partly-done")
    assert told["detail"] == "done in users:0, users:2, and not in users:1: Redis is away there"
    assert (told["done"], told["failed"]) == (["users:0", "users:2"], ["users:1"])
    assert told["hint"] == "do it once more; what is done stays done"
    audited = await mongo.collection("audit").find({"action": "queue.pause"}).to_list()
    assert [each["after"]["failed"] for each in audited] == [["users:1"]]
    await wire.call("DEL", Keys("users:1").pause)

    async def repeated():
        return (await api.post("/v1/queues/users:pause", json={"reason": "deploy"})).status_code == 200

    await eventually(repeated, "it is done everywhere")
    paused = (await api.get("/v1/queues/users")).json()
    assert [part["paused"]["reason"] for part in paused["partitions"]] == ["deploy"] * 3
    await wire.close()


async def test_an_order_that_no_partition_carries_out_is_not_partly_done(api, settings):
    """There is nothing to tell apart."""
    wire = Broker(settings.redis_url).wire()
    for name in NAMES:
        await wire.call("SET", Keys(name).pause, "of the wrong type")
    refused = await api.post("/v1/queues/users:resume")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:streamq:problem:store-away")
    for name in NAMES:
        await wire.call("DEL", Keys(name).pause)
    await wire.close()


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
        paused = await api.post("/v1/queues/users:pause", json={"reason": "half of it"})
        assert (paused.status_code, paused.json()["detail"]) == (503, told["detail"])
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
