"""The pump: keeps one partition and one worker in step, through lost connections and all.

One call is under way at a time, and while it is, the jobs of the one before run: settle, beat and read share the
round trip. Only an idle worker waits inside Redis, over a second connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from typing import TYPE_CHECKING

from streamq.broker.partition import BATCH, BATCH_BYTES, Arg, CycleReply, Partition, Report, Unregistered
from streamq.broker.wire import Fault, ServerRefused
from streamq.clock import ServerClock
from streamq.codec import GATED
from streamq.errors import BrokerUnavailable, ConfigurationError, QueueFull, StreamQError
from streamq.logs import event
from streamq.meters import Meter
from streamq.worker.costs import Costs
from streamq.worker.settle import Settled, reported

if TYPE_CHECKING:
    from streamq.broker.server import Broker
    from streamq.job import Delivery
    from streamq.worker.slots import Slots

__all__ = ["Pump"]

log = logging.getLogger("streamq.worker")

BLOCK_MS = 5_000
"""How long an idle reader waits inside Redis. Due times, beats and take-overs have their own timers."""

STALE_S = 0.03
"""A job that was read ahead and waits longer than this goes back, for a worker that is free."""

_SUSPECT_S = 0.1
"""How long a suspect waits here for the jobs that run to end, before it goes back for an idle worker."""
_SUSPECT_AGAIN_S = 2.0
"""The same when it comes here again, and how long this worker then takes over nothing; twice as long each time."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
"""Jobs must flow again within 2 s of the server being up."""
_UNHEARD_S = 1.0
"""Calls that stay unanswered for this long say that Redis is away; it is on top of a lease, not part of it."""
_DEAD_LETTERS = 100_000
_NEVER_MS = 1 << 52
_NOTHING: frozenset[str] = frozenset()


class Pump:
    """One partition's part of a worker."""

    def __init__(self, broker: Broker, queue: str, slots: Slots, *, name: str) -> None:
        self.queue = queue
        self.buffer: deque[Delivery] = deque()
        """Read and not started."""
        self.suspects: deque[Delivery] = deque()
        """Were running when a worker died, twice: they run alone."""
        self.finished: deque[Settled] = deque()
        """Settled by the next cycle."""
        self.clock = ServerClock()
        self.costs = Costs(slots.settings, queue)
        self.stopped: frozenset[str] = frozenset()
        """Handlers (`h:..`) and user keys (`k:..`) that are blocked; nearly always empty."""
        self.reserved = 0
        """Slots promised to what is being read just now."""
        self.served = 0
        """The number of its last turn among several pumps."""
        self.consumer = ""
        self.failure: Exception | None = None
        """Why Redis cannot be reached, while it cannot."""
        self.meter = Meter()
        """What is counted here and not told yet."""
        self.doubted_before_ms = 0
        """Jobs that were enqueued before this moment of the server's may have completed, and be back."""
        self.last_good = 0.0
        """When the last round trip ended, on the loop's clock."""
        self._slots = slots
        self._settings = slots.settings
        self._name = name
        self._partition: Partition = broker.partition(queue)
        self._reading: Partition = broker.partition(queue)
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._reset()

    def _reset(self) -> None:
        self._reader: asyncio.Task[None] | None = None
        self._stale_check: asyncio.TimerHandle | None = None
        self._suspect_check: asyncio.TimerHandle | None = None
        self._suspect_s = _SUSPECT_S
        self._modest_until = 0.0
        """Until when this worker, while busy, leaves what is to be taken over to others."""
        self._returning: set[asyncio.Task[None]] = set()
        self._markers: list[Arg] = []
        self._control_cursor = b"0-0"
        self._sweep_cursors = [b"0-0"] * 6
        self._hungry = True
        """Whether a read may find something: not after one that found nothing."""
        self._most = BATCH
        """How many jobs a call may bring: fewer when they are large."""
        self._paused = False
        self._in_doubt = False
        """Whether the last report's reply was lost."""
        self._lives = 0
        self._saying = 0
        """Settled by the call that is under way."""
        self._cycles = 0
        self._unheard_since = 0.0
        """When the first call was made that nothing has been answered to; 0: there is none."""
        self._has_strays = False
        self._next_due_at = 0.0
        self._next_beat_at = 0.0
        self._next_sweep_at = 0.0
        self._trust_beats_at = 0.0

    @property
    def unsettled(self) -> int:
        """How many jobs have ended here without Redis having confirmed it."""
        return len(self.finished) + self._saying

    def is_unheard(self, now: float) -> bool:
        """Whether Redis has left calls unanswered for a while."""
        return self._unheard_since > 0 and now - self._unheard_since > _UNHEARD_S

    def listen_anew(self) -> None:
        """The loop was blocked: what seems unanswered may lie here unread."""
        if self._unheard_since:
            self._unheard_since = self._loop.time()

    def left_a_stray(self) -> None:
        """A job was given up here that Redis may still believe to be ours."""
        self._has_strays = True

    def wake(self) -> None:
        """There is something to say or to ask."""
        self._wake.set()

    def finish(self, item: Settled) -> None:
        """Take a settled job for the next report."""
        if not self.finished:  # else it is awake
            self._wake.set()
        self.finished.append(item)

    # The life of a pump.

    async def run(self) -> None:
        """Serve until cancelled. Redis may come and go."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._serve()
            except Unregistered:
                self._forget_everything()
            except (BrokerUnavailable, OSError) as error:
                if self.failure is None:  # there was contact since the last one
                    pause_s = _FIRST_PAUSE_S
                self._note_loss(error)
                await asyncio.sleep(pause_s * (0.5 + random.random()))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _serve(self) -> None:
        try:
            if not self.consumer:
                await self._register()
            elif self.failure is not None or self._in_doubt:
                await self._return_after_loss()
            while True:
                if self._has_business():
                    await self._turn()
                else:
                    await self._rest()
        except ServerRefused as error:
            if error.fault is Fault.REJOIN:
                raise Unregistered from error
            raise
        except QueueFull as error:  # no script of ours is refused for memory, so another limit was hit
            raise BrokerUnavailable(str(error)) from error
        finally:
            await self._stop_reader()

    async def _register(self) -> None:
        self._lives += 1
        consumer = self._name if self._lives == 1 else f"{self._name}~{self._lives}"
        server_ms, self._control_cursor = await self._partition.register(consumer)
        self.consumer = consumer
        self._note_contact(server_ms)
        self._distrust_beats()
        self._slots.renamed()

    async def _return_after_loss(self) -> None:
        """Redis is back: settle what the calls that failed left open, then give back what never arrived here."""
        await self._turn()
        await self._return_strays()

    async def _look_who_answers(self, partition: Partition) -> None:
        """Notice behind a new connection a server that may have forgotten ends of jobs, before what it gave is run.

        Raises:
            BrokerUnavailable: Nobody knows, and the question stays open. What was given is found later as a stray.
        """
        wire = partition.wire
        wire.is_new = False
        try:
            before = await partition.forgot_before()
        except ServerRefused:  # one that may not be asked is not doubted
            return
        except BaseException:
            wire.is_new = True
            raise
        if before > self.doubted_before_ms:
            event(log, logging.INFO, "redis.replaced", queue=self.queue, doubted_before_ms=before)
        self.doubted_before_ms = before

    async def _return_strays(self) -> None:
        self._has_strays = False
        held = self._slots.tokens_of(self)
        handed_back = await self._partition.strays(self.consumer, held)
        if handed_back:
            event(log, logging.WARNING, "job.reclaimed", queue=self.queue, lost_in_transit=handed_back)

    def _forget_everything(self) -> None:
        """This worker was given up: its jobs are others' now. Start anew under a new name."""
        if self.consumer:
            event(log, logging.WARNING, "worker.fenced", queue=self.queue, worker=self.consumer)
        self.consumer = ""
        self._slots.fenced(self)
        self.buffer.clear()
        self.suspects.clear()
        self._slots.counters["late_outcomes"] += len(self.finished)
        self.finished.clear()
        self._markers.clear()
        self._in_doubt = False
        self._hungry = True

    def _note_loss(self, error: Exception) -> None:
        self._distrust_beats()
        if self.failure is None:
            self.meter.add("redis_lost")
            event(log, logging.ERROR, "redis.lost", queue=self.queue, error=str(error))
        self.failure = error

    def _note_contact(self, server_ms: int) -> None:
        now = self._loop.time()
        self._unheard_since = 0.0
        expected_ms = self.clock.at(now)
        self.clock.observe(server_ms, now)
        if self.failure is not None:
            event(log, logging.INFO, "redis.back", queue=self.queue, gap_s=round(now - self.last_good, 1))
            self.failure = None
        elif self.last_good and abs(server_ms - expected_ms) > self._settings.dead_after_ms / 2:
            event(log, logging.WARNING, "redis.clock_jumped", queue=self.queue, by_ms=server_ms - expected_ms)
            self._distrust_beats()
        self.last_good = now

    def _distrust_beats(self) -> None:
        """Give up nobody for a while: after an outage every worker's last beat looks old, and none of them died."""
        self._trust_beats_at = self._loop.time() + self._settings.dead_after_ms / 1000

    # One turn.

    def _has_business(self) -> bool:
        now = self._loop.time()
        if self.finished or self._markers or now >= self._next_beat_at:
            return True
        if self._next_due_at and now >= self._next_due_at:
            return True
        return self._hungry and not self._paused and self._slots.share(self) > 0

    @property
    def is_hungry(self) -> bool:
        """Whether it would read if there were room; not while it does."""
        return self._hungry and not self._paused and not self.reserved and bool(self.consumer) and self.failure is None

    async def _turn(self) -> None:
        """Say what happened and get what there is: one round trip."""
        is_beat = self._loop.time() >= self._next_beat_at
        items, report = self._report()
        self._saying = len(items)
        want = 0 if self._paused and not self._hungry else min(self._most, self._slots.share(self))
        self.reserved += want
        sent_at = self._loop.time()
        self._unheard_since = self._unheard_since or sent_at
        try:
            reply = await self._partition.cycle(
                self.consumer,
                report,
                want=want,
                reads=self._slots.reads(self._cycles) if want else (),
                dead_after_ms=self._dead_after_ms(),
                control_cursor=self._control_cursor,
                limits=(self._settings.outbox_max if self._settings.history else 0, _DEAD_LETTERS),
                now=sent_at,
            )
        except (BrokerUnavailable, OSError, ServerRefused, Unregistered, asyncio.CancelledError):
            # Whether it was taken is unknown; saying it again is harmless.
            self.finished.extendleft(reversed(items))
            self._in_doubt = True
            raise
        finally:
            self.reserved -= want
            self._saying = 0
        if report.renewed:
            self._slots.renewed(self, report.renewed, sent_at)
        if self._partition.wire.is_new:
            await self._look_who_answers(self._partition)
        self._take(reply, want)
        if len(self._slots.pumps) > 1:
            self._slots.served(self)
        if is_beat:
            await self._learn()
            if self._has_strays:
                self._has_strays = False
                await self._stop_reader()  # what is on its way would be taken for a stray
                await self._return_after_loss()

    async def _learn(self) -> None:
        """Share what was seen of run times. Without it the jobs run all the same, in the lanes that were known."""
        with contextlib.suppress(QueueFull):
            await self.costs.exchange(self._partition, is_busy=self._slots.busy > 0)

    def _report(self) -> tuple[list[Settled], Report]:
        finished = self.finished
        items = [finished.popleft() for _ in range(min(BATCH, len(finished)))]
        report = reported(items)
        if self._markers:
            report.markers, self._markers = self._markers[: 2 * BATCH], self._markers[2 * BATCH :]
        now = self._loop.time()
        if now >= self._next_beat_at:
            report.renewed = self._slots.due_for_renewal(self, now)
            self._next_beat_at = now + self._settings.beat_ms / 1000
        return items, report

    def _dead_after_ms(self) -> int:
        now = self._loop.time()
        if now < self._modest_until and self._slots.busy:
            return -1
        if now < self._trust_beats_at:
            return _NEVER_MS
        return self._settings.dead_after_ms

    def _take(self, reply: CycleReply, want: int) -> None:
        self._note_contact(reply.server_ms)
        if reply.refused and not self._in_doubt:
            self._slots.refused(self, reply.refused)
        self._in_doubt = False
        for job_id in reply.lost:
            self._slots.lose(job_id)
        self._markers += reply.markers
        self._note_stopped(reply.stopped)
        due_s = reply.due_in_s
        self._next_due_at = self._loop.time() + max(0.0, due_s) if reply.next_due_ms >= 0 else 0.0
        if want:
            self._cycles += 1
            self._hungry = bool(reply.deliveries) or (reply.next_due_ms >= 0 and due_s <= 0)
        if reply.control:
            self._control_cursor = reply.control[-1][0]
            for _, message in reply.control:
                self._slots.control(message)
        if reply.deliveries:
            self._note_size(reply.deliveries)
        self._receive(reply.deliveries)

    def _note_size(self, deliveries: list[Delivery]) -> None:
        """Judge how many of such jobs a call may bring by two of them: jobs that are read together are often alike."""
        size = max(len(deliveries[0].raw), len(deliveries[-1].raw))
        self._most = max(1, min(BATCH, BATCH_BYTES // max(size, 1)))

    def _note_stopped(self, stopped: list[bytes]) -> None:
        """Heed what operators have stopped; what was read ahead of a queue that is paused now goes back."""
        self.stopped = frozenset([name.decode() for name in stopped]) if stopped else _NOTHING
        was_paused, self._paused = self._paused, "queue" in self.stopped
        if self._paused and self.buffer:
            self.return_unrun([*self.buffer])
            self.buffer.clear()
        if was_paused and not self._paused:
            self._hungry = True

    async def tell_counts(self) -> None:
        """Tell Redis what was counted. What it may not have heard is not told again: it would count twice."""
        if self.failure is None and (new := self.meter.taken()):
            with contextlib.suppress(StreamQError, OSError):
                await self._partition.count(new)

    def _receive(self, deliveries: list[Delivery]) -> None:
        if self._slots.is_quiet and deliveries:  # they were on their way when the order came
            self.return_unrun(deliveries)
            return
        if self.doubted_before_ms:
            self._slots.revived.will_start(each for each in deliveries if each.enqueued_ms < self.doubted_before_ms)
        for delivery in deliveries:
            if delivery.crashes:
                self.meter.add("reclaimed")
            if delivery.crashes >= 2:
                self.suspects.append(delivery)
            else:
                self.buffer.append(delivery)
        self._slots.fill()
        if self.buffer and self._stale_check is None:
            self._stale_check = self._loop.call_later(STALE_S, self._return_stale)
        if self.suspects and self._suspect_check is None:
            self._suspect_check = self._loop.call_later(self._suspect_s, self._return_suspects)

    def _return_suspects(self) -> None:
        """Hand back suspects that could not start, because something runs here: another worker may be idle.

        While one waits nothing is read, so it starts when the last job has ended. When all workers are busy it goes round
        among them, and each waits twice as long as before: in the end it starts, whatever they run.
        """
        self._suspect_check = None
        if not self.suspects:
            self._suspect_s = _SUSPECT_S
            return
        waiting = [*self.suspects]
        self.suspects.clear()
        self.return_unrun(waiting)
        rest_s = max(self._suspect_s, _SUSPECT_AGAIN_S)
        self._modest_until = self._loop.time() + rest_s
        self._suspect_s = max(2 * self._suspect_s, _SUSPECT_AGAIN_S)

    def _return_stale(self) -> None:
        """Hand back what was read ahead and does not get to run: another worker may be free."""
        self._stale_check = None
        oldest = self._loop.time() - STALE_S
        stale: list[Delivery] = []
        while self.buffer and self.buffer[0].taken_at < oldest:
            stale.append(self.buffer.popleft())
        if stale:
            self.return_unrun(stale)
        if self.buffer:
            self._stale_check = self._loop.call_later(STALE_S / 2, self._return_stale)

    def return_waiting(self) -> None:
        """Hand back everything that has not been started."""
        unrun = [*self.buffer, *self.suspects]
        self.buffer.clear()
        self.suspects.clear()
        if unrun:
            self.return_unrun(unrun)

    def return_unrun(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries back; if the call fails, they come back with the lease, or when this worker is gone."""
        task = self._loop.create_task(self.release(deliveries))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def release(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries back, and wait until that is done or has failed."""
        try:
            await self._partition.release(self.consumer, deliveries)
        except (BrokerUnavailable, OSError):
            self._in_doubt = True  # the next turn finds them as strays
        self._hungry = True
        self._wake.set()

    async def note_down(self, rows: list[tuple[bytes, bytes]]) -> None:
        """Keep what handlers tell of their jobs; see `Partition.note`."""
        await self._partition.note(rows)

    async def tell_stacks(self, told: bytes) -> None:
        """Keep where everything stands, for whoever has asked; see `Partition.keep_stacks`."""
        if self.consumer:
            await self._partition.keep_stacks(self.consumer, told)

    # Waiting.

    async def _rest(self) -> None:
        """Wait until there is business; an idle worker waits inside Redis as well."""
        if self._may_read():
            self._start_reader()
        if self._loop.time() >= self._next_sweep_at:
            await self._sweep()
            return
        end_at = self._slots.next_end_at() if self._hungry and not self._paused else 0.0
        alarms = (self._next_beat_at, self._next_due_at, self._next_sweep_at, self._slots.next_loan_at(), end_at)
        wake_at = min(at for at in alarms if at)
        alarm = self._loop.call_at(wake_at, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            alarm.cancel()
        self._wake.clear()

    def _may_read(self) -> bool:
        return (self._reader is None or self._reader.done()) and self._slots.free() > 0 and self._slots.room() > 0

    def _start_reader(self) -> None:
        if self._reader is not None and not self._reader.cancelled():
            error = self._reader.exception()
            if error is not None:
                self._reader = None
                raise error
        self._reader = self._loop.create_task(self._read(*self._slots.blocking_read()))
        self._reader.add_done_callback(lambda _: self._wake.set())

    async def _read(self, count: int, lanes: int) -> None:
        """Wait inside Redis for the next jobs, at most so many of each of the first lanes.

        This promises no slots: while it waits, a beat may bring a dead worker's jobs. Should both bring some at once,
        what cannot start goes back. While the queue is paused it waits for operators instead.
        """
        if self._paused:
            ends_in_ms = (self._next_due_at - self._loop.time()) * 1000 if self._next_due_at else BLOCK_MS
            await self._reading.listen(self._control_cursor, max(1, min(BLOCK_MS, int(ends_in_ms))))
            self._next_beat_at = 0.0
            return
        deliveries, markers, stopped = await self._reading.wait(
            self.consumer, count, BLOCK_MS, self._loop.time, lanes=lanes
        )
        if deliveries and self._reading.wire.is_new:
            await self._look_who_answers(self._reading)
        self._markers += markers
        if deliveries or markers:
            self._hungry = True
            self._note_stopped(stopped)
        if deliveries and "queue" in self.stopped:
            self.return_unrun(deliveries)
        else:
            # Only a cycle knows whether gates are open: they go back, and the next one brings what may start.
            gated = [delivery for delivery in deliveries if delivery.raw.startswith(GATED)]
            if gated:
                self.return_unrun(gated)
                deliveries = [delivery for delivery in deliveries if not delivery.raw.startswith(GATED)]
            self._receive(deliveries)

    async def _stop_reader(self) -> None:
        """Stop waiting. A delivery that was on its way is found later as a stray."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._in_doubt = self._in_doubt or not reader.done()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await self._reading.wire.close()

    async def _sweep(self) -> None:
        """Look for deliveries that nobody renewed within the lease; a lane at a time, where the last look ended."""
        period_s = self._settings.lease_ms / 3000
        self._next_sweep_at = self._loop.time() + period_s * (0.75 + random.random() / 2)
        for lane in range(6):
            cursor, handed_back, vanished = await self._partition.sweep(
                lane + 1, lease_ms=self._settings.lease_ms, cursor=self._sweep_cursors[lane]
            )
            self._sweep_cursors[lane] = cursor
            if handed_back or vanished:
                self.meter.add("reclaimed", handed_back)
                event(
                    log, logging.WARNING, "job.reclaimed", queue=self.queue, not_renewed=handed_back, vanished=vanished
                )
                self._hungry = True
            if cursor != b"0-0":
                self._next_sweep_at = self._loop.time()

    # The end.

    async def leave(self) -> None:
        """Say the last things, hand back what is left, and go off the books."""
        await self._stop_reader()
        for check in (self._stale_check, self._suspect_check):
            if check is not None:
                check.cancel()
        if self._returning:
            await asyncio.gather(*self._returning, return_exceptions=True)
        with contextlib.suppress(BrokerUnavailable, OSError, Unregistered, ServerRefused, ConfigurationError):
            if self.consumer:
                while self.finished:
                    await self._turn()
                await self._learn()
                await self._partition.leave(self.consumer)
        await self._partition.wire.close()
