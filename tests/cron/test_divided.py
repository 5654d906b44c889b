"""A fan-out over several partitions: one job for each user, in the partition that the user belongs to."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from streamq.app import StreamQ
from streamq.cron.overlap import cancel_earlier, earlier_lives
from streamq.errors import ConfigurationError
from streamq.keys import partition_for
from streamq.schedules.desks import desks
from streamq.schedules.divided import Divided, fan_out, shared
from streamq.schedules.manual import manual_enqueue
from streamq.schedules.occurrence import Occurrence
from streamq.schedules.pages import PageFailed
from streamq.settings import Settings
from tests.cron.conftest import NOON, Listing, Office, ms

USERS = [f"u{number}" for number in range(1000)]


class Offices(Office):
    """The same over all partitions."""

    def fanout(self, schedule, fire=NOON, **options):
        """Make the fan-out over all partitions."""
        return fan_out(schedule, Occurrence(schedule.name, ms(fire)), self.desk, **options)

    async def where(self):
        """Return how often each user was enqueued, and where."""
        found = Counter()
        for share in self.desk.shares():
            keys, wire = share.partition.keys, share.partition.wire
            for lane in keys.lanes:
                for _, fields in await wire.call("XRANGE", lane, "-", "+"):
                    if fields[0] == b"j":
                        found[keys.queue, fields[1].decode().rpartition(":")[2]] += 1
        return found


@pytest.fixture
async def office(redis_url, queue_name, clock):
    """An office of a queue with three partitions."""
    stop = asyncio.Event()
    async with desks(Settings(redis_url=redis_url, partitions=("3",)), stop, now_ms=clock) as bureau:
        office = Offices(bureau, queue_name, clock, stop)
        await office.desk.observe()
        yield office
        for share in office.desk.shares():
            keys, wire = share.partition.keys, share.partition.wire
            names = await wire.call("KEYS", f"{keys.tag}:*")
            await wire.pipeline([("DEL", name) for name in names] or [("PING",)])


def once_each_where_they_belong(found, queue, users=USERS):
    """Tell whether each user has one job, in the right partition."""
    assert set(found) == {(partition_for(queue, user, 3), user) for user in users}
    assert set(found.values()) == {1}


@pytest.mark.parametrize("size", [7, 100, 300])
async def test_every_user_gets_exactly_one_job_where_the_user_belongs(office, size):
    """Whatever a page is."""
    fanout = office.fanout(office.schedule(Listing(USERS, size)))
    state = await fanout.run()
    once_each_where_they_belong(await office.where(), office.queue)
    assert isinstance(fanout, Divided)
    assert (state.end, state.added, fanout.added_here, fanout.was_finished) == ("done", 1000, 1000, False)


async def test_a_page_is_read_once_by_all_who_ask_for_it_and_again_after_a_failure():
    """Partitions that keep in step cost the database no more than one would."""
    listing = Listing(USERS, fails=[RuntimeError("away")])
    page = shared(listing)
    with pytest.raises(RuntimeError, match="away"):
        await page(None)
    pages = await asyncio.gather(*(page(None) for _ in range(3)))
    assert [len(users) for users, _ in pages] == [100] * 3
    assert listing.calls == [None, None]
    for cursor in ("100", "200", "300", "400", None):
        await page(cursor)
    assert listing.calls[2:] == ["100", "200", "300", "400", None], "it holds no more than a few"


async def test_a_second_run_of_a_finished_occurrence_adds_nothing(office):
    """Whoever runs it, and its record tells the counts of all partitions."""
    schedule = office.schedule(Listing(USERS))
    await office.fanout(schedule).run()
    again = office.fanout(schedule)
    state = await again.run()
    assert (again.was_finished, again.added_here, state.added) == (True, 0, 1000)
    record = await office.desk.fanouts.record(Occurrence("hourly", ms(NOON)).producer)
    assert (record.state.end, record.state.added) == ("done", 1000)


async def test_a_page_that_fails_leaves_what_was_done_and_is_gone_on_with(office):
    """No partition has stored an end that is not one, and nobody gets two jobs."""
    listing = Listing(USERS)
    schedule = office.schedule(listing)

    async def fails_late(cursor):
        if cursor == "500" and not fails_late.failed:
            fails_late.failed = True
            raise RuntimeError("the database is away")
        return await listing(cursor)

    fails_late.failed = False
    fragile = office.schedule(fails_late)
    with pytest.raises(PageFailed, match="the database is away"):
        await office.fanout(fragile).run()
    record = await office.desk.fanouts.record(Occurrence("hourly", ms(NOON)).producer)
    assert record is not None
    assert record.state.end == ""
    state = await office.fanout(schedule).run()
    once_each_where_they_belong(await office.where(), office.queue)
    assert (state.end, state.added) == ("done", 1000)


async def test_a_process_that_is_stopped_in_the_middle_is_gone_on_from(office, redis_url, clock):
    """The first partition does not end before the others have."""
    stop = asyncio.Event()

    async def stops(cursor):
        if cursor == "300":
            stop.set()
        return await Listing(USERS)(cursor)

    settings = Settings(redis_url=redis_url, partitions=("3",))
    async with desks(settings, stop, now_ms=clock) as bureau:
        desk = bureau.desk(office.queue)
        state = await fan_out(office.schedule(stops), Occurrence("hourly", ms(NOON)), desk).run()
    assert state.end == ""
    assert 0 < sum((await office.where()).values()) < 1000
    state = await office.fanout(office.schedule(Listing(USERS))).run()
    once_each_where_they_belong(await office.where(), office.queue)
    assert (state.end, state.added) == ("done", 1000)


async def test_several_processes_at_once_make_one_job_for_each_user(office, redis_url, clock):
    """Each partition takes a call once, whoever makes it."""
    settings = Settings(redis_url=redis_url, partitions=("3",))
    async with desks(settings, asyncio.Event(), now_ms=clock) as bureau:
        other = fan_out(office.schedule(Listing(USERS)), Occurrence("hourly", ms(NOON)), bureau.desk(office.queue))
        mine = office.fanout(office.schedule(Listing(USERS)))
        states = await asyncio.gather(mine.run(), other.run())
    once_each_where_they_belong(await office.where(), office.queue)
    assert [state.added for state in states] == [1000, 1000]
    assert mine.added_here + other.added_here == 1000


async def test_users_that_cannot_be_enqueued_are_counted_once(office):
    """They belong to no partition."""
    told = []
    state = await office.fanout(office.schedule(Listing([*USERS[:10], None, 1.5])), on_progress=told.append).run()
    assert (state.added, state.refused) == (10, 2)
    assert told[-1].added == 10


async def test_an_occurrence_that_is_given_up_or_left_out_is_so_in_all_partitions(office):
    """What is left is enqueued by nobody any more."""
    schedule = office.schedule(Listing(USERS))
    assert (await office.fanout(schedule).give_up()).end == "given up"
    assert (await office.fanout(schedule).run()).added == 0
    later = NOON + timedelta(hours=1)
    assert (await office.fanout(schedule, later).skip()).end == "skipped"
    office.clock.move(hours=1)
    assert (await office.fanout(schedule, later).run()).added == 0
    assert not await office.where()


async def test_jobs_of_earlier_occurrences_are_found_and_ended_in_every_partition(office):
    """A user whose job still waits there would have no job of this one."""
    schedule = office.schedule(Listing(USERS[:30]))
    await office.fanout(schedule).run()
    following = Occurrence("hourly", ms(NOON + timedelta(hours=1)))
    assert await earlier_lives(office.desk, following)
    assert await cancel_earlier(office.desk, following) == 30
    assert not await earlier_lives(office.desk, following)


async def test_users_that_are_enqueued_by_hand_go_where_they_belong(redis_url, office):
    """Beside the jobs that the hour makes; a user who has one there gets no second one."""
    app = StreamQ(Settings(redis_url=redis_url, history=False, partitions=("3",)))

    @app.handler(queue=office.queue, key="user_id")
    async def refresh(user_id: str) -> None: ...

    app.cron("0 * * * *", handler=refresh, name="hourly")(Listing(USERS))
    told = await manual_enqueue(app.settings, app, "hourly", users=USERS[:40])
    assert (told.added, told.duplicates, told.present) == (40, 0, 0)
    once_each_where_they_belong(await office.where(), office.queue, USERS[:40])
    told = await manual_enqueue(app.settings, app, "hourly")
    assert (told.added, told.present) == (960, 40)
    once_each_where_they_belong(await office.where(), office.queue)


async def test_a_schedule_whose_queue_is_divided_otherwise_is_refused(office, redis_url, clock):
    """It would give users a second job, in another partition."""
    async with desks(Settings(redis_url=redis_url), asyncio.Event(), now_ms=clock) as bureau:
        with pytest.raises(ConfigurationError, match="has 3 partitions, and the settings say 1 partition"):
            await bureau.desk(office.queue).observe()
