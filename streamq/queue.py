"""Producing: from a call of a handler to an accepted job.

Concurrent calls share a script call: whatever is enqueued in one turn of the event loop, or while a call is under way,
goes out together. Each call is numbered, so that repeating one whose reply was lost adds nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import msgspec
import orjson

from streamq import tracing
from streamq.broker.inspection import Explanation, Inspection
from streamq.broker.orders import Orders
from streamq.broker.partition import BATCH, BATCH_BYTES, Added, CallRepeated, NewJob, Partition
from streamq.broker.replicas import Confirmations
from streamq.broker.server import Broker
from streamq.clock import to_ms
from streamq.codec import envelope_bytes
from streamq.dedup import Dedup, dedup_key
from streamq.errors import (
    BadArguments,
    BrokerUnavailable,
    JobFailed,
    NotConfirmed,
    PayloadTooLarge,
    QueueFull,
    StreamQError,
)
from streamq.keys import Keys, partition_for, partition_names, queue_of, slow_digit
from streamq.lanes import NO_HINT, HintJudge, whose
from streamq.options import NO_OPTIONS, Options, checked_cost, checked_digit, checked_text, due_of, envelope_fields

if TYPE_CHECKING:
    from concurrent.futures import Future

    from streamq.ledger import Notary
    from streamq.registry import HandlerSpec

__all__ = ["BATCH", "Client", "Draft", "Items", "Job", "SyncBridge", "draft", "new_job_id"]

T = TypeVar("T")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
"""Between a call whose reply did not come and its repetition."""

_LONG_WAY_EVERY, _RENEWED_S = 32, 3600.0
"""Of so many calls with a single plain job the first goes the long way: `add.lua` sees then that the index is a table before
it is long. So does one after so long: that renews until when the producer is remembered, which is a day."""

_SET_THE_TIME = ("d", "k")
"""Debounced jobs wait for the next call, kept ones for the one before them."""


class _IdMaker:
    """Makes job ids: 26 letters and digits that sort by time, as ULIDs do. See https://github.com/ulid/spec."""

    def __init__(self) -> None:
        self._ms = 0
        self._noise = ""
        self._prefix = ""
        self._count = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._restart)

    def next(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            if ms < self._ms or not self._noise:
                self._restart()
            self._ms, self._count = ms, 0
            self._prefix = _base32(ms, 10) + self._noise
        self._count += 1
        return f"{self._prefix}{self._count:07X}"

    def _restart(self) -> None:
        """Draw new noise, in a forked child and when the clock went back: no prefix is used twice."""
        self._ms, self._noise = 0, _base32(secrets.randbits(45), 9)


def _base32(number: int, digits: int) -> str:
    return "".join([_CROCKFORD[(number >> 5 * place) & 31] for place in range(digits - 1, -1, -1)])


new_job_id = _IdMaker().next


class Job(msgspec.Struct, frozen=True):
    """An accepted job, or the one that stands in its place."""

    id: str
    handler: str
    queue: str
    status: Literal["new", "duplicate", "replaced", "present", "refused"]
    """new: enqueued now. duplicate: the job `id` holds the dedup key and stands in. replaced: the job `id` holds it, waits,
    and has the arguments of this call now. present: this id was known. refused: not enqueued, `error` says why."""
    client: Any = None
    """Who enqueued it, and can ask what became of it."""
    error: StreamQError | None = None
    """With `enqueue_many` and `enqueue_stream`: why the job was refused, or that too few replicas confirmed it."""

    def __repr__(self) -> str:
        error = f", error={self.error!r}" if self.error is not None else ""
        return f"Job(id={self.id!r}, handler={self.handler!r}, queue={self.queue!r}, status={self.status!r}{error})"

    @property
    def is_new(self) -> bool:
        """Whether this call made the job."""
        return self.status == "new"

    async def result(self, timeout: timedelta = timedelta(seconds=30)) -> Any:
        """Wait until the job has ended and return what its handler returned.

        Only for jobs that were enqueued with `keep_result=`.

        Raises:
            JobFailed: It ended without a result; the message says why.
            TimeoutError: It has not ended in time. It goes on.
        """
        return await self.client.result(self.queue, self.id, timeout)

    def result_sync(self, timeout: timedelta = timedelta(seconds=30)) -> Any:
        """Wait for the result in code without an event loop; the job must come from a `..._sync` method."""
        return self.client.wait(self.client.result(self.queue, self.id, timeout))

    def cancel_sync(self, reason: str = "") -> Literal["cancelled", "asked"]:
        """Cancel in code without an event loop; the job must come from a `..._sync` method."""
        answer: Literal["cancelled", "asked"] = self.client.wait(self.client.cancel(self.queue, self.id, reason))
        return answer

    async def cancel(self, reason: str = "") -> Literal["cancelled", "asked"]:
        """End the job if it waits, or have its worker interrupt it if it runs.

        Raises:
            JobNotFound: It has ended.
        """
        answer: Literal["cancelled", "asked"] = await self.client.cancel(self.queue, self.id, reason)
        return answer


class Draft(NewJob):
    """A job that was checked and encoded, and has not been sent."""

    handler: str = ""
    queue: str = ""
    """The name of its partition; with one partition that is the queue's."""
    replicas: int = 0
    ledger: bool = False
    is_plain: bool = False
    """Whether it goes straight into its lane, unless somebody is known as slow."""

    def as_job(self, result: str, client: Client | None = None, error: StreamQError | None = None) -> Job:
        """Say what became of it, from its result in `Added`."""
        if result == "n":
            return Job(self.id, self.handler, self.queue, "new", client, error)
        if result == "p":
            return Job(self.id, self.handler, self.queue, "present", client, error)
        status: Literal["duplicate", "replaced"] = "duplicate" if result[0] == "d" else "replaced"
        return Job(result[1:], self.handler, self.queue, status, client, error)


_QUEUE_OF, _IN_LEDGER, _REPLICAS_OF = attrgetter("queue"), attrgetter("ledger"), attrgetter("replicas")
_ENVELOPE_OF = attrgetter("envelope")

Item = Draft | Job
"""A job to send; or one that was refused before, which keeps its place among the results."""
Items = Iterable[Item] | AsyncIterable[Item]


def draft(  # noqa: PLR0913 - a call, and what its application has settled
    spec: HandlerSpec,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options = NO_OPTIONS,
    *,
    max_payload_bytes: int = 262_144,
    lanes: bool = True,
    partitions: int = 1,
) -> Draft:
    """Check a call of a handler and encode it. Redis is not touched.

    Raises:
        BadArguments: The arguments do not fit, are not JSON, or an option makes no sense.
        PayloadTooLarge: They are larger than `max_payload_bytes`.
    """
    spec.check_arguments(args, kwargs)
    rule = spec.dedup if options.dedup is None else _rule(spec, options.dedup)
    is_bare = rule is None and options is NO_OPTIONS and spec.is_bare
    rest = {} if is_bare else _rest(spec, rule, args, kwargs, options)
    if tracing.is_on() and (headers := tracing.carried(rest.get("t"))):
        rest["t"] = headers
    gates = spec.gates.of_job(rest.get("u"), options.weight) if spec.gates is not None else ""
    envelope = envelope_bytes(spec.head, args, kwargs, rest, gates)
    if len(envelope) > max_payload_bytes:
        raise PayloadTooLarge(
            f"a job of {spec.name!r} is {len(envelope):,} bytes; at most {max_payload_bytes:,} are allowed",
            hint="keep the data elsewhere and pass its id, or raise max_payload_bytes",
        )
    digit = spec.digit if options.priority is None else checked_digit(options.priority)
    item = Draft(options.id or new_job_id(), digit, envelope, handler=spec.name, queue=spec.queue)
    if partitions > 1:
        item.queue = partition_for(spec.queue, rest.get("u") or rest.get("g") or item.id, partitions)
    if lanes and not is_bare:
        item.whose = whose(spec.name, rest.get("u"), rest.get("c"))
    if rule is not None:
        item.dedup, item.scope, item.delay_ms = rest["g"], rule.word, rule.wait_ms
    if options is not NO_OPTIONS:
        item.replicas, item.ledger = options.replicas, options.ledger
        _set_due(item, rule, options)
    item.is_plain = is_bare or not (rule or gates or item.delay_ms or item.at_ms or "c" in rest)
    return item


def _rest(
    spec: HandlerSpec, rule: Dedup | None, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Collect the envelope's optional fields; most jobs have one or none."""
    rest: dict[str, Any] = {}
    key = options.key
    if key is None and spec.key is not None:
        key = str(spec.argument(spec.key, args, kwargs))
    if key is not None:
        rest["u"] = checked_text(key, "key")
    cost = options.cost if options.cost is not None or spec.cost is None else spec.argument(spec.cost, args, kwargs)
    if cost is not None:
        rest["c"] = checked_cost(cost, spec.name)
    if rule is not None:
        rest["g"] = checked_text(_dedup_key(spec, rule, args, kwargs), "the dedup key")
        if rule.letter:
            rest["gs"] = rule.letter
        if rule.window_ms:
            rest["gw"] = rule.window_ms
    if options is not NO_OPTIONS:
        rest |= envelope_fields(options, spec.name)
    return rest


def _rule(spec: HandlerSpec, given: str | Dedup) -> Dedup:
    """Return the rule that was given for one call, with the key of the handler's rule if it has none of its own."""
    own = spec.dedup
    if isinstance(given, Dedup):
        if given.by or given.key is not None:
            return given
        if own is None:
            raise BadArguments(
                f"dedup of {spec.name!r}: nothing says what makes jobs the same",
                hint="name the arguments, as in Dedup.until_started('user_id'), or pass key=",
            )
        return dataclasses.replace(given, by=own.by, key=own.key)
    checked_text(given, "dedup")
    return dataclasses.replace(own, by=(), key=given) if own is not None else Dedup(key=given)


def _dedup_key(spec: HandlerSpec, rule: Dedup, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if rule.key is not None:
        return rule.key
    return dedup_key(spec.name, [spec.argument(name, args, kwargs) for name in rule.by])


def _set_due(item: Draft, rule: Dedup | None, options: Options) -> None:
    delay_ms, at_ms = due_of(options)
    if not delay_ms and not at_ms:
        return
    if rule is not None and rule.letter in _SET_THE_TIME:
        raise BadArguments(
            f"a job of {item.handler!r} with dedup {rule.scope!r} has its own time; leave out delay= and at="
        )
    item.delay_ms, item.at_ms = delay_ms, at_ms


class Producer:
    """Adds jobs to one partition, one numbered call after another."""

    def __init__(
        self,
        partition: Partition,
        confirmations: Confirmations,
        name: str,
        *,
        max_depth: int,
        give_up_s: float,
        agree: Callable[[], Awaitable[None]],
    ) -> None:
        self.partition = partition
        self._agree = agree
        self._is_agreed = False
        """Whether the queue is known to have as many partitions as the settings say."""
        self._confirmations = confirmations
        self._name = name
        self._number = 0
        self._accepted = 0
        """Number of the last call that was accepted."""
        self._kept = ""
        """What Redis keeps of this producer, behind the number of its last call; empty: not known, or the short way will not do."""
        self._renew_at = 0.0
        """When that is to be made anew, by the monotonic clock."""
        self._max_depth = max_depth
        self._give_up_s = give_up_s
        self._turn = asyncio.Lock()
        self._waiting: deque[tuple[Draft, asyncio.Future[str]]] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._judge = HintJudge()

    async def one(self, item: Draft) -> str:
        """Add one job, together with whatever else is being added just now. Returns its result."""
        if self._flusher is None and not self._waiting and not self._turn.locked():
            try:
                return await self._alone(item)
            finally:
                if self._waiting:
                    self._start_flusher()
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._turn.locked():
            self._start_flusher()
        return await future

    async def _alone(self, item: Draft) -> str:
        """Add one job, by the short way if it is a plain one."""
        began = time.monotonic()
        if not item.is_plain or not self._kept or self._number % _LONG_WAY_EVERY == 0 or began > self._renew_at:
            return (await self.many((item,))).results[0]
        async with self._turn:
            self._number = number = self._number + 1
            try:
                if await self.partition.append(self._name, self._accepted, number, self._kept, item):
                    self._accepted = number
                    return "n"
            except BrokerUnavailable as error:
                await self._pause(error, began, _FIRST_PAUSE_S)
            return (await self._insist(number, (item,), began)).results[0]

    def _start_flusher(self) -> None:
        """Send what came while a call was under way."""
        if self._waiting and self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                await self._send(batch)
                await asyncio.sleep(0)  # those who were answered may have the next job at hand
        finally:
            self._flusher = None

    async def _send(self, batch: list[tuple[Draft, asyncio.Future[str]]]) -> None:
        try:
            results = await self.fill([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(_fresh(error))
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, str):
                future.set_result(result)
            else:
                future.set_exception(_fresh(result))

    async def fill(self, items: Sequence[Draft]) -> Sequence[str | QueueFull]:
        """Add up to a batch of jobs, as many as the queue has room for; for the others the result is the refusal."""
        if len(items) > 1 and sum(map(len, map(_ENVELOPE_OF, items))) > BATCH_BYTES:
            half = len(items) // 2
            return [*await self.fill(items[:half]), *await self.fill(items[half:])]
        try:
            return (await self.many(items)).results
        except QueueFull as full:
            room = max(0, full.max_depth - full.depth)
            fitting = await self.fill(items[:room]) if room else []
            return [*fitting, *[full] * (len(items) - room)]

    async def many(self, items: Sequence[Draft]) -> Added:
        """Add up to a batch of jobs in one call; repeat it until a reply comes, or time is up.

        Raises:
            BrokerUnavailable: No reply came in time. The jobs may be enqueued; enqueue them again with the same ids.
        """
        async with self._turn:
            self._heed_hints(items)
            self._number = number = self._number + 1
            return await self._insist(number, items, time.monotonic())

    async def _insist(self, number: int, items: Sequence[Draft], began: float) -> Added:
        """Make a numbered call, and again while no reply comes."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if not self._is_agreed:
                    await self._agree()
                    self._is_agreed = True
                added = await self.partition.add(self._name, number, items, max_depth=self._max_depth)
            except CallRepeated as repeated:
                added = Added(repeated.results.split("\n") if repeated.results else "n" * len(items), 0)
            except BrokerUnavailable as error:
                await self._pause(error, began, pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            self._accepted, self._renew_at = number, began + _RENEWED_S
            self._kept = added.kept if not self._max_depth else ""
            return added

    async def _pause(self, error: BrokerUnavailable, began: float, pause_s: float) -> None:
        """Wait before a call is repeated; raise what went wrong when its time is up."""
        if time.monotonic() + pause_s > began + self._give_up_s:
            raise error
        await asyncio.sleep(pause_s * (0.5 + random.random()))

    def _heed_hints(self, items: Sequence[Draft]) -> None:
        """Put jobs into the slow lane whose hint stands out; what was measured overrules it where it is known."""
        signs = [item.whose for item in items]
        if any(signs) and any(sign and sign[0] != NO_HINT for sign in signs):
            for item, is_slow in zip(items, self._judge.judge(signs), strict=True):
                if is_slow:
                    item.digit = slow_digit(item.digit)

    async def confirm(self, replicas: int) -> None:
        """Wait until that many replicas have what was added so far.

        Raises:
            NotConfirmed: Fewer have it in time. The jobs are enqueued all the same.
        """
        await self._confirmations.wait(replicas, self._accepted)

    async def close(self) -> None:
        """Send what waits, then close the connection."""
        if self._flusher is not None:
            await self._flusher
        await self.partition.wire.close()
        await self._confirmations.close()


def _fresh(error: BaseException) -> BaseException:
    """Copy an error: one exception raised in several tasks would collect all their tracebacks."""
    if not isinstance(error, Exception):
        return asyncio.CancelledError()
    copy = error.__class__.__new__(error.__class__)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error
    return copy


@dataclass(slots=True)
class Client:
    """The producing side of one process on one event loop."""

    url: str
    max_depth: int = 0
    max_payload_bytes: int = 262_144
    allow_eviction: bool = False
    give_up_s: float = 30.0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    """Where it runs; its connections belong there."""
    mongodb: tuple[str, str] = ("", "")
    """URL and database, for jobs of the ledger."""
    partitions_of: Callable[[str], int] = lambda _: 1
    """Says how many partitions a queue has."""
    _broker: Broker | None = None
    _notary: Notary | None = None
    _producers: dict[str, Producer] = field(default_factory=dict)
    _name: str = field(default_factory=lambda: f"{os.getpid():x}-{secrets.token_hex(6)}")

    @property
    def broker(self) -> Broker:
        """The server; nothing is opened by looking at it."""
        if self._broker is None:
            self._broker = Broker(self.url, allow_eviction=self.allow_eviction)
        return self._broker

    def producer(self, queue: str) -> Producer:
        """Return the producer for a partition, by its name."""
        producer = self._producers.get(queue)
        if producer is None:
            partition = self.broker.partition(queue)
            count = self.partitions_of(queue_of(queue))
            first = partition_names(queue_of(queue), count)[0]
            home = partition if queue == first else self.producer(first).partition
            producer = Producer(
                partition,
                Confirmations(self.broker.wire(), partition.keys, self._name),
                self._name,
                max_depth=-(-self.max_depth // count),
                give_up_s=self.give_up_s,
                agree=lambda: home.agree(count),
            )
            self._producers[queue] = producer
        return producer

    async def send(self, item: Draft) -> Job:
        """Enqueue one job."""
        producer = self.producer(item.queue)
        result = (await self._add(producer, [item]))[0] if item.ledger else await producer.one(item)
        if not isinstance(result, str):
            raise result
        if item.replicas:
            await producer.confirm(item.replicas)
        return item.as_job(result, self)

    async def send_many(self, items: Items) -> list[Job]:
        """Enqueue any number of jobs; one result per item, in order."""
        jobs: list[Job] = []
        async with contextlib.aclosing(self._sent(items)) as chunks:
            async for chunk in chunks:
                jobs += chunk
        return jobs

    async def stream(self, items: Items) -> AsyncGenerator[Job]:
        """Enqueue any number of jobs and give each result as it comes, in order; none is held."""
        async with contextlib.aclosing(self._sent(items)) as chunks:
            async for chunk in chunks:
                for job in chunk:
                    yield job

    async def _sent(self, items: Items) -> AsyncGenerator[list[Job]]:
        """Make a script call per `BATCH`; while one is under way the next is encoded."""
        under_way: asyncio.Task[list[Job]] | None = None
        try:
            async for chunk in _chunks(items):
                done = await under_way if under_way is not None else []
                under_way = asyncio.ensure_future(self.send_chunk(chunk))
                await _let_it_leave()
                yield done
            if under_way is not None:
                yield await under_way
        finally:
            if under_way is not None:
                await asyncio.gather(under_way, return_exceptions=True)

    async def send_chunk(self, chunk: Sequence[Item]) -> list[Job]:
        """Enqueue up to `BATCH` jobs, of any queues at once. What was refused before is passed through."""
        queues = set(map(_QUEUE_OF, chunk))
        if len(queues) == 1 and set(map(type, chunk)) == {Draft}:  # nearly every chunk
            return await self._send_to(queues.pop(), cast("Sequence[Draft]", chunk))
        by_queue: dict[str, list[int]] = {}
        jobs: list[Any] = list(chunk)
        for place, item in enumerate(chunk):
            if isinstance(item, Draft):
                by_queue.setdefault(item.queue, []).append(place)
        sending = [self._send_to(queue, [jobs[place] for place in places]) for queue, places in by_queue.items()]
        sent = await asyncio.gather(*sending, return_exceptions=True)
        for places, answer in zip(by_queue.values(), sent, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for place, job in zip(places, answer, strict=True):
                jobs[place] = job
        return jobs

    async def _send_to(self, queue: str, items: Sequence[Draft]) -> list[Job]:
        """Enqueue up to `BATCH` jobs of one queue."""
        producer = self.producer(queue)
        results = await self._add(producer, items)
        error = await _confirmed(producer, items)
        if type(results) is str and results.strip("n") == "":
            return [Job(item.id, item.handler, queue, "new", self, error) for item in items]
        return [
            item.as_job(result, self, error)
            if isinstance(result, str)
            else Job(item.id, item.handler, queue, "refused", self, result)
            for item, result in zip(items, results, strict=True)
        ]

    async def _add(self, producer: Producer, items: Sequence[Draft]) -> Sequence[str | QueueFull]:
        """Add as many jobs as there is room for, those of the ledger only after they were written down."""
        if not any(map(_IN_LEDGER, items)):
            return await producer.fill(items)
        if self._notary is None:
            from streamq.ledger import Notary  # here, so that whoever needs no MongoDB does not import its client

            self._notary = Notary(*self.mongodb)
        return await self._notary.enqueue(items, producer.fill)

    async def result(self, queue: str, job_id: str, timeout: timedelta) -> Any:
        """Wait for the kept result of a job; see `Job.result`."""
        wire = self.broker.wire()
        try:
            block_ms = max(1, to_ms(timeout))
            key = Keys(queue).result(job_id)
            # Moved to where it was: what lists have for a look at the first element that waits for it.
            reply = await wire.call("BLMOVE", key, key, "LEFT", "LEFT", block_ms / 1000, extra_s=block_ms / 1000)
        finally:
            await wire.close()
        if not reply:
            raise TimeoutError(f"job {job_id} has not ended within {timeout}, or was enqueued without keep_result=")
        record = orjson.loads(reply)
        if record["s"] != "completed":
            why = record.get("x") or {"t": record["s"], "m": "it was not started before its deadline"}
            raise JobFailed(f"job {job_id} is {record['s']}: {why['t']}: {why['m']}")
        if "z" in record:
            raise JobFailed(f"job {job_id} is completed, but its result could not be kept: {record['z']}")
        return record.get("r")

    async def cancel(self, queue: str, job_id: str, reason: str) -> Literal["cancelled", "asked"]:
        """Cancel a job; see `Job.cancel`."""
        wire = self.broker.wire()
        try:
            return await Orders(wire, Keys(queue)).cancel(job_id, reason=reason)
        finally:
            await wire.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on this client's loop and wait for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def explain(self, queue: str, dedup_key: str) -> Explanation:
        """Say who holds a dedup key of a queue; see `StreamQ.explain`."""
        wire = self.broker.wire()
        try:
            return await Inspection(wire, Keys(queue)).explain(dedup_key)
        finally:
            await wire.close()

    async def close(self) -> None:
        """Send what waits and close every connection."""
        for producer in self._producers.values():
            await producer.close()
        self._producers.clear()
        if self._notary is not None:
            await self._notary.close()
        if self._broker is not None:
            await self._broker.close()


async def _confirmed(producer: Producer, items: Sequence[Draft]) -> NotConfirmed | None:
    """Wait for the replicas that the jobs ask for, once for all; return what went wrong."""
    replicas = max(map(_REPLICAS_OF, items))
    if replicas:
        try:
            await producer.confirm(replicas)
        except NotConfirmed as error:
            return error
    return None


async def _chunks(items: Items) -> AsyncIterable[list[Item]]:
    chunk: list[Item] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            chunk.append(item)
            if len(chunk) == BATCH:
                yield chunk
                chunk = []
    else:
        for item in items:
            chunk.append(item)
            if len(chunk) == BATCH:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


async def _let_it_leave() -> None:
    """Let a call that was just begun reach the socket: its task runs in the next turn, and uvloop writes at its end."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class SyncBridge:
    """Runs coroutines for code that has no event loop, on one background thread per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start something and return a future for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result, or raise what it raises."""
        return self.start(work).result()

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do a last thing and end the thread; nothing if there is none. It may be started again."""
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(last(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A forked child has the parent's loop but not the thread that ran it.
            if self._loop is None or self._pid != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._loop.run_forever, name="streamq-sync", daemon=True)
                self._thread.start()
            return self._loop
