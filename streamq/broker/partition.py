"""One partition of one queue, seen by those who move jobs: each method is one script, one round trip.

What the scripts promise stands on top of each `.lua` file. Here their words become values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from streamq.broker.wire import Fault, ServerRefused, Wire, Words, packed
from streamq.errors import BrokerUnavailable, DividedOtherwise, QueueFull
from streamq.job import Delivery
from streamq.keys import GROUP, LANES, Keys, queue_of
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BATCH",
    "BATCH_BYTES",
    "Added",
    "CallRepeated",
    "CycleReply",
    "NewJob",
    "Parcel",
    "Partition",
    "Read",
    "Report",
    "Unregistered",
]

BATCH = 128
"""The most rows of a section in one script call; it bounds how long Redis is busy with one."""
BATCH_BYTES = 1 << 20
"""About the most that a call carries of large jobs: a MB takes a script some 2 ms, since Lua looks at each byte."""

_PRODUCER_KEPT_MS = 86_400_000
_NOTES_KEPT_MS = 86_400_000
_STACKS_KEPT_MS = 3_600_000

MOST_SLOW_KEYS = 100_000
"""Slow keys that are remembered; beyond that the least slow ones go."""

Arg = str | bytes | int | float

Read = tuple[int, int, int]
"""A lane's digit, the most jobs to read from it, and the most when the other lanes left room."""


class Unregistered(Exception):
    """Redis does not know this worker, or gave it up: it must drop what it holds and register under a new name."""


class CallRepeated(Exception):
    """The numbered call was already accepted; nothing was added. Carries what the producer's record says."""

    def __init__(self, last: int, cursor: str, results: str) -> None:
        super().__init__(f"call {last} was accepted already")
        self.last = last
        self.cursor = cursor
        self.results = results


class NewJob(msgspec.Struct):
    """A job on its way into a partition."""

    id: str
    digit: int
    envelope: bytes
    delay_ms: int = 0
    dedup: str | None = None
    scope: str = ""
    """`Dedup.word`."""
    at_ms: int = 0
    """When it is due, server time; instead of `delay_ms`."""
    whose: str = ""
    """The bin of its cost hint as a character (`-`: none) and its field in the table of costs; empty: neither."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Jobs of one call, packed while the call before it is under way."""

    number: int
    keys: Words
    rows: Words


@dataclass(slots=True)
class Added:
    """What became of the jobs of one `add` call, in the order given.

    Each result is `n` (new), `p` (present: this id is known), `d` and the id of the job that holds the dedup key, or `r`
    and the id of the waiting job that got the arguments.
    """

    results: Sequence[str]
    server_ms: int
    kept: str = ""
    """What Redis keeps of the producer behind the number of this call, as `append` wants it; empty: not known."""


@dataclass(slots=True)
class Report:
    """What a worker has to say in its next cycle: rows for the sections of `cycle.lua`."""

    settled: list[Arg] = field(default_factory=list)
    dedups: list[tuple[bytes, str, int]] = field(default_factory=list)
    """Job id, dedup key, window ms; -1: its TTL goes on."""
    results: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    """Job id, ttl ms, result."""
    letters: list[Arg] = field(default_factory=list)
    requeued: list[Arg] = field(default_factory=list)
    renewed: list[Arg] = field(default_factory=list)
    markers: list[Arg] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say but that the worker lives."""
        return not (self.settled or self.requeued or self.renewed or self.markers)


@dataclass(slots=True)
class CycleReply:
    """What a cycle brought."""

    server_ms: int
    next_due_ms: int
    """When the next delayed job is due or the next block ends, server time; -1: neither."""
    refused: list[bytes]
    """Ids of jobs whose outcome was not taken: they are somebody else's now."""
    lost: list[bytes]
    """Ids of running jobs that are somebody else's now."""
    deliveries: list[Delivery]
    markers: list[Arg]
    """Rows for the `markers` section of the next report."""
    control: list[tuple[bytes, dict[bytes, bytes]]]
    stopped: list[bytes]
    """What may not start: `queue`, `h:` and a handler, `k:` and a user key."""
    past_us: int
    """Microseconds of the server's time beyond `server_ms`."""

    @property
    def due_in_s(self) -> float:
        """How long after the reply the next delayed job is due; of use where there is one."""
        return (self.next_due_ms - self.server_ms) / 1000 - self.past_us / 1_000_000

    @property
    def is_paused(self) -> bool:
        """Whether nothing of this queue may start."""
        return b"queue" in self.stopped


class Partition:
    """The scripts of one partition, over one connection."""

    def __init__(self, keys: Keys, wire: Wire) -> None:
        self.keys = keys
        self._wire = wire
        self._cycle = load("cycle")
        self._add = load("add")
        self._append = load("append")
        self._add_keys = (
            *keys.lanes, keys.delayed, keys.payload, keys.index, keys.producers, keys.counts, keys.cost,
            keys.times, keys.gates, keys.places, keys.fair,
        )  # fmt: skip
        self._append_keys = [[lane, keys.index, keys.producers, keys.counts] for lane in ("", *keys.lanes)]
        """By the digit of the lane."""
        self._cost = keys.cost
        self._dedup_prefix = keys.dedup("")
        self._cycle_keys = (
            *keys.lanes, keys.delayed, keys.payload, keys.index, keys.outbox, keys.workers, keys.dead, keys.control,
            keys.pause, keys.counts, keys.cost, keys.gates, keys.places, keys.openings, keys.fair,
        )  # fmt: skip

    @property
    def wire(self) -> Wire:
        """The connection, for what no script does."""
        return self._wire

    async def agree(self, count: int, *, looks: bool = False) -> None:
        """See that the queue of this partition, its first one, has so many, and store that if nothing was said before.

        Args:
            count: How many there are by the settings.
            looks: Store nothing.

        Raises:
            DividedOtherwise: It has another number.
            BrokerUnavailable: Whether it has is not known.
        """
        stored = await self._wire.script(load("agree"), [self.keys.counts, self.keys.workers], [count, int(not looks)])
        if stored != count:
            name = queue_of(self.keys.queue)
            raise DividedOtherwise(
                f"queue {name!r} has {_partitions(stored)}, and the settings say {_partitions(count)}",
                hint=f"set STREAMQ_PARTITIONS={name}={stored}, or when it is empty: streamq queues divide {name} {count}",
            )

    async def divided(self) -> int:
        """Return how many partitions are stored of the queue whose first one this is."""
        return int(await self._wire.call("HGET", self.keys.counts, "partitions") or 1)

    async def divide(self, count: int) -> None:
        """Store how many partitions the queue of this partition, its first one, has from now on."""
        await self._wire.call("HSET", self.keys.counts, "partitions", count)

    # Producing.

    async def add(  # noqa: PLR0913 - the arguments of one script
        self,
        producer: str,
        number: int,
        jobs: Sequence[NewJob] | Parcel,
        *,
        cursor: str = "",
        keep_ms: int = _PRODUCER_KEPT_MS,
        max_depth: int = 0,
        in_order: bool = False,
    ) -> Added:
        """Put jobs into the partition, all or none.

        Args:
            producer: Who calls; its calls are numbered, and a number is accepted once.
            number: From 1, rising. After `BrokerUnavailable`, repeat the call with the same number.
            jobs: At most `BATCH`, or as `pack` gave them.
            cursor: Stored with the call, and returned when it is repeated.
            keep_ms: For how long the producer's number is remembered.
            max_depth: The most jobs that the partition may hold; 0: any number.
            in_order: Accept the call only right after the one before it.

        Raises:
            CallRepeated: This number, or a later one, was accepted before. Nothing was added now.
            QueueFull: `max_depth` would be passed, or Redis is out of memory. Nothing was added.
            BrokerUnavailable: Unknown whether it was added.
        """
        head: list[Arg] = [producer, number, keep_ms, cursor, max_depth, "1" if in_order else "0"]
        if isinstance(jobs, Parcel):
            reply = await self._wire.packed_script(self._add, jobs.keys, packed(head), jobs.rows)
            return self._added(reply, jobs.number, max_depth)
        keys, rows = self._rows(jobs)
        reply = await self._wire.script(self._add, keys, head + rows)
        added = self._added(reply, len(jobs), max_depth)
        if not cursor and type(added.results) is str:
            added.kept = f"|{added.server_ms + keep_ms}|0|"
        return added

    def pack(self, jobs: Sequence[NewJob]) -> Parcel:
        """Make jobs ready for a later `add`, so that only little is left to be done then."""
        keys, rows = self._rows(jobs)
        return Parcel(len(jobs), packed(keys), packed(rows))

    def _rows(self, jobs: Sequence[NewJob]) -> tuple[list[str], list[Arg]]:
        """Write what `add` is told of the jobs, and all keys that it needs for that."""
        dedups, ways = _ways(jobs)
        keys = [*self._add_keys, *[self._dedup_prefix + dedup for dedup in dedups]]
        common = ways[0] if ways and ways.count(ways[0]) == len(ways) else ""
        rows: list[Arg] = [len(jobs), common]
        if common:
            for job in jobs:
                rows += (job.id, job.envelope)
        else:
            for job, way in zip(jobs, ways, strict=True):
                rows += (job.id, way, job.envelope)
        whose = [job.whose for job in jobs]
        if any(whose):
            rows += whose
        return keys, rows

    async def append(self, producer: str, last: int, number: int, kept: str, job: NewJob) -> bool:
        """Put a plain job into its lane, by a shorter way than `add`: for now, without dedup key, hint and gates.

        Args:
            producer: Who calls.
            last: The number of its last accepted call.
            number: Of this call, higher than that.
            kept: As the last `Added` has it; until when the producer is remembered stays as it is.
            job: The job.

        Returns:
            Whether it was added. If not, make the same call by `add`: the number was used, the id is known, its key is known
            as slow, or Redis keeps something else of the producer.

        Raises:
            QueueFull: Redis is out of memory. Nothing was added.
            BrokerUnavailable: Unknown whether it was added. Make the same call by `add`.
        """
        keys = self._append_keys[job.digit]
        args: list[Arg] = [producer, f"{last}{kept}", f"{number}{kept}", job.digit, job.id, job.envelope]
        if job.whose:
            keys, args = [*keys, self._cost], [*args, job.whose[1:]]
        added: int = await self._wire.script(self._append, keys, args, is_short=True)
        return added == 1

    def _added(self, reply: list[Any], count: int, max_depth: int) -> Added:
        verdict = reply[0]
        if verdict == b"OK":
            results = reply[2].decode()
            return Added(results.split("\n") if results else "n" * count, reply[1])
        if verdict == b"FULL":
            raise QueueFull(
                f"queue {self.keys.queue!r} holds {reply[2]} jobs and may hold {max_depth}",
                hint="add workers, or raise max_depth",
                depth=reply[2],
                max_depth=max_depth,
            )
        if verdict == b"REPEAT":
            raise CallRepeated(reply[2], reply[3].decode(), reply[4].decode())
        raise ServerRefused(f"the producer's call does not follow its last one, {reply[2]}", Fault.EXIT)

    # Working.

    async def register(self, consumer: str) -> tuple[int, bytes]:
        """Join under a name that was never used. Returns the server's time in ms and the newest control entry."""
        keys = (*self.keys.lanes, self.keys.outbox, self.keys.workers, self.keys.control)
        reply = await self._wire.script(load("register"), keys, [consumer])
        if reply[0] == b"TAKEN":
            raise Unregistered
        return reply[1], reply[2]

    async def cycle(  # noqa: PLR0913 - the arguments of one script
        self,
        consumer: str,
        report: Report,
        *,
        want: int,
        reads: Sequence[Read],
        dead_after_ms: int,
        control_cursor: bytes,
        limits: tuple[int, int],
        now: float,
    ) -> CycleReply:
        """Say everything and get everything, in one round trip.

        Args:
            consumer: This worker's name here.
            report: What happened since the last cycle.
            want: How many jobs to bring at most, 0 to `BATCH`.
            reads: Where to read, in that order; what one slow lane gives counts for all of them.
            dead_after_ms: How old a worker's beat may be before its jobs are taken over; -1: take over nobody's.
            control_cursor: The newest control entry seen.
            limits: The most entries of the outbox (0: keep none) and of the dead letters.
            now: The event loop's time, stamped on what is delivered.

        Raises:
            Unregistered: The worker was given up. Nothing of the report was written.
            BrokerUnavailable: Unknown whether anything was written; repeating the report is safe.
        """
        keys = [*self._cycle_keys]
        args: list[Arg] = [consumer, want, dead_after_ms, control_cursor, *limits]
        args.append(len(report.settled) // 3)
        args += report.settled
        args.append(len(report.dedups))
        for job_id, dedup, window_ms in report.dedups:
            keys.append(self.keys.dedup(dedup))
            args += (job_id, len(keys), window_ms)
        args.append(len(report.results))
        for job_id, ttl_ms, result in report.results:
            keys.append(self.keys.result(job_id.decode()))
            args += (job_id, len(keys), ttl_ms, result)
        for rows, width in ((report.letters, 3), (report.requeued, 7), (report.renewed, 2), (report.markers, 2)):
            args.append(len(rows) // width)
            args += rows
        args.append(len(reads))
        for read in reads:
            args += read
        reply = await self._wire.script(self._cycle, keys, args)
        if reply[0] == b"FENCED":
            raise Unregistered
        return _cycle_reply(reply, now)

    async def learn(
        self,
        limit_ms: float | None = None,
        cut: int | None = None,
        *,
        counts: Sequence[Arg] = (),
        runs: Sequence[Arg] = (),
        most: int = MOST_SLOW_KEYS,
    ) -> dict[str, str]:
        """Add what was seen of run times to what is known.

        Args:
            limit_ms: From which a run is slow; None: not known.
            cut: The bin of the hint from which jobs are slow; None: not known.
            counts: Rows of a field of `times` and how many more, at most `BATCH`.
            runs: Rows of a field of `cost` and the ms that a run took, at most `BATCH`.
            most: How many slow keys to keep.

        Returns:
            All that is counted, by field.

        Raises:
            QueueFull: Redis is out of memory. Nothing was learned.
        """
        told: list[Arg] = ["" if limit_ms is None else round(limit_ms, 1), "" if cut is None else cut, most]
        told += (len(counts) // 2, *counts, len(runs) // 2, *runs)
        flat = await self._wire.script(load("learn"), [self.keys.cost, self.keys.times], told)
        return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}

    async def forget_costs(self) -> None:
        """Forget what was learned of run times: nobody is slow."""
        await self._wire.call("DEL", self.keys.cost, self.keys.times)

    async def wait(
        self, consumer: str, count: int, block_ms: int, now_of: Any, *, lanes: int = len(LANES)
    ) -> tuple[list[Delivery], list[Arg], list[bytes]]:
        """Block until one of the first so many lanes has something, and read it.

        Returns:
            Deliveries and rows for the `markers` section, both empty when the time ran out; and what is stopped, as it
            stood after the delivery: who was waiting when the queue was paused must not start what came later.

        Raises:
            Unregistered: The group is gone.
            BrokerUnavailable: A delivery may have been made that never arrived; see `strays`.
        """
        command: tuple[Arg, ...] = (
            "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "BLOCK", block_ms, "STREAMS",
            *self.keys.lanes[:lanes], *(">",) * lanes,
        )  # fmt: skip
        try:
            reply, stopped = await self._wire.pipeline((command, ("HKEYS", self.keys.pause)), extra_s=block_ms / 1000)
        except ServerRefused as error:
            if error.fault is Fault.REJOIN:
                raise Unregistered from error
            raise
        deliveries: list[Delivery] = []
        markers: list[Arg] = []
        now = now_of()
        for stream, entries in reply or ():
            digit = self.keys.lanes.index(stream.decode()) + 1
            _deliver(digit, entries, now, deliveries, markers)
        return deliveries, markers, stopped

    async def listen(self, after: bytes, block_ms: int) -> None:
        """Block until an operator says something later than the control entry `after`, or the time has run out."""
        await self._wire.call(
            "XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", self.keys.control, after, extra_s=block_ms / 1000
        )

    async def release(self, consumer: str, deliveries: Sequence[Delivery]) -> int:
        """Hand deliveries back unrun; no attempt and no crash is counted. Returns how many were still ours."""
        keys = (*self.keys.lanes, self.keys.index, self.keys.workers)
        released = 0
        for start in range(0, len(deliveries), BATCH):
            args: list[Arg] = [consumer]
            for delivery in deliveries[start : start + BATCH]:
                args += (delivery.token, delivery.id)
            released += await self._wire.script(load("release"), keys, args)
        return released

    async def strays(self, consumer: str, held: Sequence[bytes]) -> int:
        """Hand back what Redis believes this worker has and it has not; `held` are the tokens it has."""
        keys = (*self.keys.lanes, self.keys.workers)
        look = len(held) + BATCH
        handed, more = await self._wire.script(load("strays"), keys, [consumer, look, *held])
        while more and handed:
            again, more = await self._wire.script(load("strays"), keys, [consumer, look, *held])
            handed += again
            if not again:
                break
        return int(handed)

    async def note(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep what handlers tell of their jobs, for a day at most.

        Args:
            rows: Job id, and the JSON text; an empty one deletes it.
        """
        names = [(self.keys.notes(job_id.decode()), text) for job_id, text in rows]
        await self._wire.pipeline(
            [("SET", name, text, "PX", _NOTES_KEPT_MS) if text else ("DEL", name) for name, text in names]
        )

    async def keep_stacks(self, consumer: str, told: bytes) -> None:
        """Keep where everything in a worker stands, for an hour."""
        await self._wire.call("SET", self.keys.stacks(consumer), told, "PX", _STACKS_KEPT_MS)

    async def leave(self, consumer: str) -> None:
        """Take the worker off the books; what it still holds is handed back first."""
        keys = (*self.keys.lanes, self.keys.workers)
        while not await self._wire.script(load("leave"), keys, [consumer, BATCH]):
            pass

    async def sweep(self, digit: int, *, lease_ms: int, cursor: bytes) -> tuple[bytes, int, int]:
        """Hand back what nobody renewed within the lease, in one lane.

        Returns:
            The cursor for the next call (`0-0`: the lane is done), how many were handed back, and how many entries were
            pending but no longer exist.
        """
        keys = (self.keys.lanes[digit - 1], self.keys.index, self.keys.workers, self.keys.lanes[0])
        following, handed, vanished = await self._wire.script(load("sweep"), keys, [digit, lease_ms, cursor, BATCH])
        return following, handed, len(vanished)

    async def count(self, new: Mapping[str, int]) -> None:
        """Add numbers to what is counted. After an error some may be added and some not."""
        await self._wire.pipeline([("HINCRBY", self.keys.counts, name, number) for name, number in new.items()])

    async def forgot_before(self) -> int:
        """Tell up to when the server may have forgotten what happened, server ms; 0: it has forgotten nothing.

        A replica that took over lacks what had not reached it, and a server that was started anew the last second of its log.
        Both have another replication id then. A service that does not tell its id is believed to forget nothing.
        """
        name = self.keys.lineage
        # The key first: in a cluster it leads to the server that is asked about itself.
        written, told = await self._wire.pipeline([("GET", name), ("INFO", "replication")])
        here = told.partition(b"master_replid:")[2].partition(b"\n")[0].strip()
        known, _, since = (written or b"").partition(b"|")
        if not here or known == here:
            return int(since or 0)
        return int(await self._wire.script(load("lineage"), [name], [here]))

    # Watching over workers.

    async def beat(self, consumers: Sequence[str]) -> list[str]:
        """Say that workers live. Returns those that were given up."""
        _, fenced = await self._wire.script(load("beat"), [self.keys.workers], list(consumers))
        return [name.decode() for name in fenced]

    async def renew(self, consumer: str) -> int:
        """Keep every delivery of a worker whose loop is blocked. Returns how many were kept."""
        keys = (*self.keys.lanes, self.keys.workers)
        return int(await self._wire.script(load("renew"), keys, [consumer, 1000]))

    async def bury(self, consumers: Sequence[str]) -> int:
        """Say that somebody saw these workers die: what they held is free at once."""
        keys = (self.keys.lanes[0], self.keys.workers)
        return int(await self._wire.script(load("bury"), keys, list(consumers)))


def _ways(jobs: Sequence[NewJob]) -> tuple[dict[str, int], list[str]]:
    """Return the dedup keys of jobs, each with its place among them, from 1; and how each job goes in, as `add.lua` has it."""
    dedups: dict[str, int] = {}
    ways: list[str] = []
    last, way = None, ""
    for job in jobs:
        place: int | str = 0
        if job.dedup is not None:
            place = dedups.get(job.dedup, "+")
            if place == "+":
                dedups[job.dedup] = len(dedups) + 1
        parts = (job.digit, job.at_ms, job.delay_ms, place, job.scope)
        if parts != last:
            delay = f"@{job.at_ms}" if job.at_ms else job.delay_ms
            way = f"{job.digit}|{delay}|{place}|{job.scope}" if delay or place else str(job.digit)
            last = parts
        ways.append(way)
    return dedups, ways


def _partitions(count: int) -> str:
    return f"{count} partition{'s' if count != 1 else ''}"


def _cycle_reply(reply: list[Any], now: float) -> CycleReply:
    _, server_ms, next_due_ms, refused, lost, claimed, read, news, stopped, past_us = reply
    deliveries: list[Delivery] = []
    markers: list[Arg] = []
    for digit, entry, token, number, crashes, fields in claimed:
        delivery = _delivery(digit, entry, token, fields, now)
        delivery.delivery, delivery.crashes = number, crashes
        deliveries.append(delivery)
    for i in range(0, len(read), 2):
        _deliver(read[i], read[i + 1], now, deliveries, markers)
    control = [(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in news]
    return CycleReply(server_ms, next_due_ms, refused, lost, deliveries, markers, control, stopped, past_us)


def _deliver(digit: int, entries: list[Any], now: float, deliveries: list[Delivery], markers: list[Arg]) -> None:
    prefix = b"%d" % digit
    for entry, fields in entries:
        if len(fields) == 4 and fields[0] == b"j":
            ms = int(entry[: entry.index(b"-")])
            deliveries.append(Delivery(digit, prefix + entry, fields[1], fields[3], ms, now))
        elif fields[0] == b"j":
            deliveries.append(_delivery(digit, entry, prefix + entry, fields, now))
        else:
            markers += (digit, entry)


def _delivery(digit: int, entry: bytes, token: bytes, fields: list[bytes], now: float) -> Delivery:
    entered_ms = int(entry[: entry.index(b"-")])
    delivery = Delivery(digit, token, fields[1], fields[3], entered_ms, now)
    if len(fields) > 4:
        more = dict(zip(fields[4::2], fields[5::2], strict=True))
        delivery.enqueued_ms = int(more.get(b"q", entered_ms))
        delivery.why = more.get(b"c", b"").decode()
    return delivery


def unavailable(error: BaseException) -> bool:
    """Tell whether an error means that Redis may be back later."""
    return isinstance(error, BrokerUnavailable | OSError)
