"""Run: from a delivery to an outcome. Nothing here knows Redis."""

from __future__ import annotations

import hashlib
import random
import traceback
from asyncio import CancelledError, Task, get_running_loop
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from streamq.clock import to_ms
from streamq.errors import BadArguments
from streamq.job import (
    CRASH_LIMIT,
    ENVELOPE_VERSION,
    Cancel,
    Cancelled,
    Completed,
    Crashed,
    Dead,
    Delivery,
    Dropped,
    Envelope,
    Expired,
    Fail,
    Failure,
    Limited,
    Outcome,
    Parked,
    RateLimited,
    Released,
    Retry,
    Retrying,
    Signal,
    Snooze,
    Snoozed,
    latest_start_ms,
)
from streamq.logs import masked
from streamq.options import MOST_WEIGHT, checked_text
from streamq.retry import RetryPolicy
from streamq.worker.threads import JobInterrupted

if TYPE_CHECKING:
    from streamq.registry import HandlerSpec

__all__ = [
    "Caller",
    "Decided",
    "ProcessDied",
    "RunningJob",
    "Stop",
    "blocked",
    "came_to",
    "interrupted",
    "limited",
    "run",
    "verdict",
]

_PLAIN_RETRY = RetryPolicy()
_LONGEST_DELAY_MS = 100 * 365 * 86_400_000
_MOST_SPREAD_MS = 10_000
_LONGEST_NAME = 200
_LONGEST_MESSAGE = 2_000
_LONGEST_TRACEBACK = 16_000

Caller = Callable[["RunningJob"], Awaitable[Any]]


class Stop(StrEnum):
    """Why a running job was told to stop."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"


class ProcessDied(Exception):
    """The child process that ran the job ended; the message says how."""


class Decided(Exception):
    """Carries an outcome that was decided elsewhere."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(type(outcome).__name__)
        self.outcome = outcome


class RunningJob:
    """A job while it runs here."""

    __slots__ = (
        "begun_at",
        "begun_ms",
        "call",
        "delivery",
        "ended_at",
        "envelope",
        "is_stuck",
        "kwargs",
        "renewed_at",
        "spec",
        "stop",
        "stop_reason",
        "stopped_at",
        "task",
    )  # fmt: skip

    def __init__(
        self, delivery: Delivery, envelope: Envelope, spec: HandlerSpec, call: Caller, begun_ms: int, begun_at: float
    ) -> None:
        self.delivery = delivery
        self.envelope = envelope
        self.kwargs = envelope.kwargs
        """Those of the caller, and what the worker adds."""
        self.spec = spec
        self.call = call
        self.begun_ms = begun_ms
        self.begun_at = begun_at
        self.renewed_at = begun_at
        self.ended_at = begun_at
        self.task: Task[None] | None = None
        self.stop: Stop | None = None
        self.stop_reason = ""
        self.stopped_at = 0.0
        self.is_stuck = False

    @property
    def max_attempts(self) -> int:
        """How often the job may run in all."""
        return self.envelope.max_attempts or self.spec.max_attempts


async def run(job: RunningJob) -> Outcome:
    """Run a job, and say what it came to."""
    try:
        return Completed(await job.call(job))
    except BaseException as error:  # noqa: BLE001 - a handler may raise anything; none of it may end the process
        return came_to(job, error)


def came_to(job: RunningJob, error: BaseException) -> Outcome:
    """Tell what a job comes to whose handler raised an error."""
    return (
        _stopped(job, error) or _from_process(job, error) or _asked_for(job, error)
        or _again(job, _failure(error), error)
    )  # fmt: skip


def _stopped(job: RunningJob, error: BaseException) -> Outcome | None:
    """Tell what an interrupted job came to, if it was we who interrupted it."""
    if job.stop is None or not isinstance(error, CancelledError | JobInterrupted):
        return None
    return interrupted(job)


def interrupted(job: RunningJob) -> Outcome:
    """Tell what a job comes to that was told to stop."""
    match job.stop:
        case Stop.TIMEOUT:
            limit_s = job.spec.timeout_ms / 1000
            late = Failure("JobTimeout", f"ran longer than its timeout of {limit_s:g} s")
            return _again(job, late, TimeoutError(late.message))
        case Stop.CANCEL:
            return Cancelled(_clean(job.stop_reason))
        case Stop.LEASE_LOST:
            return Dropped()
        case Stop.SHUTDOWN | None:
            return Released()


def _from_process(job: RunningJob, error: BaseException) -> Outcome | None:
    """Tell what a job came to that ran in a process of its own, or what becomes of it if that died."""
    match error:
        case Decided():
            return error.outcome
        case ProcessDied():
            return _crashed(job, error)
        case _:
            return None


def _asked_for(job: RunningJob, error: BaseException) -> Outcome | None:
    """Tell what the handler asked for, if it raised one of our signals."""
    match error:
        case Retry(delay=delay) if delay is not None and job.envelope.attempt < job.max_attempts:
            return _retry(job, to_ms(delay), _failure(error))
        case Snooze() | RateLimited():
            delay_ms = to_ms(error.delay) if isinstance(error, Snooze) else _spread_ms(job, error.delay_ms)
            return _later(job, delay_ms, _message(error))
        case Cancel():
            return Cancelled(_message(error))
        case Fail():
            return Dead(_failure(error))
        case _:
            return None


def _crashed(job: RunningJob, error: ProcessDied) -> Outcome:
    """Run a job again whose process died, up to the crash limit; it uses up no attempt."""
    crashes = job.delivery.crashes + job.envelope.crashes + 1
    if crashes >= CRASH_LIMIT:
        words = f"{crashes} processes died while they ran this job; {_message(error)}"
        return Dead(Failure("CrashedProcess", words), crashes)
    failure = Failure("CrashedProcess", _message(error))
    delay_ms = _delay_ms(job, crashes, failure, error)
    return Dead(failure, crashes) if delay_ms is None else Crashed(delay_ms, failure, crashes)


def _again(job: RunningJob, failure: Failure, error: BaseException) -> Outcome:
    """Retry while attempts are left and the policy wants it; after a timeout the wait counts from that."""
    attempt = job.envelope.attempt
    if attempt >= job.max_attempts:
        return Dead(failure)
    delay_ms = _delay_ms(job, attempt, failure, error)
    return Dead(failure) if delay_ms is None else _retry(job, max(0, delay_ms - _late_ms(job)), failure)


def _late_ms(job: RunningJob) -> int:
    """Return how long a handler whose time was up took to end."""
    return int((get_running_loop().time() - job.stopped_at) * 1000) if job.stop is Stop.TIMEOUT else 0


def _delay_ms(job: RunningJob, number: int, failure: Failure, error: BaseException) -> int | None:
    """Ask the back-off of the handler; None: not again."""
    try:
        delay_ms = job.spec.retry.delay_ms(number, error)
    except Exception as fault:  # noqa: BLE001 - a custom back-off is the user's code; the job must not be lost by it
        failure.message = f"{failure.message} [its back-off failed too: {_message(fault)}]"
        delay_ms = _PLAIN_RETRY.delay_ms(number, error)
    return None if delay_ms is None else _bounded_ms(delay_ms)


def _retry(job: RunningJob, delay_ms: int, failure: Failure) -> Retrying | Dead:
    """Retry, unless the next attempt would come too late: then the job ends now, with what went wrong."""
    due_ms = _now_ms(job) + _bounded_ms(delay_ms)
    envelope, enqueued_ms = job.envelope, job.delivery.enqueued_ms
    until = job.spec.retry.until
    limits = {
        "its deadline": latest_start_ms(envelope, enqueued_ms),
        "retry_until": envelope.retry_until_ms,
        "the time for which its handler retries": enqueued_ms + to_ms(until) if until is not None else 0,
    }
    for what, limit_ms in limits.items():
        if limit_ms and due_ms > limit_ms:
            failure.message += f" [not tried again: that would be after {what}]"
            return Dead(failure)
    return Retrying(_bounded_ms(delay_ms), failure)


def _later(job: RunningJob, delay_ms: int, reason: str) -> Snoozed | Expired:
    """Run it again without counting an attempt, unless it would start after its deadline."""
    delay_ms = _bounded_ms(delay_ms)
    limit_ms = latest_start_ms(job.envelope, job.delivery.enqueued_ms)
    return Expired() if limit_ms and _now_ms(job) + delay_ms > limit_ms else Snoozed(delay_ms, reason)


def _spread_ms(job: RunningJob, asked_ms: int | None) -> int:
    """Return how long to wait before the other side is asked again: never shorter than it said."""
    if asked_ms is None:
        asked_ms = max(1000, job.spec.retry.ceiling_ms(job.envelope.attempt))
    return asked_ms + int(random.random() * min(asked_ms / 10, _MOST_SPREAD_MS))


def _now_ms(job: RunningJob) -> int:
    """Return the server's time, from when the job began and how long it has run."""
    return job.begun_ms + int((get_running_loop().time() - job.begun_at) * 1000)


def _bounded_ms(delay_ms: int) -> int:
    return min(max(0, delay_ms), _LONGEST_DELAY_MS)


def _failure(error: BaseException) -> Failure:
    """Describe an exception; the fingerprint groups those that come from one place."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/streamq/worker/" not in frame.filename]
    top = own[-1] if own else None
    place = f"{top.filename}:{top.name}" if top else ""
    kind = type(error).__qualname__
    text = masked(_clean("".join(traceback.format_list(own)))) if own and not isinstance(error, Signal) else ""
    mark = hashlib.sha256(f"{kind}|{place}".encode(errors="replace")).hexdigest()[:12]
    return Failure(_clean(kind), _message(error), text[-_LONGEST_TRACEBACK:], mark)


def _message(error: BaseException) -> str:
    """Return what an exception says, as far as it can and may be told."""
    try:
        # Addresses are part of what most clients say, and passwords of addresses.
        return masked(_clean(str(error)[: 4 * _LONGEST_MESSAGE]))[:_LONGEST_MESSAGE]
    except Exception as fault:  # noqa: BLE001 - the exception's class is the user's
        return f"its message cannot be shown: {type(fault).__qualname__} in __str__"


def _clean(text: str) -> str:
    """Replace what has no UTF-8 form: a file name may hold such."""
    return text.encode(errors="replace").decode()


def verdict(  # noqa: PLR0911 - a list of reasons, one return each
    delivery: Delivery, spec: HandlerSpec | None, now_ms: int
) -> Outcome | None:
    """Tell what becomes of a job that must not be run here and now; None: run it."""
    if delivery.crashes >= CRASH_LIMIT:
        return Dead(Failure("CrashedWorker", f"{delivery.crashes} workers died while they ran this job"))
    envelope = delivery.envelope
    if envelope is None:
        return Dead(Failure("BadEnvelope", "the job's envelope cannot be read"))
    if envelope.version > ENVELOPE_VERSION:
        return Parked(f"?version {envelope.version}", f"its envelope has version {envelope.version}")
    if spec is None:
        return Parked(f"?{envelope.handler[:_LONGEST_NAME]}", f"no handler is named {envelope.handler!r} here")
    if (envelope.deadline_ms or envelope.ttl_ms) and now_ms > latest_start_ms(envelope, delivery.enqueued_ms):
        return Expired()
    return None


def limited(delivery: Delivery, spec: HandlerSpec) -> Limited | Dead | None:
    """Give a job the limits of its handler if its producer did not know of them; None: it has passed them.

    With a limit per user key it also gets its key, from the argument that the handler names. A job without one cannot be
    run: it dies, as it would have been refused by a producer that knows the handler.
    """
    envelope = delivery.envelope
    if envelope is None or envelope.gates or spec.gates is None:
        return None
    try:
        key = envelope.key
        if key is None and spec.key is not None:
            spec.check_arguments(tuple(envelope.args), envelope.kwargs)
            key = checked_text(str(spec.argument(spec.key, tuple(envelope.args), envelope.kwargs)), "key")
        gates = spec.gates.of_job(key, max(1, min(MOST_WEIGHT, envelope.weight)))
    except BadArguments as error:
        return Dead(_failure(error))
    delivery.envelope = replace(envelope, key=key, gates=gates)
    return Limited()


def blocked(envelope: Envelope | None, stopped: frozenset[str]) -> Parked | None:
    """Tell whether a job must not start because its handler or its user key is blocked."""
    if envelope is None:
        return None
    for name in (f"h:{envelope.handler}", f"k:{envelope.key}"):
        if name in stopped and (envelope.key is not None or name[0] == "h"):
            return Parked(name, f"{name[2:]!r} is blocked")
    return None
