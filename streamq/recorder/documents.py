"""From what Redis holds to the documents of `job_status`. Pure: no I/O, no clock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import orjson

from streamq.broker.outbox import version_of
from streamq.clock import from_ms
from streamq.codec import decode_envelope
from streamq.history import notes_told
from streamq.job import State
from streamq.lanes import reason_of
from streamq.mongo import StatusWrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from streamq.broker.inspection import Delayed, Flight, LaneEntry
    from streamq.broker.outbox import OutboxEntry
    from streamq.job import Envelope
    from streamq.settings import Settings

__all__ = [
    "Malformed",
    "Record",
    "RecordError",
    "kept_ms",
    "merged",
    "queued",
    "recorded",
    "running",
    "scheduled",
    "unstorable",
]

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | float | bool | None

DAY_MS = 86_400_000
KEPT_MS = {
    State.COMPLETED: DAY_MS,
    State.CANCELLED: 7 * DAY_MS,
    State.EXPIRED: 7 * DAY_MS,
    State.DEAD: 30 * DAY_MS,
}
"""How long the status of an ended job is kept, unless the settings say otherwise."""

MOST_RESULT_BYTES = 1_000_000
MOST_LEVELS = 80
"""MongoDB refuses documents of more than 100 levels; a result is not the outermost one."""

_MESSAGE_CHARS, _TRACEBACK_CHARS = 4_000, 20_000
_ATTEMPT_MESSAGE_CHARS, _ATTEMPT_TRACEBACK_CHARS = 500, 2_000
_INT64 = 1 << 63
_SUSPICIOUS = re.compile(rb"\\u0000|\d{19}")
"""A key with a NUL and a number of more than 64 bits look like that; much that is harmless does, too."""
_WORDS = {state: state.value for state in State}
_VERSION_SHIFT = 20


class Malformed(ValueError):
    """A record that is not in the documented format."""


class RecordError(msgspec.Struct, rename={"type": "t", "message": "m", "traceback": "tb", "fingerprint": "fp"}):
    """Why an attempt failed."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""


class Record(
    msgspec.Struct,
    rename={
        "state": "s", "handler": "h", "user": "u", "attempt": "n", "max_attempts": "m", "lane": "l",
        "enqueued_ms": "e", "begun_ms": "b", "finished_ms": "f", "due_ms": "d", "occurrence": "o", "crashes": "c",
        "result": "r", "result_error": "z", "error": "x", "why_slow": "y", "progress": "p", "log": "lg",
        "log_lines": "ln",
    },
):  # fmt: skip
    """What a worker says became of an attempt. Times are the server's; 0 is none."""

    state: State
    handler: str = ""
    user: str | None = None
    attempt: int = 1
    max_attempts: int = 0
    lane: str = ""
    enqueued_ms: int = 0
    begun_ms: int = 0
    finished_ms: int = 0
    due_ms: int = 0
    occurrence: str | None = None
    crashes: int = 0
    result: msgspec.Raw = msgspec.Raw()
    result_error: str | None = None
    error: RecordError | None = None
    why_slow: str = ""
    progress: tuple[float, str] | None = None
    log: list[tuple[int, str]] = []
    log_lines: int = 0


_DECODER = msgspec.json.Decoder(Record)


def kept_ms(settings: Settings) -> dict[State, int]:
    """Tell how long the status of an ended job is kept, by its state."""
    return {
        State.COMPLETED: settings.keep_completed_ms,
        State.CANCELLED: settings.keep_cancelled_ms,
        State.EXPIRED: settings.keep_cancelled_ms,
        State.DEAD: settings.keep_dead_ms,
    }


def recorded(
    queue: str, entry: OutboxEntry, job_id: str, raw: bytes, kept_ms: Mapping[State, int] = KEPT_MS
) -> StatusWrite:
    """Turn a record of the outbox into a status.

    Raises:
        Malformed: It is not one.
    """
    try:
        record = _DECODER.decode(raw)
        fields = _common(queue, record, entry)
        _add_times(fields, record, entry.version >> _VERSION_SHIFT, kept_ms)
        _add_outcome(fields, record)
        attempts = [_attempt(record, entry, fields)] if _was_tried(record) else []
    except (ValueError, OverflowError, OSError, RecursionError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error
    return StatusWrite(job_id, entry.version, False, fields, attempts, raw)


def merged(writes: Iterable[StatusWrite]) -> list[StatusWrite]:
    """Bring what is to be written down to one status for each job: the newest, with the attempts of all."""
    newest: dict[str, StatusWrite] = {}
    for write in writes:
        known = newest.get(write.job_id)
        newest[write.job_id] = write if known is None else _joined(*sorted((known, write), key=_version))
    return list(newest.values())


def queued(queue: str, entry: LaneEntry) -> StatusWrite | None:
    """Make the status of a job that waits in a lane; None if its envelope is not one that this version reads."""
    return _seen(queue, entry, {"state": State.QUEUED.value})


def running(queue: str, entry: LaneEntry, flight: Flight, now_ms: int) -> StatusWrite | None:
    """Make the status of a job that a worker holds. Its start is known to within one renewal of its lease."""
    started = from_ms(now_ms - flight.idle_ms)
    return _seen(queue, entry, {"state": State.RUNNING.value, "started_at": started, "worker": flight.worker})


def scheduled(queue: str, job: Delayed) -> StatusWrite | None:
    """Make the status of a job that was enqueued for later; None for one that waits for its next attempt."""
    envelope = _envelope(job.envelope)
    if envelope is None or envelope.attempt > 1 or envelope.starts:
        return None
    return _put_by(
        queue, envelope, job, {"state": State.SCHEDULED.value, "due_at": from_ms(job.due_ms) if job.due_ms else None}
    )


def parked(queue: str, job: Delayed) -> StatusWrite | None:
    """Make the status of a job that waits at a gate; None if its envelope is not one that this version reads."""
    envelope = _envelope(job.envelope)
    return None if envelope is None else _put_by(queue, envelope, job, {"state": State.QUEUED.value})


def unstorable(value: Json) -> str:
    """Tell why MongoDB cannot hold a JSON value as it is; nothing if it can."""
    todo: list[tuple[Json, int]] = [(value, 1)]
    while todo:
        item, level = todo.pop()
        if level > MOST_LEVELS:
            return f"more than {MOST_LEVELS} levels"
        if isinstance(item, dict):
            if bad := next((key for key in item if "\0" in key), None):
                return f"a NUL in the key {bad!r:.60}"
            todo.extend((inner, level + 1) for inner in item.values())
        elif isinstance(item, list):
            todo.extend((inner, level + 1) for inner in item)
        elif isinstance(item, int) and not -_INT64 <= item < _INT64:
            return f"the integer {item} does not fit in 64 bits"
    return ""


def _is_simple(raw: bytes) -> bool:
    """Tell of a JSON text, without walking through it, that MongoDB can hold it; not of each one that it can."""
    return raw.count(b"{") + raw.count(b"[") < MOST_LEVELS and not _SUSPICIOUS.search(raw)


def _common(queue: str, record: Record, entry: OutboxEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "queue": queue,
        "handler": record.handler,
        "state": _WORDS[record.state],
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "crashes": record.crashes,
        "worker": entry.worker,
    }
    if record.lane:
        fields["lane"] = record.lane
    if record.why_slow and (reason := reason_of(record.why_slow)):
        fields["lane_reason"] = reason
    _add_whose(fields, record.user, record.occurrence)
    return fields


def _add_whose(fields: dict[str, Any], user: str | None, occurrence: str | None) -> None:
    if user is not None:
        fields["user"] = user
    if occurrence:
        fields["occurrence"] = occurrence
        fields["schedule"] = occurrence.partition(":")[0]


def _add_times(fields: dict[str, Any], record: Record, recorded_ms: int, kept_ms: Mapping[State, int]) -> None:
    """Turn the times into dates. A record without an enqueue time gets its own, for every list is sorted by that."""
    begun_ms, finished_ms = record.begun_ms, record.finished_ms
    fields["enqueued_at"] = from_ms(record.enqueued_ms or recorded_ms)
    if begun_ms:
        fields["started_at"] = from_ms(begun_ms)
        if finished_ms:
            fields["run_ms"] = max(0, finished_ms - begun_ms)
        if record.attempt == 1 and record.enqueued_ms:
            fields["wait_ms"] = max(0, begun_ms - record.enqueued_ms)
    if record.state in kept_ms:
        finished_ms = finished_ms or recorded_ms
        fields["finished_at"] = from_ms(finished_ms)
        fields["expires_at"] = from_ms(finished_ms + kept_ms[record.state])
    elif record.due_ms:
        fields["due_at"] = from_ms(record.due_ms)


def _add_outcome(fields: dict[str, Any], record: Record) -> None:
    if record.error is not None:
        fields["error"] = {
            "type": record.error.type[:200],
            "message": record.error.message[:_MESSAGE_CHARS],
            "traceback": record.error.traceback[-_TRACEBACK_CHARS:],
            "fingerprint": record.error.fingerprint[:200],
        }
    if raw := bytes(record.result):
        fields |= _result(raw)
    if record.progress is not None or record.log_lines:
        fields |= notes_told(record.progress, record.log, record.log_lines)
    if record.result_error:
        fields["result_error"] = record.result_error[:_MESSAGE_CHARS]


def _result(raw: bytes) -> dict[str, Any]:
    """Decode a result. One that MongoDB cannot hold must not cost the job its status: it gives way to the reason."""
    if len(raw) > MOST_RESULT_BYTES:
        return {"result_error": f"the result is not in the history: {len(raw)} bytes, at most {MOST_RESULT_BYTES}"}
    try:
        value = orjson.loads(raw)
    except ValueError as error:
        return {"result_error": f"the result is not in the history: {error}"}
    if not _is_simple(raw) and (why := unstorable(value)):
        return {"result_error": f"the result is not in the history: {why}"}
    return {"result": value}


def _was_tried(record: Record) -> bool:
    """Tell whether somebody began to run the job. One that took its workers down with it could not say when."""
    return record.begun_ms > 0 or (record.error is not None and record.state in (State.DEAD, State.RETRYING))


def _attempt(record: Record, entry: OutboxEntry, fields: Mapping[str, Any]) -> dict[str, Any]:
    attempt: dict[str, Any] = {
        "number": record.attempt,
        "state": fields["state"],
        "worker": entry.worker,
        "version": entry.version,
    }
    if record.begun_ms:
        attempt["started_at"] = fields["started_at"]
    if record.finished_ms:
        attempt["finished_at"] = fields.get("finished_at") or from_ms(record.finished_ms)
    if error := record.error:
        attempt["error"] = {
            "type": error.type[:200],
            "message": error.message[:_ATTEMPT_MESSAGE_CHARS],
            "traceback": error.traceback[-_ATTEMPT_TRACEBACK_CHARS:],
            "fingerprint": error.fingerprint[:200],
        }
    return attempt


def _joined(older: StatusWrite, newer: StatusWrite) -> StatusWrite:
    known = {attempt["version"] for attempt in older.attempts}
    attempts = older.attempts + [attempt for attempt in newer.attempts if attempt["version"] not in known]
    fields = newer.fields
    # Only the first attempt knows how long the job waited for it.
    if "wait_ms" in older.fields:
        fields = {"wait_ms": older.fields["wait_ms"], **fields}
    return newer._replace(fields=fields, attempts=sorted(attempts, key=lambda attempt: attempt["version"]))


def _version(write: StatusWrite) -> int:
    return write.version


def _seen(queue: str, entry: LaneEntry, state: dict[str, Any]) -> StatusWrite | None:
    envelope = _envelope(entry.envelope)
    if envelope is None:
        return None
    fields = _of_envelope(queue, envelope, entry.lane, entry.enqueued_ms) | state
    if reason := reason_of(entry.why):
        fields["lane_reason"] = reason
    return StatusWrite(entry.job_id, version_of(entry.id), True, fields, [])


def _put_by(queue: str, envelope: Envelope, job: Delayed, state: dict[str, Any]) -> StatusWrite:
    fields = _of_envelope(queue, envelope, job.lane, job.enqueued_ms) | state
    return StatusWrite(job.job_id, job.enqueued_ms << _VERSION_SHIFT, True, fields, [])


def _envelope(raw: bytes) -> Envelope | None:
    try:
        return decode_envelope(raw)
    except (ValueError, RecursionError):
        return None


def _of_envelope(queue: str, envelope: Envelope, lane: str, enqueued_ms: int) -> dict[str, Any]:
    enqueued_at: datetime = from_ms(enqueued_ms)
    fields: dict[str, Any] = {
        "queue": queue,
        "handler": envelope.handler,
        "attempt": envelope.attempt,
        "max_attempts": envelope.max_attempts,
        "lane": lane,
        "enqueued_at": enqueued_at,
    }
    _add_whose(fields, envelope.key, envelope.occurrence)
    return fields
