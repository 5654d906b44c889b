"""What a partition remembers of fan-outs: how far each has come, the page that it is in, and who works on it.

A fan-out is a producer whose calls are its pages, so its record is the producer's: the number of its last accepted
call, and as that call's cursor the `FanOutState` after it. Nothing here decides anything; see `streamq.schedules`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from streamq.broker.partition import CallRepeated, Partition
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FANOUT_PREFIX", "FanOutRecord", "FanOutState", "FanOuts", "decode_state", "encode_state"]

FANOUT_PREFIX = "cron:"
"""What the names of the producers of schedules begin with."""

_SCAN_COUNT = 500


class FanOutState(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={
        "cursor": "c", "offset": "o", "pages": "p", "anchor": "t", "count": "j", "added": "a", "duplicates": "d",
        "present": "k", "refused": "r", "begun_ms": "b", "at_ms": "w", "by": "y", "end": "z",
    },
):  # fmt: skip
    """Where a fan-out stands after a call: what to do next, and what was done."""

    cursor: str | None = None
    """Of the page to read next, or of the page that is being enqueued when `offset` is not 0."""
    offset: int = 0
    """How many users of that page are enqueued."""
    pages: int = 0
    """Pages that are enqueued whole."""
    anchor: str | None = None
    """A cursor seen earlier, to notice one that comes again."""
    count: int = 0
    """Jobs of this call; what became of them stands in the call's results."""
    added: int = 0
    duplicates: int = 0
    present: int = 0
    refused: int = 0
    """Users that could not be enqueued, this call's included. The three above count the calls before this one."""
    begun_ms: int = 0
    at_ms: int = 0
    """When this call was made, server time."""
    by: str = ""
    """Which run made this call: it knows its own again when the reply was lost."""
    end: Literal["", "done", "given up", "skipped"] = ""

    @property
    def is_at_end(self) -> bool:
        """Whether the last page is enqueued, so that only the end is left to be stored."""
        return self.pages > 0 and self.cursor is None and not self.offset

    @property
    def users(self) -> int:
        """How many users were handled in the calls that are counted."""
        return self.added + self.duplicates + self.present + self.refused

    def plus(self, other: FanOutState) -> FanOutState:
        """Add what another partition counted of the same fan-out."""
        return msgspec.structs.replace(
            self,
            added=self.added + other.added,
            duplicates=self.duplicates + other.duplicates,
            present=self.present + other.present,
            refused=self.refused + other.refused,
        )

    def counting(self, results: Sequence[str]) -> FanOutState:
        """Count what became of this call's jobs, so that the state stands for all calls up to this one.

        Args:
            results: As `Added.results` has them; empty if every job was new.
        """
        if not self.count:
            return self
        words = () if isinstance(results, str) else results  # one string of `n` for as many new jobs
        duplicates = sum(1 for word in words if word[0] in "dr")
        present = sum(1 for word in words if word == "p")
        return msgspec.structs.replace(
            self,
            count=0,
            added=self.added + self.count - duplicates - present,
            duplicates=self.duplicates + duplicates,
            present=self.present + present,
        )


_DECODER = msgspec.json.Decoder(FanOutState)
_ENCODER = msgspec.json.Encoder()


def encode_state(state: FanOutState) -> str:
    """Write a state as the cursor of a call."""
    return _ENCODER.encode(state).decode()


def decode_state(cursor: str, results: str) -> FanOutState:
    """Read the cursor of an accepted call, and count the results of that call.

    Raises:
        ValueError: It is not the cursor of a fan-out.
    """
    return _DECODER.decode(cursor.encode()).counting(results.split("\n") if results else ())


@dataclass(frozen=True, slots=True)
class FanOutRecord:
    """What the partition remembers of a producer."""

    number: int
    """Of its last accepted call, from 1."""
    keep_until_ms: int
    cursor: str
    results: str

    @property
    def state(self) -> FanOutState:
        """Where the fan-out stands; raises ValueError if the producer is no fan-out."""
        return decode_state(self.cursor, self.results)


class FanOuts:
    """The records of one partition; or those of the first partition of a queue, with the counts of the others."""

    def __init__(self, partition: Partition, others: Sequence[Partition] = ()) -> None:
        self._partition = partition
        self._others = [FanOuts(other) for other in others]
        self._tag = partition.keys.tag
        self._producers = partition.keys.producers

    async def records(self, producers: Sequence[str]) -> list[FanOutRecord | None]:
        """Return what is known of each producer, in order; None for one that is not known."""
        found = await self._own_records(producers)
        for other in self._others:
            found = [_joined(*pair) for pair in zip(found, await other.records(producers), strict=True)]
        return found

    async def _own_records(self, producers: Sequence[str]) -> list[FanOutRecord | None]:
        if not producers:
            return []
        found = await self._partition.wire.call("HMGET", self._producers, *producers)
        return [None if raw is None else _record(raw) for raw in found]

    async def record(self, producer: str) -> FanOutRecord | None:
        """Return what is known of one producer."""
        return (await self.records([producer]))[0]

    async def all(self) -> dict[str, FanOutRecord]:
        """Return what is known of every schedule: its fan-outs, and the marks of how far it is decided."""
        cursor: Any = b"0"
        records: dict[str, FanOutRecord] = {}
        while True:
            cursor, flat = await self._partition.wire.call(
                "HSCAN", self._producers, cursor, "MATCH", f"{FANOUT_PREFIX}*", "COUNT", _SCAN_COUNT
            )
            records |= {flat[i].decode(): _record(flat[i + 1]) for i in range(0, len(flat), 2)}
            if cursor == b"0":
                return records

    async def progress(self) -> dict[str, FanOutState]:
        """Return how far each fan-out that is remembered has come, by `schedule:fire time`, oldest first."""
        known = await self.all()
        names = sorted(name for name in known if name.count(":") > 1)
        return {name.removeprefix(FANOUT_PREFIX): known[name].state for name in names}

    async def advance(self, producer: str, number: int, cursor: str, keep_ms: int) -> None:
        """Move a producer's number up without adding a job; a number that is not higher changes nothing."""
        try:
            await self._partition.add(producer, number, [], cursor=cursor, keep_ms=keep_ms)
        except CallRepeated:
            return

    async def note(self, field: str, moment_ms: int) -> None:
        """Keep when something last happened to a schedule, for metrics; see `streamq.meters`."""
        await self._partition.wire.call("HSET", self._partition.keys.counts, field, moment_ms)

    async def forget(self, producer: str) -> None:
        """Forget a producer: its next call may have any number."""
        await self._partition.wire.call("HDEL", self._producers, producer)

    async def keep_page(self, producer: str, cursor: str | None, page: bytes, keep_ms: int) -> bytes:
        """Store a page that takes several calls, unless somebody has. Returns the page that everybody goes by."""
        key = self._page_key(producer, cursor)
        held = await self._partition.wire.call("SET", key, page, "NX", "GET", "PX", keep_ms)
        return page if held is None else bytes(held)

    async def kept_page(self, producer: str, cursor: str | None) -> bytes | None:
        """Return the page that everybody goes by, if it is stored."""
        held = await self._partition.wire.call("GET", self._page_key(producer, cursor))
        return None if held is None else bytes(held)

    async def drop_page(self, producer: str, cursor: str | None) -> None:
        """Forget a page that is enqueued whole."""
        await self._partition.wire.call("DEL", self._page_key(producer, cursor))

    async def slow_means(self, handler: str) -> dict[str, int]:
        """Return the mean run times in ms of the users of a handler who are known as slow, by user key."""
        means: dict[str, int] = {}
        cursor: Any = b"0"
        while True:
            cursor, flat = await self._partition.wire.call(
                "HSCAN", self._partition.keys.cost, cursor, "COUNT", _SCAN_COUNT
            )
            for field, value in zip(flat[::2], flat[1::2], strict=True):
                owner, _, key = field.decode("utf-8", "replace").partition("|")
                if owner == handler:
                    means[key] = int(value.partition(b"|")[0])
            if cursor == b"0":
                return means

    async def living(self, schedule: str, cursor: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """List some of the jobs of a schedule that have not ended, with their tokens, and the cursor for more.

        The cursor `b"0"` begins and ends.
        """
        following, flat = await self._partition.wire.call(
            "HSCAN", self._partition.keys.index, cursor, "MATCH", f"{schedule}:*", "COUNT", _SCAN_COUNT
        )
        return following, list(zip(flat[::2], flat[1::2], strict=True))

    async def lead(self, name: str, owner: str, ttl_ms: int) -> bool:
        """Take or keep the lock of a name for that long; 0 gives it back. Returns whether it is the owner's."""
        reply = await self._partition.wire.script(load("lead"), [f"{self._tag}:lead:{name}"], [owner, ttl_ms])
        return bool(reply)

    async def server_ms(self) -> int:
        """Return the server's time."""
        seconds, micros = await self._partition.wire.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def _page_key(self, producer: str, cursor: str | None) -> str:
        digest = hashlib.sha256(b"" if cursor is None else b"+" + cursor.encode()).hexdigest()[:32]
        return f"{self._tag}:page:{digest}:{producer}"


def _joined(record: FanOutRecord | None, other: FanOutRecord | None) -> FanOutRecord | None:
    """Add what another partition counted of a fan-out."""
    if record is None or other is None or not other.cursor.startswith("{"):
        return record
    return FanOutRecord(record.number, record.keep_until_ms, encode_state(record.state.plus(other.state)), "")


def _record(raw: bytes) -> FanOutRecord:
    number, keep_until, size, rest = raw.split(b"|", 3)
    end = int(size)
    return FanOutRecord(int(number), int(keep_until), rest[:end].decode(), rest[end:].decode())
