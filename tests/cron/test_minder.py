"""A schedule over time: what was missed, what fails, several processes, clocks that are wrong."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from streamq.cron import minder as minding
from streamq.cron.minder import Minder
from streamq.errors import ConfigurationError
from streamq.meters import metered
from streamq.schedules.desks import desks
from streamq.schedules.patience import Stopped
from streamq.settings import Settings
from tests.cron.conftest import NOON, Listing, Office, ms

USERS = ["a", "b", "c"]


def stamps(jobs):
    """Return the hours for which there are jobs, each with exactly one for every user."""
    hours = sorted({name.split(":")[1] for name in jobs})
    assert set(jobs) == {f"hourly:{hour}:{user}" for hour in hours for user in USERS}
    assert set(jobs.values()) <= {1}
    return [hour[9:13] for hour in hours]


async def started(office, **options):
    """Return a minder whose schedule is known since 12:30, with handlers that are not deduplicated."""
    office.clock.move(minutes=30)
    minder = office.minder(office.schedule(Listing(USERS), dedup=(), **options))
    await minder.check()
    assert not await office.jobs()
    return minder


async def test_a_new_schedule_begins_with_its_next_fire_time(office):
    """What was before it was written was not missed."""
    minder = await started(office)
    office.clock.move(minutes=30, seconds=1)
    await minder.check()
    assert stamps(await office.jobs()) == ["1300"]
    await minder.check()
    assert stamps(await office.jobs()) == ["1300"]


@pytest.mark.parametrize(
    ("options", "fired"),
    [
        ({"misfire": "skip"}, []),
        ({"misfire": "once"}, ["1500"]),
        ({"misfire": "all"}, ["1300", "1400", "1500"]),
        ({"misfire": "all", "misfire_limit": 2}, ["1400", "1500"]),
    ],
)
async def test_three_hours_without_any_process(office, said, options, fired):
    """Each policy gives exactly what it says, and what it leaves out is told."""
    await started(office, **options)
    office.clock.move(hours=3)
    again = office.minder(office.schedule(Listing(USERS), dedup=(), **options))
    await again.check()
    await again.check()
    assert stamps(await office.jobs()) == fired
    assert len(said("cron.missed")) == 3 - len(fired)
    assert all(told["policy"] == options["misfire"] for told in said("cron.missed"))


async def test_the_last_fire_time_and_the_last_missed_one_are_kept_for_metrics(office):
    """However many processes note them, they are the same."""

    async def noted():
        partition = office.desk.partition
        counts = await partition.wire.call("HGETALL", partition.keys.counts)
        found = metered({name.decode(): int(number) for name, number in zip(counts[::2], counts[1::2], strict=True)})
        return found.fired, found.missed

    minder = await started(office, misfire="once")
    assert await noted() == ({}, {})
    office.clock.move(minutes=30, seconds=1)
    await minder.check()
    assert await noted() == ({"hourly": ms(NOON + timedelta(hours=1))}, {})
    office.clock.move(hours=2)
    for _ in range(2):
        await minder.check()
    assert await noted() == ({"hourly": ms(NOON + timedelta(hours=3))}, {"hourly": ms(NOON + timedelta(hours=2))})


async def test_a_schedule_whose_expression_changed_begins_anew(office):
    """The hours that the old one would not have fired at were not missed."""
    await started(office)
    office.clock.move(hours=2, minutes=10)
    changed = office.minder(office.schedule(Listing(USERS), "*/10 * * * *", dedup=(), misfire="all"))
    await changed.check()
    assert not await office.jobs()
    office.clock.move(minutes=10)
    await changed.check()
    assert stamps(await office.jobs()) == ["1450"]


async def test_a_clock_that_goes_back_fires_nothing_twice(office):
    """Five minutes back, over a fire time."""
    minder = await started(office)
    office.clock.move(minutes=32)
    await minder.check()
    office.clock.move(minutes=-5)
    await minder.check()
    office.clock.move(minutes=10)
    await minder.check()
    assert stamps(await office.jobs()) == ["1300"]


async def test_a_clock_that_was_far_ahead_does_not_silence_a_schedule(office, said):
    """It says so, and goes on from now."""
    minder = await started(office)
    office.clock.move(days=400)
    await minder.check()
    office.clock.move(days=-400)
    await minder.check()
    assert "which is in the future" in said("cron.failed")[0]["text"]
    office.clock.move(minutes=31)
    await minder.check()
    assert "1300" in stamps(await office.jobs())


async def test_what_failed_is_told_with_its_cause_and_tried_again(office, said, caplog, monkeypatch, eventually):
    """Neither a silent hour nor a hundred attempts a second."""
    monkeypatch.setattr(minding, "_FIRST_RETRY_S", 0.2)
    listing = Listing(USERS)
    office.clock.move(minutes=30)
    minder = office.minder(office.schedule(listing, misfire="skip"))
    await minder.check()
    listing.fails += [KeyError("users"), KeyError("users")]
    office.clock.move(minutes=31)
    await minder.check()
    await minder.check()
    (told,) = said("cron.failed")
    assert "hourly of 2026-11-23 13:00 UTC: the page function, called with cursor None, raised KeyError" in told["text"]
    assert "trying again in 0.2 s" in told["text"]
    assert caplog.records[-1].exc_info[0] is KeyError
    office.clock.move(minutes=20)  # long past the grace: it was begun, so it is not missed
    minding_on = asyncio.create_task(minder.mind())
    await eventually(office.jobs, "the third attempt goes well")
    office.stop.set()
    await minding_on
    assert [event["failures"] for event in said("cron.failed")] == [1, 2]
    assert stamps(await office.jobs()) == ["1300"]
    assert said("cron.finished")[0]["added"] == 3


async def test_an_unexpected_error_stops_neither_the_schedule_nor_the_process(office, said):
    """It is told with its type."""
    minder = await started(office)
    await office.desk.partition.wire.call("SET", office.desk.partition.keys.index, "not a hash")
    office.clock.move(minutes=31)
    await minder.check()
    assert "hourly of 2026-11-23 13:00 UTC: ServerRefused: " in said("cron.failed")[0]["text"]


async def test_a_server_that_does_not_let_us_in_ends_the_process(office, monkeypatch):
    """Waiting does not cure it."""
    minder = await started(office)

    async def refuse(*_, **__):
        raise ConfigurationError("wrong password")

    office.clock.move(minutes=31)
    monkeypatch.setattr(office.desk.partition, "add", refuse)
    with pytest.raises(ConfigurationError, match="wrong password"):
        await minder.check()


async def test_a_fanout_past_its_deadline_is_given_up_and_told(office, said):
    """With the policy skip; its users have a newer hour."""
    listing = Listing([f"u{number}" for number in range(1000)])
    schedule = office.schedule(listing, dedup=(), misfire="skip")
    office.clock.move(minutes=-30)
    await office.minder(schedule).check()
    office.clock.move(minutes=30)
    fanout = office.fanout(schedule, on_progress=lambda state: state.users and office.stop.set())
    await fanout.run()
    office.stop.clear()
    office.clock.move(hours=1, minutes=1)
    await office.minder(schedule).check()
    (told,) = said("cron.missed")
    assert (told["occurrence"], told["enqueued"]) == ("20261123T1200Z", 100)
    progress = await office.desk.fanouts.progress()
    assert [state.end for state in progress.values()] == ["given up", "done"]


def counted(office, monkeypatch) -> list[tuple]:
    """Note each time when somebody asks for the lock."""
    asked, lead = [], office.desk.fanouts.lead

    def ask(*args):
        asked.append(args)
        return lead(*args)

    monkeypatch.setattr(office.desk.fanouts, "lead", ask)
    return asked


async def test_a_process_waits_for_another_that_works_and_takes_over_when_it_hangs(office, monkeypatch, eventually):
    """The lock lapses when no call is accepted for a while."""
    monkeypatch.setattr(minding, "_LOCK_LOOK_S", 0.02)
    minder = await started(office)
    leads = counted(office, monkeypatch)
    assert await office.desk.fanouts.lead("hourly", "another", 60_000)
    office.clock.move(minutes=31)
    checking = asyncio.create_task(minder.check())
    await eventually(lambda: len(leads) > 3, "it asks again and again")
    assert not await office.jobs()
    assert await office.desk.fanouts.lead("hourly", "another", 100)
    await asyncio.wait_for(checking, 40)
    assert stamps(await office.jobs()) == ["1300"]


async def test_a_process_that_waits_sees_that_the_other_has_finished(office, monkeypatch, said, eventually):
    """It does no work, and says nothing."""
    monkeypatch.setattr(minding, "_LOCK_LOOK_S", 0.02)
    minder = await started(office)
    leads = counted(office, monkeypatch)
    await office.desk.fanouts.lead("hourly", "another", 60_000)
    office.clock.move(minutes=31)
    checking = asyncio.create_task(minder.check())
    await eventually(lambda: len(leads) > 1, "it asks")
    await office.fanout(minder.schedule, NOON + timedelta(hours=1)).run()
    await asyncio.wait_for(checking, 40)
    assert not said("cron.finished")
    await office.desk.fanouts.lead("hourly", "another", 0)


async def test_the_lock_is_renewed_while_calls_are_accepted(office, monkeypatch):
    """And free at once when the work is done."""
    monkeypatch.setattr(minding, "_LOCK_MS", 1_500)
    monkeypatch.setattr(minding, "_LOCK_RENEWAL_S", 0.02)

    async def page(cursor):
        await asyncio.sleep(0.4)  # all six take longer than the lock lasts by itself
        assert not await office.desk.fanouts.lead("hourly", "another", 1000)
        place = int(cursor or 0)
        return [f"u{place}"], str(place + 1) if place < 5 else None

    office.clock.move(minutes=30)
    minder = office.minder(office.schedule(page))
    await minder.check()
    office.clock.move(minutes=31)
    await minder.check()
    assert len(await office.jobs()) == 6
    assert await office.desk.fanouts.lead("hourly", "another", 1)


async def test_a_stop_during_a_fanout_ends_the_check(office):
    """The mark is not moved over what is left."""
    minder = await started(office)
    office.clock.move(minutes=31)
    office.stop.set()
    with pytest.raises(Stopped):
        await minder.check()


async def test_a_minder_wakes_by_itself_at_the_fire_time(office, eventually, monkeypatch):
    """Also when APScheduler never does, and before it would look in any case."""
    monkeypatch.setattr(minding, "CHECK_PERIOD_S", 3600)
    office.clock.now = datetime.now(UTC).replace(minute=59, second=59, microsecond=700_000)
    base, loop = office.clock.now, asyncio.get_running_loop()
    begun = loop.time()

    def now() -> int:
        return ms(base + timedelta(seconds=loop.time() - begun))

    object.__setattr__(office.desk, "now_ms", now)
    minder = office.minder(office.schedule(Listing(USERS)))
    minding_on = asyncio.create_task(minder.mind())
    await eventually(office.jobs, "it fires")
    office.stop.set()
    await minding_on


@pytest.mark.slow
async def test_five_processes_over_sixty_hours(redis_url, queue_name, monkeypatch):
    """Their clocks are two seconds apart, one of them is often blocked, one is often down: 60 occurrences, no more."""
    monkeypatch.setattr(minding, "_LOCK_LOOK_S", 0.01)
    draw = random.Random(5)
    now = [NOON + timedelta(minutes=30)]
    stop = asyncio.Event()
    async with asyncio.timeout(280):
        clocks = [lambda skew=skew: ms(now[0] + timedelta(seconds=skew)) for skew in (-2, -1, 0, 1, 2)]
        bureaus = [desks(Settings(redis_url=redis_url), stop, now_ms=clock) for clock in clocks]
        opened = [await bureau.__aenter__() for bureau in bureaus]
        offices = [Office(bureau, queue_name, None, stop) for bureau in opened]  # type: ignore[arg-type]
        minders = [Minder(office.schedule(Listing(USERS, 2), dedup=()), office.desk) for office in offices]
        await asyncio.gather(*(minder.check() for minder in minders))
        while now[0] < NOON + timedelta(hours=60, minutes=59):
            now[0] += timedelta(seconds=draw.choice([29, 31, 58, 60]))
            awake = draw.sample(minders, draw.randint(1, 5))
            await asyncio.gather(*(minder.check() for minder in awake))
        jobs = await offices[0].jobs()
        await offices[0].finish_all()
        for bureau in bureaus:
            await bureau.__aexit__(None, None, None)
    hours = sorted({name.split(":")[1] for name in jobs})
    assert len(hours) == 60
    times = [datetime.strptime(hour, "%Y%m%dT%H%MZ").replace(tzinfo=UTC) for hour in hours]
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(hours=1)}
    assert len(jobs) == 180
    assert set(jobs.values()) == {1}
