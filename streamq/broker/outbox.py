"""The outbox of a partition: what became of jobs, waiting for the recorder to write it into MongoDB.

Several recorders share one outbox through the group `rec`. An entry leaves only after `ack`, so one that was read by
a recorder that died is taken over by another; whoever writes must therefore bear to see an entry twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from streamq.broker.wire import Fault, ServerRefused, Wire
from streamq.errors import QueueFull
from streamq.keys import RECORDER_GROUP, Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Feed", "Lag", "Outbox", "OutboxEntry", "recorder_name", "version_of"]

FORGET_CONSUMER_AFTER_MS = 3_600_000
"""A recorder polls at least once a second; one that was silent for this long and holds nothing is gone."""

ALIVE_MS = 5_000
_SEQUENCE_BITS = 20


class OutboxEntry(NamedTuple):
    """What one worker reported in one call."""

    id: bytes
    version: int
    worker: str
    records: list[tuple[str, bytes]]
    """Job id and record, in the order in which it happened; a job may stand here twice."""

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(len(record) for _, record in self.records)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the recorders are behind."""

    entries: int
    oldest_ms: int
    """Age of the oldest entry that is not written yet; 0 when there is none."""


def version_of(entry_id: bytes | str) -> int:
    """Turn the id of a stream entry into a number that rises as the ids do.

    More than 2^20 entries in one millisecond would run into the next one's numbers; no server is that fast.
    """
    ms, _, sequence = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(ms) << _SEQUENCE_BITS | min(int(sequence or 0), (1 << _SEQUENCE_BITS) - 1)


def recorder_name() -> str:
    """Make a consumer name that was never used before, readable by the person who finds it in Redis."""
    return f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


class Feed:
    """What is added to the outboxes of some partitions from now on, for those who only look; recorders delete it soon."""

    def __init__(self, make_wire: Callable[[], Wire], partitions: Mapping[str, Keys]) -> None:
        """Make it; nothing is sent yet.

        Args:
            make_wire: Makes connections, since reading blocks one. Partitions on several nodes need one each, and a
                second one for questions meanwhile.
            partitions: The partitions, by what they are to be called.
        """
        self._make_wire = make_wire
        self._wire = make_wire()
        self._readers: dict[str, Wire] = {}
        """Once it is known that one call cannot read all."""
        self._sides: dict[str, Wire] = {}
        self._reading: dict[str, asyncio.Task[Any]] = {}
        self._streams = {name: keys.outbox for name, keys in partitions.items()}
        self._names = {stream.encode(): name for name, stream in self._streams.items()}
        self.places: dict[str, bytes] = {}
        """The last entry that was read of each."""
        self._added: dict[str, int] = {}

    async def start(self) -> None:
        """Begin behind what is there now."""
        for name in self._streams:
            self.places[name], self._added[name] = await self._newest(name)

    async def read(self, *, limit: int, block_ms: int) -> list[tuple[str, OutboxEntry]]:
        """Wait for entries, and return them, of each partition the oldest first."""
        if not self._readers:
            try:
                return self._taken(await self._ask(self._wire, tuple(self._streams), limit, block_ms))
            except ServerRefused as error:
                if "CROSSSLOT" not in str(error):
                    raise
                self._readers = {name: self._make_wire() for name in self._streams}
                self._sides = {name: self._make_wire() for name in self._streams}
        return await self._read_apart(limit, block_ms)

    async def _read_apart(self, limit: int, block_ms: int) -> list[tuple[str, OutboxEntry]]:
        """Return what the first ones that have something give; the others go on waiting.

        Raises:
            BrokerUnavailable: Of a partition, when no other has something.
        """
        for name, wire in self._readers.items():
            if name not in self._reading:
                self._reading[name] = asyncio.create_task(self._ask(wire, (name,), limit, block_ms))
        await asyncio.wait(self._reading.values(), return_when=asyncio.FIRST_COMPLETED)
        done = [self._reading.pop(name) for name, task in list(self._reading.items()) if task.done()]
        found = [entry for task in done if task.exception() is None for entry in self._taken(task.result())]
        failures = [error for task in done if (error := task.exception()) is not None]
        if failures and not found:
            raise failures[0]
        return found

    async def _ask(self, wire: Wire, names: Sequence[str], limit: int, block_ms: int) -> Any:
        streams: list[str | bytes] = [*(self._streams[name] for name in names), *(self.places[name] for name in names)]
        return await wire.call("XREAD", "COUNT", limit, "BLOCK", block_ms, "STREAMS", *streams, extra_s=block_ms / 1000)

    def _taken(self, reply: Any) -> list[tuple[str, OutboxEntry]]:
        found: list[tuple[str, OutboxEntry]] = []
        for stream, entries in reply or ():
            name = self._names[stream]
            found += [(name, _entry(entry_id, fields)) for entry_id, fields in entries]
            self.places[name] = entries[-1][0]
            self._added[name] += len(entries)
        return found

    async def has_gap(self) -> bool:
        """Tell whether entries were deleted before they were read here; if so, what comes is read from now on.

        While entries are left to be read nothing can be told: ask again when they are.
        """
        gap = False
        for name in self._streams:
            if name in self._reading and self._reading[name].done():
                continue
            newest, added = await self._newest(name)
            if (newest, added) == (self.places[name], self._added[name]):
                continue
            if version_of(newest) <= version_of(self.places[name]) or not await self._is_more(name):
                gap, self.places[name], self._added[name] = True, newest, added
        return gap

    async def _is_more(self, name: str) -> bool:
        return bool(
            await self._side(name).call("XRANGE", self._streams[name], b"(" + self.places[name], "+", "COUNT", 1)
        )

    def _side(self, name: str) -> Wire:
        return self._sides[name] if self._sides else self._wire

    async def close(self) -> None:
        """Stop to read, and close the connections."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        for wire in (self._wire, *self._readers.values(), *self._sides.values()):
            await wire.close()

    async def _newest(self, name: str) -> tuple[bytes, int]:
        """Return the id of the newest entry that there ever was, and how many there were."""
        try:
            row = await self._side(name).call("XINFO", "STREAM", self._streams[name])
        except ServerRefused as error:
            if "no such key" not in str(error):
                raise
            return b"0-0", 0
        told = dict(zip(row[::2], row[1::2], strict=True))
        return told[b"last-generated-id"], told[b"entries-added"]


class Outbox:
    """One recorder's end of one partition's outbox. Not to be used by two tasks at once."""

    def __init__(self, wire: Wire, keys: Keys, consumer: str | None = None) -> None:
        """Make the end; nothing is sent yet.

        Args:
            wire: A connection of its own, since reading blocks it.
            keys: The partition.
            consumer: A name that no other recorder has ever had; made up when None.
        """
        self._wire = wire
        self._stream = keys.outbox
        self._cursor = b"0-0"
        self._reply_lost = False
        self.consumer = consumer or recorder_name()

    async def read(self, *, limit: int, block_ms: int = 0) -> list[OutboxEntry]:
        """Read entries that no recorder has read before, oldest first.

        After a read whose reply was lost, the next call returns what that reply held.

        Args:
            limit: The most entries, from 1.
            block_ms: How long to wait for the first entry; 0 returns at once.
        """
        start, block = (b"0", ()) if self._reply_lost else (b">", ("BLOCK", block_ms) if block_ms > 0 else ())
        command = ("XREADGROUP", "GROUP", RECORDER_GROUP, self.consumer, "COUNT", limit, *block, "STREAMS")
        lost_before, self._reply_lost = self._reply_lost, True
        try:
            reply = await self._wire.call(*command, self._stream, start, extra_s=block_ms / 1000)
        except ServerRefused as error:
            self._reply_lost = lost_before
            await self._rejoin(error)
            return []
        entries = await self._decode(reply[0][1] if reply else [])
        self._reply_lost = lost_before and bool(entries)
        return entries

    async def take_over(self, *, idle_ms: int, limit: int) -> list[OutboxEntry]:
        """Take entries that some recorder read and did not acknowledge, and go on from there at the next call.

        Args:
            idle_ms: How long an entry must have been with its recorder.
            limit: The most entries, from 1. Fewer may come although there are more: a call looks at a bounded part.
        """
        try:
            cursor, entries, _ = await self._wire.call(
                "XAUTOCLAIM", self._stream, RECORDER_GROUP, self.consumer, idle_ms, self._cursor, "COUNT", limit
            )
        except ServerRefused as error:
            await self._rejoin(error)
            return []
        self._cursor = cursor
        return await self._decode(entries)

    async def ack(self, ids: Sequence[bytes]) -> None:
        """Remove entries that were written. One round trip; a repeat does nothing.

        The entry goes before its place in the pending list: if only the first happens, Redis clears the place itself
        when it is next looked at. The other way round the entry would stay for ever.
        """
        if ids:
            await self._wire.pipeline([("XDEL", self._stream, *ids), ("XACK", self._stream, RECORDER_GROUP, *ids)])

    async def lag(self) -> Lag:
        """Tell how many entries are not written yet, and how old the oldest is."""
        time, length, oldest = await self._wire.pipeline(
            [("TIME",), ("XLEN", self._stream), ("XRANGE", self._stream, "-", "+", "COUNT", 1)]
        )
        if not oldest:
            return Lag(0, 0)
        now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
        return Lag(length, max(0, now_ms - int(oldest[0][0].partition(b"-")[0])))

    async def leads(self) -> bool:
        """Tell whether this is the recorder that does what one of them is enough for.

        Of the recorders that were here in the last seconds it is the first by name. For a moment two may think so.
        """
        with contextlib.suppress(ServerRefused, QueueFull):
            # Before Redis 7.2 a recorder has a name there only once it has read something.
            await self._wire.call("XGROUP", "CREATECONSUMER", self._stream, RECORDER_GROUP, self.consumer)
        alive = [name for name, _, idle in await self._consumers() if idle < ALIVE_MS]
        return not alive or min(alive) >= self.consumer.encode()

    async def tidy(self) -> None:
        """Remove the names of recorders that ended long ago and hold nothing."""
        for name, held, idle in await self._consumers():
            if held == 0 and idle > FORGET_CONSUMER_AFTER_MS:
                await self._wire.call("XGROUP", "DELCONSUMER", self._stream, RECORDER_GROUP, name)

    async def leave(self) -> None:
        """Remove this recorder's name, unless it holds entries: those must stay for others to take."""
        for name, held, _ in await self._consumers():
            if held == 0 and name == self.consumer.encode():
                await self._wire.call("XGROUP", "DELCONSUMER", self._stream, RECORDER_GROUP, name)

    async def _consumers(self) -> list[tuple[bytes, int, int]]:
        """List name, deliveries held, and ms since it was last here, of every recorder."""
        try:
            rows = await self._wire.call("XINFO", "CONSUMERS", self._stream, RECORDER_GROUP)
        except ServerRefused as error:
            await self._rejoin(error)
            return []
        pairs = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        return [(row[b"name"], row[b"pending"], row[b"idle"]) for row in pairs]

    async def _rejoin(self, error: ServerRefused) -> None:
        """Make the group anew when it is gone; it starts at the first entry, so that none is passed over."""
        if error.fault is not Fault.REJOIN:
            raise error
        try:
            await self._wire.call("XGROUP", "CREATE", self._stream, RECORDER_GROUP, "0", "MKSTREAM")
        except ServerRefused as refused:
            if "BUSYGROUP" not in str(refused):  # another recorder was faster
                raise

    async def _decode(self, raw: list[Any]) -> list[OutboxEntry]:
        """Turn entries into values; one that was trimmed away while it was pending is acknowledged."""
        if trimmed := [entry_id for entry_id, fields in raw if fields is None]:
            await self.ack(trimmed)
        return [_entry(entry_id, fields) for entry_id, fields in raw if fields is not None]


def _entry(entry_id: bytes, fields: list[bytes]) -> OutboxEntry:
    # The name `w` is the worker's only in the first place: a job may be called that, too.
    has_worker = fields[0] == b"w"
    worker = fields[1].decode("utf-8", "replace") if has_worker else ""
    first = 2 if has_worker else 0
    names = [name.decode("utf-8", "replace") for name in fields[first::2]]
    return OutboxEntry(entry_id, version_of(entry_id), worker, list(zip(names, fields[first + 1 :: 2], strict=True)))
