"""One job for each user of an occurrence, however often, by however many, and whatever goes wrong in the middle."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import timedelta

import pytest
from bson import ObjectId

from streamq.broker.fanout import FanOuts
from streamq.broker.wire import ServerRefused
from streamq.schedules.desks import desks
from streamq.schedules.pages import MOST_USERS, PageFailed
from streamq.schedules.phase import Phase, place_of
from streamq.settings import Settings
from tests.cron.conftest import NOON, Listing, ms

USERS = [f"u{number}" for number in range(1000)]
IDS = {f"hourly:20261123T1200Z:{user}" for user in USERS}


def exactly_one_job_each(jobs, ids=IDS):
    """Tell whether each id was enqueued once, and nothing else was."""
    assert set(jobs) == set(ids)
    assert set(jobs.values()) == {1}


@pytest.mark.parametrize("size", [7, 128, 129, 300, 1000])
async def test_every_user_gets_exactly_one_job(office, size):
    """Whether pages are smaller or larger than a call."""
    state = await office.fanout(office.schedule(Listing(USERS, size))).run()
    exactly_one_job_each(await office.jobs())
    assert (state.end, state.added, state.users) == ("done", 1000, 1000)
    assert state.pages == -(-1000 // size)


async def test_a_server_that_forgets_its_scripts_in_the_middle_costs_nobody_a_job(office):
    """Calls are packed before it is known that the script has to be sent along."""
    listing = Listing(USERS, 300)

    async def forgetful(cursor: str | None):
        await office.desk.partition.wire.call("SCRIPT", "FLUSH")
        return await listing(cursor)

    state = await office.fanout(office.schedule(forgetful)).run()
    exactly_one_job_each(await office.jobs())
    assert (state.end, state.added, state.pages) == ("done", 1000, 4)


async def test_a_job_carries_its_user_its_occurrence_and_its_deadline(office):
    """The next fire time, in ms."""
    await office.fanout(office.schedule(Listing(["a b"]))).run()
    (envelope,) = await office.envelopes()
    assert envelope == {
        "v": 1, "h": "refresh", "a": ["a b"], "u": "a b", "g": "refresh:a b",
        "x": ms(NOON + timedelta(hours=1)), "o": "hourly:20261123T1200Z",
    }  # fmt: skip


async def test_a_second_run_of_a_finished_occurrence_adds_nothing(office):
    """Even when every job of the first has ended and left no trace of its own."""
    listing = Listing(USERS)
    schedule = office.schedule(listing)
    await office.fanout(schedule).run()
    await office.finish_all()
    again = office.fanout(schedule)
    state = await again.run()
    assert again.was_finished
    assert again.added_here == 0
    assert state.added == 1000
    assert not await office.jobs()
    assert len(listing.calls) == 10


async def test_five_processes_at_once_make_one_job_each(office):
    """Each over a connection of its own, with pages of different sizes, and no lock at all."""
    settings = Settings(redis_url=office.desk.settings.redis_url)

    async def one(size: int):
        async with desks(settings, asyncio.Event(), now_ms=office.clock) as bureau:
            schedule = office.schedule(Listing(USERS, size))
            fanout = office.fanout(schedule)
            fanout._desk = bureau.desk(office.queue)
            return await fanout.run(), fanout.added_here

    done = await asyncio.gather(*(one(size) for size in (100, 100, 100, 50, 250)))
    exactly_one_job_each(await office.jobs())
    assert {state.end for state, _ in done} == {"done"}
    assert {state.added for state, _ in done} == {1000}
    assert sum(added for _, added in done) == 1000


async def test_a_user_whose_job_still_runs_is_a_duplicate(office):
    """The job of the hour before stands in for the new one."""
    schedule = office.schedule(Listing(USERS[:10]))
    await office.fanout(schedule).run()
    state = await office.fanout(schedule, NOON + timedelta(hours=1)).run()
    assert (state.added, state.duplicates) == (0, 10)
    exactly_one_job_each(await office.jobs(), [f"hourly:20261123T1200Z:u{number}" for number in range(10)])


async def test_ids_of_all_types(office):
    """Text with colons and spaces, numbers, ObjectIds and UUIDs."""
    oid, uid = ObjectId(), uuid.uuid4()
    await office.fanout(office.schedule(Listing(["a:b c", "Zoë", 42, -1, oid, uid]))).run()
    prefix = "hourly:20261123T1200Z:"
    words = ["a%3Ab%20c", "Zo%C3%AB", "42", "-1", str(oid), str(uid)]
    exactly_one_job_each(await office.jobs(), [prefix + word for word in words])
    envelopes = await office.envelopes()
    assert [envelope["a"][0] for envelope in envelopes] == ["a:b c", "Zoë", 42, -1, str(oid), str(uid)]
    assert {type(envelope["u"]) for envelope in envelopes} == {str}


@pytest.mark.parametrize("count", [3, 300])
async def test_users_that_cannot_be_enqueued_are_told_and_counted(office, said, count):
    """The others have their jobs; the alarm names the first."""
    good = [f"u{number}" for number in range(count - 3)]
    state = await office.fanout(office.schedule(Listing([*good, None, 2.5, "\ud800"], 1000))).run()
    assert (state.added, state.refused, state.end) == (count - 3, 3, "done")
    (alarm,) = said("cron.failed")
    assert alarm["level"] == "ERROR"
    assert "3 users cannot be enqueued, the others are; the first: None is no user id" in alarm["text"]
    assert alarm["schedule"] == "hourly"


async def test_users_of_a_large_page_who_are_known_as_slow_come_first_the_slowest_before_all_others(office):
    """An hour that ends with its longest job is as much longer; a page is stored in this order, so a crash changes nothing."""
    known = {"u9": 300, "u700": 9_000, "u999": 1_000}
    partition = office.desk.partition
    await partition.learn(100, runs=[value for user, ms in known.items() for value in (f"refresh|{user}", ms)])
    await office.fanout(office.schedule(Listing([*USERS, None], 1001))).run()
    order = [envelope["u"] for envelope in await office.envelopes()]
    slow = [user for user in order if user in known]
    assert slow == ["u700", "u999", "u9"]
    assert [user for user in order if user not in known] == [user for user in USERS if user not in known]


@pytest.mark.parametrize("count", [30, 300])
async def test_a_page_may_say_what_users_cost(office, said, count):
    """Jobs of those that stand out wait in the slow lane; also when the page is stored, for it takes several calls."""
    costs = {f"u{number}": 7 if number % 10 else 7_000 for number in range(count)}
    page = [*costs.items(), ("new", None), "plain", ("bad", -1), (None, 5)]
    state = await office.fanout(office.schedule(Listing(page, 1000))).run()
    assert (state.added, state.refused) == (count + 2, 2)
    assert "the first: a cost is a number, 0 or more, and -1 came for 'bad'" in said("cron.failed")[0]["text"]
    given = {envelope["u"]: envelope.get("c") for envelope in await office.envelopes()}
    assert given == {**costs, "new": None, "plain": None}
    partition = office.desk.partition
    lengths = [await partition.wire.call("XLEN", lane) for lane in partition.keys.lanes]
    assert lengths == [0, count - count // 10 + 2, 0, 0, count // 10, 0]


async def test_a_share_of_the_users_counts_them_by_their_ids(office):
    """What a user costs does not change whose it is."""
    office.bureau.phase = Phase(share=0.5)
    await office.fanout(office.schedule(Listing([(user, 3) for user in USERS]))).run()
    ours = {envelope["u"] for envelope in await office.envelopes()}
    assert ours == {user for user in USERS if place_of(user) < 0.5}


class TestResuming:
    """A crash, a stop or an error loses at most the call that was under way."""

    async def test_a_stop_ends_at_a_call_and_the_next_run_goes_on_there(self, office, said):
        """Nothing is enqueued twice, and no page before is read again."""
        listing = Listing(USERS, 300)
        schedule = office.schedule(listing)
        fanout = office.fanout(schedule, on_progress=lambda state: state.users > 300 and office.stop.set())
        state = await fanout.run()
        assert state.end == ""
        assert 300 < state.users < 1000
        office.stop.clear()
        listing.calls.clear()
        resumed = office.fanout(schedule)
        assert (await resumed.run()).end == "done"
        exactly_one_job_each(await office.jobs())
        assert None not in listing.calls
        assert said("cron.resumed")[0]["users"] == state.users

    async def test_a_page_that_changed_meanwhile_is_gone_on_with_as_it_was(self, office):
        """A user that vanished must not shift the others out of their places."""
        users = list(USERS[:300])
        listing = Listing(users, 1000)
        schedule = office.schedule(listing)
        fanout = office.fanout(schedule, on_progress=lambda state: state.users and office.stop.set())
        await fanout.run()
        await office.finish_all()  # not even the first jobs are there to tell who had one
        del users[:50]
        office.stop.clear()
        await office.fanout(schedule).run()
        assert len(listing.calls) == 1
        exactly_one_job_each(await office.jobs(), [f"hourly:20261123T1200Z:u{number}" for number in range(128, 300)])

    async def test_a_stored_page_that_is_lost_is_read_again_from_its_start(self, office):
        """Rather a job that is refused as present than a user left out."""
        schedule = office.schedule(Listing(USERS[:300], 1000))
        fanout = office.fanout(schedule, on_progress=lambda state: state.users and office.stop.set())
        await fanout.run()
        office.stop.clear()
        await office.desk.fanouts.drop_page("cron:hourly:20261123T1200Z", None)
        state = await office.fanout(schedule).run()
        assert (state.added, state.present) == (300, 128)
        exactly_one_job_each(await office.jobs(), [f"hourly:20261123T1200Z:u{number}" for number in range(300)])

    async def test_an_error_in_the_middle_keeps_what_was_enqueued(self, office):
        """And the next run starts with the page that failed."""
        listing, failures = Listing(USERS), [KeyError("users")]

        async def page(cursor):
            if cursor == "500" and failures:
                raise failures.pop()
            return await listing(cursor)

        schedule = office.schedule(page)
        with pytest.raises(PageFailed, match="called with cursor '500', raised KeyError"):
            await office.fanout(schedule).run()
        assert len(await office.jobs()) == 500
        listing.calls.clear()
        assert (await office.fanout(schedule).run()).end == "done"
        assert listing.calls[0] == "500"
        exactly_one_job_each(await office.jobs())

    async def test_a_process_left_behind_goes_on_from_what_another_has_stored(self, office):
        """Its next number is taken; it must not repeat the other's pages."""
        schedule = office.schedule(Listing(USERS))
        late = office.fanout(schedule)
        await late._begin()
        assert (await office.fanout(schedule).run()).end == "done"
        state = await late.run()
        assert state.added == 1000
        assert late.added_here == 0
        exactly_one_job_each(await office.jobs())

    async def test_redis_that_lost_the_last_seconds_is_gone_on_with_from_where_it_is(self, office, said):
        """It lost the jobs of those calls as well."""
        schedule = office.schedule(Listing(USERS))
        wire, producers = office.desk.partition.wire, office.desk.partition.keys.producers
        older: list[bytes] = []

        async def lose(raw: bytes) -> None:
            await wire.call("HSET", producers, "cron:hourly:20261123T1200Z", raw)

        fanout = office.fanout(schedule)
        send, calls = fanout._send, 0

        async def sending(call):
            nonlocal calls
            await send(call)
            calls += 1
            if calls == 3:
                older.append(await wire.call("HGET", producers, "cron:hourly:20261123T1200Z"))
            if calls == 6:
                await lose(older[0])

        fanout._send = sending
        assert (await fanout.run()).end == "done"
        assert "Redis has lost" in said("cron.resumed")[0]["why"]
        exactly_one_job_each(await office.jobs())

    async def test_another_refusal_of_the_server_is_not_taken_for_that(self, office):
        """A producer's record of a strange kind needs a person."""
        await office.desk.partition.wire.call("SET", office.desk.partition.keys.index, "not a hash")
        with pytest.raises(ServerRefused, match="WRONGTYPE"):
            await office.fanout(office.schedule(Listing(USERS))).run()

    async def test_what_was_begun_and_missed_its_deadline_is_gone_on_with_under_a_new_one(self, office):
        """With the old deadline the rest would end unrun."""
        schedule = office.schedule(Listing(USERS, 100))
        fanout = office.fanout(schedule, on_progress=lambda state: state.users and office.stop.set())
        await fanout.run()
        office.stop.clear()
        office.clock.move(hours=3)
        await office.fanout(schedule).run()
        deadlines = {envelope["x"] for envelope in await office.envelopes()}
        assert deadlines == {ms(NOON + timedelta(hours=1)), ms(NOON + timedelta(hours=4))}


class TestBadPageFunctions:
    """Each error names schedule, occurrence and cursor; what was enqueued before stays."""

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (None, "gave None, not a pair"),
            (["u1"], "not a pair"),
            ((["u1"], None, 3), "not a pair"),
            (("u1", None), "gave 'u1', not a list, as the ids"),
            (({"u1": 1}, None), "not a list, as the ids"),
            ((7, None), "gave 7, not a list, as the ids"),
            ((["u1"], 7), "gave 7 as the next cursor; it is text, or None at the end"),
            ((["u1"], ""), "gave '' as the next cursor"),
            ((["u"] * (MOST_USERS + 1), None), "gave 100,001 ids at once; at most 100,000 fit a page"),
        ],
    )
    async def test_what_is_no_page_is_refused(self, office, given, message):
        """A page is a pair of a list and a cursor."""

        async def page(cursor):
            return given

        with pytest.raises(
            PageFailed, match=r"schedule hourly of 2026-11-23 12:00 UTC: .* with cursor None,"
        ) as failed:
            await office.fanout(office.schedule(page)).run()
        assert message in str(failed.value)

    async def test_an_exception_is_told_with_its_type(self, office):
        """And is the cause of ours, so that the log has its traceback."""
        listing = Listing(USERS, fails=[KeyError("users")])
        with pytest.raises(PageFailed, match="raised KeyError: 'users'") as failed:
            await office.fanout(office.schedule(listing)).run()
        assert isinstance(failed.value.__cause__, KeyError)

    @pytest.mark.parametrize(
        "following",
        [{None: "a", "a": "a"}, {None: "a", "a": "b", "b": "a"}, {None: "x", "x": "a", "a": "b", "b": "c", "c": "a"}],
    )
    async def test_cursors_that_go_round_are_noticed(self, office, following):
        """However long the circle is; else the hour would never end."""

        async def page(cursor):
            return [f"u{cursor}"], following[cursor]

        with pytest.raises(PageFailed, match="again: the pages would go round for ever"):
            await office.fanout(office.schedule(page)).run()

    async def test_a_page_that_does_not_come_is_given_up(self, office):
        """A query that hangs must not be a silent hour."""

        async def page(cursor):
            await asyncio.sleep(60)

        with pytest.raises(PageFailed, match=r"gave nothing within 0\.05 s"):
            await office.fanout(office.schedule(page, page_timeout=timedelta(milliseconds=50))).run()

    async def test_a_timeout_of_the_functions_own_is_its_error(self, office):
        """Not ours."""
        with pytest.raises(PageFailed, match="raised TimeoutError: mine"):
            await office.fanout(office.schedule(Listing(USERS, fails=[TimeoutError("mine")]))).run()

    async def test_a_blocking_page_function_runs_beside_the_loop(self, office):
        """And what it raises comes out, even what would end a thread."""

        def page(cursor):
            time.sleep(0.01)
            if cursor == "2":
                raise SystemExit
            return ["u1"], "2"

        with pytest.raises(PageFailed, match="raised RuntimeError: it ended the thread"):
            await office.fanout(office.schedule(page)).run()
        assert len(await office.jobs()) == 1

    async def test_a_stop_does_not_wait_for_a_slow_page(self, office):
        """It is read again by the next run."""

        async def page(cursor):
            asyncio.get_running_loop().call_later(0.02, office.stop.set)
            await asyncio.sleep(60)

        state = await asyncio.wait_for(office.fanout(office.schedule(page)).run(), 40)
        assert state.end == ""


class TestBackPressure:
    """A full queue, and a server that is away, are waited for."""

    async def test_a_full_queue_is_waited_for(self, office, said):
        """Room comes as workers finish jobs."""
        desk = office.desk
        object.__setattr__(desk, "settings", Settings(redis_url=desk.settings.redis_url, max_depth=40))
        running = asyncio.create_task(office.fanout(office.schedule(Listing(USERS[:100]))).run())
        async with asyncio.timeout(50):
            while not running.done():
                await asyncio.sleep(0.02)
                assert len(await office.jobs()) <= 40
                await office.finish_all()
        assert running.result().added == 100
        (told,) = said("cron.waiting")
        assert "holds 40 jobs and may hold 40" in told["text"]

    # A connection that the server has closed is dropped by the wire; redis-py's own object complains of that.
    @pytest.mark.filterwarnings("ignore:.*AbstractConnection:pytest.PytestUnraisableExceptionWarning")
    async def test_a_server_that_goes_away_is_waited_for(self, redis_server, said, queue_name, clock):
        """It says so once, and once more when it is back."""
        stop = asyncio.Event()
        async with desks(Settings(redis_url=redis_server.url), stop, now_ms=clock) as bureau:
            from tests.cron.conftest import Office

            office = Office(bureau, queue_name, clock, stop)
            listing = Listing(USERS)

            async def page(cursor):
                if cursor == "500":
                    await asyncio.to_thread(redis_server.stop)
                    asyncio.get_running_loop().call_later(0.5, lambda: restarts.append(_start(redis_server)))
                return await listing(cursor)

            restarts: list[asyncio.Task[None]] = []
            state = await office.fanout(office.schedule(page)).run()
            assert state.end == "done"
            exactly_one_job_each(await office.jobs())
        assert "cannot reach Redis" in said("redis.lost")[0]["text"]
        assert said("redis.back")


def _start(server) -> asyncio.Task[None]:
    return asyncio.ensure_future(asyncio.to_thread(server.start))


async def test_progress_can_be_read_by_anybody(office):
    """From the record alone, by occurrence."""
    schedule = office.schedule(Listing(USERS))
    await office.fanout(schedule).run()
    fanout = office.fanout(
        schedule, NOON + timedelta(hours=1), on_progress=lambda state: state.users > 200 and office.stop.set()
    )
    await fanout.run()
    progress = await FanOuts(office.desk.partition).progress()
    assert list(progress) == ["hourly:20261123T1200Z", "hourly:20261123T1300Z"]
    done, running = progress.values()
    assert (done.end, done.added) == ("done", 1000)
    assert (running.end, running.duplicates) == ("", 300)


async def test_a_spread_occurrence_waits_in_the_delayed_jobs(office):
    """Each user has a place of its own within the window."""
    await office.fanout(office.schedule(Listing(USERS), scatter=timedelta(minutes=10))).run()
    keys, wire = office.desk.partition.keys, office.desk.partition.wire
    flat = await wire.call("ZRANGE", keys.delayed, 0, -1, "WITHSCORES")
    assert len(flat) == 2000
    due = sorted(float(score) for score in flat[1::2])
    assert 550_000 < due[-1] - due[0] < 650_000


async def test_the_lock_belongs_to_one_until_it_is_given_back_or_lapses(office):
    """It only saves work."""
    fanouts = office.desk.fanouts
    assert await fanouts.lead("hourly", "a", 10_000)
    assert await fanouts.lead("hourly", "a", 10_000)
    assert not await fanouts.lead("hourly", "b", 10_000)
    assert not await fanouts.lead("hourly", "b", 0)
    assert await fanouts.lead("hourly", "a", 0)
    assert await fanouts.lead("hourly", "b", 20)
    await asyncio.sleep(0.05)
    assert await fanouts.lead("hourly", "a", 10_000)
    assert await fanouts.lead("nightly", "b", 10_000)
