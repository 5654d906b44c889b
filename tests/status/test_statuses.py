"""Writing statuses: nothing older ever replaces something newer, and no document holds up another."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta

import pytest

from streamq import mongo as mongo_module
from streamq.errors import ConfigurationError, HistoryUnavailable
from streamq.mongo import Mongo, Statuses, StatusWrite

# Far off, since MongoDB deletes what is past its expiry also during a test.
DAWN = datetime(2099, 1, 1, tzinfo=UTC)
LATER = DAWN + timedelta(hours=1)


def recorded(version, state="completed", *, job="a", attempt=1, enqueued_at=DAWN, **fields):
    """A status from the outbox, with its attempt."""
    fields = {"queue": "q", "state": state, "attempt": attempt, "enqueued_at": enqueued_at, **fields}
    return StatusWrite(job, version, False, fields, [{"number": attempt, "state": state, "version": version}], b"raw")


def seen(version, state="queued", *, job="a", attempt=1, enqueued_at=DAWN):
    """A status that was noticed in Redis."""
    fields = {"queue": "q", "state": state, "attempt": attempt, "enqueued_at": enqueued_at}
    return StatusWrite(job, version, True, fields, [])


async def stored(statuses, job="a"):
    [document] = await statuses.find({"_id": job})
    return document


async def test_a_new_status_is_inserted_and_a_newer_one_replaces_it(statuses):
    first = await statuses.write([recorded(1, "retrying", due_at=LATER)])
    assert (first.inserted, first.updated, first.stale) == (1, 0, 0)
    second = await statuses.write([recorded(2, "completed", attempt=2, result={"n": 1})])
    assert (second.inserted, second.updated, second.stale) == (0, 1, 0)
    document = await stored(statuses)
    assert (document["state"], document["version"], document["result"]) == ("completed", 2, {"n": 1})
    assert "due_at" not in document
    assert [attempt["number"] for attempt in document["attempts"]] == [1, 2]


async def test_a_stale_version_never_replaces_but_its_attempt_is_kept(statuses):
    """Two recorders share an outbox: the one with the earlier entry may be the slower one."""
    await statuses.write([recorded(9, "completed", attempt=2)])
    done = await statuses.write([recorded(5, "retrying", attempt=1)])
    assert (done.updated, done.stale) == (0, 1)
    document = await stored(statuses)
    assert (document["state"], document["version"]) == ("completed", 9)
    assert [attempt["version"] for attempt in document["attempts"]] == [5, 9]


async def test_writing_the_same_again_changes_nothing(statuses):
    writes = [recorded(1, "retrying"), recorded(2, job="b")]
    await statuses.write(writes)
    before = [await stored(statuses), await stored(statuses, "b")]
    done = await statuses.write(writes)
    assert (done.inserted, done.updated, done.stale) == (0, 0, 2)
    assert [await stored(statuses), await stored(statuses, "b")] == before


async def test_attempts_that_come_again_together_with_later_ones_stand_there_once(statuses):
    await statuses.write([recorded(1, "retrying")])
    joined = recorded(2, attempt=2)
    both = joined._replace(attempts=[{"number": 1, "state": "retrying", "version": 1}, *joined.attempts])
    await statuses.write([both])
    assert [attempt["version"] for attempt in (await stored(statuses))["attempts"]] == [1, 2]


async def test_only_the_last_twenty_attempts_are_kept(statuses):
    for version in range(1, 31):
        await statuses.write([recorded(version, "retrying", attempt=version)])
    assert [attempt["number"] for attempt in (await stored(statuses))["attempts"]] == list(range(11, 31))
    many = [{"number": n, "version": n} for n in range(100, 150)]
    await statuses.write([recorded(200, job="new")._replace(attempts=many)])
    assert [attempt["number"] for attempt in (await stored(statuses, "new"))["attempts"]] == list(range(130, 150))


@pytest.mark.parametrize(
    "order",
    list(itertools.permutations([seen(10), seen(10, "running"), recorded(20)])),
    ids=lambda order: "-".join(write.fields["state"] for write in order),
)
async def test_a_settled_job_stays_settled_in_whatever_order_its_statuses_arrive(statuses, order):
    for write in order:
        await statuses.write([write])
    document = await stored(statuses)
    assert (document["state"], document["version"]) == ("completed", 20)


async def test_running_replaces_waiting_of_the_same_entry_and_not_the_other_way_round(statuses):
    await statuses.write([seen(10)])
    await statuses.write([seen(10, "running")])
    await statuses.write([seen(10)])
    assert (await stored(statuses))["state"] == "running"


async def test_what_was_recorded_of_an_attempt_counts_though_the_clock_was_set_back(statuses):
    """Stream ids never fall within a stream, but two streams may disagree after a jump: the lane is ahead here."""
    await statuses.write([seen(1_000, "running")])
    await statuses.write([recorded(20)])
    assert (await stored(statuses))["state"] == "completed"
    await statuses.write([seen(1_000, "running")])
    assert (await stored(statuses))["state"] == "completed"


async def test_a_later_attempt_that_is_seen_replaces_the_retry_before_it(statuses):
    await statuses.write([recorded(20, "retrying", attempt=1)])
    await statuses.write([seen(30, attempt=2)])
    document = await stored(statuses)
    assert (document["state"], document["attempt"], len(document["attempts"])) == ("queued", 2, 1)
    await statuses.write([recorded(20, "retrying", attempt=1)])
    assert (await stored(statuses))["state"] == "queued", "a late retry of attempt 1 is older than attempt 2"


async def test_a_dead_job_that_is_replayed_lives_again(statuses):
    await statuses.write([recorded(20, "dead", finished_at=DAWN, expires_at=LATER)])
    await statuses.write([seen(30, enqueued_at=LATER)])
    document = await stored(statuses)
    assert document["state"] == "queued"
    assert "expires_at" not in document, "a live job must not expire"
    assert "finished_at" not in document


@pytest.mark.parametrize(
    "result", [{"$gt": 1}, {"$set": {"a.b": 1}}, "$state", {"a.b": {"$where": "1"}}, [{"$ref": "a", "$id": 1}]]
)
async def test_a_result_that_looks_like_an_operator_is_a_result(statuses, result):
    await statuses.write([recorded(1, result=result)])
    assert (await stored(statuses))["result"] == result
    await statuses.write([recorded(2, result=result, attempt=2), recorded(1, job="b", result=result)])
    assert (await stored(statuses))["result"] == result
    assert (await stored(statuses, "b"))["result"] == result


def nested(levels):
    value: object = 1
    for _ in range(levels):
        value = {"d": value}
    return value


HOSTILE = {
    "an integer of 64 bits": 2**63,
    "a NUL in a key": {"a\0b": 1},
    "a lone surrogate": "\ud800",
    "200 levels": nested(200),
    "no BSON at all": object(),
    "17 MB": "x" * 17_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("exists", [False, True])
async def test_a_document_that_is_refused_holds_up_no_other(statuses, mongo, name, exists):
    if exists:
        await statuses.write([seen(1, job=f"j{n}") for n in range(20)])
    writes = [recorded(5, job=f"j{n}", result=HOSTILE[name] if n == 7 else n) for n in range(20)]

    done = await statuses.write(writes)

    assert done.quarantined == 1
    documents = await statuses.find({})
    assert {document["state"] for document in documents} == {"completed"}
    assert len(documents) == 20
    bad = await stored(statuses, "j7")
    assert "result" not in bad
    assert bad["result_error"].startswith("refused by MongoDB: ")
    [kept] = await mongo.collection("quarantine").find().to_list()
    assert (kept["job"], kept["version"], kept["record"]) == ("j7", 5, b"raw")
    assert kept["reason"]
    await statuses.write(writes)
    assert await mongo.collection("quarantine").count_documents({}) == 1, "a repeat keeps it once"


async def test_a_server_that_is_not_there_is_unavailable_within_seconds(absent_server):
    mongo = Mongo("mongodb://u:secret@127.0.0.1:9/", "streamq")
    began = time.monotonic()
    with pytest.raises(
        HistoryUnavailable, match=r"^cannot reach MongoDB at 127\.0\.0\.1:9: .*Connect call failed"
    ) as caught:
        await mongo.check()
    assert "secret" not in str(caught.value)
    assert "MONGODB_URL" in caught.value.hint
    with pytest.raises(HistoryUnavailable):
        await Statuses(mongo).write([recorded(1)])
    assert time.monotonic() - began < 55  # PyMongo by itself would have looked for 30 s, twice
    await mongo.close()


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "mongodb://", "mongodb://h:p/", "mongodb://h/?w=oops&bad", "mongodb://a:b:c@h"]
)
async def test_an_address_that_is_none_is_a_configuration_error(url):
    with pytest.raises(ConfigurationError, match="the address of MongoDB cannot be used: "):
        Mongo(url)


async def test_a_wrong_password_is_a_configuration_error(mongodb_url):
    mongo = Mongo(mongodb_url.replace("mongodb://", "mongodb://nobody:wrong@"))
    with pytest.raises(ConfigurationError, match=r"refused the user: .*Authentication failed") as caught:
        await mongo.check()
    assert "wrong" not in str(caught.value)
    await mongo.close()


async def test_a_server_that_is_too_old_is_named_with_its_version(mongo, monkeypatch):
    """Only one version of the server is at hand, so the line is moved instead."""
    await mongo.check()
    monkeypatch.setattr(mongo_module.client, "OLDEST_SERVER", (99, 0))
    with pytest.raises(ConfigurationError, match=r"MongoDB at .* is \d+\.\d+\.\d+, and streamq needs 99\.0 or newer"):
        await mongo.check()


async def test_a_write_that_was_acknowledged_survives_kill_9(mongo_server, absent_server):
    mongo = Mongo(mongo_server.url)
    statuses = Statuses(mongo)
    await statuses.prepare()
    await statuses.write([recorded(1, job=f"j{n}") for n in range(500)])
    mongo_server.kill9()
    with pytest.raises(HistoryUnavailable):
        await statuses.write([recorded(1, job="later")])
    mongo_server.restart()
    await statuses.write([recorded(1, job="later")])
    assert await statuses.count({}, limit_s=5) == 501
    await mongo.close()


async def test_the_server_frozen_in_the_middle_is_unavailable_not_a_hang(mongo_server, monkeypatch, absent_server):
    monkeypatch.setattr(mongo_module.client, "OPERATION_TIMEOUT_MS", 700)
    mongo = Mongo(mongo_server.url)
    await mongo.check()
    mongo_server.sigstop()
    try:
        with pytest.raises(HistoryUnavailable, match=r"did not answer in time|cannot reach|cannot serve"):
            await Statuses(mongo).write([recorded(1)])
    finally:
        mongo_server.sigcont()
    await mongo.close()


def test_writes_go_to_disk_on_a_majority():
    """Without journaling, kill -9 lost the last 100 ms of acknowledged writes."""
    concern = Mongo("mongodb://127.0.0.1:9").database.write_concern.document
    assert concern == {"w": "majority", "j": True, "wtimeout": 10_000}
