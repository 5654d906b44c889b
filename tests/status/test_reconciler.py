"""The reconciler: nothing is judged by one look, and what is repaired stays whole under a race."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from streamq.app import StreamQ
from streamq.broker.partition import Partition
from streamq.clock import utc_now
from streamq.mongo import Ledger
from streamq.recorder import Mode, Reconciler, reconciler as module
from streamq.recorder.role import Reconciliation
from streamq.settings import Settings


@pytest.fixture(autouse=True)
def no_youth(monkeypatch):
    """Jobs of this very moment are looked at, too."""
    monkeypatch.setattr(module, "SETTLED_AFTER", timedelta(seconds=-5))


@pytest.fixture
async def reconciler(hand, statuses, mongo):
    """Compare the partition of the hand with the database of the test."""
    return Reconciler(Partition(hand.keys, hand.wire), statuses, Ledger(mongo), Settings())


async def state_of(statuses, job):
    """Return the state of a job."""
    [document] = await statuses.find({"_id": job})
    return document["state"]


def kinds(findings):
    """Return what was found, by kind."""
    return {finding.kind: finding.names for finding in findings}


async def test_a_job_is_lost_after_two_looks_and_dead_only_when_a_person_says_so(hand, statuses, store, reconciler):
    """With the wrong database configured, everything looks lost."""
    await store(statuses, ("lost", hand.record("retrying")), ("ended", hand.record()))
    await hand.enqueue("lives")
    await store(statuses, ("lives", hand.record("retrying")))

    assert await reconciler.round(Mode.MEND) == []
    assert reconciler.is_suspicious
    assert kinds(await reconciler.round(Mode.MEND)) == {"lost": ["lost"]}
    assert not reconciler.is_suspicious
    assert await state_of(statuses, "lost") == "retrying"

    [finding] = await reconciler.round(Mode.REPAIR)
    assert (finding.kind, finding.names, finding.repaired) == ("lost", ["lost"], True)
    [document] = await statuses.find({"_id": "lost"})
    assert (document["state"], document["error"]["type"], document["handler"]) == ("dead", "Lost", "refresh")
    assert document["expires_at"] > utc_now()
    assert await reconciler.round(Mode.REPAIR) == []
    assert await state_of(statuses, "lives") == "retrying"


async def test_a_job_whose_end_is_still_in_the_outbox_is_not_lost(hand, statuses, store, reconciler, outbox):
    """It has left the index, and MongoDB does not know yet why."""
    await store(statuses, ("job", hand.record("retrying")))
    await hand.finish(("job", hand.record()))
    for _ in range(3):
        assert await reconciler.round(Mode.REPAIR) == []
    assert not await reconciler.can_judge()
    await store(statuses)
    assert await reconciler.can_judge()
    assert await reconciler.round(Mode.REPAIR) == []
    assert await state_of(statuses, "job") == "completed"


async def test_a_job_that_was_called_dead_too_early_gets_its_true_end(hand, statuses, store, reconciler):
    """Redis was away with its data, and is back."""
    await store(statuses, ("job", hand.record("retrying")))
    for _ in range(2):
        await reconciler.round(Mode.REPAIR)
    assert await state_of(statuses, "job") == "dead"
    await store(statuses, ("job", hand.record(n=2)))
    assert await state_of(statuses, "job") == "completed"


async def test_what_is_missing_once_and_there_again_is_no_suspect(hand, statuses, store, reconciler):
    """A failover may hide a job for a moment."""
    await store(statuses, ("job", hand.record("retrying")))
    await reconciler.round(Mode.REPAIR)
    await hand.enqueue("job")
    assert await reconciler.round(Mode.REPAIR) == []
    await hand.wire.call("DEL", *hand.keys.lanes, hand.keys.index)
    assert await reconciler.round(Mode.REPAIR) == []
    assert kinds(await reconciler.round(Mode.LOOK)) == {"lost": ["job"]}


async def test_a_look_writes_nothing(hand, statuses, store, reconciler, mongo, eventually):
    """The doctor examines first."""
    await store(statuses, ("job", hand.record("retrying")))
    await hand.wire.call("SET", hand.keys.dedup("k"), "gone")
    await hand.wire.call("HSET", hand.keys.index, "nowhere", "z")
    expected = {"lost": ["job"], "orphaned": ["nowhere"], "dangling": [hand.keys.dedup("k")]}

    async def is_found():  # a second look within the same millisecond tells nothing new
        return kinds(await reconciler.round(Mode.LOOK)) == expected

    await eventually(is_found)
    assert await hand.wire.call("GET", hand.keys.dedup("k")) == b"gone"
    assert await hand.wire.call("HGET", hand.keys.index, "nowhere") == b"z"
    assert await mongo.collection("reconciler").count_documents({}) == 0
    assert kinds(await reconciler.round(Mode.MEND)) == expected
    assert await hand.wire.call("EXISTS", hand.keys.dedup("k"), hand.keys.index) == 0
    [noted] = await statuses.rounds(limit_s=5)
    assert noted["_id"] == hand.keys.queue
    assert (noted["findings"]["orphaned"], noted["findings"]["lost"], noted["findings"]["stuck"]) == (1, 1, 0)


async def test_deliveries_that_nobody_renews_are_stuck_and_repaired_by_handing_them_back(
    hand, statuses, mongo, eventually
):
    """Workers do so themselves; this is for when they do not."""
    await hand.enqueue("job")
    await hand.take("w1")
    settings = Settings(lease_ms=1)
    reconciler = Reconciler(Partition(hand.keys, hand.wire), statuses, Ledger(mongo), settings)

    async def stuck(mode):
        return kinds(await reconciler.round(mode)).get("stuck")

    assert await eventually(lambda: stuck(Mode.MEND)) == ["job"]
    assert await stuck(Mode.REPAIR) == ["job"]
    assert await stuck(Mode.MEND) is None
    assert (await hand.inspection.locate("job")).state == "queued"


async def test_jobs_that_nobody_promotes_are_overdue_when_workers_live(hand, statuses, reconciler):
    """Without a worker it is no wonder."""
    await hand.delay("job", due_ms=1_000)
    assert kinds(await reconciler.round(Mode.MEND)) == {}
    await hand.take("w1")
    assert kinds(await reconciler.round(Mode.MEND)) == {"overdue": ["job"]}


async def test_the_walk_over_many_statuses_is_bounded_and_misses_none(hand, statuses, store, reconciler, monkeypatch):
    """A round may not take minutes; all rounds together see every job."""
    monkeypatch.setattr(module, "PAGE", 10)
    await store(statuses, *((f"job{number:02}", hand.record("retrying")) for number in range(45)))
    found: set[str] = set()
    for _ in range(12):
        for finding in await reconciler.round(Mode.MEND, most=10):
            found.update(finding.names)
    assert len(found) == 45


async def test_no_look_scans_a_collection(app, hand, statuses, store, reconciler, mongo):
    """At five million statuses and a hundred thousand jobs of the ledger it would take longer than a minute."""
    await store(statuses, *((f"job{number}", hand.record("retrying")) for number in range(20)))
    await app.refresh.enqueue("u1")
    await hand.wire.call("FLUSHALL")
    await mongo.database.command("profile", 2)
    for mode in (Mode.MEND, Mode.MEND, Mode.REPAIR):
        await reconciler.round(mode)
    await mongo.database.command("profile", 0)
    profiled = await mongo.collection("system.profile").find({"ns": {"$regex": "(job_status|ledger)$"}}).to_list()
    plans = {entry["planSummary"] for entry in profiled if "planSummary" in entry}
    assert len(plans) > 2
    assert not [plan for plan in plans if "COLLSCAN" in plan]
    await hand.wire.call("FLUSHALL")


# The ledger


@pytest.fixture
async def app(settings, queue_name):
    """An application whose jobs are of the ledger."""
    app = StreamQ(settings)

    @app.handler(queue=queue_name, name="refresh", dedup="user_id")
    async def refresh(user_id: str) -> None: ...

    app.refresh = refresh.options(ledger=True)
    yield app
    await app.close()


async def test_after_flushall_a_job_of_the_ledger_is_enqueued_again_under_its_id_and_an_ended_one_is_not(
    app, hand, statuses, store, reconciler, mongo
):
    """Promise G2."""
    lost, ended, later = [await app.refresh.enqueue(f"u{number}") for number in range(3)]
    await store(statuses, (ended.id, hand.record()))
    await hand.wire.call("FLUSHALL")

    assert await reconciler.round(Mode.MEND) == []
    [finding] = await reconciler.round(Mode.MEND)

    assert (finding.kind, finding.names) == ("reenqueued", sorted([lost.id, later.id]))
    place = await hand.inspection.locate(lost.id)
    assert place.state == "queued"
    assert b'"refresh"' in place.envelope
    assert await hand.inspection.locate(ended.id) is None
    assert {each["_id"] async for each in mongo.collection("ledger").find()} == {lost.id, later.id}
    assert (await app.refresh.enqueue("u0")).id == lost.id, "it has its dedup key again"
    assert kinds(await reconciler.round(Mode.MEND)) == {}
    await hand.wire.call("FLUSHALL")


async def test_a_look_tells_of_a_lost_job_of_the_ledger_once(app, hand, statuses, store, reconciler):
    """It will be enqueued again; calling it lost as well would make it look like two."""
    job = await app.refresh.enqueue("u1")
    await store(statuses, (job.id, hand.record("retrying")))
    await hand.wire.call("FLUSHALL")
    assert await reconciler.round(Mode.LOOK) == []
    assert kinds(await reconciler.round(Mode.LOOK)) == {"reenqueued": [job.id]}
    await hand.wire.call("FLUSHALL")


async def test_a_delayed_job_of_the_ledger_is_delayed_again(app, hand, reconciler):
    """Never early, also after a loss."""
    job = await app.refresh.options(delay=timedelta(hours=1)).enqueue("u1")
    await hand.wire.call("FLUSHALL")
    for _ in range(2):
        await reconciler.round(Mode.MEND)
    place = await hand.inspection.locate(job.id)
    assert place.state == "scheduled"
    assert 3_300_000 < place.due_ms - place.enqueued_ms <= 3_600_000
    await hand.wire.call("FLUSHALL")


async def test_a_job_whose_place_was_taken_meanwhile_is_not_enqueued_again(app, hand, reconciler, mongo):
    """One job per key at a time, as the key says."""
    job = await app.refresh.enqueue("u1")
    await hand.wire.call("FLUSHALL")
    other = await app.refresh.options(ledger=False).enqueue("u1")
    for _ in range(2):
        found = await reconciler.round(Mode.MEND)
    assert kinds(found) == {"superseded": [job.id]}
    assert await mongo.collection("ledger").count_documents({}) == 0
    assert await hand.inspection.locate(other.id)
    await hand.wire.call("FLUSHALL")


async def test_several_reconcilers_enqueue_a_lost_job_once(app, hand, statuses, mongo):
    """The lock only saves work; whoever claims the entry does it."""
    jobs = [await app.refresh.enqueue(f"u{number}") for number in range(20)]
    await hand.wire.call("FLUSHALL")
    many = [
        Reconciler(Partition(hand.keys, hand.wire), statuses, Ledger(mongo), Settings()) for _ in range(4)
    ]  # fmt: skip
    for _ in range(2):
        rounds = await asyncio.gather(*(each.round(Mode.MEND) for each in many))
    again = [name for found in rounds for name in kinds(found).get("reenqueued", [])]
    assert sorted(again) == sorted(job.id for job in jobs)
    await hand.wire.call("FLUSHALL")


# As a part of the recorder


async def test_one_reconciler_leads_and_tells_what_is_new_once(hand, statuses, store, mongo, caplog, eventually):
    """Every minute the same lines would bury all others."""
    partition = Partition(hand.keys, hand.broker.wire())
    first = Reconciler(partition, statuses, Ledger(mongo), Settings())
    other = Reconciler(Partition(hand.keys, hand.wire), statuses, Ledger(mongo), Settings())
    assert await first.leads(60_000)
    assert not await other.leads(60_000)
    await store(statuses, ("job", hand.record("retrying")))
    reconciliation, stop = Reconciliation(first), asyncio.Event()
    for _ in range(4):
        await reconciliation._round(stop)
    assert [record.message for record in caplog.records if record.message.startswith("reconciler.")] == [
        "reconciler.lost"
    ]
    stop.set()
    await reconciliation.run(stop)
