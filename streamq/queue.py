"""Producing: from a call of a handler to an accepted job.

Concurrent calls share a script call: whatever is enqueued in one turn of the event loop, or while a call is under way,
goes out together. Each call is numbered, so that repeating one whose reply was lost adds nothing twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import orjson

from streamq.broker.orders import Orders
from streamq.broker.partition import BATCH, Added, CallRepeated, NewJob, Partition
from streamq.broker.server import Broker
from streamq.clock import now_ms, to_ms
from streamq.codec import encode_json, envelope_bytes
from streamq.errors import BadArguments, BrokerUnavailable, JobFailed, NotConfirmed, PayloadTooLarge
from streamq.keys import Keys, lane_digit

if TYPE_CHECKING:
    from streamq.registry import HandlerSpec

__all__ = ["Client", "Draft", "Job", "Options", "SyncBridge", "new_job_id"]

T = TypeVar("T")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LONGEST_KEY = 512


class _IdMaker:
    """Makes job ids: 26 letters and digits that sort by time, as ULIDs do. See https://github.com/ulid/spec."""

    def __init__(self) -> None:
        self._ms = 0
        self._prefix = ""
        self._count = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._restart)

    def next(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._restart(ms)
        self._count += 1
        return f"{self._prefix}{self._count:07X}"

    def _restart(self, ms: int = 0) -> None:
        """Draw new noise, each millisecond and in a forked child: two processes never share a prefix."""
        self._ms, self._count = ms, 0
        noise = secrets.randbits(45)
        self._prefix = _base32(ms, 10) + _base32(noise, 9)


def _base32(number: int, digits: int) -> str:
    return "".join(_CROCKFORD[(number >> 5 * place) & 31] for place in range(digits - 1, -1, -1))


new_job_id = _IdMaker().next


@dataclass(frozen=True, slots=True)
class Options:
    """What may be said of one job besides its arguments. What is None is as the handler says."""

    key: str | None = None
    """The user or tenant that the job belongs to."""
    dedup: str | None = None
    """While a job with this key lives, enqueueing another returns that one."""
    delay: timedelta | None = None
    at: datetime | None = None
    """When it is due; an aware datetime. Instead of `delay`."""
    priority: Literal["high", "normal", "low"] | None = None
    max_attempts: int | None = None
    deadline: datetime | timedelta | None = None
    """The job is not started after it; a duration counts from now."""
    headers: dict[str, str] | None = None
    keep_result: timedelta | None = None
    """Keep the result for that long, for `job.result()`."""
    id: str | None = None
    """The job's id, made by the caller; the same id is one job. None: a new one."""
    occurrence: str | None = None
    replicas: int = 0
    """Wait until that many replicas have the job."""


class Job(msgspec.Struct, frozen=True):
    """An accepted job, or the one that stands in its place."""

    id: str
    handler: str
    queue: str
    status: Literal["new", "duplicate", "present"]
    """new: enqueued now. duplicate: `id` is the living job that holds the dedup key. present: this id was known."""
    client: Any = None
    """Who enqueued it, and can ask what became of it."""

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, handler={self.handler!r}, queue={self.queue!r}, status={self.status!r})"

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
    replicas: int = 0

    def as_job(self, result: str, client: Client) -> Job:
        """Say what became of it, from its result in `Added`."""
        if result == "n":
            return Job(self.id, self.handler, self.queue, "new", client)
        if result == "p":
            return Job(self.id, self.handler, self.queue, "present", client)
        return Job(result[1:], self.handler, self.queue, "duplicate", client)


_NO_OPTIONS = Options()


def draft(
    spec: HandlerSpec,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options = _NO_OPTIONS,
    *,
    max_payload_bytes: int = 262_144,
) -> Draft:
    """Check a call of a handler and encode it. Redis is not touched.

    Raises:
        BadArguments: The arguments do not fit, are not JSON, or an option makes no sense.
        PayloadTooLarge: They are larger than `max_payload_bytes`.
    """
    spec.check_arguments(args, kwargs)
    key = options.key
    if key is None and spec.key is not None:
        key = str(spec.argument(spec.key, args, kwargs))
    dedup = options.dedup
    if dedup is None and spec.dedup:
        values = [spec.argument(name, args, kwargs) for name in spec.dedup]
        dedup = f"{spec.name}:" + ":".join(str(value) for value in values)
    rest = _rest(spec, key, dedup, options)
    envelope = envelope_bytes(spec.head, args, kwargs, rest)
    if len(envelope) > max_payload_bytes:
        raise PayloadTooLarge(
            f"a job of {spec.name!r} is {len(envelope):,} bytes; at most {max_payload_bytes:,} are allowed",
            hint="keep the data elsewhere and pass its id, or raise max_payload_bytes",
        )
    delay_ms = _delay_ms(options) if options is not _NO_OPTIONS else 0
    digit = lane_digit(options.priority or spec.priority)
    job_id = options.id or new_job_id()
    return Draft(job_id, digit, envelope, delay_ms, dedup, spec.name, spec.queue, options.replicas)


def _rest(spec: HandlerSpec, key: str | None, dedup: str | None, options: Options) -> dict[str, Any]:
    """Collect the envelope's optional fields; most jobs have one or none."""
    rest: dict[str, Any] = {}
    if key is not None:
        rest["u"] = _checked_text(key, "key")
    if dedup is not None:
        rest["g"] = _checked_text(dedup, "dedup")
    if options is not _NO_OPTIONS:
        _add_options(rest, spec, options)
    return rest


def _add_options(rest: dict[str, Any], spec: HandlerSpec, options: Options) -> None:
    if options.id is not None:
        _checked_text(options.id, "id")
    if options.max_attempts is not None:
        rest["m"] = _checked_attempts(options.max_attempts, spec)
    if options.deadline is not None:
        rest["x"] = _moment_ms(options.deadline, "deadline")
    if options.occurrence is not None:
        rest["o"] = options.occurrence
    if options.headers:
        rest["t"] = _checked_headers(options.headers)
    if options.keep_result is not None:
        rest["kr"] = to_ms(options.keep_result)


def _checked_attempts(max_attempts: int, spec: HandlerSpec) -> int:
    if max_attempts < 1:
        raise BadArguments(f"max_attempts counts from 1, and {max_attempts} came for {spec.name!r}")
    return max_attempts


def _checked_text(text: str, what: str) -> str:
    if not text or len(text) > _LONGEST_KEY:
        raise BadArguments(f"{what} must have 1 to {_LONGEST_KEY} characters, and {len(text)} came")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadArguments(f"{what} {text!r} is not text: {error.reason}") from None
    return text


def _checked_headers(headers: dict[Any, Any]) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadArguments(f"headers are text by text, and {name!r}: {value!r} came")
    encode_json(headers)
    return headers


def _moment_ms(moment: datetime | timedelta, what: str) -> int:
    if isinstance(moment, timedelta):
        return now_ms() + to_ms(moment)
    try:
        return to_ms(moment)
    except ValueError as error:
        raise BadArguments(f"{what}: {error}") from None


def _delay_ms(options: Options) -> int:
    if options.delay is not None and options.at is not None:
        raise BadArguments("delay= and at= both say when; pass one of them")
    if options.at is not None:
        return max(0, _moment_ms(options.at, "at") - now_ms())
    if options.delay is None:
        return 0
    if options.delay < timedelta(0):
        raise BadArguments(f"a delay cannot be negative, and {options.delay} came")
    return to_ms(options.delay)


class Producer:
    """Adds jobs to one partition, one numbered call after another."""

    def __init__(self, partition: Partition, name: str, *, max_depth: int, give_up_s: float) -> None:
        self._partition = partition
        self._name = name
        self._number = 0
        self._max_depth = max_depth
        self._give_up_s = give_up_s
        self._turn = asyncio.Lock()
        self._waiting: deque[tuple[Draft, asyncio.Future[str]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def one(self, item: Draft) -> str:
        """Add one job, together with whatever else is being added just now. Returns its result."""
        if self._flusher is None and not self._waiting and not self._turn.locked():
            try:
                return (await self.many((item,))).results[0]
            finally:
                self._start_flusher()
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._turn.locked():
            self._start_flusher()
        return await future

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
            added = await self.many([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(_fresh(error))
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), result in zip(batch, added.results, strict=True):
            if not future.done():
                future.set_result(result)

    async def many(self, items: Sequence[Draft]) -> Added:
        """Add up to a batch of jobs in one call; repeat it until a reply comes, or time is up.

        Raises:
            BrokerUnavailable: No reply came in time. The jobs may be enqueued; enqueue them again with the same ids.
        """
        async with self._turn:
            self._number += 1
            give_up_at = time.monotonic() + self._give_up_s
            pause_s = 0.05
            while True:
                try:
                    return await self._partition.add(self._name, self._number, items, max_depth=self._max_depth)
                except CallRepeated as repeated:
                    return Added(repeated.results.split("\n") if repeated.results else "n" * len(items), 0)
                except BrokerUnavailable:
                    if time.monotonic() + pause_s > give_up_at:
                        raise
                await asyncio.sleep(pause_s * (0.5 + random.random()))
                pause_s = min(pause_s * 2, 5.0)

    async def confirm(self, replicas: int, timeout_ms: int = 1000) -> None:
        """Wait until that many replicas have what was added over this connection.

        Raises:
            NotConfirmed: Fewer have it in time. The jobs are enqueued all the same.
        """
        have = int(await self._partition.wire.call("WAIT", replicas, timeout_ms))
        if have < replicas:
            raise NotConfirmed(
                f"the job is enqueued, but {have} of {replicas} replicas confirmed it within {timeout_ms} ms",
                hint="look at the replicas; the job runs, unless Redis fails over before they catch up",
            )

    async def close(self) -> None:
        """Send what waits, then close the connection."""
        if self._flusher is not None:
            await self._flusher
        await self._partition.wire.close()


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
    _broker: Broker | None = None
    _producers: dict[str, Producer] = field(default_factory=dict)
    _name: str = field(default_factory=lambda: f"{os.getpid():x}-{secrets.token_hex(6)}")

    @property
    def broker(self) -> Broker:
        """The server; nothing is opened by looking at it."""
        if self._broker is None:
            self._broker = Broker(self.url, allow_eviction=self.allow_eviction)
        return self._broker

    def producer(self, queue: str) -> Producer:
        """Return the producer for a queue."""
        producer = self._producers.get(queue)
        if producer is None:
            producer = Producer(
                self.broker.partition(queue),
                self._name,
                max_depth=self.max_depth,
                give_up_s=self.give_up_s,
            )
            self._producers[queue] = producer
        return producer

    async def send(self, item: Draft) -> Job:
        """Enqueue one job."""
        producer = self.producer(item.queue)
        result = await producer.one(item)
        if item.replicas:
            await producer.confirm(item.replicas)
        return item.as_job(result, self)

    async def send_many(self, items: Iterable[Draft] | AsyncIterable[Draft]) -> list[Job]:
        """Enqueue any number of jobs, a script call per `BATCH`; while one is under way the next is encoded."""
        jobs: list[Job] = []
        under_way: asyncio.Task[list[Job]] | None = None
        try:
            async for chunk in _chunks(items):
                if under_way is not None:
                    jobs += await under_way
                under_way = asyncio.ensure_future(self._send_chunk(chunk))
                await _let_it_leave()
            if under_way is not None:
                jobs += await under_way
        except BaseException:
            if under_way is not None:
                await asyncio.gather(under_way, return_exceptions=True)
            raise
        return jobs

    async def _send_chunk(self, chunk: list[Draft]) -> list[Job]:
        by_queue: dict[str, list[Draft]] = {}
        for item in chunk:
            by_queue.setdefault(item.queue, []).append(item)
        results: dict[str, str] = {}
        for queue, items in by_queue.items():
            added = await self.producer(queue).many(items)
            if len(by_queue) == 1:
                return [item.as_job(result, self) for item, result in zip(items, added.results, strict=True)]
            results |= {item.id: result for item, result in zip(items, added.results, strict=True)}
        return [item.as_job(results[item.id], self) for item in chunk]

    async def result(self, queue: str, job_id: str, timeout: timedelta) -> Any:
        """Wait for the kept result of a job; see `Job.result`."""
        wire = self.broker.wire()
        try:
            block_ms = max(1, to_ms(timeout))
            key = Keys(queue).result(job_id)
            reply = await wire.call(
                "XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", key, "0-0", extra_s=block_ms / 1000
            )
        finally:
            await wire.close()
        if not reply:
            raise TimeoutError(f"job {job_id} has not ended within {timeout}, or was enqueued without keep_result=")
        record = orjson.loads(reply[0][1][0][1][1])
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

    async def close(self) -> None:
        """Send what waits and close every connection."""
        for producer in self._producers.values():
            await producer.close()
        self._producers.clear()
        if self._broker is not None:
            await self._broker.close()


async def _chunks(items: Iterable[Draft] | AsyncIterable[Draft]) -> AsyncIterable[list[Draft]]:
    chunk: list[Draft] = []
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
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result, or raise what it raises."""
        return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A forked child has the parent's loop but not the thread that ran it.
            if self._loop is None or self._pid != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._pid = os.getpid()
                threading.Thread(target=self._loop.run_forever, name="streamq-sync", daemon=True).start()
            return self._loop
