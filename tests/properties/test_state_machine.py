"""A model of a partition and the real one, side by side: after every step a job is in exactly one place.

The rules say what producers, workers, parents and operators do, in any order, also what they do twice because a reply
was lost, and what a worker says that was thought to be dead. The model predicts each reply. A failing run is printed
as a program of rule calls; make an ordinary test of it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import redis
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streamq.broker.orders import Orders
from streamq.broker.partition import CallRepeated, NewJob, Partition, Read, Report, Unregistered
from streamq.broker.server import Broker
from streamq.codec import decode_envelope, encode_envelope
from streamq.errors import BrokerUnavailable, JobNotFound
from streamq.job import (
    Cancelled,
    Completed,
    Dead,
    Delivery,
    Envelope,
    Expired,
    Failure,
    Outcome,
    Parked,
    Retrying,
    Snoozed,
)
from streamq.keys import HANDBACK, LANES
from streamq.worker.settle import reported, settle

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from streamq.embedded import RedisServer

EXAMPLES = int(os.environ.get("STREAMQ_TEST_EXAMPLES", "500"))
STEPS = 50

# ---- what the rules choose from: few names, so that they meet often

NAMES = [f"job{number}" for number in range(6)]
LOCKS = ["k0", "k1"]
LONG_MS = 3_600_000
ORDERS_OF_READING = [
    [(digit, 128, 0) for digit in range(1, 7)],
    [(digit, 128, 0) for digit in range(6, 0, -1)],
    [(5, 1, 3), (2, 128, 0), (1, 1, 1), (4, 1, 2)],
]
FAILURE = Failure("ValueError", "no")
OUTCOMES: list[Outcome] = [
    Completed(42), Retrying(LONG_MS, FAILURE), Snoozed(LONG_MS), Retrying(0, FAILURE), Snoozed(0),
    Dead(FAILURE), Cancelled("enough"), Expired(), Parked("h:h"), Parked("k:u"), Parked("?h"),
]  # fmt: skip

places = st.integers(0, 5)
few = st.integers(0, 3)
wants = st.sampled_from([2, 1, 3, 0])
seldom = st.sampled_from([False, False, False, True])
scopes = st.sampled_from(["", "k", "s", "d", "t", ""])
new_jobs = st.tuples(
    places, st.integers(1, 6), seldom, st.integers(-2, 1), st.booleans(), st.booleans(), scopes, st.integers(-1, 4)
)
"""Name, lane, delayed, dedup key (below 0: none), dedup window, keep the result, dedup scope, its gates (below 0: none)."""
WORDS = {"": "", "s": "s", "k": "k", "t": f"t{LONG_MS}", "d": f"d{LONG_MS * 2}"}
"""Scopes as `add` takes them."""
outcomes = st.lists(st.sampled_from(OUTCOMES), max_size=3)

PickedJob = tuple[int, int, bool, int, bool, bool, str, int]
GATES = [("k:h:0", "h:h"), ("k:h:1", "h:h"), ("h:h",), ("f:a", "h:h"), ("f:b",)]
LIMITS = {"k:h:0": 1, "k:h:1": 1, "h:h": 2}
"""One job of a user at a time, and two of the handler."""
WEIGHTS = {"f:a": 1, "f:b": 3}
"""Two keys of a fair queue."""
RESTING = 2.0**44
"""Behind it lie the virtual times of keys that do not wait, as in cycle.lua."""


def spec_of(gates: tuple[str, ...]) -> str:
    """Return gates as an envelope has them."""
    return " ".join(f"f{WEIGHTS[gate]},0={gate}" if gate in WEIGHTS else f"c{LIMITS[gate]},0={gate}" for gate in gates)


def ran_ms(name: str) -> int:
    """Return how long jobs of that name run."""
    return 1 + 9 * int(name[-1])


Shares = list[Read]


# ---- the model


@dataclass
class Live:
    """A job that has not ended."""

    id: str
    digit: int
    lock: str | None = None
    window: bool = False
    keep: bool = False
    scope: str = ""
    token: str | None = None
    """None until it is looked up: Redis makes the ids of entries."""
    mark: str = ""
    """`~`: debounced; `>` and a name: kept behind that job."""
    is_released: bool = False
    """Due since this very call."""
    is_delayed: bool = False
    is_due: bool = False
    waits_for: str | None = None
    """The block that it waits for, or `?` and what no worker knows."""
    enqueued_ms: int = 0
    holder: str | None = None
    delivery: int = 0
    crashes: int = 0
    fence: int = 0
    gates: tuple[str, ...] = ()
    passed: int = 0
    """How many of its gates it has passed; it holds a place at each."""
    waits_at: str = ""
    """The gate that it waits at; then it is in no lane."""
    paid: float | None = None
    """What its key has paid for the turn that it had."""

    @property
    def order(self) -> tuple[int, int, str]:
        """Where it stands among those who wait at a gate."""
        return (self.digit - 1) % 3, self.enqueued_ms, self.id

    @property
    def place_at_gate(self) -> str:
        """The token of a job that waits at a gate."""
        return f"z={self.waits_at}\0p{self.order[0]}{self.enqueued_ms:013}{self.id}"

    @property
    def runs(self) -> bool:
        """Whether a worker has it."""
        return self.holder not in (None, HANDBACK)

    @property
    def entry(self) -> str:
        """The id of its entry."""
        return (self.token or "")[1:].partition("*")[0]


@dataclass
class Turns:
    """Whose turn it is: the scores of `fair`, with the arithmetic of the scripts, to the last bit."""

    scores: dict[str, float] = field(default_factory=dict)

    def value(self, what: str, default: float) -> float:
        """The virtual time of the queue, or the mean run time."""
        return -1 - self.scores[what] if what in self.scores else default

    def join(self, gate: str) -> None:
        """A key waits from now on."""
        if "w" + gate not in self.scores:
            own = self.scores.pop("r" + gate, RESTING) - RESTING
            self.scores["w" + gate] = max(own, self.value("v", 0))

    def charge(self, gate: str, paid: float, ran: float) -> None:
        """A job has run, and its key pays the rest."""
        mean = self.value("m", 1)
        self.scores["m"] = -1 - (mean + (ran - mean) / 8)
        who = next((letter + gate for letter in "wr" if letter + gate in self.scores), None)
        if who:
            self.scores[who] += (ran - paid) / WEIGHTS[gate]

    def first(self) -> str | None:
        """The gate of the key whose turn it is."""
        waiting = [(score, name) for name, score in self.scores.items() if name[0] == "w"]
        return min(waiting)[1][1:] if waiting else None

    def took(self, gate: str, *, mean: float, let_in: bool, others: bool) -> float:
        """A key had its turn, whether or not a job of it was there; returns the virtual time of its start."""
        own = start = self.scores.pop("w" + gate)
        if let_in:
            own += mean / WEIGHTS[gate]
        if let_in and others:
            self.scores["w" + gate] = own
        else:
            self.scores["r" + gate] = RESTING + own
        return start

    def advance(self, virtual: float) -> None:
        """The queue is as far as this; keys that rest and are not ahead of it need not be known."""
        self.scores["v"] = -1 - virtual
        for name in [name for name, score in self.scores.items() if name[0] == "r" and score < RESTING + virtual]:
            del self.scores[name]


@dataclass
class Model:
    """What must be true of the partition."""

    live: dict[str, Live] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    """How often a job of that name has ended."""
    locks: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Dedup key to the job that holds it, and whether for a time only."""
    books: dict[str, int] = field(default_factory=dict)
    """Worker to 2: lives, 1: its last beat is old, 0: given up."""
    is_paused: bool = False
    blocks: dict[str, bool] = field(default_factory=dict)
    """What is blocked, to whether it still is: one that was lifted stays until its jobs are back."""
    freed: list[str] = field(default_factory=list)
    """Gates where this very cycle has freed a place."""
    to_look_at: list[str] = field(default_factory=list)
    """Gates that the next cycle looks at that wants jobs."""
    turns: Turns = field(default_factory=Turns)
    results: set[str] = field(default_factory=set)
    letters: Counter[str] = field(default_factory=Counter)

    def end(self, name: str) -> None:
        """A job ends, and its dedup key with it."""
        job = self.live.pop(name)
        self.freed += [gate for gate in job.gates[: job.passed] if gate in LIMITS]
        self.ends[name] += 1
        if job.keep:
            self.results.add(name)
        holder, is_timed = self.locks.get(job.lock or "", ("", False))
        if job.lock is None or holder != name:
            self.release(holder, behind=name)
        elif job.window and job.scope != "t":
            self.locks[job.lock] = (name, True)
        elif job.scope != "t" or not is_timed:
            del self.locks[job.lock]

    def end_by_cancelling(self, name: str) -> None:
        """A waiting job is cancelled: time does not keep its key, and one that was kept gives it back."""
        job = self.live.pop(name)
        if job.passed or job.waits_at:
            gates = sorted(job.gates)
            self.to_look_at = [gate for gate in self.to_look_at if gate not in gates] + gates
        self.ends[name] += 1
        if job.keep:
            self.results.add(name)
        holder, _ = self.locks.get(job.lock or "", ("", False))
        if job.lock is None or holder != name:
            self.release(holder, behind=name)
        elif job.mark[1:] in self.live:
            self.locks[job.lock] = (job.mark[1:], False)
        else:
            del self.locks[job.lock]

    def release(self, holder: str, *, behind: str) -> None:
        """What was kept behind a job that has ended is due."""
        kept = self.live.get(holder)
        if kept is not None and kept.mark == ">" + behind:
            kept.mark, kept.token = "", None
            kept.is_due = kept.is_released = True

    def hand_back(self, job: Live) -> None:
        """A delivery is free to take."""
        job.holder = HANDBACK
        self.books[HANDBACK] = 0


class Seen:
    """Everything that lies in the partition, at one moment."""

    def __init__(self, raw: list[Any]) -> None:
        index, delayed, payload, workers, outbox, dead, pause, lanes, gates, known, fair, keys = raw
        self.fair = {_text(name): float(score) for name, score in zip(fair[::2], fair[1::2], strict=True)}
        self.gates = {_text(member) for member in gates}
        self.places = _pairs(known)
        self.raw = raw
        self.index = _pairs(index)
        self.due = {_text(name): float(due) for name, due in zip(delayed[::2], delayed[1::2], strict=True)}
        self.delayed = set(self.due)
        self.payload = _pairs(payload)
        self.enqueued_ms = {name: int(said.split("|")[1]) for name, said in self.payload.items()}
        self.workers = {_text(name): float(beat) for name, beat in zip(workers[::2], workers[1::2], strict=True)}
        self.outbox = [(_text(fields[0]), _pairs(fields[2:])) for _, fields in outbox]
        self.dead = [(_text(entry), _pairs(fields)) for entry, fields in dead]
        self.is_paused = bool(pause)
        self.entries: dict[int, dict[str, str | None]] = {}
        """Lane digit to entry id to the job's name; None: a wake-up entry."""
        self.held: dict[int, dict[str, str]] = {}
        self.unread: dict[int, list[str | None]] = {}
        self.lost: list[str] = []
        for digit, (entries, held, last) in enumerate(lanes, 1):
            here = {_text(entry): _text(f[1]) if f[0] == b"j" else None for entry, f in entries}
            self.entries[digit] = here
            for entry, f in entries:
                more = _pairs(f)
                self.enqueued_ms[more.get("j", "")] = int(more["q"]) if "q" in more else _order(_text(entry))[0]
            self.held[digit] = {_text(row[0]): _text(row[1]) for row in held}
            waiting = [entry for entry in here if _order(entry) > _order(_text(last))]
            self.unread[digit] = [here[entry] for entry in waiting]
            self.lost += [f"{digit}{entry}" for entry in set(here) - set(self.held[digit]) - set(waiting)]
        self.ttl = {_text(name): ttl for name, ttl in zip(keys[::2], keys[1::2], strict=True)}


LOOK = """
local function last(stream)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if group[2] == 'g' then return group[8] end
  end
end
local lanes, keys = {}, {}
for i = 1, 6 do
  local held = {}
  for at, row in ipairs(redis.call('XPENDING', KEYS[i], 'g', '-', '+', 999)) do held[at] = {row[1], row[2]} end
  lanes[i] = {redis.call('XRANGE', KEYS[i], '-', '+'), held, last(KEYS[i])}
end
for _, name in ipairs(redis.call('KEYS', '*')) do
  keys[#keys + 1] = name
  keys[#keys + 1] = redis.call('PTTL', name)
end
return {redis.call('HGETALL', KEYS[7]), redis.call('ZRANGE', KEYS[8], 0, -1, 'WITHSCORES'), redis.call('HGETALL', KEYS[9]),
  redis.call('ZRANGE', KEYS[10], 0, -1, 'WITHSCORES'), redis.call('XRANGE', KEYS[11], '-', '+'),
  redis.call('XRANGE', KEYS[12], '-', '+'), redis.call('HGET', KEYS[13], 'queue'), lanes,
  redis.call('ZRANGE', KEYS[14], 0, -1), redis.call('HGETALL', KEYS[15]),
  redis.call('ZRANGE', KEYS[16], 0, -1, 'WITHSCORES'), keys}
"""
"""A script: one look is one moment, and a tenth of the time that twenty commands take."""

STRUCTURE = re.compile(
    r"\{sq:q:0\}:(lane:(high|normal|low)(\.slow)?|delayed|payload|index|outbox|workers|dead|producers|control|pause|counts|gates|places|openings|fair)"
)


def _text(raw: bytes) -> str:
    return raw.decode()


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _order(entry: str) -> tuple[int, int]:
    ms, _, sequence = entry.partition("-")
    return int(ms), int(sequence)


class Bench:
    """The real server, and an event loop for the calls; shared by all examples."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.broker = Broker(url, timeout_s=5.0)
        self.partition: Partition = self.broker.partition("q")
        self.redis: Any = redis.Redis.from_url(url)
        keys = self.partition.keys
        self.look_keys = [
            *keys.lanes, keys.index, keys.delayed, keys.payload, keys.workers, keys.outbox, keys.dead, keys.pause,
            keys.gates, keys.places, keys.fair,
        ]  # fmt: skip

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Await a call."""
        return self.loop.run_until_complete(call)

    def look(self) -> Seen:
        """See everything at once."""
        return Seen(self.redis.eval(LOOK, len(self.look_keys), *self.look_keys))

    def close(self) -> None:
        """Close everything."""
        self.run(self.partition.wire.close())
        self.run(self.broker.close())
        self.redis.close()
        self.loop.close()


# ---- the rules


class QueueMachine(RuleBasedStateMachine):
    """Producers, workers, parents and operators, and what may happen to them.

    Each run leaves out some rules by their names, to go deep elsewhere. Those without which nothing happens therefore
    stand under several names.
    """

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.bench.redis.flushdb()
        self.partition = self.bench.partition
        self.orders = Orders(self.partition.wire, self.partition.keys)
        self.model = Model()
        self.seen: Seen
        self.names: list[str] = []
        self.known: dict[str, dict[str, Delivery]] = defaultdict(dict)
        """What each worker has in its memory."""
        self.markers: dict[str, list[Any]] = defaultdict(list)
        """Wake-up entries that each worker has read, for its next report."""
        self.thrown_away: set[tuple[int, bytes]] = set()
        """Those of the report that is under way."""
        self.history: list[tuple[str, Delivery]] = []
        self.calls = 0
        self.last_call: tuple[list[NewJob], list[str]] = ([], [])

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Await a call."""
        return self.bench.run(call)

    def look(self) -> None:
        """Compare with the server, and learn the ids that it made."""
        self.seen = self.bench.look()
        for name, job in self.model.live.items():
            job.is_released = False
            job.enqueued_ms = self.seen.enqueued_ms[name]
            if job.token is None:
                job.token = self.seen.index[name]
                if job.waits_at:
                    assert job.token == job.place_at_gate
                elif job.is_delayed:
                    assert job.token == f"z{job.mark}"
                else:
                    assert re.fullmatch(rf"{job.digit}\d+-\d+", job.token)

    def worker(self, number: int) -> str:
        """Choose a worker: mostly one that lives, and one in four times any that ever was."""
        living = [name for name in self.names if self._lives(name)]
        names = living if living and number < 3 else self.names
        return names[-1 - number % len(names)]

    def holder(self, number: int) -> str:
        """Choose a worker that has jobs in its memory, if there is one; one in four times any."""
        busy = [name for name in self.names if self.known[name]]
        return busy[-1 - number % len(busy)] if busy and number < 3 else self.worker(number)

    def get_busy(self) -> None:
        """See to it that a worker lives and has a job in its memory: without, most of what may happen is nothing."""
        if not any(self._lives(name) for name in self.names):
            self.join()
        if not any(self.known[name] for name in self.names if self._lives(name)):
            if not any(any(waiting) for waiting in self.seen.unread.values()):
                self.add([(1, 1 + self.calls % 6, False, self.calls % 3 - 1, self.calls % 2 == 0, False, "", -1)])
            self._cycle(self.worker(0), [], want=2)

    @initialize()
    def first_worker(self) -> None:
        """Make the groups."""
        self.join()

    # Producers.

    @rule(picked=st.lists(new_jobs, min_size=1, max_size=3))
    def add(self, picked: list[PickedJob]) -> None:
        """Enqueue up to three jobs in one call."""
        self.calls += 1
        # The script looks before it writes: what lives is what lived, and who took a key in this call.
        self.lived, self.holders = set(self.model.live), set[str]()
        jobs, expected = [], []
        for place, digit, is_delayed, lock, window, keep, picked_scope, picked_gates in picked:
            name, key = self._name(place), LOCKS[lock] if lock >= 0 else None
            scope = picked_scope if key else ""
            is_late = is_delayed or scope == "d"
            gates = GATES[picked_gates] if picked_gates >= 0 else ()
            job = Live(name, digit, key, window, keep, scope, is_delayed=is_late, gates=gates)
            envelope = Envelope(
                "h", dedup=key, dedup_window_ms=LONG_MS * window, dedup_scope=scope, keep_result_ms=LONG_MS * keep,
                gates=spec_of(gates),
            )  # fmt: skip
            jobs.append(NewJob(name, digit, encode_envelope(envelope), LONG_MS * is_late, key, WORDS[scope]))
            expected.append(self._added(job))
        added = self.run(self.partition.add("p", self.calls, jobs, cursor="here"))
        assert list(added.results) == expected
        self.last_call = (jobs, expected)
        self.look()

    @rule(picked=st.lists(new_jobs, min_size=1, max_size=3))
    def add_more(self, picked: list[PickedJob]) -> None:
        """Enqueue, as above."""
        self.add(picked)

    def _name(self, place: int) -> str:
        """Choose a name: mostly one that no living job has."""
        free = [name for name in NAMES if name not in self.model.live]
        return free[place % len(free)] if free and place else NAMES[place]

    def _added(self, job: Live) -> str:
        model = self.model
        if job.id in model.live:
            return "p"
        if job.lock is not None:
            result = self._stands_in(job, *model.locks.get(job.lock, ("", False)))
            if result:
                return result
            model.locks[job.lock] = (job.id, job.scope == "t")
            self.holders.add(job.id)
        model.live[job.id] = job
        if job.gates[:1] and job.gates[0] in WEIGHTS and not job.is_delayed:
            job.waits_at = job.gates[0]
            model.turns.join(job.waits_at)
        return "n"

    def _stands_in(self, job: Live, name: str, is_timed: bool) -> str:
        """Tell what a call comes to, given who holds its key; nothing: a new job, which may be kept."""
        holder = self.model.live.get(name) if name in self.lived | self.holders else None
        if job.scope == "d":
            job.mark = "~"
        if holder is None:
            return "d" + name if is_timed else ""
        if job.scope == "s" and holder.runs:
            return ""
        if job.scope == "d" and not holder.mark.startswith(">"):
            return self._replaced(holder, job) if holder.mark == "~" else ""
        if job.scope == "k":
            if holder.mark.startswith(">"):
                return self._replaced(holder, job)
            if holder.runs or (holder.is_delayed and not holder.mark):
                job.mark, job.is_delayed = ">" + name, True
                return ""
        return "d" + name

    def _replaced(self, holder: Live, job: Live) -> str:
        """The waiting job gets what the new call brought, and a new time."""
        holder.digit, holder.window, holder.keep, holder.gates = job.digit, job.window, job.keep, job.gates
        holder.is_due = False
        if holder.mark[1:] not in self.lived and holder.mark != "~":
            holder.mark, holder.token, holder.is_due = "", None, True
        return "r" + holder.id

    @precondition(lambda self: self.calls)
    @rule()
    def repeat_add(self) -> None:
        """The reply was lost, and the producer repeats its call; whatever became of the jobs meanwhile."""
        jobs, results = self.last_call
        with pytest.raises(CallRepeated) as repeated:
            self.run(self.partition.add("p", self.calls, jobs, cursor="here"))
        said = repeated.value
        assert (said.last, said.cursor) == (self.calls, "here")
        assert said.results == ("" if set(results) == {"n"} else "\n".join(results))
        self.nothing_changed()

    # Workers.

    @rule(number=few, outcomes=outcomes, want=wants, order=st.sampled_from(ORDERS_OF_READING), lost=seldom)
    def work(self, number: int, outcomes: list[Outcome], want: int, order: Shares, lost: bool) -> None:
        """Finish jobs, renew the others, read more. If the reply is lost the report is said again."""
        self.get_busy()
        name = self.holder(number) if outcomes else self.worker(number)
        ended = list(zip(self.known[name].values(), outcomes, strict=False))
        self._cycle(name, ended, want=want, order=order, lost=lost)
        if lost:
            self._cycle(name, ended)

    @rule(number=few, outcomes=outcomes, want=wants, order=st.sampled_from(ORDERS_OF_READING), lost=seldom)
    def work_on(self, number: int, outcomes: list[Outcome], want: int, order: Shares, lost: bool) -> None:
        """Work, as above."""
        self.work(number, outcomes, want, order, lost)

    @rule(number=few, outcomes=outcomes, want=wants, order=st.sampled_from(ORDERS_OF_READING), lost=seldom)
    def work_more(self, number: int, outcomes: list[Outcome], want: int, order: Shares, lost: bool) -> None:
        """Work, as above."""
        self.work(number, outcomes, want, order, lost)

    @precondition(lambda self: self.history)
    @rule(number=few, age=st.integers(0, 20), outcome=st.sampled_from(OUTCOMES))
    def settle_as_zombie(self, number: int, age: int, outcome: Outcome) -> None:
        """Finish whatever anybody ever held."""
        self.get_busy()
        _, delivery = self.history[-1 - age % len(self.history)]
        self._cycle(self.worker(number), [(delivery, outcome)])

    def join(self) -> None:
        """Register a worker under a new name."""
        name = f"w{len(self.names)}"
        self.run(self.partition.register(name))
        self.names.append(name)
        self.model.books[name] = 2
        with pytest.raises(Unregistered):
            self.run(self.partition.register(name))
        self.look()

    @rule(number=few, how=st.sampled_from(["leave", "fall silent", "be buried"]))
    def go(self, number: int, how: str) -> None:
        """A worker ends in order, or dies."""
        self.get_busy()
        name = self.holder(number)
        if how == "leave":
            self._leave(name)
        elif how == "be buried":
            assert self.run(self.partition.bury([name])) == (name in self.model.books)
            if name in self.model.books:
                self.model.books[name] = 0
        elif self._lives(name):
            self.bench.redis.zadd(self.partition.keys.workers, {name: 1}, xx=True)
            self.model.books[name] = 1
        self.look()

    def _leave(self, name: str) -> None:
        self.run(self.partition.leave(name))
        for job in self._held_by(name):
            self.model.hand_back(job)
        if name in self.seen.held[1].values():
            self.model.books[HANDBACK] = 0  # wake-up entries are handed back as well
        self.model.books.pop(name, None)
        self._forget(name)

    @rule(number=few, first=few, count=st.integers(1, 2))
    def release(self, number: int, first: int, count: int) -> None:
        """Hand back what the worker was ever given, as far as it is still its own."""
        self.get_busy()
        name = self.holder(number)
        given = [delivery for owner, delivery in self.history if owner == name][::-1][first : first + count]
        released = self.run(self.partition.release(name, given))
        ours = [delivery for delivery in given if self._is_current(delivery)] if self._lives(name) else []
        assert released == len(ours)
        for delivery in ours:
            self.model.hand_back(self.model.live[_text(delivery.id)])
        for delivery in given:
            self.known[name].pop(_text(delivery.id), None)
        self.look()

    @rule(number=few)
    def strays(self, number: int) -> None:
        """After a lost reply: hand back what never arrived."""
        self.get_busy()
        name = self.worker(number)
        self._cycle(name, [], want=1, lost=True)
        held = [delivery.token for delivery in self.known[name].values()]
        handed = self.run(self.partition.strays(name, held))
        if not self._lives(name):
            assert handed == 0
            return
        known = {_text(token).partition("*")[0] for token in held}
        lost = [
            self.seen.entries[digit][entry]
            for digit, here in self.seen.held.items()
            for entry, owner in here.items()
            if owner == name and f"{digit}{entry}" not in known
        ]
        assert handed == len(lost)
        if lost:
            self.model.books[HANDBACK] = 0
        for job in lost:
            if job is not None:
                self.model.hand_back(self.model.live[job])
        self.look()

    # Those who watch over workers, and time.

    @rule(numbers=st.lists(few, min_size=1, max_size=2))
    def vouch(self, numbers: list[int]) -> None:
        """A parent beats for its children, and keeps the deliveries of one that is busy."""
        names = [self.worker(number) for number in numbers]
        kept = [owner for here in self.seen.held.values() for owner in here.values() if owner == names[0]]
        assert self.run(self.partition.renew(names[0])) == (len(kept) if self._lives(names[0]) else 0)
        self.nothing_changed()
        fenced = self.run(self.partition.beat(names))
        assert fenced == [name for name in names if not self._lives(name)]
        for name in set(names) - set(fenced):
            self.model.books[name] = 2
        self.look()

    @rule(digit=st.integers(1, 6), every=st.integers(1, 2))
    def sweep(self, digit: int, every: int) -> None:
        """Time passes for all, or every second, of a lane's deliveries; then the lane is swept."""
        self.get_busy()
        digit = next((d for d in (digit, *range(1, 7)) if self.seen.held[d]), digit)
        lane, over = self.partition.keys.lanes[digit - 1], list(self.seen.held[digit].items())[::every]
        for entry, owner in over:
            self.bench.redis.xclaim(lane, "g", owner, 0, [entry], idle=2 * LONG_MS, justid=True)
        answer = self.run(self.partition.sweep(digit, lease_ms=LONG_MS, cursor=b"0-0"))
        swept = [self.seen.entries[digit][entry] for entry, _ in over]
        assert answer == (b"0-0", sum(name is not None for name in swept), 0)
        for name in swept:
            if name is not None:
                job = self.model.live[name]
                self.model.hand_back(job)
                job.delivery += 1
                job.token = f"{digit}{job.entry}*{job.delivery}*{job.crashes}"
        self.look()

    @precondition(lambda self: self.seen.delayed or any(window for _, window in self.model.locks.values()))
    @rule(number=places)
    def let_time_pass(self, number: int) -> None:
        """For a delayed job, and for the windows of dedup keys."""
        waiting = [job for job in self.model.live.values() if job.is_delayed and not job.mark.startswith(">")]
        delayed = [job for job in waiting if job.waits_for is None or job.waits_for[0] == "?"]
        if delayed:
            job = delayed[number % len(delayed)]
            job.is_due = True
            self.bench.redis.zadd(self.partition.keys.delayed, {job.id: 1}, xx=True)
        for lock, (_, is_window) in list(self.model.locks.items()):
            if is_window:
                del self.model.locks[lock]
                self.bench.redis.delete(self.partition.keys.dedup(lock))
        self.look()

    # Operators.

    @precondition(lambda self: self.model.live)
    @rule(number=st.integers(0, 6))
    def cancel(self, number: int) -> None:
        """Cancel a job that lives, or seldom one that does not."""
        living = sorted(self.model.live)
        name = living[number % len(living)] if number < 6 else "nobody"
        if number == 6:
            with pytest.raises(JobNotFound):
                self.run(self.orders.cancel(name))
            return
        job = self.model.live[name]
        runs = job.runs
        assert self.run(self.orders.cancel(name)) == ("asked" if runs else "cancelled")
        if not runs:
            self.model.end_by_cancelling(name)
        self.look()

    @precondition(lambda self: self.seen.dead)
    @rule(number=few)
    def replay(self, number: int) -> None:
        """Make a dead letter a job again."""
        letter, fields = self.seen.dead[number % len(self.seen.dead)]
        name, raw = fields["j"], fields["d"].encode()
        envelope = decode_envelope(raw)
        answer = self.run(self.orders.replay(letter, name, raw, "high"))
        holder, _ = self.model.locks.get(envelope.dedup or "", ("", True))
        if name in self.model.live:
            assert answer == ("alive", "")
        elif holder in self.model.live:
            assert answer == ("held", holder)
        else:
            assert answer == ("replayed", "")
            window, keep = bool(envelope.dedup_window_ms), bool(envelope.keep_result_ms)
            fence = (envelope.starts << 16) | 0xFFFF
            scope = envelope.dedup_scope
            gates = tuple(re.findall(r"=(\S+)", envelope.gates))
            self.model.live[name] = Live(name, 1, envelope.dedup, window, keep, scope, fence=fence, gates=gates)
            self.model.letters[name] -= 1
            self.model.results.discard(name)
            if envelope.dedup:
                self.model.locks[envelope.dedup] = (name, False)
        self.look()

    @rule(what=st.sampled_from(["resume", "resume", "flush", "unlock", "pause"]))
    def operate(self, what: str) -> None:
        """Pause or resume the queue, delete dedup keys by hand, or forget every script, as a failover does."""
        if what == "flush":
            self.bench.redis.script_flush()
        elif what == "unlock":
            self.bench.redis.delete(*(self.partition.keys.dedup(lock) for lock in LOCKS))
            self.model.locks.clear()
        elif what == "pause":
            self.run(self.orders.pause(reason="test", by="me"))
            self.model.is_paused = True
        else:
            assert self.run(self.orders.resume()) == self.model.is_paused
            self.model.is_paused = False
        self.look()

    @rule(what=st.sampled_from([{"handler": "h"}, {"key": "u"}]), is_on=st.booleans())
    def block(self, what: dict[str, str], is_on: bool) -> None:
        """Block a handler or a user key, or let it go."""
        name = "h:h" if "handler" in what else "k:u"
        if is_on:
            self.run(self.orders.block(**what, reason="test", by="me"))
            self.model.blocks[name] = True
        else:
            assert self.run(self.orders.unblock(**what)) == self.model.blocks.get(name, False)
            if name in self.model.blocks:
                self.model.blocks[name] = False
        self.look()

    # What a cycle must come to.

    def _cycle(
        self,
        name: str,
        ended: list[tuple[Delivery, Outcome]],
        *,
        want: int = 0,
        order: Shares = ORDERS_OF_READING[0],
        lost: bool = False,
    ) -> None:
        report = self._report(name, ended)
        call = self.partition.cycle(
            name, report, want=want, reads=order, dead_after_ms=LONG_MS, control_cursor=b"0-0", limits=(99_999, 99_999),
            now=0.0,
        )  # fmt: skip
        if not self._lives(name):
            with pytest.raises(Unregistered):
                self.run(call)
            self._forget(name)
            self.nothing_changed()
            return
        was_away, self.model.books[name] = self.model.books[name] == 1, 2
        unread = {digit: list(waiting) for digit, waiting in self.seen.unread.items()}
        refused = [_text(delivery.id) for delivery, outcome in self._by_section(ended) if not self._settled(
            delivery, outcome, unread
        )]  # fmt: skip
        not_ours = self._renewed(name, report)
        self._promoted(unread)
        self._lifted(unread)
        self._opened(want, unread)
        taken: list[tuple[str, str]] = []
        if not self.model.is_paused:
            want = self._taken_over(name, want, was_away, unread, taken)
            if want and self.model.turns.scores:
                self._take_turns(want, unread)
            want = self._read(name, want, order, unread, taken)
        waits_for_turn = want and not self.model.is_paused and self.model.turns.first()
        reply = self.run(call)
        assert not waits_for_turn or 0 <= reply.next_due_ms <= reply.server_ms, "who has room comes again at once"
        assert [_text(job) for job in reply.refused] == refused
        assert [_text(job) for job in reply.lost] == not_ours
        assert reply.is_paused == self.model.is_paused
        assert {_text(what) for what in reply.stopped} - {"queue"} == set(self.model.blocks)
        # Five seconds may pass in here; nobody may notice.
        not_known = {job.id: 2e14 for job in self.model.live.values() if (job.waits_for or "")[:1] == "?"}
        if not_known:
            self.bench.redis.zadd(self.partition.keys.delayed, not_known, xx=True)
        self.look()
        assert [_text(delivery.id) for delivery in reply.deliveries] == [job for job, _ in taken]
        self._received(name, reply.deliveries, lost)
        self.markers[name] = [] if lost else reply.markers

    def _report(self, name: str, ended: list[tuple[Delivery, Outcome]]) -> Report:
        told = [settle(delivery, outcome, 1, 1 + ran_ms(_text(delivery.id))) for delivery, outcome in ended]
        report = reported([item for item in told if item is not None])
        assert None not in told
        report.markers = markers = self.markers[name]
        self.thrown_away = set(zip(markers[::2], markers[1::2], strict=True))
        for delivery, _ in ended:
            self.known[name].pop(_text(delivery.id), None)
        for delivery in self.known[name].values():
            report.renewed += (delivery.token, delivery.id)
        return report

    @staticmethod
    def _by_section(ended: list[tuple[Delivery, Outcome]]) -> list[tuple[Delivery, Outcome]]:
        """Order as the report does: first those that ended, then those that go on."""
        return sorted(ended, key=lambda item: isinstance(item[1], Retrying | Snoozed | Parked))

    def _settled(self, delivery: Delivery, outcome: Outcome, unread: dict[int, list[str | None]]) -> bool:
        """A job ends or goes on, if the token is its own."""
        if not self._is_current(delivery):
            return False
        name = _text(delivery.id)
        job = self.model.live[name]
        if job.paid is not None and not isinstance(outcome, Snoozed | Parked):
            self.model.turns.charge(job.gates[0], job.paid, ran_ms(name))
        if not isinstance(outcome, Retrying | Snoozed | Parked):
            self.model.end(name)
            self.model.letters[name] += isinstance(outcome, Dead)
            return True
        job.token, job.holder, job.delivery, job.crashes = None, None, 0, 0
        self.model.freed += [gate for gate in job.gates[: job.passed] if gate in LIMITS]
        job.passed, job.paid = 0, None
        job.waits_for, job.is_due, job.enqueued_ms = None, False, delivery.enqueued_ms
        if isinstance(outcome, Parked):
            is_held = outcome.what[0] == "?" or outcome.what in self.model.blocks
            job.waits_for = outcome.what if is_held else None
            job.is_delayed = is_held
        else:
            job.is_delayed = bool(outcome.delay_ms)
        if not job.is_delayed:
            unread[job.digit].append(name)
        return True

    def _renewed(self, name: str, report: Report) -> list[str]:
        """What is still the worker's own is its own again, also if it was handed back."""
        not_ours = []
        for token, job_id in zip(report.renewed[::2], report.renewed[1::2], strict=True):
            assert isinstance(token, bytes)
            assert isinstance(job_id, bytes)
            job = self.model.live.get(_text(job_id))
            if job is None or job.token != _text(token):
                not_ours.append(_text(job_id))
            else:
                job.holder = name
        return not_ours

    def _promoted(self, unread: dict[int, list[str | None]]) -> None:
        """Jobs that are due move into their lanes."""
        for job in sorted(self.model.live.values(), key=self._due_order):
            if job.is_due:
                job.is_due = job.is_delayed = job.is_released = False
                job.token, job.mark, job.waits_for = None, "", None
                unread[job.digit].append(job.id)

    def _lifted(self, unread: dict[int, list[str | None]]) -> None:
        """The jobs of a block that was lifted go back into their lanes, oldest first."""
        for name in [name for name, is_on in self.model.blocks.items() if not is_on]:
            freed = [job for job in self.model.live.values() if job.waits_for == name]
            for job in sorted(freed, key=lambda job: (job.enqueued_ms, job.id)):
                job.is_delayed = False
                job.token = job.waits_for = None
                unread[job.digit].append(job.id)
            del self.model.blocks[name]

    def _due_order(self, job: Live) -> tuple[bool, float, str]:
        return job.is_released, self.seen.due.get(job.id, 0.0), job.id

    def _taken_over(
        self, name: str, want: int, was_away: bool, unread: dict[int, list[str | None]], taken: list[tuple[str, str]]
    ) -> int:
        """The deliveries of the first worker that is gone and has any, as many as are wanted; eight are looked at."""
        books = self.model.books
        for _ in range(8):
            gone = [(beat, owner) for owner, beat in books.items() if beat <= (0 if was_away else 1) and owner != name]
            if not gone or not want or taken:
                break
            gone_name = min(gone)[1]
            want, more = self._taken_from(gone_name, name, want, taken)
            if more:
                books[gone_name] = 0
                unread[1].append(None)
                break
            del books[gone_name]
        return want

    def _taken_from(self, gone: str, name: str, want: int, taken: list[tuple[str, str]]) -> tuple[int, bool]:
        """What is claimed from one worker; returns what is still wanted, and whether it holds more."""
        more = False
        for digit in range(1, 7):
            held = [
                self.seen.entries[digit][entry]
                for entry, owner in self.seen.held[digit].items()
                if self._still_holds(gone, digit, entry, owner)
            ]
            more = more or len(held) > want
            for job_id in held[:want]:
                if job_id is not None and self._may_start(self.model.live[job_id]):
                    self._claimed(self.model.live[job_id], name, is_crash=gone != HANDBACK)
                    taken.append((job_id, "claimed"))
                    want -= 1
        return want, more

    def _still_holds(self, gone: str, digit: int, entry: str, owner: str) -> bool:
        """Whether an entry was the gone worker's, and was neither settled nor renewed in this very cycle."""
        if owner != gone:
            return False
        job_id = self.seen.entries[digit][entry]
        if job_id is None:
            return (digit, entry.encode()) not in self.thrown_away
        job = self.model.live.get(job_id)
        return job is not None and job.entry == entry and job.holder == gone

    @staticmethod
    def _claimed(job: Live, name: str, *, is_crash: bool) -> None:
        job.holder = name
        job.delivery += 1
        job.crashes += is_crash
        job.token = f"{job.digit}{job.entry}*{job.delivery}*{job.crashes}"

    def _read(
        self, name: str, want: int, order: Shares, unread: dict[int, list[str | None]],
        taken: list[tuple[str, str]],
    ) -> int:  # fmt: skip
        """New entries, lane by lane; then what the shares left over. Returns what is still wanted."""
        slow = 0
        for is_first in (True, False):
            for digit, most_now, most_then in order:
                most = most_now if is_first else most_then
                ask = max(0, min(want, most - slow if digit > 3 else most))
                kept = self._read_lane(name, ask, unread[digit], taken)
                want -= kept
                slow += kept if digit > 3 else 0
        return want

    def _read_lane(self, name: str, ask: int, waiting: list[str | None], taken: list[tuple[str, str]]) -> int:
        """Read from a lane; a job that may not start makes room for the next one, a wake-up entry does not."""
        kept = 0
        while waiting and kept < ask:
            job_id = waiting.pop(0)
            if job_id is not None:
                job = self.model.live[job_id]
                if not self._may_start(job):
                    continue
                job.holder, job.delivery, job.crashes = name, 1, 0
                taken.append((job_id, "read"))
            kept += 1
        return kept

    def _received(self, name: str, deliveries: list[Delivery], lost: bool) -> None:
        for delivery in deliveries:
            job = self.model.live[_text(delivery.id)]
            assert (_text(delivery.token), delivery.delivery, delivery.crashes, delivery.digit) == (
                job.token, job.delivery, job.crashes, job.digit,
            )  # fmt: skip
            delivery.envelope = envelope = decode_envelope(delivery.raw)
            fence = (envelope.starts << 16) | delivery.delivery
            assert fence > job.fence
            job.fence = fence
            if not lost:
                self.known[name][job.id] = delivery
                self.history.append((name, delivery))

    # Gates.

    def _places_at(self, gate: str) -> int:
        return sum(gate in job.gates[: job.passed] for job in self.model.live.values())

    def _waiting_at(self, gate: str) -> list[Live]:
        return sorted((job for job in self.model.live.values() if job.waits_at == gate), key=lambda job: job.order)

    def _opened(self, want: int, unread: dict[int, list[str | None]]) -> None:
        """What this cycle has freed goes to those who wait; who wants jobs also looks at other gates."""
        model = self.model
        gates, model.freed = model.freed, []
        if want and not model.is_paused:
            gates, model.to_look_at = gates + model.to_look_at, []
        for gate in gates:
            self._let_in(gate, unread)

    def _take_turns(self, most: int, unread: dict[int, list[str | None]]) -> None:
        """As many go on as are wanted, always the first one of the key whose turn it is."""
        turns = self.model.turns
        virtual, mean = turns.value("v", 0), turns.value("m", 1)
        for _ in range(most):
            gate = turns.first()
            if gate is None:
                break
            waiting = self._waiting_at(gate)
            if waiting:
                job = waiting[0]
                job.waits_at, job.passed, job.paid = "", 1, mean
                if self._may_start(job):
                    job.token = None
                    unread[job.digit].append(job.id)
            virtual = max(virtual, turns.took(gate, mean=mean, let_in=bool(waiting), others=len(waiting) > 1))
        turns.advance(virtual)

    def _let_in(self, gate: str, unread: dict[int, list[str | None]]) -> None:
        """Those who wait go on, in order, as long as there are places; for a turn it takes another look."""
        if gate in WEIGHTS:
            if self._waiting_at(gate):
                self.model.turns.join(gate)
            return
        for job in self._waiting_at(gate):
            if self._places_at(gate) >= LIMITS[gate]:
                return
            job.waits_at = ""
            if self._may_start(job):
                job.token = None
                unread[job.digit].append(job.id)

    def _may_start(self, job: Live) -> bool:
        """Take a place at each gate from where the job is; or it waits at the first one that has none for it."""
        for gate in job.gates[job.passed :]:
            is_first = all(other.order > job.order for other in self._waiting_at(gate))
            if gate in WEIGHTS or self._places_at(gate) >= LIMITS[gate] or not is_first:
                job.waits_at, job.holder, job.delivery, job.crashes = gate, None, 0, 0
                job.token = job.place_at_gate
                if gate in WEIGHTS:
                    self.model.turns.join(gate)
                return False
            job.passed += 1
        return True

    @invariant()
    def no_more_than_the_limit_have_passed_a_gate_and_nobody_waits_where_there_is_room(self) -> None:
        """What is counted is who is there, and the server has there whom the model has."""
        jobs = list(self.model.live.values())
        places = {f"{gate}\0h{job.id}" for job in jobs for gate in job.gates[: job.passed] if gate in LIMITS}
        assert self.seen.gates == places | {(job.token or "")[2:] for job in jobs if job.waits_at}
        said = {job.id: "-" if job.waits_at else "+" for job in jobs if job.waits_at or job.passed}
        assert {name: word[0] for name, word in self.seen.places.items()} == said
        for gate, limit in LIMITS.items():
            assert self._places_at(gate) <= limit
            if gate not in self.model.to_look_at and self._waiting_at(gate):
                assert self._places_at(gate) == limit
        assert all(job.passed == len(job.gates) for job in jobs if job.runs and job.id in self.known[job.holder or ""])

    @invariant()
    def keys_of_a_fair_queue_have_paid_what_their_jobs_ran_and_nobody_who_waits_for_a_turn_is_forgotten(self) -> None:
        """The server's sums are the model's, and whoever waits is among those from whom the next one is chosen."""
        assert self.seen.fair == self.model.turns.scores
        waiting = {"w" + job.waits_at for job in self.model.live.values() if job.waits_at in WEIGHTS}
        assert waiting <= self.seen.fair.keys()

    # Small questions.

    def _lives(self, name: str) -> bool:
        return self.model.books.get(name, 0) > 0

    def _is_current(self, delivery: Delivery) -> bool:
        job = self.model.live.get(_text(delivery.id))
        return job is not None and job.token == _text(delivery.token)

    def _held_by(self, name: str) -> list[Live]:
        return [job for job in self.model.live.values() if job.holder == name]

    def _forget(self, name: str) -> None:
        self.known[name].clear()
        self.markers[name] = []

    def nothing_changed(self) -> None:
        """The call wrote nothing."""
        before = self.seen.raw[:-1]  # times to live run on
        self.look()
        assert self.seen.raw[:-1] == before

    # What is true after every step.

    @invariant()
    def each_job_is_in_exactly_one_place(self) -> None:
        """And the index says which."""
        seen, model = self.seen, self.model
        assert seen.index == {name: job.token for name, job in model.live.items()}
        assert seen.lost == []
        assert seen.delayed == {job.id for job in model.live.values() if job.is_delayed}
        assert set(seen.payload) == seen.delayed | {job.id for job in model.live.values() if job.waits_at}
        entries = {
            (name, f"{digit}{entry}", seen.held[digit].get(entry))
            for digit, here in seen.entries.items()
            for entry, name in here.items()
            if name is not None
        }
        in_lanes = [job for job in model.live.values() if not job.is_delayed and not job.waits_at]
        assert entries == {(job.id, f"{job.digit}{job.entry}", job.holder) for job in in_lanes}

    @invariant()
    def who_holds_a_delivery_is_on_the_books(self) -> None:
        """Else nobody would take it over."""
        books = {name: 2 if beat > 1 else int(beat) for name, beat in self.seen.workers.items()}
        assert books == self.model.books
        holders = {owner for here in self.seen.held.values() for owner in here.values()}
        assert holders <= set(books)

    @invariant()
    def a_dedup_key_is_held_by_a_job_that_lives_or_for_a_window(self) -> None:
        """Nothing leaves one behind."""
        prefix = self.partition.keys.dedup("")
        held = {name.removeprefix(prefix): ttl for name, ttl in self.seen.ttl.items() if name.startswith(prefix)}
        assert {lock: ttl > 0 for lock, ttl in held.items()} == {
            lock: is_window for lock, (_, is_window) in self.model.locks.items()
        }

    @invariant()
    def each_end_is_recorded_once(self) -> None:
        """Whatever was repeated, refused or said by the dead."""
        ends: Counter[str] = Counter()
        for _, records in self.seen.outbox:
            for name, record in records.items():
                ends[name] += orjson.loads(record)["s"] != "retrying"
        assert +ends == +self.model.ends
        assert Counter(fields["j"] for _, fields in self.seen.dead) == +self.model.letters
        prefix = self.partition.keys.result("")
        assert {name.removeprefix(prefix) for name in self.seen.ttl if name.startswith(prefix)} == self.model.results

    @invariant()
    def no_key_is_there_that_should_not_be(self) -> None:
        """What is no structure has a TTL, unless a living job holds it."""
        assert self.seen.is_paused == self.model.is_paused
        dedup, result = self.partition.keys.dedup(""), self.partition.keys.result("")
        for name, ttl in self.seen.ttl.items():
            known = STRUCTURE.fullmatch(name) or name.startswith(dedup)
            assert known or (name.startswith(result) and ttl > 0), name

    def teardown(self) -> None:
        """Leave an empty database."""
        self.bench.redis.flushdb()


def walk(machine: type[QueueMachine], url: str, examples: int) -> None:
    """Run a machine against a server."""
    bench = Bench(url)
    machine.bench = bench
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        bench.redis.flushdb()
        bench.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_model_and_server_agree_after_every_step(redis_url):
    """The whole state table, in whatever order things happen."""
    walk(QueueMachine, redis_url, EXAMPLES)


class RestartMachine(QueueMachine):
    """A server that is killed now and then, and comes back with its append-only file."""

    server: RedisServer

    @rule()
    def restart(self) -> None:
        """What was answered is kept."""
        self.server.kill9()
        self.server.start()
        self.bench.redis.connection_pool.disconnect()
        while True:
            try:
                self.run(self.partition.wire.call("PING"))
            except BrokerUnavailable:
                continue
            break
        self.nothing_changed()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_model_and_server_agree_when_the_server_is_killed_in_between(redis_server):
    """A restart is a step like any other."""
    RestartMachine.server = redis_server
    walk(RestartMachine, redis_server.url, max(1, EXAMPLES // 50))


def test_lanes_of_the_model_are_those_of_the_partition():
    """The rules choose among digits; each must be a lane."""
    assert max(digit for order in ORDERS_OF_READING for digit, _, _ in order) == len(LANES)
