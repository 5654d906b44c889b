"""Occurrences as dry runs, beside an old system that does the work."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from streamq.cron.minder import Minder
from streamq.errors import ConfigurationError
from streamq.mongo import FlagStore, Mongo, ShadowStore
from streamq.schedules.phase import Phase
from streamq.schedules.shadow import Shadow
from tests.cron.conftest import NOON, Listing

USERS = [f"u{number}" for number in range(250)]


@pytest.fixture
async def mongo(mongodb_url, mongo_database):
    mongo = Mongo(mongodb_url, mongo_database)
    yield mongo
    await mongo.close()


async def old_system(mongo, users, *, collection="jobstatuses", user="userId", time="createdAt"):
    """Report jobs as the old system does, one every 100 ms from noon on; some twice."""
    await mongo.collection(collection).insert_many(
        [{user: name, time: NOON + timedelta(seconds=5 + n / 10)} for n, name in enumerate([*users, users[0]])]
        + [{user: "yesterday", time: NOON - timedelta(seconds=1)}, {user: "later", time: NOON + timedelta(hours=1)}]
    )


@pytest.fixture
async def minders(office, mongo, clock):
    """Two processes that look after a schedule in the shadow, since 11:59."""
    office.bureau.phase = Phase(is_shadow=True)
    clock.move(minutes=-1)
    listing = Listing([*USERS[:100], *((user, 5) for user in USERS[100:])])  # some with what they cost
    schedule = office.schedule(listing)
    both = [Minder(schedule, office.desk, shadow=Shadow(mongo)) for _ in range(2)]
    for minder in both:
        await minder.check()
    clock.move(minutes=1)
    return both, listing


async def test_an_occurrence_is_read_once_and_nothing_is_enqueued(office, mongo, minders):
    both, listing = minders
    await asyncio.gather(*(minder.check() for minder in both))
    await both[0].check()
    assert len(listing.calls) == 3
    assert not await office.jobs()
    (report,) = await ShadowStore(mongo).reports("hourly")
    assert (report["_id"], report["users"], report["pages"]) == ("hourly:20261123T1200Z", 250, 3)
    assert "compared_at" not in report


async def test_when_the_hour_is_over_it_is_compared_with_the_old_system(mongo, minders, clock, said):
    """Users on one side only are named; those of other hours do not count."""
    (minder, _), _ = minders
    await minder.check()
    await old_system(mongo, [*USERS[5:], "stranger"])
    clock.move(hours=1)
    await minder.check()
    newest, report = await ShadowStore(mongo).reports("hourly")
    assert newest["_id"] == "hourly:20261123T1300Z"
    assert (report["only_here"], report["only_here_samples"]) == (5, sorted(USERS[:5]))
    assert (report["only_there"], report["only_there_samples"]) == (1, ["stranger"])
    assert report["legacy"] == {"users": 246, "late_s": 5.0, "took_s": 24.6}
    assert report["agrees"] is False
    assert said("cron.compared")[0]["level"] == "WARNING"


async def test_the_same_users_agree_wherever_the_old_system_reports_them(mongo, minders, clock):
    (minder, _), _ = minders
    await FlagStore(mongo).set(legacy={"collection": "runs", "user_field": "account.id", "time_field": "at"})
    await minder.check()
    await mongo.collection("runs").insert_many([{"account": {"id": user}, "at": NOON} for user in USERS])
    clock.move(hours=1)
    await minder.check()
    assert [each.get("agrees") for each in await ShadowStore(mongo).reports()] == [None, True]


async def test_a_page_function_that_fails_is_told_and_tried_again(mongo, minders, said, monkeypatch):
    monkeypatch.setattr("streamq.cron.minder._FIRST_RETRY_S", 0.0)
    (minder, _), listing = minders
    listing.fails.append(KeyError("users"))
    await minder.check()
    assert "raised KeyError" in said("cron.failed")[0]["text"]
    await minder.check()
    assert len(await ShadowStore(mongo).reports()) == 1


async def test_from_the_shadow_to_all_users_no_hour_is_fired_twice_or_left_out(office, mongo, minders, clock):
    """The hour that was run dry belongs to the old system, the next one to streamq."""
    (minder, _), _ = minders
    await minder.check()
    office.bureau.phase = Phase()
    await minder.check()
    assert not await office.jobs()
    clock.move(hours=1)
    await minder.check()
    assert {name.split(":")[1] for name in await office.jobs()} == {"20261123T1300Z"}


async def test_a_shadow_without_mongodb_is_refused(office, clock):
    office.bureau.phase = Phase(is_shadow=True)
    minder = Minder(office.schedule(Listing(USERS)), office.desk)
    with pytest.raises(ConfigurationError, match="a shadow needs MongoDB, and history is off"):
        await minder.check()
