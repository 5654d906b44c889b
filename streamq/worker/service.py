"""The worker process: from its first log line to its exit code."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import math
import os
import secrets
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from streamq.broker.server import Broker
from streamq.broker.wire import ServerRefused
from streamq.clock import now_ms
from streamq.errors import BrokerUnavailable, ConfigurationError
from streamq.keys import partition_names
from streamq.leases import Pulse
from streamq.logs import event, worker_started
from streamq.parentlink import SAME_ORDER_S, ParentLink
from streamq.probes import Check, keep_reporting, serving
from streamq.process import Reporter, rss_bytes
from streamq.worker import forks
from streamq.worker.pump import Pump
from streamq.worker.run import RunningJob, Stop
from streamq.worker.slots import Slots
from streamq.worker.stacks import stack_of, stacks_of_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.app import StreamQ
    from streamq.settings import Settings

__all__ = ["SILENCE_LIMIT_S", "Worker", "main"]

log = logging.getLogger("streamq.worker")

SILENCE_LIMIT_S = 30.0
"""Without a good round trip for this long a worker says so, and ends for its supervisor to start a fresh one."""

_FRESH_S = 5.0
"""A worker whose last good round trip is older than this, and than three beats, is not ready."""
_SWEEP_PERIOD_S = 0.1
_BLOCKED_S = 0.5
"""A look that comes so much later than the one before shows that something has blocked the loop, or frozen the process."""
_COUNT_EVERY_S = 1.0
_INTERRUPTED_S = 2.0
"""How long jobs that were interrupted may take to end; a parent kills later than this."""
RECYCLE_AFTER_S = 15.0
"""How long a process goes on that holds a job which does not let go; then it drains, and another takes its place."""
EXIT_FORCED = 130
EXIT_SILENT = 69


_LONGEST_DUMP = 500_000


def worker_name(name: str | None) -> str:
    """Return the name for people; the rest of a consumer's name makes it unique for ever."""
    return name or f"{socket.gethostname().split('.')[0]}.{os.getpid()}"


class Worker:
    """One process's worth of slots, and a pump for each queue."""

    def __init__(self, app: StreamQ, settings: Settings, *, name: str | None = None) -> None:
        self.app = app
        self.settings = settings
        self.name = worker_name(name)
        self.exit_code = 0
        self._broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
        # Threads are made when they are needed. Those that do not let go are replaced, each once.
        most_threads = 2 * settings.worker_concurrency + settings.burst_slots
        self._threads = ThreadPoolExecutor(most_threads, thread_name_prefix="streamq-job")
        self._memory_limit = settings.max_memory_mb * 1_000_000
        # Workers that started together should not end together.
        self._most_jobs = settings.max_jobs - secrets.randbelow(settings.max_jobs // 10 + 1)
        self._reporter: Reporter | None = None
        self._draining = asyncio.Event()
        self._forced = asyncio.Event()
        self._ticked_at = time.monotonic()
        self._has_stuck_jobs = False
        self._pulse: Pulse | None = None
        self._is_silent = False
        self._told_at = -math.inf
        self._link: ParentLink | None = None
        self._answering: asyncio.Future[Any] | None = None
        self._unique = f"{self.name}.{secrets.token_hex(4)}"
        self.slots: Slots | None = None

    # From outside.

    def drain(self) -> None:
        """Start nothing new, let running jobs end, then stop."""
        self._draining.set()

    def told_to_stop(self) -> None:
        """Drain at the first TERM or INT, force at the second.

        With a parent the same order may come twice, once to the whole group and once passed on; it counts as one.
        """
        now = time.monotonic()
        is_same_order = self._link is not None and self._link.present and now - self._told_at < SAME_ORDER_S
        if self._told_at > -math.inf and not is_same_order:
            self.force()
        self._told_at = now if self._told_at == -math.inf else self._told_at
        self.drain()

    def force(self) -> None:
        """Stop now: interrupt running jobs and hand them back."""
        self.exit_code = EXIT_FORCED
        self._draining.set()
        self._forced.set()

    async def run(self) -> int:
        """Work until told to stop. Returns the exit code.

        Raises:
            ConfigurationError: Redis is not what streamq needs, or a setting does not fit this machine.
            BrokerUnavailable: Redis cannot be reached at the start.
            LifespanFailed: The application's lifespan raised before its first job.
        """
        worker_started(log, self.name, self.settings.worker_concurrency)
        await self._check_server()
        await self._check_partitions()
        async with self.app.registry.alive():
            slots = await self._work()
        outcomes: dict[str, Any] = dict(slots.counters)
        event(log, logging.INFO, "worker.stopped", worker=self.name, **outcomes)
        if self._has_stuck_jobs:
            # Their threads and tasks would hold up an orderly end for ever; everything is settled or handed back.
            logging.shutdown()
            os._exit(self.exit_code)
        return self.exit_code

    async def _work(self) -> Slots:
        """Run jobs until told to stop, then leave."""
        self.slots = slots = Slots(self.settings, self.app.registry, self._threads)
        slots.on_control = self._control
        slots.on_rename = self._renamed
        slots.on_stuck = self._recycle
        if not self.settings.background_jobs_enabled:
            self.quiet()
        slots.pumps = [Pump(self._broker, each, slots, name=self._unique) for each in self.settings.partition_names]
        self._link = ParentLink.open()
        self._check_memory()
        if not self._link.present:
            self._beat_alone(slots)
        heartbeat = self.settings.heartbeat_file if not self._link.present else ""
        self._reporter = Reporter(Path(heartbeat) if heartbeat else None)
        try:
            where = self.settings.health_host, self.settings.health_port
            async with serving("worker", where, self.checks, setting="health"), asyncio.TaskGroup() as tasks:
                helpers = [
                    *(tasks.create_task(self._pump(pump), name=f"pump-{pump.queue}") for pump in slots.pumps),
                    tasks.create_task(self._watch(slots)),
                    tasks.create_task(self._report(slots, self._link, self._reporter)),
                    tasks.create_task(self._weigh()),
                    tasks.create_task(self._count(slots)),
                    tasks.create_task(self._follow_parent(self._link)),
                ]
                await self._draining.wait()
                await self._drain(slots)
                for helper in helpers:
                    helper.cancel()
            await self._leave(slots)
        finally:
            if self._pulse is not None:
                await asyncio.to_thread(self._pulse.stop)
            self._threads.shutdown(wait=False, cancel_futures=True)
            await slots.processes.close()
            await slots.revived.close()
            await self._broker.close()
        return slots

    async def _check_server(self) -> None:
        """Refuse a server that would lose jobs; wait for one that is only starting."""
        for pause_s in (0.1, 0.3, 1.0, 2.0, None):
            try:
                info = await self._broker.check()
            except BrokerUnavailable:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            else:
                for warning in info.warnings:
                    event(log, logging.WARNING, "redis.warning", warning)
                return

    async def _check_partitions(self) -> None:
        """Refuse a queue that is divided otherwise than the settings say, and a limit that cannot be kept over partitions."""
        for queue in self.settings.queues:
            count = self.settings.partitions_of(queue)
            if count > 1:
                self._check_limits(queue)
            home = self._broker.partition(partition_names(queue, count)[0])
            try:
                await home.agree(count)
            finally:
                await home.wire.close()

    def _check_limits(self, queue: str) -> None:
        for spec in self.app.registry:
            if spec.queue == queue and (spec.concurrency or spec.rate):
                raise ConfigurationError(
                    f"handler {spec.name!r} has a limit over all its jobs, and its queue {queue!r} is divided: each "
                    "partition counts for itself",
                    hint="give the handler a queue that is not divided, or limits per user key",
                )

    def _check_memory(self) -> None:
        """Refuse a limit that every worker would be above before its first job."""
        held = rss_bytes(os.getpid()) or 0
        if 0 < self._memory_limit < held:
            raise ConfigurationError(
                f"max_memory_mb is {self.settings.max_memory_mb}, and a worker takes {held / 1_000_000:.0f} MB "
                "before its first job",
                hint="raise --max-memory (STREAMQ_MAX_MEMORY_MB), or set it to 0",
            )

    async def _pump(self, pump: Pump) -> None:
        """Run a pump; what no waiting cures ends the worker, and its jobs are finished as far as they can be."""
        try:
            await pump.run()
        except (ServerRefused, ConfigurationError) as error:
            event(
                log, logging.CRITICAL, "redis.refused", queue=pump.queue, error=str(error),
                reason="nothing will change without a person; ending",
            )  # fmt: skip
            self.exit_code = error.exit_code
            self.drain()

    def checks(self) -> list[Check]:
        """Tell how things stand that a worker needs to do its work. Asks nobody."""
        slots = self.slots
        pumps = slots.pumps if slots is not None else []
        unregistered = [pump.queue for pump in pumps if not pump.consumer]
        state = "draining" if self._draining.is_set() else "quiet" if slots is not None and slots.is_quiet else ""
        return [
            Check("registered", f"not registered in {','.join(unregistered)}" if unregistered or not pumps else ""),
            Check("redis", self._contact_problem(pumps)),
            Check("takes jobs", f"the worker is {state}" if state else ""),
        ]

    def _contact_problem(self, pumps: list[Pump]) -> str:
        now = asyncio.get_running_loop().time()
        silent_s = max((now - pump.last_good for pump in pumps if pump.last_good), default=0.0)
        if silent_s <= max(_FRESH_S, 3 * self.settings.beat_ms / 1000):
            return ""
        return f"no good round trip to Redis for {silent_s:.0f} s"

    def _beat_alone(self, slots: Slots) -> None:
        """Start to beat from here, because no parent does (any more): jobs that still run must stay this worker's."""
        self._pulse = Pulse(
            self.settings,
            lambda: [pump.consumer for pump in slots.pumps if pump.consumer],
            lambda: self._ticked_at,
        )
        self._pulse.start()

    def _renamed(self) -> None:
        slots = self.slots
        if slots is None or self._link is None:
            return
        names = [pump.consumer for pump in slots.pumps if pump.consumer]
        self._link.hello(sorted(set(names)))
        if len(names) == len(slots.pumps):
            self._link.ready()
            if self._reporter is not None:
                self._reporter.ready(self._status(slots))
            event(log, logging.INFO, "worker.ready", worker=self.name, queues=",".join(self.settings.queues))

    async def _follow_parent(self, link: ParentLink) -> None:
        if not link.present:
            return
        await link.gone.wait()
        event(log, logging.WARNING, "worker.orphaned", "the parent is gone: draining")
        if self.slots is not None:
            self._beat_alone(self.slots)
        self.drain()

    async def _watch(self, slots: Slots) -> None:
        """Ten times a second: show that the loop turns, end overdue jobs, notice silence."""
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(_SWEEP_PERIOD_S)
            self._note_tick(slots)
            slots.stop_overdue()
            if self._draining.is_set():
                continue
            silent_s = asyncio.get_running_loop().time() - _heard_at(slots.pumps, began)
            if silent_s > SILENCE_LIMIT_S:
                self._give_up(silent_s)
            elif 0 < self._most_jobs <= (ended := _ended(slots)):
                self._renew(f"it has run {ended} jobs")

    def _note_tick(self, slots: Slots) -> None:
        ticked_at, self._ticked_at = self._ticked_at, time.monotonic()
        if self._ticked_at - ticked_at > _BLOCKED_S:
            for pump in slots.pumps:
                pump.listen_anew()

    async def _report(self, slots: Slots, link: ParentLink, reporter: Reporter) -> None:
        await keep_reporting(
            link, reporter, self.checks, lambda: self._status(slots), lambda: (slots.busy, slots.capacity)
        )

    async def _weigh(self) -> None:
        """Each second: look how much memory is held."""
        while self._memory_limit:
            held = rss_bytes(os.getpid())
            if held is not None and held > self._memory_limit and not self._draining.is_set():
                self._renew(f"it holds {held / 1_000_000:.0f} MB")
            await asyncio.sleep(_COUNT_EVERY_S)

    async def _count(self, slots: Slots) -> None:
        """Each second: tell Redis what was counted here."""
        while True:
            await asyncio.sleep(_COUNT_EVERY_S)
            await asyncio.gather(*(pump.tell_counts() for pump in slots.pumps))

    def _status(self, slots: Slots) -> str:
        return f"{slots.busy}/{slots.capacity} busy"

    def _renew(self, why: str) -> None:
        """End for a fresh process, after what runs."""
        event(log, logging.INFO, "worker.recycling", worker=self.name, reason=why)
        self.drain()

    def _recycle(self, job: RunningJob) -> None:
        """A handler does not let go: show where it stands, and let a fresh process take over soon.

        Its slot is replaced and work goes on, so that jobs beside it can end and several of its kind cost one process;
        but its own job cannot run again before this process has ended.
        """
        event(
            log, logging.ERROR, "job.stuck", job_id=job.delivery.id.decode(), handler=job.spec.name,
            told_to_stop=str(job.stop),
        )  # fmt: skip
        self.dump()
        slots = self.slots
        if slots is not None and len(slots.stuck) >= self.settings.worker_concurrency:
            self.drain()
        else:
            asyncio.get_running_loop().call_later(RECYCLE_AFTER_S, self.drain)

    def _give_up(self, silent_s: float) -> None:
        event(
            log, logging.CRITICAL, "worker.silent", worker=self.name,
            reason=f"no good round trip to Redis for {silent_s:.0f} s; ending for the supervisor to start anew",
        )  # fmt: skip
        self.exit_code = EXIT_SILENT
        self._is_silent = True
        self.drain()

    def _control(self, message: dict[bytes, bytes]) -> None:
        """Do what the control stream says, if it is meant for this worker."""
        slots = self.slots
        target = message.get(b"to", b"*").decode()
        if slots is None or target not in ("*", self.name, self._unique):
            return
        match message.get(b"do"):
            case b"cancel":
                slots.cancel(message.get(b"job", b""), message.get(b"why", b"").decode())
            case b"quiet":
                self.quiet()
            case b"resume":
                self.resume()
            case b"stop":
                self.drain()
            case b"dump":
                self._answer_dump(slots)
            case b"look":
                pass  # something was stopped or let go; every turn sees that
            case _:
                event(log, logging.WARNING, "worker.unknown_order", order=str(message))

    def quiet(self) -> None:
        """Start nothing new, and stay."""
        if self.slots is not None:
            self.slots.is_quiet = True
            for pump in self.slots.pumps:
                pump.return_waiting()
            event(log, logging.INFO, "worker.quiet", worker=self.name, running=self.slots.busy)

    def resume(self) -> None:
        """Start jobs again."""
        if self.slots is not None:
            self.slots.is_quiet = False
            for pump in self.slots.pumps:
                pump.wake()
            event(log, logging.INFO, "worker.resumed", worker=self.name)

    def dump(self) -> str:
        """Write what runs, and where every task and thread stands. Returns it as well.

        A child process writes its own stacks to the log.
        """
        if self.slots is None:
            return ""
        stacks = "".join([_standing(job) for job, _ in self.slots.running.values()]) + stacks_of_threads()
        sys.stderr.write(stacks)
        self.slots.processes.dump()
        return stacks

    def _answer_dump(self, slots: Slots) -> None:
        """Do as `dump`, and leave it in Redis for whoever has asked."""
        told = orjson.dumps({"at_ms": now_ms(), "running": slots.busy, "stacks": self.dump()[:_LONGEST_DUMP]})
        self._answering = asyncio.ensure_future(
            asyncio.gather(*(pump.tell_stacks(told) for pump in slots.pumps), return_exceptions=True)
        )

    async def _drain(self, slots: Slots) -> None:
        """Let running jobs end within their grace; then interrupt them. The lease is renewed until the last ends."""
        slots.is_quiet = True
        if self._reporter is not None:
            self._reporter.stopping()
        patience_s = (self.settings.lease_ms if self._is_silent else self.settings.grace_ms) / 1000
        settled_by = asyncio.get_running_loop().time() + patience_s
        for pump in slots.pumps:
            pump.return_waiting()
        event(log, logging.INFO, "worker.draining", worker=self.name, running=slots.busy)
        idle = asyncio.ensure_future(slots.idle())
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait({idle, forced}, timeout=self.settings.grace_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            event(log, logging.WARNING, "worker.interrupting", worker=self.name, running=slots.busy)
            slots.stop_all(Stop.SHUTDOWN)
            await asyncio.wait({idle}, timeout=_INTERRUPTED_S)
        if slots.give_up_stuck() or not idle.done():
            self._has_stuck_jobs = True
        idle.cancel()
        forced.cancel()
        await self._settle_rest(slots, settled_by)

    async def _settle_rest(self, slots: Slots, until: float) -> None:
        """Wait until what has ended is settled, while there is time: it would run again if it were not.

        With Redis there, this takes a moment. With Redis away, a worker that was told to stop has its grace; one that
        ends because of that very silence waits for as long as a lease.
        """
        loop = asyncio.get_running_loop()
        while (  # noqa: ASYNC110 - once in a life; an event would cost each turn
            any(pump.unsettled for pump in slots.pumps) and loop.time() < until and not self._forced.is_set()
        ):
            await asyncio.sleep(_SWEEP_PERIOD_S / 10)

    async def _leave(self, slots: Slots) -> None:
        await asyncio.gather(*(pump.tell_counts() for pump in slots.pumps))
        await slots.notebook.close()
        await asyncio.gather(*(pump.leave() for pump in slots.pumps))
        if self._link is not None:
            self._link.bye()


def _heard_at(pumps: list[Pump], began: float) -> float:
    """Return when Redis was heard last, on the loop's clock.

    A node of a cluster that is known to be away is no reason to end while others are there: a new process would not
    reach it either.
    """
    last = [max(pump.last_good, began) for pump in pumps if pump.failure is None]
    return min(last) if last else max(max(pump.last_good, began) for pump in pumps)


def _ended(slots: Slots) -> int:
    """Return how many runs have ended here, whatever they came to."""
    return sum(slots.counters.values()) - slots.counters["late_outcomes"]


def _standing(job: RunningJob) -> str:
    """Log that a job runs, and return where it stands. One in a thread is among the stacks of the threads."""
    job_id = job.delivery.id.decode()
    running_s = round(asyncio.get_running_loop().time() - job.begun_at, 3)
    event(
        log, logging.WARNING, "job.running", job_id=job_id, handler=job.spec.name, user=job.envelope.key,
        running_s=running_s,
    )  # fmt: skip
    stack = stack_of(job.task) if job.task is not None else ""
    return f"Stack of job {job_id} of {job.spec.name}, {running_s} s (most recent call last):\n{stack}"


def main(settings: Settings, app: StreamQ, *, name: str | None = None) -> int:
    """Run one worker process until it is told to stop. Returns the exit code."""
    faulthandler.enable()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_main(settings, app, name))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _main(settings: Settings, app: StreamQ, name: str | None) -> int:
    worker = Worker(app, settings, name=name)
    loop = asyncio.get_running_loop()
    forks.guard(loop)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.told_to_stop)
    loop.add_signal_handler(signal.SIGTSTP, worker.quiet)
    loop.add_signal_handler(signal.SIGCONT, worker.resume)
    loop.add_signal_handler(signal.SIGUSR1, worker.dump)
    # A blocked loop never gets to `dump`; this writes the stacks from inside the signal.
    faulthandler.register(signal.SIGUSR1, chain=True)
    gc.collect()
    gc.freeze()
    return await worker.run()
