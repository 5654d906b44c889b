"""Every error that streamq raises on purpose.

StreamQError
├── ConfigurationError     exit 78   a setting, an address, a server that does not fit
│   └── DividedOtherwise             a queue has another number of partitions
├── Unavailable            exit 69   a server could not be reached
│   ├── BrokerUnavailable            Redis
│   │   └── PartlyDone               an order reached some partitions of a queue
│   └── HistoryUnavailable           MongoDB
├── JobRejected            exit 65   the job cannot be enqueued as it is
│   ├── UnknownHandler
│   ├── BadArguments
│   ├── PayloadTooLarge
│   └── QueueFull
├── Conflict               exit 75   changed by somebody else meanwhile
├── NotConfirmed           exit 75   enqueued, but not on as many replicas as asked
├── JobNotFound            exit 1
├── JobFailed              exit 1    raised by `job.result()`
├── LifespanFailed         exit 1    the application's lifespan raised at the start
├── BadInput               exit 65   a file or value given by a person
└── LeaseLost                        told to a handler whose job is another worker's now, or may be
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BadArguments", "BadInput", "BrokerUnavailable", "ConfigurationError", "Conflict", "DividedOtherwise",
    "HistoryUnavailable", "JobFailed", "JobNotFound", "JobRejected", "LeaseLost", "LifespanFailed", "NotConfirmed", "PartlyDone", "PayloadTooLarge", "QueueFull",
    "StreamQError", "Unavailable", "UnknownHandler",
]  # fmt: skip


class StreamQError(Exception):
    """The root of every error of streamq. `exit_code` is what a program ends with; `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigurationError(StreamQError):
    """A setting is wrong, or a server is not what streamq needs. Nothing was started."""

    exit_code = 78


class DividedOtherwise(ConfigurationError):
    """A queue has another number of partitions than the settings say. Nothing was put into it."""


class Unavailable(StreamQError):
    """A server could not be reached."""

    exit_code = 69


class BrokerUnavailable(Unavailable):
    """Redis could not be reached. Whether the last call took effect is unknown; repeating it is safe."""


class PartlyDone(BrokerUnavailable):
    """An order was carried out in some partitions of a queue and not in others; repeating it is safe."""

    def __init__(self, message: str, *, hint: str = "", done: Sequence[str] = (), failed: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.done = done
        """The partitions where it was carried out."""
        self.failed = failed
        """Those where it was not, as far as is known."""


class HistoryUnavailable(Unavailable):
    """MongoDB could not be reached. Jobs go on; their history is late."""


class JobRejected(StreamQError):
    """The job was not enqueued, and nothing was written."""

    exit_code = 65


class UnknownHandler(JobRejected):
    """No handler of that name is registered in this application."""


class BadArguments(JobRejected):
    """The arguments do not fit the handler's signature, or are not JSON."""


class PayloadTooLarge(JobRejected):
    """The job's arguments are larger than `max_payload_bytes`."""


class QueueFull(JobRejected):
    """The queue holds as many jobs as it may, or Redis is out of memory."""

    exit_code = 75

    def __init__(self, message: str, *, hint: str = "", depth: int = 0, max_depth: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.depth = depth
        """How many jobs the queue held; 0 if it is Redis that is full."""
        self.max_depth = max_depth


class Conflict(StreamQError):
    """It was changed by somebody else meanwhile; nothing was written."""

    exit_code = 75


class NotConfirmed(StreamQError):
    """The job is enqueued, but fewer replicas than asked have confirmed it in time."""

    exit_code = 75


class JobNotFound(StreamQError):
    """No job with that id is known."""


class JobFailed(StreamQError):
    """The job ended without a result: dead, cancelled or expired."""


class LifespanFailed(StreamQError):
    """The application's lifespan raised before the first job. The worker ends; a supervisor may start it again."""


class BadInput(StreamQError):
    """A file or value that a person gave cannot be used; the message names the line."""

    exit_code = 65


class LeaseLost(StreamQError):  # an order to stop, not a failure of the handler's
    """The job belongs to another worker now, or may, since Redis could not be reached for as long as its lease. Stop."""
