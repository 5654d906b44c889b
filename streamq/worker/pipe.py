"""What a worker and a child that runs jobs for it say to each other: JSON over a socket, each message behind its length.

The worker says Hello once, then Order and Stop; the child says Ready once, then Told, any number of times, and Ended for each Order. The end of the
line means that the other is gone.
"""

from __future__ import annotations

from typing import Any, cast, get_args

import msgspec

from streamq.job import Completed, Outcome
from streamq.settings import Settings  # noqa: TC001 - msgspec reads the annotations of messages
from streamq.worker.run import Stop as Why  # noqa: TC001
from streamq.worker.settle import Encoded, encoded_result

__all__ = ["LENGTH", "PARK_MS", "Ended", "FromChild", "FromWorker", "Hello", "Order", "Ready", "Stop", "Told", "framed"]

PARK_MS = 5_000
"""A job that a child cannot run waits that long before it is offered to all workers again."""
LENGTH = 4
"""Bytes in front of each message: how long it is, most significant first."""

_ENCODER = msgspec.json.Encoder()
_KINDS = {kind.__name__: kind for kind in get_args(Outcome)}


class Hello(msgspec.Struct, tag=True):
    """Who the child works for."""

    settings: Settings


class Order(msgspec.Struct, tag=True):
    """Run this job: its delivery, as this worker has it."""

    job_id: bytes
    raw: bytes
    digit: int
    enqueued_ms: int
    delivery: int
    begun_ms: int
    trace: dict[str, str] = {}
    """Headers of the span around the run; empty: there is none."""


class Stop(msgspec.Struct, tag=True):
    """Interrupt the job that runs."""

    why: Why
    reason: str


class Ready(msgspec.Struct, tag=True):
    """The application is there; or why it is not."""

    problem: str = ""


class Told(msgspec.Struct, tag=True):
    """What the handler has told of the job so far; see `Notes.as_record`."""

    notes: dict[str, Any]


class Ended(msgspec.Struct, tag=True):
    """What the job came to."""

    kind: str
    fields: dict[str, Any]
    result: bytes = b""
    result_problem: str = ""
    is_spent: bool = False
    """Whether the child has had enough: it ends, and another takes its place."""

    @classmethod
    def of(cls, outcome: Outcome) -> Ended:
        """Put an outcome into words; a result is made JSON here, where it is."""
        if not isinstance(outcome, Completed):
            return cls(type(outcome).__name__, msgspec.to_builtins(outcome))
        result, problem = encoded_result(outcome.result) if outcome.result is not None else (b"", "")
        return cls("Completed", {}, result, problem)

    @property
    def outcome(self) -> Outcome:
        """The outcome again."""
        if self.kind == "Completed":
            return Completed(Encoded(self.result, self.result_problem) if self.result or self.result_problem else None)
        return cast("Outcome", msgspec.convert(self.fields, _KINDS[self.kind]))


FromWorker = Hello | Order | Stop
FromChild = Ready | Told | Ended


def framed(message: FromWorker | FromChild) -> bytes:
    """Return a message as it goes over the line."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(LENGTH, "big") + body
