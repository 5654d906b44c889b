"""Looking into a partition without touching it: for the API, the command line and the recorder.

Every question is one round trip and bounded, whatever the partition holds. An answer is true of one moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from streamq import scripts
from streamq.broker.crowd import Crowd, crowd_of
from streamq.gates import GateName
from streamq.keys import HANDBACK, LANES, Keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streamq.broker.wire import Wire

__all__ = [
    "BATCH", "Block", "Costs", "Counts", "DeadLetter", "Delayed", "Explanation", "Flight", "Inspection",
    "LaneCounts", "LaneEntry", "Located", "Pause", "SlowKey", "Unknown", "WorkerSeen",
]  # fmt: skip

BATCH = 128
"""The most jobs one call looks up."""

MOST_WORKERS = 1000
_SCAN_COUNT = 1000
_HINT_OFFSET = 20
"""Bins of hints begin at 2**-20; see `streamq.lanes`, which is above."""

BLOCKED_FROM = 1 << 48
"""Due times from here on, behind the year 9999, mean a block, see cycle.lua."""
_BLOCK_STEP = 1 << 42
_BLOCKS_MAX = 128
_BLOCKS = ("h:", "k:")
_BEFORE_ID = len("p00000000000000")
"""A letter, the priority and when it was enqueued in ms stand before the id of a job that waits at a gate, see cycle.lua."""


class Pause(NamedTuple):
    """Why a partition gives out no jobs."""

    until_ms: int
    """0 when only a person ends it."""
    reason: str
    by: str


class Block(NamedTuple):
    """Jobs that are not given out, while others are."""

    kind: str
    """handler, or key: that of a user."""
    name: str
    until_ms: int
    """0 when only a person ends it."""
    reason: str
    by: str


class Unknown(NamedTuple):
    """Jobs that the workers which met them could not run. They are offered again and again."""

    what: str
    """The name of a handler that no worker has, or `version` and a number."""
    since_ms: int


class WorkerSeen(NamedTuple):
    """A worker as Redis knows it."""

    name: str
    beat_age_ms: int
    held: int
    """Deliveries that it has not settled."""
    given_up: bool
    """Its deliveries are free to take; it must not go on under this name."""


class LaneCounts(NamedTuple):
    """What a lane holds. A wake-up entry that no worker has read yet counts as a waiting job."""

    waiting: int
    in_flight: int


class Counts(NamedTuple):
    """What a partition holds, at one moment."""

    now_ms: int
    lanes: Mapping[str, LaneCounts]
    waiting: int
    """Jobs in the lanes that no worker holds."""
    in_flight: int
    delayed: int
    next_due_ms: int | None
    dead: int
    jobs: int
    """Jobs that have not ended."""
    outbox: int
    outbox_age_ms: int
    """Age of the oldest entry that the recorder has not written; 0 when there is none."""
    oldest_wait_ms: int
    """How long the job that waits longest has been waiting; 0 when none waits."""
    pause: Pause | None
    workers: Sequence[WorkerSeen]
    blocked: int = 0
    """Jobs that wait for a block; not counted as delayed."""
    blocks: Sequence[Block] = ()
    unknown: Sequence[Unknown] = ()
    evicted: int = 0
    """Dead letters that were dropped because there were too many, ever."""
    evicted_ms: int = 0
    """When that last happened; 0: never."""
    counted: Mapping[str, int] = {}
    """What workers and schedules count, see `streamq.meters`."""
    most_idle_ms: int = 0
    """How long the delivery that was not renewed for longest has been so, of the oldest 32 of each lane."""
    parked: int = 0
    """Jobs that wait at gates; they count as waiting."""

    def unknown_for_ms(self) -> int:
        """Return for how long jobs have been waiting for a worker that knows them; 0: none do."""
        return max((self.now_ms - one.since_ms for one in self.unknown or ()), default=0)

    def overdue_ms(self) -> int:
        """Return how long ago the first delayed job was due; 0: none is due. Workers bring it into its lane."""
        return max(0, self.now_ms - self.next_due_ms) if self.next_due_ms is not None else 0

    def workers_alive(self, dead_after_ms: int) -> int:
        """Count the workers that gave a sign of life within the given time."""
        return sum(1 for worker in self.workers if not worker.given_up and worker.beat_age_ms <= dead_after_ms)


class LaneEntry(NamedTuple):
    """A job in a lane."""

    lane: str
    id: bytes
    job_id: str
    envelope: bytes
    enqueued_ms: int
    why: str = ""
    """What put it into a slow lane."""


class Flight(NamedTuple):
    """A delivery that is not settled."""

    lane: str
    id: bytes
    worker: str
    idle_ms: int
    """Since it was delivered or renewed."""
    deliveries: int

    @property
    def is_handed_back(self) -> bool:
        """Whether nobody runs it: it waits to be taken by the next worker that asks."""
        return self.worker == HANDBACK


class Delayed(NamedTuple):
    """A job that is due later."""

    job_id: str
    due_ms: int
    """0 when it waits for the end of a block, or at a gate."""
    lane: str
    enqueued_ms: int
    envelope: bytes


class DeadLetter(NamedTuple):
    """A job that will not be tried again."""

    id: bytes
    job_id: str
    envelope: bytes
    record: bytes


class Located(NamedTuple):
    """Where a live job is."""

    job_id: str
    state: str
    """queued, running or scheduled; one that waits for its next attempt is scheduled here."""
    lane: str
    envelope: bytes
    enqueued_ms: int
    entry_id: bytes = b""
    worker: str = ""
    idle_ms: int = 0
    due_ms: int = 0
    why: str = ""
    """What put it into a slow lane."""
    gate: GateName | None = None
    """Where it waits; None for a job that waits at no gate."""
    before: int = 0
    """How many others of the gate come first."""
    parked_ms: int = 0
    """Since when it has waited at gates, server time."""

    def state_at(self, attempt: int) -> str:
        """Return its state, given the attempt of its envelope: one that is scheduled for a later one is retrying."""
        return "retrying" if self.state == "scheduled" and attempt > 1 else self.state


class Explanation(NamedTuple):
    """Who holds a dedup key, and what a call with this key meets."""

    queue: str
    key: str
    state: str
    """free; queued, running or scheduled as the holder is; debounced or kept: it waits and takes new arguments; ended:
    only time holds the key; vanished: the holder is gone without a trace, and the next call takes the key over."""
    why: str
    """A sentence for people."""
    holder: str | None = None
    handler: str | None = None
    enqueued_ms: int = 0
    """Since when the holder has lived; 0 when it does not."""
    due_ms: int = 0
    worker: str = ""
    kept_behind: str | None = None
    left_ms: int | None = None
    """For how long time alone holds the key; None: until its holder lets go."""
    taken_over: int = 0
    """How many keys of this queue were taken over from holders that had vanished."""


class SlowKey(NamedTuple):
    """A user whose jobs are slow."""

    handler: str
    key: str
    mean_ms: int
    seen_ms: int
    """When a job of it last ended, server time."""


class Costs(NamedTuple):
    """What a partition knows of run times."""

    limit_ms: float | None
    """From which a job is slow, as the run times tell."""
    slow_keys: int
    runs: int
    """How many were counted; counts are halved every six hours."""
    slow_runs: int
    hint_limit: float | None
    """From which hint on jobs were slow."""
    slowest: Sequence[SlowKey]


class Inspection:
    """A view of one partition."""

    def __init__(self, wire: Wire, keys: Keys) -> None:
        self._wire = wire
        self.keys = keys

    async def counts(self) -> Counts:
        """Count what the partition holds. One round trip."""
        keys = self.keys
        reply = await self._wire.script(
            scripts.load("view"),
            [
                *keys.lanes,
                keys.delayed,
                keys.index,
                keys.outbox,
                keys.workers,
                keys.dead,
                keys.pause,
                keys.counts,
                keys.payload,
            ],
            [MOST_WORKERS],
        )
        return _counts(reply)

    async def crowd(self, *, handlers_only: bool = False) -> Crowd:
        """Look at who has a place at gates and who waits there; see `crowd_of`. One round trip."""
        return await crowd_of(self._wire, self.keys, handlers_only=handlers_only)

    async def tail(self, lane: str, after: bytes, *, limit: int, until_ms: int | None = None) -> list[LaneEntry]:
        """List the jobs of a lane behind an entry, oldest first, whether somebody holds them or not.

        Args:
            lane: One of `LANES`.
            after: Id of the last entry already known; `0-0` starts at the oldest.
            limit: The most to look at; wake-up entries count and are left out.
            until_ms: Only what came into the lane up to this moment of the server's.
        """
        end = "+" if until_ms is None else until_ms
        stream = self.keys.lanes[LANES.index(lane)]
        reply = await self._wire.call("XRANGE", stream, b"(" + after, end, "COUNT", limit)
        return list(_jobs_only(_lane_entry(lane, *entry) for entry in reply))

    async def newest(self, limit: int) -> list[LaneEntry]:
        """List the newest jobs of all lanes, newest first, whether somebody holds them or not."""
        commands = [("XREVRANGE", stream, "+", "-", "COUNT", limit) for stream in self.keys.lanes]
        replies = await self._wire.pipeline(commands)
        found = [_lane_entry(lane, *entry) for lane, reply in zip(LANES, replies, strict=True) for entry in reply]
        return sorted(_jobs_only(found), key=lambda entry: entry.enqueued_ms, reverse=True)[:limit]

    async def flights(
        self, *, limit: int, least_idle_ms: int = 0, start: Mapping[str, bytes] | None = None
    ) -> tuple[int, list[Flight]]:
        """List deliveries that are not settled, oldest entry first in each lane.

        Args:
            limit: The most per lane.
            least_idle_ms: Leave out what was delivered or renewed later than this long ago.
            start: Per lane the entry id to start at.

        Returns:
            The server's time in ms, and the deliveries.
        """
        starts = [(start or {}).get(lane, b"-") for lane in LANES]
        now_ms, lanes = await self._wire.script(
            scripts.load("flights"), self.keys.lanes, [limit, least_idle_ms, *starts]
        )
        return now_ms, [
            Flight(lane, row[0], row[1].decode(), row[2], row[3])
            for lane, rows in zip(LANES, lanes, strict=True)
            for row in rows
        ]

    async def entries(self, flights: Sequence[Flight]) -> list[LaneEntry | None]:
        """Look up the jobs of deliveries; None for one that was settled meanwhile. One round trip."""
        if not flights:
            return []
        commands = [("XRANGE", self.keys.lanes[LANES.index(flight.lane)], flight.id, flight.id) for flight in flights]
        replies = await self._wire.pipeline(commands)
        return [
            _lane_entry(flight.lane, *reply[0]) if reply else None
            for flight, reply in zip(flights, replies, strict=True)
        ]

    async def delayed(self, *, limit: int, offset: int = 0) -> list[Delayed]:
        """List jobs that are due later, the earliest first. Two round trips."""
        rows = await self._wire.call("ZRANGE", self.keys.delayed, offset, offset + limit - 1, "WITHSCORES")
        if not rows:
            return []
        return await self._waiting(rows[::2], rows[1::2])

    async def parked(self, *, limit: int, after: bytes = b"") -> tuple[list[Delayed], bytes]:
        """List jobs that wait at gates, gate by gate, in each by priority and the oldest first. Two round trips.

        Args:
            limit: How many places to look at, at least 1, those that are taken included.
            after: What the last call returned; empty to begin.

        Returns:
            The jobs, and where to go on; empty at the end.
        """
        start = b"(" + after if after else "-"
        members = await self._wire.call("ZRANGE", self.keys.gates, start, "+", "BYLEX", "LIMIT", 0, limit)
        places = [member.partition(b"\0")[2] for member in members]
        job_ids = [place[_BEFORE_ID:] for place in places if place[:1] == b"p"]
        jobs = await self._waiting(job_ids, [b"0"] * len(job_ids)) if job_ids else []
        return jobs, members[-1] if len(members) == limit else b""

    async def _waiting(self, job_ids: Sequence[bytes], due: Sequence[bytes]) -> list[Delayed]:
        payloads = await self._wire.call("HMGET", self.keys.payload, *job_ids)
        found = zip(job_ids, due, payloads, strict=True)
        return [_delayed(job_id, due_ms, payload) for job_id, due_ms, payload in found if payload]

    async def blocked(self, limit: int) -> list[str]:
        """List the ids of jobs that wait for the end of a block, the newest first. One round trip."""
        starts = [BLOCKED_FROM + number * _BLOCK_STEP for number in range(1, _BLOCKS_MAX + 1)]
        commands = [
            (
                "ZRANGE",
                self.keys.delayed,
                f"({start + _BLOCK_STEP}",
                start,
                "BYSCORE",
                "REV",
                "LIMIT",
                0,
                limit,
                "WITHSCORES",
            )
            for start in starts
        ]
        replies = await self._wire.pipeline(commands)
        found = [
            (float(reply[at + 1]) - start, _text(reply[at]))
            for start, reply in zip(starts, replies, strict=True)
            for at in range(0, len(reply), 2)
        ]
        return [job_id for _, job_id in sorted(found, reverse=True)[:limit]]

    async def costs(self, limit: int) -> Costs:
        """Tell what is known of run times, with so many of the slowest users. A round trip for each 1000 slow ones."""
        flat, slow_keys = await self._wire.pipeline([("HGETALL", self.keys.times), ("HLEN", self.keys.cost)])
        times = {_text(flat[at]): _text(flat[at + 1]) for at in range(0, len(flat), 2)}
        return _costs(times, slow_keys, await self._slowest(limit) if limit else [])

    async def _slowest(self, limit: int) -> list[SlowKey]:
        slowest: list[SlowKey] = []
        cursor = b"0"
        while True:
            cursor, flat = await self._wire.call("HSCAN", self.keys.cost, cursor, "COUNT", _SCAN_COUNT)
            slowest += [_slow_key(flat[at], flat[at + 1]) for at in range(0, len(flat), 2)]
            slowest = sorted(set(slowest), key=lambda each: (-each.mean_ms, each.key))[:limit]
            if cursor == b"0":
                return slowest

    async def dead(self, limit: int) -> list[DeadLetter]:
        """List the newest dead letters, newest first."""
        reply = await self._wire.call("XREVRANGE", self.keys.dead, "+", "-", "COUNT", limit)
        letters = ((entry_id, _pairs(fields)) for entry_id, fields in reply)
        return [
            DeadLetter(entry_id, _text(fields.get(b"j")), fields.get(b"d", b""), fields.get(b"r", b""))
            for entry_id, fields in letters
        ]

    async def locate(self, job_id: str) -> Located | None:
        """Find a live job; None when it has ended or never was."""
        return (await self.locate_many([job_id])).get(job_id)

    async def locate_many(self, job_ids: Sequence[str]) -> dict[str, Located]:
        """Find live jobs by their ids; those that are not live are left out. One round trip for each `BATCH`."""
        keys, found = self.keys, dict[str, Located]()
        for first in range(0, len(job_ids), BATCH):
            batch = job_ids[first : first + BATCH]
            # A surrogate that came in through a URL has no UTF-8 form; no job can have such an id.
            names = [job_id.encode("utf-8", "replace") for job_id in batch]
            reply = await self._wire.script(
                scripts.load("locate"),
                [*keys.lanes, keys.delayed, keys.payload, keys.index, keys.gates, keys.places],
                names,
            )
            for job_id, row in zip(batch, reply, strict=True):
                if place := _located(job_id, row):
                    found[job_id] = place
        return found

    async def notes(self, job_id: str) -> dict[str, Any]:
        """Return what the handler of a running job has told, as `Notes.as_record` has it; empty if nothing."""
        raw = await self._wire.call("GET", self.keys.notes(job_id).encode("utf-8", "replace"))
        return dict(msgspec.json.decode(raw)) if raw else {}

    async def stacks(self, consumer: str) -> dict[str, Any] | None:
        """Return where everything in a worker stood when it was last asked, within the hour: `at_ms`, `running`, `stacks`."""
        raw = await self._wire.call("GET", self.keys.stacks(consumer).encode("utf-8", "replace"))
        return dict(msgspec.json.decode(raw)) if raw else None

    async def forget_stacks(self, consumer: str) -> None:
        """Forget them, so that what is found next is new."""
        await self._wire.call("DEL", self.keys.stacks(consumer).encode("utf-8", "replace"))

    async def holders(self, dedup_keys: Sequence[str]) -> list[str]:
        """Return the ids of the jobs that hold one of these dedup keys; one may have ended if its key has a window."""
        names = [self.keys.dedup(key).encode("utf-8", "replace") for key in dedup_keys]
        return [_text(held) for held in await self._wire.call("MGET", *names) if held is not None] if names else []

    async def explain(self, dedup_key: str) -> Explanation:
        """Say who holds a dedup key, and so what a call with it comes to. Two round trips."""
        name = self.keys.dedup(dedup_key).encode("utf-8", "replace")
        held, ttl_ms, taken_over = await self._wire.pipeline(
            [("GET", name), ("PTTL", name), ("HGET", self.keys.counts, "dedup_taken_over")]
        )
        known = Explanation(self.keys.queue, dedup_key, "free", "nobody holds the key: a call makes a new job")
        known = known._replace(taken_over=int(taken_over or 0), left_ms=ttl_ms if ttl_ms > 0 else None)
        if held is None:
            return known
        holder = _text(held)
        known = known._replace(holder=holder)
        token = await self._wire.call("HGET", self.keys.index, held)
        place = await self.locate(holder) if token is not None else None
        return _gone(known) if place is None else _living(known, place, _text(token))


_WHY = {
    "queued": "the holder waits for a worker: a call returns it",
    "running": "the holder runs: a call returns it, unless its rule is until started or keep last",
    "scheduled": "the holder is due later: a call returns it",
    "debounced": "the holder waits for calls to stop: a call changes its arguments and puts it off",
    "kept": "the holder runs after the job before it: a call changes its arguments",
    "ended": "the holder has ended, and its window, throttle or period has not: a call returns it",
    "vanished": "the holder no longer exists: the next call takes the key over",
}


def _gone(known: Explanation) -> Explanation:
    state = "ended" if known.left_ms is not None else "vanished"
    return known._replace(state=state, why=_WHY[state])


def _living(known: Explanation, place: Located, token: str) -> Explanation:
    state = {"z~": "debounced", "z>": "kept"}.get(token[:2], place.state)
    try:
        handler = msgspec.json.decode(place.envelope, type=dict[str, Any]).get("h")
    except ValueError:  # an envelope that cannot be read is a holder like any other
        handler = None
    why = _WHY[state]
    if place.gate is not None:
        why = f"the holder waits at a gate, {place.gate}, with {place.before} before it: a call returns it"
    if known.left_ms is not None:
        why = f"the key is throttled: a call returns the holder, which is {state}"
    return known._replace(
        state=state, why=why, handler=handler, enqueued_ms=place.enqueued_ms, due_ms=place.due_ms, worker=place.worker,
        kept_behind=token[2:] if state == "kept" else None,
    )  # fmt: skip


def _counts(reply: list[Any]) -> Counts:
    now_ms, delayed, due, jobs, outbox, dead, rules, beats, rows, unrecorded, blocked, raw, idle, parked = reply
    counted = {_text(name): int(float(number)) for name, number in _pairs(raw).items()}
    stops = _stops(rules, now_ms)
    lanes, held, oldest_ms = dict[str, LaneCounts](), dict[str, int](), list[int]()
    for lane, (length, consumers, oldest) in zip(LANES, _threes(rows), strict=True):
        pairs = [(_text(name), count) for name, count in zip(consumers[::2], consumers[1::2], strict=True)]
        for name, count in pairs:
            held[name] = held.get(name, 0) + count
        flying = sum(count for name, count in pairs if name != HANDBACK)
        lanes[lane] = LaneCounts(max(0, length - flying), flying)
        oldest_ms += [int(oldest.partition(b"-")[0])] if oldest else []
    in_flight = sum(lane.in_flight for lane in lanes.values())
    # The lanes also hold wake-up entries; the index holds jobs only.
    waiting = max(0, jobs - delayed - blocked - in_flight)
    outbox_age_ms = max(0, now_ms - int(unrecorded.partition(b"-")[0])) if unrecorded else 0
    oldest_wait_ms = max(0, now_ms - min(oldest_ms)) if oldest_ms and waiting else 0
    workers = [
        _worker(now_ms, _text(name), float(beat), held) for name, beat in zip(beats[::2], beats[1::2], strict=True)
    ]
    return Counts(
        now_ms, lanes, waiting, in_flight, delayed, int(float(due)) if due else None, dead, jobs, outbox, outbox_age_ms,
        oldest_wait_ms, next((stop.pause for stop in stops if stop.what == "queue"), None),
        [worker for worker in workers if worker.name != HANDBACK], blocked,
        [_block(stop) for stop in stops if stop.what[:2] in _BLOCKS],
        [Unknown(stop.what[1:], stop.since_ms) for stop in stops if stop.what[:1] == "?"],
        counted.get("evicted", 0), counted.get("evicted_at", 0), counted, idle, parked,
    )  # fmt: skip


def _worker(now_ms: int, name: str, beat_ms: float, held: Mapping[str, int]) -> WorkerSeen:
    return WorkerSeen(name, max(0, now_ms - int(beat_ms)), held.get(name, 0), beat_ms <= 0)


class _Stop(NamedTuple):
    """A field of `pause`, decoded."""

    what: str
    pause: Pause
    since_ms: int


def _stops(rules: list[bytes], now_ms: int) -> list[_Stop]:
    """Tell what is stopped, until when, why and by whom, and for what no worker knows: since when."""
    found: list[_Stop] = []
    for name, raw in _pairs(rules).items():
        until, _, said = raw.partition(b"|")
        until_ms = int(until) if until.isdigit() else 0
        if 0 < until_ms <= now_ms:
            continue
        try:
            why = msgspec.json.decode(said[said.find(b"{") :], type=dict[str, Any])
        except ValueError:  # a pause holds whatever its reason looks like
            why = {}
        pause = Pause(until_ms, str(why.get("reason") or ""), str(why.get("by") or ""))
        found.append(_Stop(_text(name), pause, int(why.get("since") or 0)))
    return sorted(found)


def _block(stop: _Stop) -> Block:
    return Block("handler" if stop.what[0] == "h" else "key", stop.what[2:], *stop.pause)


def _lane_entry(lane: str, entry_id: bytes, raw: list[bytes]) -> LaneEntry | None:
    fields = _pairs(raw)
    if b"j" not in fields:
        return None
    enqueued = fields.get(b"q") or entry_id.partition(b"-")[0]
    return LaneEntry(lane, entry_id, _text(fields[b"j"]), fields.get(b"d", b""), int(enqueued), _text(fields.get(b"c")))


def _costs(times: Mapping[str, str], slow_keys: int, slowest: Sequence[SlowKey]) -> Costs:
    counts = {int(name[1:]): int(count) for name, count in times.items() if name[0] == "t"}
    limit_ms = float(times["limit"]) if "limit" in times else None
    slow_runs = 0
    if limit_ms is not None:
        slow_runs = sum(count for place, count in counts.items() if 2 ** ((place + 1) / 4) > limit_ms)
    hint_limit = 2.0 ** (int(times["cut"]) - _HINT_OFFSET) if "cut" in times else None
    return Costs(limit_ms, slow_keys, sum(counts.values()), slow_runs, hint_limit, slowest)


def _slow_key(field: bytes, value: bytes) -> SlowKey:
    handler, _, key = _text(field).partition("|")
    mean, _, seen = value.partition(b"|")
    return SlowKey(handler, key, int(mean), int(seen))


def _delayed(job_id: bytes, due: bytes, payload: bytes) -> Delayed:
    digit, enqueued, envelope = payload.split(b"|", 2)
    due_ms = int(float(due))
    return Delayed(
        _text(job_id), due_ms if due_ms < BLOCKED_FROM else 0, LANES[int(digit) - 1], int(enqueued), envelope
    )


def _located(job_id: str, row: list[Any]) -> Located | None:
    if not row:
        return None
    if row[0] == 0:
        return _put_by(job_id, row) if row[2] else None
    digit, entry_id, fields, consumer, idle_ms = cast("tuple[int, bytes, list[bytes], bytes, int]", tuple(row))
    entry = _lane_entry(LANES[digit - 1], entry_id, fields)
    if entry is None:
        return None
    worker = _text(consumer)
    running = bool(worker) and worker != HANDBACK
    return Located(
        job_id, "running" if running else "queued", entry.lane, entry.envelope, entry.enqueued_ms, entry_id,
        worker if running else "", idle_ms if running else 0, why=entry.why,
    )  # fmt: skip


def _put_by(job_id: str, row: list[Any]) -> Located:
    """Say of a job that is in no lane what it waits for: its time, or a gate."""
    due, payload = row[1], row[2]
    place = _delayed(job_id.encode("utf-8", "replace"), due or b"0", payload)
    if due:
        return Located(job_id, "scheduled", place.lane, place.envelope, place.enqueued_ms, due_ms=place.due_ms)
    gate, before, since = row[3:]
    return Located(
        job_id, "queued", place.lane, place.envelope, place.enqueued_ms,
        gate=GateName.parse(_text(gate)), before=before, parked_ms=int(since or place.enqueued_ms),
    )  # fmt: skip


def _jobs_only(entries: Iterable[LaneEntry | None]) -> Iterator[LaneEntry]:
    return (entry for entry in entries if entry is not None)


def _pairs(fields: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _threes(values: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
    return zip(values[::3], values[1::3], values[2::3], strict=True)


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
