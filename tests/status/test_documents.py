"""From records to documents: every field lands where the contract says, and nothing hostile gets through."""

from __future__ import annotations

import contextlib
import functools
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given, strategies as st

from streamq.broker.inspection import Delayed, Flight, LaneEntry
from streamq.broker.outbox import OutboxEntry, version_of
from streamq.recorder.documents import (
    MOST_LEVELS,
    MOST_RESULT_BYTES,
    Malformed,
    kept_ms,
    merged,
    queued,
    recorded,
    running,
    scheduled,
    unstorable,
)
from streamq.settings import Settings

E_MS, B_MS, F_MS = 1_750_000_000_000, 1_750_000_000_040, 1_750_000_000_100
ENTRY = OutboxEntry(b"1750000000200-3", version_of(b"1750000000200-3"), "w1", [])


def at(ms):
    """Turn milliseconds into what MongoDB gets."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def status(entry=ENTRY, /, **fields):
    """Turn a record with these short names into a status."""
    return recorded("q", entry, "job", orjson.dumps({"s": "completed", **fields}))


def test_a_completed_job_becomes_a_whole_document():
    """The names are the contract with everyone who reads the collection."""
    write = status(
        h="refresh", u="u1", n=1, m=5, l="low", e=E_MS, b=B_MS, f=F_MS, c=0, r={"n": 2}, o="hourly:2026-01-01T00:00:00Z"
    )
    assert write.fields == {
        "queue": "q", "handler": "refresh", "state": "completed", "attempt": 1, "max_attempts": 5, "crashes": 0,
        "worker": "w1", "lane": "low", "user": "u1", "occurrence": "hourly:2026-01-01T00:00:00Z", "schedule": "hourly",
        "enqueued_at": at(E_MS), "started_at": at(B_MS), "run_ms": 60, "wait_ms": 40, "finished_at": at(F_MS),
        "expires_at": at(F_MS + 86_400_000), "result": {"n": 2},
    }  # fmt: skip
    assert write.attempts == [
        {
            "number": 1,
            "state": "completed",
            "worker": "w1",
            "version": ENTRY.version,
            "started_at": at(B_MS),
            "finished_at": at(F_MS),
        }
    ]
    assert (write.version, write.is_seen) == (ENTRY.version, False)


def test_a_retrying_job_has_a_due_time_and_does_not_expire():
    """It lives: an expiry would delete the status of a job that is still to run."""
    write = status(
        s="retrying",
        e=E_MS,
        b=B_MS,
        f=F_MS,
        d=F_MS + 5_000,
        x={"t": "ValueError", "m": "bad", "tb": "Traceback", "fp": "abc"},
    )
    assert write.fields["due_at"] == at(F_MS + 5_000)
    assert "expires_at" not in write.fields
    assert "finished_at" not in write.fields
    assert write.fields["error"] == {
        "type": "ValueError",
        "message": "bad",
        "traceback": "Traceback",
        "fingerprint": "abc",
    }
    assert write.attempts[0]["error"] == write.fields["error"]


@pytest.mark.parametrize(("state", "days"), [("completed", 1), ("cancelled", 7), ("expired", 7), ("dead", 30)])
def test_how_long_a_status_is_kept_depends_on_how_the_job_ended(state, days):
    """Failures are looked at long after successes stopped being interesting."""
    fields = status(s=state, f=F_MS).fields
    assert (fields["expires_at"] - fields["finished_at"]).days == days


def test_the_settings_say_how_long_a_status_is_kept():
    """Some must keep less, by law; some want more."""
    kept = kept_ms(Settings(keep_completed_ms=1_000, keep_cancelled_ms=2_000, keep_dead_ms=3_000))
    for state, seconds in (("completed", 1), ("cancelled", 2), ("expired", 2), ("dead", 3)):
        raw = orjson.dumps({"s": state, "f": F_MS})
        fields = recorded("users", ENTRY, "j1", raw, kept).fields
        assert (fields["expires_at"] - fields["finished_at"]).seconds == seconds


def test_a_job_that_never_began_has_no_attempt():
    """It expired or was cancelled in the queue: nobody ran it."""
    for write in (status(s="expired", e=E_MS, f=F_MS), status(s="cancelled", x={"t": "Cancelled", "m": "not needed"})):
        assert write.attempts == []
        assert "started_at" not in write.fields
    assert len(status(s="dead", x={"t": "Crashed"}).attempts) == 1, "it took its worker down before that could report"


def test_only_the_first_attempt_says_how_long_the_job_waited():
    """A later one has been waiting on purpose."""
    assert "wait_ms" not in status(n=2, e=E_MS, b=B_MS, f=F_MS).fields


def test_a_clock_that_went_back_makes_no_negative_durations():
    """Charts and sums are made of these numbers."""
    fields = status(n=1, e=F_MS, b=B_MS, f=E_MS).fields
    assert (fields["run_ms"], fields["wait_ms"]) == (0, 0)


def test_a_record_without_times_is_dated_by_its_entry():
    """Every list is sorted by the enqueue time, so a document without one would never be shown."""
    fields = status().fields
    assert fields["enqueued_at"] == fields["finished_at"] == at(1_750_000_000_200)


def test_long_texts_are_cut_where_it_hurts_least():
    """The end of a traceback names the error; the start of a message does."""
    write = status(
        s="dead", x={"t": "E" * 999, "m": "m" * 99_999, "tb": "start" + "t" * 99_999 + "end", "fp": "f" * 999}
    )
    error = write.fields["error"]
    assert [len(error[name]) for name in ("type", "message", "traceback", "fingerprint")] == [200, 4_000, 20_000, 200]
    assert error["traceback"].endswith("end")
    tried = write.attempts[0]["error"]
    assert (len(tried["message"]), len(tried["traceback"])) == (500, 2_000)
    assert tried["traceback"].endswith("end")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"18446744073709551616000000", "64 bits|too|range"),
        (b"9223372036854775808", "does not fit in 64 bits"),
        (b'{"a\\u0000b":1}', "a NUL in the key"),
        (b"[" * 200 + b"]" * 200, f"more than {MOST_LEVELS} levels"),
        (b"9" * 5000, "infinity"),
        (b'"' + b"x" * MOST_RESULT_BYTES + b'"', "1000002 bytes, at most 1000000"),
    ],
    ids=["66 bits", "64 bits", "NUL", "deep", "5000 digits", "large"],
)
def test_a_result_that_mongodb_cannot_hold_gives_way_to_the_reason(raw, why):
    """The job succeeded; that must be told whatever it returned."""
    write = recorded("q", ENTRY, "job", b'{"s":"completed","r":%b}' % raw)
    if "result" in write.fields:  # more than 64 bits is read as a float, which is JSON's own number
        assert isinstance(write.fields["result"], float)
        return
    assert write.fields["result_error"].startswith("the result is not in the history: ")
    assert why in write.fields["result_error"]
    assert write.fields["state"] == "completed"


def test_why_a_result_could_not_be_kept_comes_from_the_worker():
    """It knows best: it had the value."""
    assert status(z="set is not JSON").fields["result_error"] == "set is not JSON"


@pytest.mark.parametrize("raw", [b"null", b"false", b"0", b'""', b"[]", b"{}"])
def test_an_empty_result_is_a_result(raw):
    """None is an answer, too, and differs from no answer."""
    assert recorded("q", ENTRY, "job", b'{"s":"completed","r":%b}' % raw).fields["result"] == orjson.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"null", b"{", b'{"s":"done"}', b'{"s":"completed","n":"x"}', b'{"s":"completed","u":7}',
        b'{"s":"completed","e":99999999999999999}', b'{"s":"completed","x":"boom"}', b'{"s":"completed","r":NaN}',
        b'{"s":"completed","u":"\\ud800"}', b'{"s":"\xff"}', b'{"s":"completed","r":' + b"[" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_record_is_called_malformed(raw):
    """The recorder sets it aside and goes on."""
    with pytest.raises(Malformed, match=r"^\w+: "):
        recorded("q", ENTRY, "job", raw)


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(raw):
    """An unforeseen error would stop the recorder at that entry for ever."""
    with contextlib.suppress(Malformed):
        recorded("q", ENTRY, "job", raw)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values | st.integers(60, 100).map(lambda levels: functools.reduce(lambda inner, _: [inner], range(levels), 0)))
def test_a_result_is_stored_if_mongodb_can_hold_it(value):
    """Most are found harmless by their text alone, without a walk through them."""
    try:
        raw = orjson.dumps(value)
    except TypeError:  # no JSON: a lone surrogate, a number of more than 64 bits
        return
    fields = recorded("q", ENTRY, "job", b'{"s":"completed","r":%b}' % raw).fields
    assert ("result" in fields) is not bool(unstorable(orjson.loads(raw)))


@given(values)
def test_what_counts_as_storable_can_be_encoded(value):
    """The check exists so that MongoDB's own refusal is the exception."""
    bson = pytest.importorskip("bson")
    if not unstorable(value):
        try:
            bson.encode({"r": value})
        except UnicodeEncodeError:  # a lone surrogate cannot come out of JSON
            assert any("\ud800" <= character <= "\udfff" for character in str(value))


def test_records_of_one_job_are_brought_down_to_the_newest_with_all_attempts():
    """A thousand jobs that failed twice are a thousand updates, not three thousand."""
    entries = [OutboxEntry(b"%d-0" % n, version_of(b"%d-0" % n), f"w{n}", []) for n in (1, 2, 3)]
    writes = [
        status(entries[0], s="retrying", n=1, e=E_MS, b=B_MS),
        status(entries[2], s="completed", n=3, e=E_MS, b=B_MS, f=F_MS),
        status(entries[1], s="retrying", n=2, e=E_MS, b=B_MS),
    ]
    [write] = merged(writes)
    assert (write.fields["state"], write.version, write.fields["wait_ms"]) == ("completed", entries[2].version, 40)
    assert [attempt["number"] for attempt in write.attempts] == [1, 2, 3]
    assert merged([write, write]) == [write]


ENVELOPE = orjson.dumps({"v": 1, "h": "refresh", "u": "u1", "n": 2, "m": 5, "o": "hourly:x"})


def test_a_waiting_job_is_described_by_its_envelope():
    """Nobody has reported anything about it yet."""
    write = queued("q", LaneEntry("low", b"1750000000000-4", "job", ENVELOPE, E_MS))
    assert write
    assert write.fields == {
        "queue": "q", "handler": "refresh", "attempt": 2, "max_attempts": 5, "lane": "low", "enqueued_at": at(E_MS),
        "user": "u1", "occurrence": "hourly:x", "schedule": "hourly", "state": "queued",
    }  # fmt: skip
    assert (write.version, write.is_seen) == (version_of(b"1750000000000-4"), True)


def test_a_running_job_has_its_worker_and_about_its_start():
    """The start is when it was delivered, going by the idle time."""
    flight = Flight("low", b"1750000000000-4", "w9", 700, 1)
    write = running("q", LaneEntry("low", flight.id, "job", ENVELOPE, E_MS), flight, E_MS + 1_000)
    assert write
    assert (write.fields["state"], write.fields["worker"], write.fields["started_at"]) == (
        "running",
        "w9",
        at(E_MS + 300),
    )


def test_a_scheduled_job_is_told_only_before_its_first_attempt():
    """Of a job between two attempts the outbox knows more."""
    fresh = orjson.dumps({"v": 1, "h": "refresh"})
    write = scheduled("q", Delayed("job", F_MS, "low", E_MS, fresh))
    assert write
    assert (write.fields["state"], write.fields["due_at"], write.version) == ("scheduled", at(F_MS), E_MS << 20)
    assert scheduled("q", Delayed("job", F_MS, "low", E_MS, ENVELOPE)) is None


def test_an_envelope_that_cannot_be_read_is_passed_over():
    """It may be of a newer version; its job can still be located."""
    assert queued("q", LaneEntry("low", b"1-0", "job", b"\x80", E_MS)) is None


def test_the_status_of_a_slow_job_says_why_it_is_slow():
    """In words that a person understands; a fast one needs no reason."""
    assert status(l="normal.slow", y="learned 812").fields["lane_reason"] == "jobs of this user took 812 ms"
    assert status(l="normal", y="overran 900").fields["lane_reason"] == "it ran for 900 ms in the lane for fast jobs"
    assert status(l="low.slow", y="hint").fields["lane_reason"] == "its cost stands out from those of other jobs"
    assert "lane_reason" not in status(l="normal").fields
    assert "lane_reason" not in status(l="normal", y="a word of a later version").fields


def test_what_a_handler_told_of_its_job_stands_in_its_status():
    """How far it came, and its last lines with their times."""
    fields = status(p=[0.5, "half"], lg=[[B_MS, "a line"]], ln=7).fields
    assert fields["progress"] == {"fraction": 0.5, "note": "half"}
    assert (fields["log"], fields["log_lines"]) == ([{"at": at(B_MS), "line": "a line"}], 7)
    assert not {"progress", "log", "log_lines"} & set(status().fields)
