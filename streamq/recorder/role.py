"""The recorder as a role: its loops, its back-off, its process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from streamq import logs
from streamq.broker.inspection import Inspection
from streamq.broker.outbox import Lag, Outbox, OutboxEntry
from streamq.broker.server import Broker
from streamq.broker.wire import ServerRefused
from streamq.errors import ConfigurationError, QueueFull, StreamQError, Unavailable
from streamq.keys import Keys, queue_of
from streamq.mongo import Ledger, Mongo, Statuses, StatusWrite
from streamq.parentlink import ParentLink
from streamq.probes import keep_reporting, serving
from streamq.process import Reporter, be_nice, queued_s
from streamq.recorder.documents import Malformed, kept_ms, merged, recorded
from streamq.recorder.reconciler import KINDS, Finding, Mode, Reconciler
from streamq.recorder.seen import Seen
from streamq.recorder.standing import Standing
from streamq.seeding import remembered, seed
from streamq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["Recorder", "beside", "main", "run"]

BLOCK_MS = 500
LOOK_EVERY_S = 1.0
RECONCILE_EVERY_S = 60.0
RECHECK_S = 5.0
"""When a round found something missing, the next one comes sooner."""
TAKE_OVER_EVERY_S = 5.0
TAKE_OVER_IDLE_MS = 10_000
"""A batch that takes longer is written by another recorder as well, which does no harm."""

BATCH_RECORDS = 1_000
READ_RECORDS = 4_000
READ_BYTES = 4_000_000
"""About as much is read at once: large enough to be quick, small enough to be held in memory."""

CONTENDED_SHARE = 0.5
"""Having waited for a processor for this share of a batch's time says that others need it."""
RESTS, LONGEST_REST_S = 4, 0.25
"""How often the batch's time is left to them, at most so long."""
POLITE_SHARE = 0.25
"""With more of the outbox filled the history comes first."""
LATE_MS = 60_000
FULL_SHARE = 0.8
NICENESS = 10
COLLECT_EVERY = 20_000

_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.1, 5.0

_log = logging.getLogger(__name__)


class Recorder:
    """Records one partition."""

    def __init__(
        self,
        broker: Broker,
        statuses: Statuses,
        keys: Keys,
        settings: Settings | None = None,
        standing: Standing | None = None,
    ) -> None:
        # Reading blocks a connection; whatever else is asked goes another way, under the same name.
        self._wires = (broker.wire(), broker.wire())
        self._reader = Outbox(self._wires[0], keys)
        self._side = Outbox(self._wires[1], keys, self._reader.consumer)
        self._seen = Seen(Inspection(self._wires[1], keys))
        self._statuses = statuses
        self._queue = keys.queue
        self._standing = standing or Standing()
        self._standing.late_s[self._queue] = lambda: self.lag.oldest_ms / 1000
        settings = settings or Settings()
        self._outbox_max = settings.outbox_max
        self._kept_ms = kept_ms(settings)
        self._count = 16
        self._next_take_over = 0.0
        self._written: list[bytes] = []
        self.lag = Lag(0, 0)
        """How far the history is behind, as of the last look."""
        self.recorded = 0
        """Statuses written since the start."""

    async def run(self, stop: asyncio.Event) -> None:
        """Record until told to stop; the batch at hand is finished first.

        Raises:
            ExceptionGroup: of ConfigurationError: a server refuses us, which waiting does not cure.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                record = Repeated("record", self._queue, self._record, self._standing)
                look = Repeated("look", self._queue, self._look, self._standing)
                tasks.create_task(record.until(stop))
                tasks.create_task(look.until(stop, rest_s=lambda: LOOK_EVERY_S))
            with contextlib.suppress(StreamQError):
                await self._side.leave()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections to Redis."""
        for wire in self._wires:
            await wire.close()

    async def _record(self, stop: asyncio.Event) -> None:
        """Move one batch from the outbox to MongoDB."""
        if self._written:  # stored before the last acknowledgement failed
            await self._acknowledge()
        entries = await self._next_entries()
        if entries:
            begun_at, waited_s = time.perf_counter(), queued_s()
            await self._store(entries, stop)
            await self._acknowledge()
            took_s = time.perf_counter() - begun_at
            await _rest(stop, self._politeness_s(took_s, queued_s() - waited_s))

    def _politeness_s(self, took_s: float, waited_s: float) -> float:
        """Tell how long to leave the machine to others after a batch.

        A nice process still warms the caches and the disk, and what it makes MongoDB do is not nice at all. So where it
        had to wait for a processor it does less at a time, unless the outbox fills.
        """
        if waited_s < CONTENDED_SHARE * took_s or self.lag.entries > POLITE_SHARE * self._outbox_max:
            return 0
        return min(LONGEST_REST_S, RESTS * took_s)

    async def _next_entries(self) -> list[OutboxEntry]:
        """Read the next entries: now and then those that a recorder left behind, else new ones."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_take_over:
            left = await self._reader.take_over(idle_ms=TAKE_OVER_IDLE_MS, limit=self._count)
            if left:
                return left
            self._next_take_over = now + TAKE_OVER_EVERY_S
        entries = await self._reader.read(limit=self._count, block_ms=BLOCK_MS)
        if entries:
            self._count = _next_count(entries)
        return entries

    async def _store(self, entries: list[OutboxEntry], stop: asyncio.Event) -> None:
        """Write entries, however long MongoDB is away. After `stop` they are left to the next recorder."""
        writes = merged(await self._statuses_of(entries))
        # A job is in one batch only, so their order does not matter, and the server's disk waits are shared.
        batches = [writes[first : first + BATCH_RECORDS] for first in range(0, len(writes), BATCH_RECORDS)]
        async with asyncio.TaskGroup() as tasks:
            for batch in batches:
                tasks.create_task(self._write(batch, stop))
        self._written = [entry.id for entry in entries]

    async def _write(self, batch: list[StatusWrite], stop: asyncio.Event) -> None:
        failures = 0
        while True:
            try:
                await self._statuses.write(batch)
            except Unavailable as error:
                if stop.is_set():
                    raise
                failures += 1
                self._standing.note(f"write {self._queue}", error)
                _say_unavailable(self._queue, error, failures)
                await _rest(stop, _backoff_s(failures))
            else:
                self._standing.note(f"write {self._queue}", None)
                self.recorded += len(batch)
                return

    async def _statuses_of(self, entries: list[OutboxEntry]) -> list[StatusWrite]:
        writes: list[StatusWrite] = []
        for entry in entries:
            for job_id, raw in entry.records:
                try:
                    writes.append(recorded(self._queue, entry, job_id, raw, self._kept_ms))
                except Malformed as error:
                    await self._statuses.put_aside(job_id, entry.version, raw, str(error))
        return writes

    async def _acknowledge(self) -> None:
        await self._reader.ack(self._written)
        self._written = []

    async def _look(self, _: asyncio.Event) -> None:
        """Measure the lag, and note what waits and runs: one recorder is enough for that, and only when it has time."""
        self.lag = await self._side.lag()
        self._warn()
        if self.lag.oldest_ms < LOOK_EVERY_S * 2000 and await self._side.leads():
            await self._side.tidy()
            if seen := await self._seen.look():
                try:
                    await self._statuses.write(seen)
                except BaseException:
                    self._seen.forget()
                    raise

    def _warn(self) -> None:
        if self.lag.entries > FULL_SHARE * self._outbox_max:
            logs.event(
                _log, logging.ERROR, "outbox.nearly_full",
                f"outbox of {self._queue}: {self.lag.entries} of {self._outbox_max} entries; the oldest go next",
                queue=self._queue, entries=self.lag.entries, limit=self._outbox_max,
            )  # fmt: skip
        elif self.lag.oldest_ms > LATE_MS:
            logs.event(
                _log, logging.WARNING, "history.late", f"history of {self._queue} is {self.lag.oldest_ms // 1000} s late",
                queue=self._queue, lag_ms=self.lag.oldest_ms, entries=self.lag.entries,
            )  # fmt: skip


class Reconciliation:
    """Reconciles one partition every minute, unless another recorder does."""

    def __init__(self, reconciler: Reconciler, standing: Standing | None = None) -> None:
        self._reconciler = reconciler
        self._standing = standing or Standing()
        self._told: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until told to stop; servers may come and go."""
        try:
            rounds = Repeated("reconcile", self._reconciler.queue, self._round, self._standing)
            await rounds.until(stop, rest_s=self._rest_s)
        finally:
            await self._reconciler.close()

    def _rest_s(self) -> float:
        return RECHECK_S if self._reconciler.is_suspicious else RECONCILE_EVERY_S

    async def _round(self, _: asyncio.Event) -> None:
        if await self._reconciler.leads(int(RECONCILE_EVERY_S * 1500)):
            self._tell(await self._reconciler.round(Mode.MEND))

    def _tell(self, findings: list[Finding]) -> None:
        """Log what is new; what was found before and is still so is on the status page."""
        told = {finding.kind: len(finding.names) for finding in findings}
        for finding in findings:
            if finding.repaired or told[finding.kind] != self._told.get(finding.kind):
                text = f"{self._reconciler.queue}: {len(finding.names)} {KINDS[finding.kind]}"
                level = logging.INFO if finding.repaired else logging.WARNING
                logs.event(
                    _log, level, f"reconciler.{finding.kind}", text, queue=self._reconciler.queue,
                    count=len(finding.names), examples=finding.names[:5], repaired=finding.repaired,
                )  # fmt: skip
        self._told = told


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    on_ready: Callable[[], None] = lambda: None,
    standing: Standing | None = None,
) -> None:
    """Record all queues of the settings until told to stop.

    It waits for servers that are away, at the start and later.

    Args:
        settings: Addresses and queues.
        stop: Set it to end after the batches at hand.
        on_ready: Called once, when both servers have answered.
        standing: Where it is noted how things stand.

    Raises:
        ConfigurationError: A server is not what streamq needs, or refuses us.
    """
    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    statuses, standing = Statuses(mongo), standing or Standing()
    try:
        for step in (broker.check, mongo.check, statuses.prepare):
            await _persist(step, stop, standing)
        if not stop.is_set():
            standing.is_up = True
            on_ready()
            if settings.lanes:
                await _seed(settings, broker, statuses)
            await _record_all(settings, broker, mongo, stop, standing)
    finally:
        await mongo.close()


async def _seed(settings: Settings, broker: Broker, statuses: Statuses) -> None:
    """Let queues that know nothing of run times start with what the history tells. Nobody waits for it in vain."""
    for queue in settings.partition_names:
        partition = broker.partition(queue)
        try:
            if queue_of(queue) not in settings.fifo_queues and not await partition.learn():
                limit_ms, slow = await seed(partition, await remembered(statuses, queue))
                logs.event(_log, logging.INFO, "lanes.seeded", queue=queue, limit_ms=limit_ms, slow_users=slow)
        except (Unavailable, QueueFull, ServerRefused) as error:
            logs.event(_log, logging.WARNING, "lanes.not_seeded", queue=queue, error=str(error))
        finally:
            await partition.wire.close()


async def _record_all(
    settings: Settings, broker: Broker, mongo: Mongo, stop: asyncio.Event, standing: Standing
) -> None:
    statuses, ledger = Statuses(mongo), Ledger(mongo)
    try:
        async with asyncio.TaskGroup() as tasks:
            for queue in settings.partition_names:
                recorder = Recorder(broker, statuses, Keys(queue), settings, standing)
                tasks.create_task(recorder.run(stop))
                reconciler = Reconciler(broker.partition(queue), statuses, ledger, settings)
                tasks.create_task(Reconciliation(reconciler, standing).run(stop))
    except* ConfigurationError as group:
        raise _first(group) from None


def main(settings: Settings, app_path: str | None = None) -> int:
    """Run as a process of its own. Returns the exit code.

    It is nice to others: jobs come first, history catches up.

    Args:
        settings: As loaded.
        app_path: Not needed, since records speak for themselves; all roles are started alike.

    Raises:
        ConfigurationError: History is switched off, or a server refuses us.
    """
    del app_path
    _check_history(settings)
    be_nice(NICENESS)
    # What a batch makes goes as a whole, and the collector finds nothing in it: it need not look after each 700 objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 50, 100)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_process(settings))
    return 0


@contextlib.contextmanager
def beside(settings: Settings) -> Generator[None]:
    """Record on a thread of its own for as long as the block runs, in a process that does something else.

    That thread alone is nice. It shares the interpreter with the rest, so this is for where a process more is too many.

    Raises:
        ConfigurationError: History is switched off.
    """
    _check_history(settings)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=_record_beside, args=(loop, stop, settings), name="streamq-recorder")
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _record_beside(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, settings: Settings) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    logs.event(_log, logging.INFO, "recorder.started", queues=",".join(settings.queues))
    try:
        loop.run_until_complete(run(settings, stop))
    except ConfigurationError as error:
        logs.event(_log, logging.CRITICAL, "recorder.refused", str(error), hint=error.hint)


def _check_history(settings: Settings) -> None:
    if not settings.history:
        raise ConfigurationError("history is off: there is nothing to record", hint="set STREAMQ_HISTORY=true")


async def _process(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    link = ParentLink.open()
    link.hello([])
    reporter = Reporter(Path(settings.heartbeat_file) if settings.heartbeat_file and not link.present else None)
    standing = Standing()
    checks = partial(standing.checks, LATE_MS / 1000)
    status = f"records {','.join(settings.queues)}"
    reporting = asyncio.create_task(keep_reporting(link, reporter, checks, lambda: status, lambda: (0, 0)))
    orphaned = asyncio.create_task(_stop_with(link.gone, stop))

    def ready() -> None:
        link.ready()
        reporter.ready(status)
        logs.event(_log, logging.INFO, "recorder.started", queues=",".join(settings.queues))

    try:
        async with serving("recorder", (settings.recorder_host, settings.recorder_port), checks):
            await run(settings, stop, on_ready=ready, standing=standing)
    finally:
        reporter.stopping()
        reporting.cancel()
        orphaned.cancel()
        link.bye()
        link.close()


class Repeated:
    """What is done again and again for a queue."""

    def __init__(
        self, name: str, queue: str, step: Callable[[asyncio.Event], Awaitable[None]], standing: Standing
    ) -> None:
        self._name = f"{name} {queue}"
        self._queue = queue
        self._step = step
        self._standing = standing

    async def until(self, stop: asyncio.Event, *, rest_s: Callable[[], float] = lambda: 0) -> None:
        """Do it until told to stop, and rest longer and longer while a server is away."""
        failures = 0
        while not stop.is_set():
            try:
                await self._step(stop)
            except (QueueFull, Unavailable, ServerRefused) as error:  # full: the ledger waits until there is room
                failures += 1
                self._standing.note(self._name, error)
                _say_unavailable(self._queue, error, failures)
                await _rest(stop, _backoff_s(failures))
            else:
                if failures:
                    self._standing.note(self._name, None)
                    logs.event(_log, logging.INFO, "recorder.recovered", queue=self._queue, failures=failures)
                failures = 0
                await _rest(stop, rest_s())


async def _stop_with(gone: asyncio.Event, stop: asyncio.Event) -> None:
    await gone.wait()
    stop.set()


async def _persist(step: Callable[[], Awaitable[object]], stop: asyncio.Event, standing: Standing) -> None:
    """Repeat a step until the server it needs is there."""
    failures = 0
    while not stop.is_set():
        try:
            await step()
        except Unavailable as error:
            failures += 1
            standing.note("start", error)
            _say_unavailable("*", error, failures)
            await _rest(stop, _backoff_s(failures))
        else:
            standing.note("start", None)
            return


def _first(group: BaseExceptionGroup[ConfigurationError]) -> ConfigurationError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _next_count(entries: list[OutboxEntry]) -> int:
    """Tell how many entries to read next time, going by the size of these."""
    records = max(1, sum(len(entry.records) for entry in entries)) / len(entries)
    size = max(1, sum(entry.size for entry in entries)) / len(entries)
    return int(max(1, min(READ_RECORDS / records, READ_BYTES / size)))


def _backoff_s(failures: int) -> float:
    ceiling_s: float = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2 ** min(failures, 10))
    return random.uniform(0.5, 1) * ceiling_s


def _say_unavailable(queue: str, error: StreamQError, failures: int) -> None:
    """Log the first failure, and every tenth: the rest says nothing new."""
    if failures == 1 or failures % 10 == 0:
        text = f"recorder of {queue} waits: {error}"
        logs.event(_log, logging.WARNING, "recorder.waits", text, queue=queue, error=str(error), failures=failures)


async def _rest(stop: asyncio.Event, seconds: float) -> None:
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stop.wait()
