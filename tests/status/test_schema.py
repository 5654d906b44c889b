"""What lies in MongoDB beside the documents: made by itself when missing, changed only when a person says so."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from pymongo.errors import WriteError

from streamq.clock import utc_now
from streamq.errors import ConfigurationError, HistoryUnavailable
from streamq.mongo import Schema, Statuses, schema as layout
from streamq.mongo.schema import INDEXES, LAYOUT, USER_LATEST, VALIDATORS, Change


async def test_an_empty_database_is_made_ready_by_whoever_comes_first(mongo):
    """Several recorders start at once, on a database that nobody has prepared."""
    assert await Schema(mongo).changes()
    await asyncio.gather(*(Schema(mongo).prepare() for _ in range(4)))
    assert await Schema(mongo).changes() == []
    for name, indexes in INDEXES.items():
        there = set(await mongo.collection(name).index_information())
        assert there == {"_id_", *(index.document["name"] for index in indexes)}
    expiry = (await mongo.collection("job_status").index_information())["expiry"]
    assert expiry["expireAfterSeconds"] == 0


async def test_an_index_that_is_not_ours_is_named_and_left_alone_until_told(mongo):
    """It may be somebody's on purpose, and building ours may take minutes."""
    await mongo.collection("job_status").create_index([("user", 1)], name="by_user")
    with pytest.raises(
        ConfigurationError, match=r"the indexes of job_status in MongoDB are not streamq's: .*by_user"
    ) as caught:
        await Statuses(mongo).prepare()
    assert "streamq migrate --apply" in caught.value.hint
    done = [change.what for change in await Schema(mongo).migrate()]
    assert "replace the index by_user of job_status" in done
    assert await Schema(mongo).changes() == []


async def test_a_database_of_an_earlier_version_is_brought_up_to_date_by_migrate(mongo, caplog):
    """The recorder says what differs, and works on."""
    database = mongo.database
    await database.create_collection("job_status", validator={"state": {"$exists": True}})
    await database.create_collection("quarantine")
    await mongo.collection("quarantine").create_index([("at", 1)], name="expiry", expireAfterSeconds=5)
    await database.create_collection(USER_LATEST, viewOn="job_status", pipeline=[{"$match": {}}])
    wanted = [change.what for change in await Schema(mongo).changes() if not change.is_new]
    assert wanted == [
        "change the validator of job_status",
        "replace the index expiry of quarantine",
        f"change the view {USER_LATEST}",
    ]
    assert [change.what for change in await Schema(mongo).migrate() if not change.is_new] == wanted
    assert await Schema(mongo).changes() == []

    await database.command("collMod", "job_status", validator={})
    caplog.set_level(logging.WARNING)
    await Schema(mongo).prepare()
    assert [record.text for record in caplog.records] == [  # type: ignore[attr-defined]
        "change the validator of job_status: run streamq migrate --apply"
    ]


async def test_what_a_later_version_has_changed_is_left_alone_by_this_one(mongo, caplog, monkeypatch):
    """Both run side by side during an upgrade, and after a rollback: neither may undo the other's layout, or refuse to start."""
    with monkeypatch.context() as later:
        later.setattr(layout, "LAYOUT", LAYOUT + 1)
        await Schema(mongo).prepare()
    jobs = mongo.collection("job_status")
    await jobs.drop_index("by_user")
    await jobs.create_index([("user", 1), ("of_a_later_version", 1)], name="by_user")
    await mongo.database.command("collMod", "job_status", validator={"state": {"$exists": True}})
    await jobs.drop_index("recent")

    assert await Schema(mongo).newer() == LAYOUT + 1
    assert [change.what for change in await Schema(mongo).changes()] == ["create the index recent of job_status"]
    caplog.set_level(logging.WARNING)
    await Statuses(mongo).prepare()
    assert caplog.records == []
    assert await Schema(mongo).migrate() == []
    there = await jobs.index_information()
    assert "of_a_later_version" in dict(there["by_user"]["key"])
    assert "recent" in there
    assert await Schema(mongo).newer() == LAYOUT + 1, "an older version does not take the number down"


async def test_of_two_migrations_at_once_one_is_refused(mongo, monkeypatch):
    """Each would drop the index that the other is building."""
    await Schema(mongo).prepare()
    jobs = mongo.collection("job_status")
    await jobs.drop_index("by_user")
    await jobs.create_index([("user", 1)], name="by_user")
    begun, go_on = asyncio.Event(), asyncio.Event()
    first = Schema(mongo)
    apply = first._apply

    lock = mongo.collection("layout")

    async def slowly(change):
        taken = await lock.find_one({"_id": "migration"})
        assert taken["until"] - taken["since"] > layout._ALONE, "each change has its own time"
        begun.set()
        await go_on.wait()
        await apply(change)

    monkeypatch.setattr(first, "_apply", slowly)
    running = asyncio.create_task(first.migrate())
    await begun.wait()
    with pytest.raises(HistoryUnavailable, match="another migration of MongoDB at .* is under way since") as caught:
        await Schema(mongo).migrate()
    assert "twenty minutes" in caught.value.hint
    go_on.set()
    assert [change.what for change in await running] == ["replace the index by_user of job_status"]
    assert await Schema(mongo).migrate() == [], "the next one may, and has nothing to do"


async def test_a_migration_that_was_killed_does_not_keep_others_out_for_ever(mongo):
    """Nobody would think of deleting a document by hand."""
    past = utc_now() - layout._ALONE
    await mongo.collection("layout").insert_one(
        {"_id": "migration", "since": past, "until": utc_now() - timedelta(seconds=1)}
    )
    assert await Schema(mongo).migrate()
    assert await mongo.collection("layout").find_one({"_id": "migration"}) is None


@pytest.mark.parametrize("name", VALIDATORS["job_status"]["$jsonSchema"]["required"])
async def test_a_status_without_what_every_status_has_is_refused(statuses, mongo, name):
    """Other programs write into this database, too."""
    whole = {"queue": "q", "state": "queued", "enqueued_at": utc_now(), "version": 1}
    jobs = mongo.collection("job_status")
    await jobs.insert_one({**whole, "of_a_later_version": 1})
    del whole[name]
    with pytest.raises(WriteError, match="Document failed validation"):
        await jobs.insert_one(whole)


async def test_a_user_who_may_not_change_the_layout_is_told_what_is_needed(mongo):
    """A database administrator may have to do it."""
    change = Change("do the impossible", False, lambda: mongo.database.command("dbl"))
    with pytest.raises(ConfigurationError, match=r"refused to do the impossible: no such command: 'dbl'") as caught:
        await Schema(mongo)._apply(change)
    assert "dbAdmin" in caught.value.hint
