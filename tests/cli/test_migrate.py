"""`streamq migrate`."""

from __future__ import annotations

import json

import pymongo


def test_migrate_shows_what_is_to_do_and_does_it_when_told(command):
    """Exit 1 while there is something to do, so that a deployment can ask."""
    told = command("migrate", "--json")
    assert told.code == 1
    changes = [item["change"] for item in json.loads(told.out)["items"]]
    assert "create the collection job_status" in changes
    assert "streamq migrate --apply" in told.err
    done = command("migrate", "--apply")
    assert (done.code, done.out.splitlines()) == (0, changes)
    again = command("migrate")
    assert (again.code, again.out) == (0, "")
    assert "as this version wants it" in again.err


def test_migrate_says_that_a_later_version_has_been_here(command, mongodb_url, mongo_database):
    """Whoever has rolled back must not be led to undo the layout of the version to come."""
    assert command("migrate", "--apply").code == 0
    with pymongo.MongoClient(mongodb_url) as client:
        client[mongo_database]["layout"].update_one({"_id": "layout"}, {"$set": {"number": 999}})
        client[mongo_database].command("collMod", "job_status", validator={})
    told = command("migrate")
    assert (told.code, told.out) == (0, "")
    assert "a later version of streamq has been here (layout 999)" in told.err
