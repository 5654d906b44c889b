"""The names of everything that a partition of a queue keeps in Redis.

All keys of a partition share one hash tag, so they lie in one slot. User text is only ever the last part of a key and
stands under a word of its own, so that no name can hit a structural key.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field

from streamq.errors import ConfigurationError

__all__ = [
    "GROUP", "HANDBACK", "LANES", "RECORDER_GROUP", "Keys", "check_queue_name", "lane_digit", "partition_for",
    "partition_names", "queue_of", "slow_digit",
]  # fmt: skip

LANES = ("high", "normal", "low", "high.slow", "normal.slow", "low.slow")
"""Priority times cost. A lane's digit, its place in the script's KEYS, is its index here plus one."""

GROUP = "g"
RECORDER_GROUP = "rec"

HANDBACK = "@handback"
"""The consumer that holds deliveries which were handed back; every cycle takes from it first."""

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NUMBER = re.compile(r":(\d{1,3})")


def lane_digit(lane: str) -> int:
    """Return the digit of a lane, 1 to 6."""
    return LANES.index(lane) + 1


def slow_digit(digit: int) -> int:
    """Return the digit of the slow lane of the same priority."""
    return (digit - 1) % 3 + 4


def check_queue_name(name: str) -> str:
    """Return the name if it can be a queue's.

    Raises:
        ConfigurationError: It holds something else than letters, digits, `_`, `.`, `-`, or is too long.
    """
    if not _QUEUE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a queue: use 1 to 64 letters, digits, '_', '.' or '-'"
        )
    return name


def partition_names(queue: str, count: int) -> tuple[str, ...]:
    """Name the partitions of a queue; the only one is named as the queue."""
    return (queue,) if count == 1 else tuple(f"{queue}:{number}" for number in range(count))


def partition_for(queue: str, token: str, count: int) -> str:
    """Name the partition that a token belongs to, the same one for ever: by the CRC-32 of its UTF-8 form.

    Args:
        queue: Whose partition.
        token: What belongs together: a user key, else a dedup key, else the id of a job.
        count: How many partitions there are.
    """
    return queue if count == 1 else f"{queue}:{zlib.crc32(token.encode('utf-8', 'surrogatepass')) % count}"


def queue_of(name: str) -> str:
    """Return the queue of a partition."""
    return name.partition(":")[0]


@dataclass(frozen=True)
class Keys:
    """The keys of one partition of one queue."""

    queue: str
    """The partition's name: that of the queue, and with several partitions a colon and the number."""
    tag: str = field(init=False)
    lanes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        name = queue_of(self.queue)
        rest = self.queue[len(check_queue_name(name)) :]
        if rest and not _NUMBER.fullmatch(rest):
            check_queue_name(self.queue)
        tag = f"{{sq:{name}:{int(rest[1:] or 0)}}}"
        object.__setattr__(self, "tag", tag)
        object.__setattr__(self, "lanes", tuple(f"{tag}:lane:{lane}" for lane in LANES))

    def _key(self, word: str) -> str:
        return f"{self.tag}:{word}"

    @property
    def delayed(self) -> str:
        """Sorted set: job id to due ms."""
        return self._key("delayed")

    @property
    def payload(self) -> str:
        """Hash: job id to the envelope of a delayed job."""
        return self._key("payload")

    @property
    def index(self) -> str:
        """Hash: job id to token."""
        return self._key("index")

    @property
    def outbox(self) -> str:
        """Stream of what happened, for the recorder."""
        return self._key("outbox")

    @property
    def workers(self) -> str:
        """Sorted set: consumer to last beat, server ms."""
        return self._key("workers")

    @property
    def dead(self) -> str:
        """Stream of dead letters."""
        return self._key("dead")

    @property
    def producers(self) -> str:
        """Hash: producer to its last accepted call."""
        return self._key("producers")

    @property
    def counts(self) -> str:
        """Hash: what happened to its number, for what no single job tells."""
        return self._key("counts")

    @property
    def control(self) -> str:
        """Stream of operators' messages to workers."""
        return self._key("control")

    @property
    def pause(self) -> str:
        """Hash: what is stopped (the queue, handlers, user keys), and what no worker knows."""
        return self._key("pause")

    @property
    def cost(self) -> str:
        """Hash: learned cost of slow keys."""
        return self._key("cost")

    @property
    def times(self) -> str:
        """Hash: how long jobs run, counted by bin, and the limit that follows from it."""
        return self._key("times")

    @property
    def gates(self) -> str:
        """Sorted set: who has a place at a gate, and who waits there."""
        return self._key("gates")

    @property
    def places(self) -> str:
        """Hash: job id to its gates, of jobs that have passed them or wait at one."""
        return self._key("places")

    @property
    def openings(self) -> str:
        """Sorted set: when a gate is to be looked at, and how far its rate is used up."""
        return self._key("openings")

    @property
    def lineage(self) -> str:
        """String: the server's replication id, and since when it is that one."""
        return self._key("lineage")

    @property
    def fair(self) -> str:
        """Sorted set: the virtual times of the keys of a fair queue."""
        return self._key("fair")

    def dedup(self, key: str) -> str:
        """Return the string that holds the id of the job with this dedup key."""
        return f"{self.tag}:dedup:{key}"

    def notes(self, job_id: str) -> str:
        """Return the string that holds what the handler of a running job has told."""
        return f"{self.tag}:notes:{job_id}"

    def stacks(self, consumer: str) -> str:
        """Return the string that holds where everything in a worker stood when it was last asked."""
        return f"{self.tag}:stacks:{consumer}"

    def result(self, job_id: str) -> str:
        """Return the list of one that holds the result of a job that asked for it to be kept."""
        return f"{self.tag}:result:{job_id}"
