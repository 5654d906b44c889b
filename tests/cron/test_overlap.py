"""What becomes of an occurrence when jobs of the one before still wait or run."""

from __future__ import annotations

import asyncio

import pytest

from streamq.broker.partition import Report
from tests.cron.conftest import NOON, Listing

USERS = [f"u{number}" for number in range(300)]


async def fired_at_noon(office, **options):
    """Return a minder that has fired the occurrence of noon, with all its jobs waiting."""
    office.clock.move(minutes=-1)
    minder = office.minder(office.schedule(Listing(USERS, 1000), **options))
    await minder.check()
    office.clock.move(minutes=1)
    await minder.check()
    assert len(await office.jobs()) == 300
    office.clock.move(hours=1)
    return minder


def hours(jobs) -> set[str]:
    return {name.split(":")[1][9:13] for name in jobs if ":" in name}  # the others wake a worker


async def test_by_default_the_new_jobs_queue_behind_the_old_ones(office):
    minder = await fired_at_noon(office, dedup=())
    await minder.check()
    jobs = await office.jobs()
    assert (hours(jobs), jobs.total()) == ({"1200", "1300"}, 600)


async def test_skip_leaves_an_occurrence_out_while_a_job_of_the_one_before_lives(office, said):
    """For good: what was left out is not made up for when the job has ended."""
    minder = await fired_at_noon(office, overlap="skip", dedup=())
    await minder.check()
    assert hours(await office.jobs()) == {"1200"}
    assert said("cron.skipped")[0]["occurrence"] == "20261123T1300Z"
    await office.finish_all()
    await minder.check()
    assert not await office.jobs()
    office.clock.move(hours=1)
    await minder.check()
    assert hours(await office.jobs()) == {"1400"}
    assert len(said("cron.skipped")) == 1


async def test_cancel_ends_the_waiting_jobs_before_it_begins(office, said):
    minder = await fired_at_noon(office, overlap="cancel")
    await minder.check()
    jobs = await office.jobs()
    assert (hours(jobs), jobs.total()) == ({"1300"}, 300)
    assert said("cron.cancelled")[-1]["jobs"] == 300


async def test_cancel_waits_for_a_running_job_to_let_go(office, eventually, said):
    """Its user would otherwise be a duplicate, and get no job of this hour."""
    minder = await fired_at_noon(office, overlap="cancel")
    partition = office.desk.partition
    await partition.register("w1")
    reply = await partition.cycle(
        "w1", Report(), want=1, reads=[(2, 1, 1)], dead_after_ms=60_000, control_cursor=b"0-0", limits=(0, 10), now=0.0
    )
    (running,) = reply.deliveries
    checking = asyncio.create_task(minder.check())
    control = partition.keys.control
    await eventually(lambda: partition.wire.call("XLEN", control), "the worker is told to stop the job")
    assert hours(await office.jobs()) == {"1200"}
    user = running.id.decode().rpartition(":")[2]
    report = Report(
        settled=[running.token, running.id, b'{"s":"cancelled"}'], dedups=[(running.id, f"refresh:{user}", 0)]
    )
    await partition.cycle(
        "w1", report, want=0, reads=[], dead_after_ms=60_000, control_cursor=b"0-0", limits=(0, 10), now=0.0
    )
    await checking
    jobs = await office.jobs()
    assert hours(jobs) == {"1300"}
    assert len([name for name in jobs if ":" in name]) == 300
    await partition.leave("w1")


@pytest.mark.parametrize("overlap", ["skip", "cancel"])
async def test_a_resumed_fan_out_is_no_overlap(office, overlap):
    """Its own jobs are not those of an earlier occurrence, and a crash in between cancels nothing."""
    schedule = office.schedule(Listing(USERS, 100), overlap=overlap)
    office.clock.move(minutes=-1)
    await office.minder(schedule).check()
    office.clock.move(minutes=1)
    fanout = office.fanout(schedule, NOON, on_progress=lambda state: state.users and office.stop.set())
    await fanout.run()
    office.stop.clear()
    await office.minder(schedule).check()
    assert (await office.jobs()).total() == 300
