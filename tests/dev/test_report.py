"""The figures of a round: what counts as completed, failed, lost, and how they are written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from streamq.dev.ground import Servers
from streamq.dev.report import Ended, Report, first_of_each, percentiles
from streamq.dev.screen import Screen, banner, document, table
from streamq.settings import load

USERS = {"a": "fast", "b": "fast", "c": "slow", "d": "slow"}


def ended(user: str, **told: Any) -> Ended:
    """Make a job that has ended, completed at once unless told otherwise."""
    job = Ended(f"job of {user}", user, "completed", attempt=1, crashes=0, wait_ms=10, run_ms=5)
    return dataclasses.replace(job, **told)


@pytest.fixture
def mixed() -> Report:
    """A round in which everything has happened."""
    jobs = [
        ended("a", wait_ms=20, run_ms=4),
        ended("b", attempt=2, crashes=1, reasons=("Broken: no answer for b",), run_ms=6),
        ended("c", state="dead", attempt=5, reasons=("Broken: no answer for c",) * 5, run_ms=500),
    ]
    return Report(USERS, {job.user: job for job in jobs}, duplicates_refused=2, clicks=3, took_s=1.5)


def test_every_user_is_completed_failed_or_lost(mixed: Report):
    """The three add up to the users, so that nothing can hide between them."""
    summary = mixed.summary()

    assert (summary["completed"], summary["failed"], summary["lost"]) == (2, 1, 1)
    assert (summary["retried"], summary["duplicates_refused"]) == (2, 2)
    assert not mixed.is_good
    assert mixed.unfinished() == ["c dead", "d lost"]
    assert mixed.survived() == 1


def test_a_round_is_good_when_every_job_has_completed():
    """One that is cancelled or expired has not done what it was for."""
    jobs = {user: ended(user) for user in USERS}

    assert Report(USERS, jobs, 0, 0, 1.0).is_good
    assert not Report(USERS, jobs | {"a": ended("a", state="expired")}, 0, 0, 1.0).is_good


def test_times_are_told_by_group_in_seconds(mixed: Report):
    """Fast and slow users together would have times that belong to neither."""
    summary = mixed.summary()

    assert summary["wait_s"]["fast"] == {"p50": 0.01, "p95": 0.02, "p99": 0.02}
    assert summary["run_s"]["slow"] == {"p50": 0.5, "p95": 0.5, "p99": 0.5}


def test_a_percentile_is_a_time_that_did_occur():
    """The nearest rank; a mean of two neighbours would be nobody's time."""
    assert percentiles(range(1, 101)) == {"p50": 0.05, "p95": 0.095, "p99": 0.099}
    assert percentiles([7]) == {"p50": 0.007, "p95": 0.007, "p99": 0.007}


def test_without_any_times_there_are_no_percentiles():
    """Zero would be a lie."""
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_of_two_jobs_of_a_user_the_one_that_ended_first_counts():
    """The other was made by a click that came too late."""
    first, second, stranger = ended("a", job_id="1"), ended("a", job_id="2"), ended("z")

    assert first_of_each(USERS, [first, second, stranger]) == {"a": first}


def test_reasons_that_differ_by_the_user_are_one_reason(mixed: Report):
    """A thousand users whose provider is away have one problem."""
    assert mixed.reasons() == [("Broken: no answer for …", 6)]


def test_a_document_of_the_history_becomes_a_job():
    """What a status lacks, such as the run of a job that never ran, is absent and not zero."""
    bare = Ended.of({"_id": "j", "state": "expired"})
    full = Ended.of(
        {"_id": "j", "user": "a", "state": "completed", "attempt": 2, "crashes": 1, "wait_ms": 1, "run_ms": 2}
        | {"attempts": [{"error": {"type": "Broken", "message": "once"}}, {}]}
    )

    assert (bare.user, bare.attempt, bare.wait_ms, bare.run_ms) == ("", 1, None, None)
    assert full == Ended("j", "a", "completed", 2, 1, 1, 2, ("Broken: once",))


def test_the_document_has_the_promised_keys(mixed: Report):
    """Programs read it."""
    told = json.loads(json.dumps(document(mixed, {"summaries": 2, "events_stored": 9, "events_summarised": 9})))

    assert list(told["summary"]) == [
        "completed", "failed", "lost", "retried", "duplicates_refused", "wait_s", "run_s",
    ]  # fmt: skip
    assert told["users"] == {"fast": 2, "slow": 2}
    assert told["check"]["summaries"] == 2
    assert "check" not in document(mixed, None)


def test_the_table_tells_the_same_to_a_person(mixed: Report):
    """And names those who are not well, which a count does not."""
    text = table(mixed, {"summaries": 1234, "events_stored": 9, "events_summarised": 9})

    assert text.startswith("4 users in 1.5 s: 2 completed, 1 failed, 1 lost\n")
    assert "6 x Broken: no answer for …" in text
    assert "duplicates refused  2, of 3 users who asked again" in text
    assert "outlived a worker   1" in text
    assert "1,234 summaries of 9 events; 9 are stored" in text
    assert "not completed: c dead, d lost" in text


def test_a_group_without_times_shows_dashes():
    """Everybody in it was lost."""
    assert table(Report({"a": "slow"}, {}, 0, 0, 1.0), None).count("        -") == 6


def test_the_banner_has_a_line_to_copy_and_warns_of_the_embedded_mongod():
    """A newcomer must reach the API without reading anything else."""
    settings = load({"api_token": "secret", "api_port": 8081}, environ={})
    servers = Servers(
        settings.redis_url, settings.mongodb_url, frozenset({"redis", "mongodb"}), frozenset(), Path("d/env")
    )

    text = banner(settings, servers)

    assert "curl -H 'Authorization: Bearer secret' http://127.0.0.1:8081/app/job-status/queue/stats" in text
    assert "the embedded mongod is for development only" in text
    assert ". d/env " in text


def test_the_banner_shows_servers_of_ones_own_without_their_passwords():
    """It ends up in screenshots."""
    flags = {"redis_url": "redis://:hidden@cache-1:6379/0", "api_host": "::1", "api_token": "t"}
    settings = load(flags, environ={})
    servers = Servers(settings.redis_url, settings.mongodb_url, frozenset(), frozenset(), Path("d/env"))

    text = banner(settings, servers)

    assert "hidden" not in text
    assert "cache-1" in text
    assert "http://[::1]:8080" in text
    assert "development only" not in text


def test_standard_output_holds_nothing_but_the_document(capsys: pytest.CaptureFixture[str], mixed: Report):
    """It is piped into another program."""
    settings = load({"app": "shop:app", "api_token": "t"}, environ={})
    screen = Screen(as_json=True)

    screen.banner(settings, Servers("", "", frozenset(), frozenset(), Path("env")))
    with screen.bar("working") as show:
        show(1, 2)
    screen.report(mixed, None)

    captured = capsys.readouterr()
    assert json.loads(captured.out)["summary"]["lost"] == 1
    assert "streamq dev  shop:app" in captured.err
    assert "working" in captured.err
