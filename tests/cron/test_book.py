"""Schedules that are stored: what may be said, what is refused, and how running processes notice."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pymongo
import pytest
from bson import ObjectId

from streamq.app import StreamQ
from streamq.cron.roster import Roster, check_app
from streamq.errors import BadInput, ConfigurationError, HistoryUnavailable
from streamq.mongo import FlagStore, Mongo, ScheduleStore, UserPages
from streamq.schedules import book, definition_of, fire_now
from streamq.schedules.book import every_schedule, resolve
from streamq.schedules.desks import desks
from streamq.schedules.fanout import FanOut
from streamq.schedules.phase import Phase, place_of, share_of
from streamq.settings import Settings

HOURLY = {"expression": "0 * * * *", "handler": "refresh", "users": {"ids": ["a", "b"]}}


@pytest.fixture
def settings(redis_url, mongodb_url, mongo_database):
    return Settings(redis_url=redis_url, mongodb_url=mongodb_url, mongodb_database=mongo_database)


@pytest.fixture
def app(settings, queue_name):
    app = StreamQ(settings)

    @app.handler(queue=queue_name, key="user_id")
    async def refresh(user_id: str) -> None: ...

    @app.cron("0 * * * *", handler=refresh)
    async def coded(cursor):
        return ["x"], None

    @app.users
    async def everybody(cursor):
        return ["e1", "e2"], None

    return app


@pytest.fixture
async def mongo(mongodb_url, mongo_database):
    mongo = Mongo(mongodb_url, mongo_database)
    yield mongo
    await mongo.close()


@pytest.fixture
def away():
    """Where no MongoDB is. pymongo leaves the socket of a refused connection to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield "mongodb://127.0.0.1:9"
        gc.collect()


class TestBook:
    """Put, list, pause, resume, remove."""

    async def test_what_is_stored_is_listed_beside_what_is_in_code(self, app, settings):
        async with book(app, settings) as pages:
            assert await pages.put("extra", definition_of(HOURLY))
            assert not await pages.put("extra", definition_of(HOURLY | {"timezone": "Europe/Berlin"}))
            listed = await pages.all()
        assert [(each.name, each.source, each.error) for each in listed] == [
            ("coded", "code", ""),
            ("extra", "stored", ""),
        ]
        assert listed[1].schedule.timing.timezone == "Europe/Berlin"
        assert listed[1].version[0] == 2

    async def test_a_schedule_that_was_changed_is_still_the_one_that_was_made_then(self, app, settings):
        """Removed and made again it is another: nothing that passed in between is made up for."""
        async with book(app, settings) as pages:
            await pages.put("extra", definition_of(HOURLY))
            before = (await pages.find("extra")).schedule.signature
            await pages.put("extra", definition_of(HOURLY | {"misfire": "all"}))
            assert (await pages.find("extra")).schedule.signature == before
            await pages.remove("extra")
            await pages.put("extra", definition_of(HOURLY))
            assert (await pages.find("extra")).schedule.signature != before

    async def test_either_kind_can_be_paused_with_a_reason_and_resumed(self, app, settings):
        async with book(app, settings) as pages:
            await pages.put("extra", definition_of(HOURLY))
            for name in ("coded", "extra"):
                await pages.pause(name, reason="the provider is down", by="ada")
                pause = (await pages.find(name)).pause
                assert (pause.reason, pause.by) == ("the provider is down", "ada")
                await pages.put("extra", definition_of(HOURLY))
                assert (await pages.find(name)).pause is not None
                assert await pages.resume(name)
                assert not await pages.resume(name)
                assert (await pages.find(name)).pause is None
            assert len(await pages.all()) == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"expression": "0 0 30 2 *"}, "'0 0 30 2 .' never fires"),
            ({"timezone": "Mars/Olympus"}, "'Mars/Olympus' is not a time zone"),
            ({"handler": "nobody"}, "nobody"),
            ({"users": {"pages": "nobody"}}, "no page function 'nobody' .it has: coded, everybody."),
            ({"users": {}}, "its users are one of pages, collection and ids"),
            ({"users": {"ids": ["a"], "pages": "everybody"}}, "its users are one of pages, collection and ids"),
            ({"users": {"ids": [str(n) for n in range(10_001)]}}, "10,001 ids; up to 10,000 can be listed"),
        ],
    )
    async def test_what_cannot_work_is_not_stored(self, app, settings, change, message):
        async with book(app, settings) as pages:
            with pytest.raises(ConfigurationError, match=message):
                await pages.put("extra", definition_of(HOURLY | change))
            assert [each.name for each in await pages.all()] == ["coded"]

    async def test_what_is_in_code_is_changed_there(self, app, settings):
        async with book(app, settings) as pages:
            with pytest.raises(ConfigurationError, match="schedule 'coded' is written in code"):
                await pages.put("coded", definition_of(HOURLY))
            with pytest.raises(ConfigurationError, match="'coded' is written in code, and cannot be removed"):
                await pages.remove("coded")
            with pytest.raises(ConfigurationError, match="no schedule is named 'nobody' .known: coded."):
                await pages.pause("nobody", reason="why", by="ada")
            with pytest.raises(BadInput, match="a pause has a reason"):
                await pages.pause("coded", reason=" ", by="ada")

    def test_a_field_that_is_misspelled_or_of_the_wrong_type_is_named(self):
        with pytest.raises(BadInput, match="unknown field `when`"):
            definition_of({"when": "0 * * * *"})
        with pytest.raises(BadInput, match=r"Expected `float . null`, got `str` - at `\$.jitter_s`"):
            definition_of(HOURLY | {"jitter_s": "soon"})

    async def test_without_history_there_is_no_book(self, app, redis_url):
        with pytest.raises(ConfigurationError, match="history is off"):
            async with book(app, Settings(redis_url=redis_url, history=False)):
                pass

    async def test_without_mongodb_the_schedules_in_code_are_known(self, app, redis_url, said, away):
        settings = Settings(redis_url=redis_url, mongodb_url=away)
        assert [each.name for each in await every_schedule(app, settings)] == ["coded"]
        schedules, phase = await resolve(app, settings, None)
        assert (len(schedules), phase) == (1, Phase())
        assert "going by the schedules in code" in said("mongodb.lost")[0]["text"]

    async def test_a_stored_one_is_fired_by_hand_by_its_name(self, app, settings):
        async with book(app, settings) as pages:
            await pages.put("extra", definition_of(HOURLY | {"users": {"pages": "everybody"}}))
        (fired,) = await fire_now(settings, app, schedule="extra")
        assert (fired.occurrence.schedule, fired.added_here) == ("extra", 2)

    async def test_whoever_fires_is_told_how_many_users_to_expect(self, app, settings, queue_name):
        """As many as the occurrence before had, for a bar."""
        async with desks(settings, asyncio.Event()) as bureau:
            desk = bureau.desk(queue_name)
            await desk.observe()
            schedule = (await resolve(app, settings, "coded"))[0][0]
            earlier = schedule.latest(desk.now_ms(), 2)[0]
            await FanOut(schedule, earlier, desk).run()
        expected = []
        await fire_now(settings, app, schedule="coded", on_begin=lambda occurrence, users: expected.append(users))
        assert expected == [1]

    async def test_a_document_that_cannot_be_read_is_listed_with_the_reason(self, app, settings, mongo):
        """Somebody has edited it; the other schedules must go on."""
        await mongo.collection("schedules").insert_one({"_id": "bad", "definition": {"expression": 5}})
        (bad, coded) = await every_schedule(app, settings)
        assert (bad.schedule, coded.error) == (None, "")
        assert "this is no schedule" in bad.error
        with pytest.raises(ConfigurationError, match="this is no schedule"):
            await resolve(app, settings, "bad")


class TestRoster:
    """A process looks after what there is now."""

    @pytest.fixture
    async def roster(self, app, settings, mongo, clock):
        stop = asyncio.Event()
        clock.move(minutes=-1)
        async with desks(settings, stop, now_ms=clock) as bureau:
            roster = Roster(settings, app, bureau, mongo)
            roster.stop, roster.bureau = stop, bureau
            await roster.begin()
            keeping = asyncio.create_task(roster.keep(stop))
            yield roster
            stop.set()
            await keeping

    async def jobs(self, roster, queue):
        keys = roster.bureau.desk(queue).partition.keys
        entries = await roster.bureau.desk(queue).partition.wire.call("XRANGE", keys.lanes[1], "-", "+")
        return sorted(fields[1].decode() for _, fields in entries)

    async def test_a_schedule_is_noticed_changed_paused_and_removed_without_a_restart(
        self, roster, app, settings, queue_name, clock, eventually, monkeypatch, said
    ):
        monkeypatch.setattr("streamq.cron.roster.LOOK_EVERY_S", 0.05)
        kept = roster._kept

        async def fires(*names: tuple[str, str]) -> None:
            clock.move(hours=1)
            for each in list(kept.values()):
                each.minder.wake.set()
            stamp = f"{clock.now:%Y%m%dT%H00Z}"
            wanted = {f"{name}:{stamp}:{user}" for name, user in names}

            async def there() -> bool:
                return {job for job in await self.jobs(roster, queue_name) if stamp in job} == wanted

            await eventually(there, f"{stamp} makes {wanted}")

        async def begun(name: str) -> None:
            """Wait until the schedule is known: it fires from the next fire time on."""
            schedule, fanouts = kept[name].listed.schedule, roster.bureau.desk(queue_name).fanouts
            await eventually(lambda: fanouts.record(schedule.mark), f"{name} is looked after")

        async with book(app, settings) as pages:
            await begun("coded")
            await fires(("coded", "x"))
            await pages.put("extra", definition_of(HOURLY))
            await eventually(lambda: "extra" in kept, "it is looked after")
            await begun("extra")
            await fires(("coded", "x"), ("extra", "a"), ("extra", "b"))
            await pages.put("extra", definition_of(HOURLY | {"users": {"ids": ["c"]}}))
            await eventually(lambda: kept["extra"].listed.version[0] == 2, "the change is seen")
            await fires(("coded", "x"), ("extra", "c"))
            await pages.pause("coded", reason="why not", by="ada")
            await eventually(lambda: kept["coded"].minder.is_paused, "the pause is seen")
            await fires(("extra", "c"))
            await pages.remove("extra")
            await pages.resume("coded")
            await eventually(lambda: set(kept) == {"coded"} and not kept["coded"].minder.is_paused, "both are seen")
            await fires(("coded", "x"))
        assert said("cron.paused")[0]["reason"] == "why not"

    async def test_nothing_fires_while_background_jobs_are_off(
        self, roster, mongo, queue_name, clock, eventually, monkeypatch
    ):
        monkeypatch.setattr("streamq.cron.roster.LOOK_EVERY_S", 0.05)
        await FlagStore(mongo).set(enabled=False)
        minder = roster._kept["coded"].minder
        await eventually(lambda: minder.is_paused, "it is noticed")
        clock.move(hours=1)
        await minder.check()
        assert await self.jobs(roster, queue_name) == []

    async def test_mongodb_that_goes_away_changes_nothing(self, app, settings, mongo, clock, said, away):
        gone = Mongo(away, "streamq")
        await ScheduleStore(mongo).put("extra", HOURLY)
        async with desks(settings, asyncio.Event(), now_ms=clock) as bureau:
            roster = Roster(settings, app, bureau, mongo)
            await roster.begin()
            roster._schedules = ScheduleStore(gone)
            assert await roster._look() is None
            assert await roster._look() is None
            assert set(roster._kept) == {"coded", "extra"}
            assert len(said("mongodb.lost")) == 1
            roster._schedules = ScheduleStore(mongo)
            assert await roster._look() is not None
            assert said("mongodb.back")
            await roster._close()
        await gone.close()

    def test_a_schedule_in_code_that_cannot_be_used_ends_the_process(self, app, settings):
        handler = app.handler_named("refresh")
        app.cron("0 0 30 2 *", handler=handler, name="never")(lambda cursor: ([], None))
        with pytest.raises(ConfigurationError, match="schedule 'never'.*never fires"):
            check_app(settings, app)


class TestUserPages:
    """Users of a collection, page by page."""

    async def all_of(self, pages) -> list:
        users, cursor = [], None
        while True:
            page, cursor = await pages(cursor)
            users += page
            if cursor is None:
                await pages.close()
                return users

    async def test_ids_of_all_types_come_once_each(self, mongodb_url, mongo_database, mongo):
        """A comparison in MongoDB stays among values of one type; the pages must not."""
        ids = [ObjectId() for _ in range(7)] + list(range(7)) + [f"u:{n} x" for n in range(7)]
        await mongo.collection("users").insert_many([{"_id": user} for user in ids])
        for size in (1, 3, 7, 20, 21, 100):
            found = await self.all_of(UserPages(mongodb_url, mongo_database, "users", size=size))
            assert len(found) == 21
            assert set(found) == set(ids)

    async def test_a_user_that_vanished_at_the_edge_of_a_page_takes_nobody_along(
        self, mongodb_url, mongo_database, mongo
    ):
        await mongo.collection("users").insert_many([{"_id": n} for n in range(10)])
        pages = UserPages(mongodb_url, mongo_database, "users", size=4)
        first, cursor = await pages(None)
        await mongo.collection("users").delete_many({"_id": {"$in": [3, 4]}})
        second, _ = await pages(cursor)
        assert (first, second) == ([0, 1, 2, 3], [5, 6, 7, 8, 9][: len(second)])
        assert second[0] == 5
        await pages.close()

    async def test_another_field_needs_an_index_and_documents_without_it_do_not_count(
        self, mongodb_url, mongo_database, mongo
    ):
        users = mongo.collection("users")
        await users.insert_many(
            [{"account": {"id": f"a{n}"}, "active": n % 2 == 0} for n in range(6)] + [{"active": True}]
        )
        pages = UserPages(mongodb_url, mongo_database, "users", field="account.id", query={"active": True}, size=2)
        with pytest.raises(ConfigurationError, match="cannot read users by 'account.id' of 'users'"):
            await pages(None)
        await users.create_index([("account.id", pymongo.ASCENDING)])
        assert await self.all_of(pages) == ["a0", "a2", "a4"]

    async def test_a_field_may_say_what_users_cost(self, mongodb_url, mongo_database, mongo):
        """What is no cost is no hint: a strange document must not keep its user from being refreshed."""
        costs = [7, 2.5, None, "many", -1, float("nan"), True, [1]]
        users = [{"_id": n, "size": {"records": cost}} for n, cost in enumerate(costs)]
        await mongo.collection("users").insert_many([*users, {"_id": len(users)}])
        pages = UserPages(mongodb_url, mongo_database, "users", size=4, cost="size.records")
        assert await self.all_of(pages) == [(0, 7.0), (1, 2.5), *((n, None) for n in range(2, 9))]

    async def test_bad_input_is_named(self, mongodb_url, mongo_database):
        with pytest.raises(ConfigurationError, match="a page has 1 to 100,000 users, and 0 were asked for"):
            UserPages(mongodb_url, mongo_database, "users", size=0)
        pages = UserPages(mongodb_url, mongo_database, "users")
        with pytest.raises(BadInput, match="'page 2' is not a cursor of these pages"):
            await pages("page 2")
        await pages.close()

    async def test_mongodb_that_is_away_is_said_to_be(self, away):
        pages = UserPages(away, "shop", "users")
        with pytest.raises(HistoryUnavailable, match="cannot reach MongoDB at 127.0.0.1:9"):
            await pages(None)
        await pages.close()


class TestPhase:
    """Nothing, a shadow, a share of the users, all."""

    def test_the_place_of_a_user_is_the_same_for_ever(self):
        """The old system computes it as well: the first four bytes of SHA-256, big-endian."""
        assert place_of("alice") == int("2bd806c9", 16) / 2**32  # sha256("alice") begins 2bd806c9
        share = sum(Phase(share=0.1).admits(f"user-{n}") for n in range(20_000)) / 20_000
        assert 0.09 < share < 0.11
        small = {n for n in range(2000) if Phase(share=0.1).admits(n)}
        assert small < {n for n in range(2000) if Phase(share=0.5).admits(n)}

    @pytest.mark.parametrize(
        ("text", "share"), [("10%", 0.1), ("0.5%", 0.005), ("all", 1.0), ("100%", 1.0), ("0%", 0.0)]
    )
    def test_a_share_is_written_in_percent(self, text, share):
        assert share_of(text) == pytest.approx(share)

    @pytest.mark.parametrize("text", ["10", "half", "-1%", "101%", "nan%"])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(BadInput, match="is not a share of the users"):
            share_of(text)

    def test_what_is_stored_wins_but_what_the_settings_switch_off_stays_off(self):
        assert Phase.of(Settings(rollout="10%"), {"share": 1.0}).share == 1.0
        assert not Phase.of(Settings(background_jobs_enabled=False), {"enabled": True}).is_enabled
        assert not Phase.of(Settings(), {"enabled": False}).is_enabled

    async def test_a_share_of_the_users_gets_jobs(self, office):
        users = [f"u{n}" for n in range(1000)]

        async def page(cursor):
            return users, None

        office.bureau.phase = Phase(share=0.25)
        state = await office.fanout(office.schedule(page)).run()
        wanted = {f"hourly:20261123T1200Z:{user}" for user in users if place_of(user) < 0.25}
        assert set(await office.jobs()) == wanted
        assert state.added == len(wanted)

    async def test_firing_by_hand_heeds_the_phase(self, app, settings, mongo):
        await FlagStore(mongo).set(shadow=True)
        with pytest.raises(ConfigurationError, match="streamq is a shadow of the old system"):
            await fire_now(settings, app)
        await FlagStore(mongo).set(enabled=False)
        with pytest.raises(ConfigurationError, match="nothing fires while background_jobs.enabled is false"):
            await fire_now(settings, app)
