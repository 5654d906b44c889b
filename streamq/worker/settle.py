"""Settle: from an outcome to what Redis is told. Nothing here waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson

from streamq.broker.partition import Report
from streamq.codec import encode_envelope, encode_json
from streamq.job import (
    Cancelled,
    Completed,
    Crashed,
    Dead,
    Delivery,
    Dropped,
    Envelope,
    Expired,
    Failure,
    Limited,
    Outcome,
    Parked,
    Released,
    Retrying,
    Snoozed,
)
from streamq.keys import LANES, slow_digit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamq.broker.partition import Arg

__all__ = ["LARGEST_RESULT", "Encoded", "Settled", "completed", "encoded_result", "reported", "settle"]

LARGEST_RESULT = 65_536
"""A result larger than this is not kept; the job is completed all the same."""


_KEPT_BY_TIME = ("t", "p")
"""Scopes of dedup in which the end of the job does not free the key."""

_END_STATES = {Dead: "dead", Cancelled: "cancelled", Expired: "expired"}


class Encoded(NamedTuple):
    """A result that is JSON already, or why it is not."""

    json: bytes
    problem: str


class Settled:
    """One job's part of the next report. Either it ended (`record`) or it goes back (`requeue`)."""

    __slots__ = ("dedup", "dedup_window_ms", "id", "keep_ms", "letter", "record", "requeue", "token")

    def __init__(self, delivery: Delivery, record: bytes) -> None:
        self.token = delivery.token
        self.id = delivery.id
        self.record = record
        self.dedup: str | None = None
        self.dedup_window_ms = 0
        self.keep_ms = 0
        self.letter: bytes | None = None
        self.requeue: tuple[int | str, int, int, bytes] | None = None
        """Delay ms or what it waits for, lane digit, enqueued ms, envelope."""


def settle(delivery: Delivery, outcome: Outcome, begun_ms: int, finished_ms: int) -> Settled | None:
    """Turn an outcome into what the next report says; None: nothing (the job is another's, or goes back unrun)."""
    match outcome:
        case Completed():
            return completed(delivery, outcome, begun_ms, finished_ms)
        case Retrying() | Snoozed() | Crashed() | Parked() | Limited():
            return _requeued(delivery, outcome, begun_ms, finished_ms)
        case Dead() | Cancelled() | Expired():
            return _ended(delivery, outcome, begun_ms, finished_ms)
        case Dropped() | Released():
            return None


def _record(delivery: Delivery, state: str, begun_ms: int, finished_ms: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "s": state,
        "l": LANES[delivery.digit - 1],
        "e": delivery.enqueued_ms,
        "b": begun_ms,
        "f": finished_ms,
    }
    envelope = delivery.envelope
    if envelope is not None:
        record["h"] = envelope.handler
        record["n"] = envelope.attempt
        if envelope.key is not None:
            record["u"] = envelope.key
        if envelope.occurrence is not None:
            record["o"] = envelope.occurrence
        if envelope.max_attempts:
            record["m"] = envelope.max_attempts
        if envelope.crashes:
            record["c"] = envelope.crashes
    if delivery.crashes or delivery.why or delivery.notes is not None:
        _add_rarities(record, delivery)
    return record


def _add_rarities(record: dict[str, Any], delivery: Delivery) -> None:
    if delivery.crashes:
        record["c"] = record.get("c", 0) + delivery.crashes
    if delivery.why:
        record["y"] = delivery.why
    if delivery.notes is not None:
        record |= delivery.notes.as_record()


def completed(delivery: Delivery, outcome: Completed, begun_ms: int, finished_ms: int) -> Settled:
    """Tell of a job that is done, as `settle` does."""
    record = _record(delivery, "completed", begun_ms, finished_ms)
    result, problem = (b"", "") if outcome.result is None else encoded_result(outcome.result)
    if problem:
        record["z"] = problem
    encoded = orjson.dumps(record)
    settled = Settled(delivery, encoded[:-1] + b',"r":' + result + b"}" if result else encoded)
    envelope = delivery.envelope
    if envelope is not None and (envelope.dedup is not None or envelope.keep_result_ms):
        _keep_or_free(settled, envelope)
    return settled


def encoded_result(result: Any) -> tuple[bytes, str]:
    """Return the result as JSON, or why it cannot be kept. A job that ran is completed either way."""
    if type(result) is Encoded:
        return result
    try:
        encoded = encode_json(result)
    except ValueError as error:
        return b"", f"the result is not JSON: {error}"
    if len(encoded) > LARGEST_RESULT:
        return b"", f"the result is {len(encoded):,} bytes; at most {LARGEST_RESULT:,} are kept"
    return encoded, ""


def _keep_or_free(settled: Settled, envelope: Envelope) -> None:
    """Say what becomes of the dedup key, and for how long the result is kept."""
    settled.keep_ms = envelope.keep_result_ms
    settled.dedup = envelope.dedup
    settled.dedup_window_ms = envelope.dedup_window_ms if envelope.dedup_scope not in _KEPT_BY_TIME else -1


def _ended(delivery: Delivery, outcome: Dead | Cancelled | Expired, begun_ms: int, finished_ms: int) -> Settled:
    record = _record(delivery, _END_STATES[type(outcome)], begun_ms, finished_ms)
    match outcome:
        case Dead(failure=failure, crashes=crashes):
            record["x"] = _error(failure)
            if crashes:
                record["c"] = crashes
        case Cancelled(reason=reason):
            record["x"] = _error(Failure("Cancelled", reason))
        case Expired():
            pass
    settled = Settled(delivery, orjson.dumps(record))
    if isinstance(outcome, Dead):
        settled.letter = delivery.raw
    if delivery.envelope is not None:
        _keep_or_free(settled, delivery.envelope)
    return settled


def _error(failure: Failure) -> dict[str, str]:
    return {
        "t": failure.type,
        "m": failure.message,
        "tb": failure.traceback,
        "fp": failure.fingerprint,
    }


def _requeued(
    delivery: Delivery, outcome: Retrying | Snoozed | Crashed | Parked | Limited, begun_ms: int, finished_ms: int
) -> Settled:
    """Prepare the next start of a job. The enqueue time stays, and the number of starts rises: the fence needs it."""
    envelope = delivery.envelope
    record = b""
    raw = delivery.raw
    if envelope is not None and isinstance(outcome, Retrying | Crashed):
        envelope = _next_try(envelope, outcome)
        fields = _record(delivery, "retrying", begun_ms, finished_ms)
        if isinstance(outcome, Crashed):
            fields["c"] = outcome.crashes
        fields["d"] = finished_ms + outcome.delay_ms
        fields["x"] = _error(outcome.failure)
        record = orjson.dumps(fields)
    if envelope is not None and envelope.version == 1:
        raw = encode_envelope(msgspec.structs.replace(envelope, starts=envelope.starts + 1))
    settled = Settled(delivery, record)
    delay = outcome.what if isinstance(outcome, Parked) else 0 if isinstance(outcome, Limited) else outcome.delay_ms
    digit = slow_digit(delivery.digit) if delivery.why else delivery.digit
    settled.requeue = (delay, digit, delivery.enqueued_ms, raw)
    return settled


def _next_try(envelope: Envelope, outcome: Retrying | Crashed) -> Envelope:
    if isinstance(outcome, Crashed):
        return msgspec.structs.replace(envelope, crashes=outcome.crashes)
    return msgspec.structs.replace(envelope, attempt=envelope.attempt + 1)


def reported(items: Iterable[Settled]) -> Report:
    """Put settled jobs into the sections of a report that they belong to."""
    report = Report()
    settled = report.settled
    for item in items:
        if item.requeue is not None:
            row: tuple[Arg, ...] = (item.token, item.id, *item.requeue, item.record)
            report.requeued += row
            continue
        settled += (item.token, item.id, item.record)
        if item.dedup is not None:
            report.dedups.append((item.id, item.dedup, item.dedup_window_ms))
        if item.keep_ms:
            report.results.append((item.id, item.keep_ms, item.record))
        if item.letter is not None:
            report.letters += (item.id, item.letter, item.record)
    return report
