"""`streamq token`: made, shown once, listed, rotated and revoked."""

from __future__ import annotations

import json
import re

import pymongo
import pytest


@pytest.fixture
def token(bare, mongodb_url, mongo_database, redis_url):
    """Run `streamq token` on the database of the test."""

    def token(*arguments):
        return bare("token", *arguments, "--mongodb-url", mongodb_url, "--mongodb-database", mongo_database)

    return token


def test_a_token_is_printed_alone_and_only_once(token):
    """It goes straight into a file or a variable; what a person is told is on standard error."""
    made = token("create", "grafana", "--scope", "metrics:read", "--scope", "jobs:read", "--expires", "90d")
    assert (made.code, re.fullmatch(r"sq_[0-9a-f]{12}_[\w-]{43}\n", made.out) is not None) == (0, True)
    assert "the only time" in made.err
    listed = token("ls")
    assert made.out.strip() not in listed.out + listed.err
    (row,) = listed.rows
    assert row[1:4] == ["grafana", "active", '["jobs:read", "metrics:read"]']
    assert row[4] and not row[5]


def test_json_has_the_token_and_its_id(token):
    """For programs."""
    made = json.loads(token("create", "a", "--scope", "admin", "--json").out)
    assert made["token"].startswith(f"sq_{made['id']}_")
    (listed,) = json.loads(token("ls", "--json").out)["items"]
    assert (listed["id"], listed["scopes"], listed["expires_at"]) == (made["id"], ["admin"], None)
    assert token("ls", "-q").out == f"{made['id']}\n"


def test_revoking_and_rotating_go_by_the_id(token):
    """The secret is with whoever has it; the id is in the list."""
    old = json.loads(token("create", "a", "--scope", "user:u1", "--json").out)["id"]
    new = json.loads(token("rotate", old, "--overlap", "1h", "--json").out)["id"]
    assert token("revoke", new).err == f"{new} (a): revoked\n"
    assert json.loads(token("revoke", new, "--json").out)["state"] == "revoked"
    states = {
        each["id"]: (each["state"], each["expires_at"] is None)
        for each in json.loads(token("ls", "--json").out)["items"]
    }
    assert states == {old: ("active", False), new: ("revoked", True)}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("create", "a"), 65, "a token needs a scope"),
        (("create", "a", "--scope", "root"), 65, "'root' is no scope"),
        (("create", "a", "--scope", "admin", "--expires", "soon"), 2, "'soon' is no duration"),
        (("create", "a", "--scope", "admin", "--expires", "0d"), 65, "longer than nothing"),
        (("revoke", "0" * 12), 65, "there is no token '000000000000'"),
        (("rotate", "$ne"), 65, "there is no token '$ne'"),
        (("create", "a", "--scope", "admin", "--no-history"), 2, "No such option"),
    ],
)
def test_what_cannot_be_is_told_with_the_reason(token, arguments, code, says):
    """And nothing is stored."""
    told = token(*arguments)
    assert told.code == code
    assert says in told.err
    assert token("ls", "-q").out == ""


def test_without_mongodb_there_are_no_tokens(bare, monkeypatch, mongodb_url):
    """The one of the settings is the way in then."""
    monkeypatch.setenv("STREAMQ_HISTORY", "false")
    told = bare("token", "ls")
    assert told.code == 78
    assert "tokens are in MongoDB, and history is off" in told.err


def test_a_mongodb_that_is_away_is_told_with_its_address(bare):
    """Exit 69: it may be there later."""
    with pymongo.MongoClient("mongodb://127.0.0.1:9", serverSelectionTimeoutMS=1):
        told = bare("token", "ls", "--mongodb-url", "mongodb://127.0.0.1:9")
    assert told.code == 69
    assert "cannot reach MongoDB at 127.0.0.1:9" in told.err
