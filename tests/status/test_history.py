"""Questions about jobs: right answers, and an index behind each of them."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from streamq.errors import HistoryUnavailable
from streamq.history import Filter, History, status_of
from streamq.mongo import Mongo, Statuses, StatusWrite
from streamq.mongo.schema import USER_LATEST

NOW = datetime(2099, 1, 1, tzinfo=UTC)


@pytest.fixture
async def history(statuses):
    """Store 40 jobs of 4 users, every fifth of them dead."""
    writes = []
    for number in range(40):
        fields = {
            "queue": "users", "handler": "refresh", "user": f"u{number % 4}", "attempt": 1,
            "state": "dead" if number % 5 == 0 else "completed", "enqueued_at": NOW + timedelta(seconds=number),
            "finished_at": NOW + timedelta(seconds=1000 - number), "result": number,
        }  # fmt: skip
        writes.append(StatusWrite(f"j{number:02}", number + 1, False, fields, []))
    await statuses.write(writes)
    return History(statuses)


async def test_jobs_of_a_user_come_newest_first(history):
    """The first one is what "what happened to user 1" asks for."""
    found = await history.of_user("u1", limit=3)
    assert [(job.id, job.user) for job in found] == [("j37", "u1"), ("j33", "u1"), ("j29", "u1")]
    assert [job.result for job in found] == [37, 33, 29]
    assert await history.of_user("nobody") == []
    assert await history.of_user("$ne") == []


async def test_recent_jobs_come_newest_first_and_without_their_results(history):
    """A list of a hundred results could be a hundred megabytes."""
    found = await history.recent(2)
    assert [job.id for job in found] == ["j39", "j38"]
    assert found[0].result is None
    assert (await history.job("j39")).result == 39


async def test_failed_jobs_come_by_their_end(history):
    """The operator wants to know what failed just now, not what was enqueued last."""
    assert [job.id for job in await history.failed(3)] == ["j00", "j05", "j10"]


async def test_a_job_that_is_not_known_is_none(history):
    """The API makes a 404 of it."""
    assert await history.job("nobody") is None


async def test_jobs_are_counted_by_queue_and_state_also_of_queues_nobody_asked_for(history):
    """A queue that was renamed still has a past."""
    counts = await history.counts(["other"])
    assert counts["users"]["completed"] == 32
    assert counts["users"]["dead"] == 8
    assert set(counts["other"].values()) == {0}


async def _pages(history):
    """Every combination of what a page can be filtered by, and the page after the first."""
    for user, states, queues, since in itertools.product((None, "u1"), ((), ("dead",)), ((), ("users",)), (None, NOW)):
        which = Filter(user=user, states=states, queues=queues, since=since)
        first = await history.page(which, limit=2)
        await history.page(which, limit=2, after=first.after)


QUESTIONS = {
    "of_user": lambda history: history.of_user("u1"),
    "recent": lambda history: history.recent(10),
    "failed": lambda history: history.failed(10),
    "job": lambda history: history.job("j01"),
    "completed": lambda history: history.completed(["j01", "j02"]),
    "counts": lambda history: history.counts(["users"]),
    "page": _pages,
    "rounds": lambda history: history.rounds(),
    "errors": lambda history: history.errors(Filter(queues=("users",), since=NOW), most=10),
    "series": lambda history: history.series(Filter(since=NOW), step_s=3_600),
}
"""All that can be asked, as the API asks it."""


async def test_the_view_of_users_gives_the_latest_job_of_each(history, mongo):
    """What people who look into MongoDB by hand want to see."""
    view = mongo.collection(USER_LATEST)
    assert {each["_id"]: each["latest"]["_id"] async for each in view.find()} == {
        "u0": "j36", "u1": "j37", "u2": "j38", "u3": "j39",
    }  # fmt: skip
    explained = await mongo.database.command(
        "explain", {"find": USER_LATEST, "filter": {"_id": "u1"}}, verbosity="executionStats"
    )
    assert "COLLSCAN" not in str(explained)
    assert "by_user" in str(explained)


async def test_no_query_scans_the_collection(history, mongo):
    """At five million jobs a scan takes seconds, and everybody waits."""
    await mongo.database.command("profile", 2)
    for asked in QUESTIONS.values():
        await asked(history)
    await mongo.database.command("profile", 0)
    profiled = await mongo.collection("system.profile").find({"ns": {"$regex": "job_status$"}}).to_list()
    plans = [entry["planSummary"] for entry in profiled]
    assert len(plans) >= 13
    assert set(QUESTIONS) == {name for name in vars(History) if not name.startswith("_")}, "each question is asked here"
    assert not [plan for plan in plans if "COLLSCAN" in plan or ("SCAN" not in plan and "IDHACK" not in plan)]
    lists = [entry for entry in profiled if "find" in entry["command"]]
    assert not [entry for entry in lists if entry.get("hasSortStage")], "an index gives the order"
    assert all(entry.get("docsExamined", 0) <= 11 for entry in lists)


async def test_without_mongodb_every_question_is_answered_with_unavailable(absent_server):
    """Within the time that a person would wait."""
    mongo = Mongo("mongodb://127.0.0.1:9")
    history = History(Statuses(mongo))
    with pytest.raises(HistoryUnavailable, match="cannot reach MongoDB at"):
        await history.recent(1)
    await mongo.close()


def test_a_document_of_a_later_version_is_read_all_the_same():
    """A rollback must not turn the API blind."""
    status = status_of({"_id": "a", "state": "queued", "invented_later": 1})
    assert (status.id, status.state, status.is_live) == ("a", "queued", True)
    assert status_of({"_id": 7}).state == ""
