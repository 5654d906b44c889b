"""`streamq migrate`."""

from __future__ import annotations

import json


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
