"""The slots of a worker: what runs, what may start, and who stops whom.

A slot is a task that runs one job after another as long as there are any. Integers count; there is no semaphore and
no queue between the pump and the slots.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

from streamq import lanes
from streamq.codec import decode_envelope
from streamq.context import Place, place
from streamq.errors import LeaseLost
from streamq.job import Completed, Crashed, Delivery, Dropped, Limited, Outcome, Parked, Retrying, Snoozed
from streamq.logs import event
from streamq.worker.calls import Calls
from streamq.worker.notebook import Notebook
from streamq.worker.processes import Processes
from streamq.worker.revived import Revived
from streamq.worker.run import RunningJob, Stop, blocked, came_to, interrupted, limited, verdict
from streamq.worker.settle import completed, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from streamq.broker.partition import Arg, Read
    from streamq.registry import Registry
    from streamq.settings import Settings
    from streamq.worker.pump import Pump
    from streamq.worker.settle import Settled

__all__ = ["Slots"]

log = logging.getLogger("streamq.worker")

AHEAD_S = 0.02
"""Read ahead what will start within this time."""
_ALIKE_S = 0.005
"""Run times that differ no more than this from their mean, on average, tell when a job will end."""
_MOST_AHEAD = 256
"""Two batches: one runs while the next is on its way."""
STUCK_S = 10.0
"""A handler that was interrupted and has not ended after this long does not heed it."""
_LOOK_AGAIN_S = 1.0
_LEASE_MARGIN_MS = 2_000
"""How long before the end of a lease that could not be renewed its job is stopped; at most a quarter of the lease."""
_ANOTHERS = "the job belongs to another worker now"
_AT_ONCE_S = 0.001
"""Jobs shorter than this are over before a second slot would start."""
_FAST_LANES, _ALL_LANES = 3, 6
_DONE = Completed()
"""What nearly every job comes to."""
_KINDS: dict[type[object], str] = {outcome: outcome.__name__.lower() for outcome in get_args(Outcome)}
_ALIKE = [(digit, 128, 0) for digit in (1, 4, 2, 5, 3, 6)]
"""How lanes are read when cost does not matter."""
_UNHURRIED_EVERY = 8
"""Of that many reads one begins with the low lanes, and one with the normal ones, so that none starves."""


class Slots:
    """The jobs that run in this process."""

    def __init__(self, settings: Settings, registry: Registry, threads: ThreadPoolExecutor) -> None:
        self.settings = settings
        self.running: dict[bytes, tuple[RunningJob, Pump]] = {}
        self.counters: Counter[str] = Counter()
        self.is_quiet = False
        """Start nothing new; what runs goes on."""
        self.pumps: list[Pump] = []
        self.on_rename: Callable[[], None] = lambda: None
        self.on_control: Callable[[dict[bytes, bytes]], None] = lambda _: None
        self.on_stuck: Callable[[RunningJob], None] = lambda _: None
        self.notebook = Notebook()
        self.revived, self.processes = Revived(settings), Processes(settings, self._told)
        self.processes.prepare(registry)
        self._calls = Calls(registry, threads, self.processes.run)
        self._capacity = settings.worker_concurrency
        self._burst = settings.burst_slots if settings.lanes else 0
        self._slow_share = lanes.slow_share(self._capacity, settings.slow_share)
        self._active = 0
        """Slots that have a task."""
        self._alone = False
        """Whether a suspect runs, and nothing else may."""
        self._turn = self._served = 0
        """How many jobs were taken, and how many turns pumps have had, where there are several."""
        self._starting = 0
        """Slots that have a task which has not begun."""
        self._loop = asyncio.get_running_loop()
        self._finished_at = 0.0
        self._rate_count = 0
        self._rate_from = self._rate = self._mean_s = 0.0
        self._spread_s = 0.0
        """How far run times are from their mean, on average."""
        self._base = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._parked: set[str] = set()
        self._lost: set[bytes] = set()
        """Tokens of running jobs that are others' now, or may be."""

    # How much may be read.

    def free(self) -> int:
        """Return how many jobs could start now."""
        if self.is_quiet or self._alone or any(pump.suspects for pump in self.pumps):
            return 0
        held = self._active + sum(len(pump.buffer) + pump.reserved for pump in self.pumps)
        return max(0, self._capacity + self._lent() - held)

    def room(self) -> int:
        """Return how many jobs may be read now: those that could start, and those that will within `AHEAD_S`."""
        if self.is_quiet or self._alone:
            return 0
        held = self._active
        for pump in self.pumps:
            if pump.suspects:
                return 0
            held += len(pump.buffer) + pump.reserved
        return max(0, self._capacity + self._lent() + self._ahead() - held)

    def share(self, pump: Pump) -> int:
        """Return how many jobs a pump may ask for now: of the room, its part beside the others that are hungry.

        Who was served longest ago comes first, so that with a single free slot each has its turn.
        """
        room = self.room()
        if room == 0 or len(self.pumps) == 1:
            return room
        rivals = [each for each in self.pumps if each.is_hungry and each is not pump]
        ahead = sum(each.served < pump.served for each in rivals)
        return max(0, -(-(room - ahead) // (len(rivals) + 1)))

    def served(self, pump: Pump) -> None:
        """Note that a pump has had its turn; the others look whether it is theirs."""
        self._served += 1
        pump.served = self._served
        self._wake_hungry()

    def _wake_hungry(self) -> None:
        """Have the pumps look whether there is room for what they may find, where there are several."""
        if len(self.pumps) > 1:
            for pump in self.pumps:
                if pump.is_hungry:
                    pump.wake()

    def _lent(self) -> int:
        """Return how many more jobs may run because others turned out to be slow.

        Only async handlers lend: with every plain one in a thread of its own, there is a thread for each that starts.
        """
        if not self._burst:
            return 0
        now = self._loop.time()
        overran = (now - job.begun_at >= pump.costs.limit_s for job, pump in self._unknown_async())
        return min(self._burst, sum(overran))

    def _unknown_async(self) -> Iterator[tuple[RunningJob, Pump]]:
        return (
            (job, pump)
            for job, pump in self.running.values()
            if job.delivery.digit <= _FAST_LANES and job.spec.is_async
        )

    def next_loan_at(self) -> float:
        """Return when the next slot is lent, on the loop's clock; 0: nobody knows."""
        if not self._burst:
            return 0.0
        now = self._loop.time()
        ends = (job.begun_at + pump.costs.limit_s for job, pump in self._unknown_async())
        soonest = min((end for end in ends if end > now), default=math.inf)
        return soonest if soonest < math.inf else 0.0

    def _ahead(self) -> int:
        """Return how many jobs to read ahead: short ones that end at a steady pace, or longer ones that are about to end."""
        now = self._loop.time()
        if self._mean_s > AHEAD_S:
            return sum(1 for at in self._expected_ends() if now - _ALIKE_S < at < now + AHEAD_S)
        if now - self._finished_at > AHEAD_S:
            return 0
        return min(_MOST_AHEAD, int(self._rate * AHEAD_S))

    def _expected_ends(self) -> Iterator[float]:
        """Say when running jobs will end, if all take about as long; on the loop's clock, in order."""
        if self._mean_s > AHEAD_S and self._spread_s < _ALIKE_S:
            for job, _ in self.running.values():
                if job.delivery.digit <= _FAST_LANES:
                    yield job.begun_at + self._mean_s

    def next_end_at(self) -> float:
        """Return when to read ahead for the next job that is going to end, on the loop's clock; 0: nobody knows."""
        now = self._loop.time()
        return next((at - AHEAD_S / 2 for at in self._expected_ends() if at - AHEAD_S / 2 > now), 0.0)

    def reads(self, cycle: int) -> Sequence[Read]:
        """Return the lanes to read, in order, and the most to read from each."""
        turn = cycle % _UNHURRIED_EVERY
        found = self._reads(reverse=turn == 0)
        width = len(found) // 3
        return [*found[width:], *found[:width]] if turn == _UNHURRIED_EVERY // 2 else found

    def _reads(self, *, reverse: bool) -> list[Read]:
        """Return the lanes of each priority, highest first or last.

        With one slot, or the whole for a share, slow jobs are due only in the turn of the last.
        """
        if not self.settings.lanes:
            return _ALIKE[::-1] if reverse else _ALIKE
        free = max(0, self._capacity - self._active - sum(len(pump.buffer) for pump in self.pumps))
        share, (known, overran) = self._slow_share, self._slow_held()
        due = lanes.slow_right(share) - known if share < self._capacity or reverse else 0
        return lanes.reads(lanes.slow_room(share, known, overran), max(0, due), free, reverse=reverse)

    def blocking_read(self) -> tuple[int, int]:
        """Return how many jobs an idle worker waits for, and of how many lanes.

        What comes meanwhile is read without regard to shares, so it asks for a single job; the cycle after it brings the
        rest. Slots that were lent are for the fast lanes.
        """
        if not self.settings.lanes:
            return self.free(), _ALL_LANES
        waiting = sum(len(pump.buffer) + pump.reserved for pump in self.pumps)
        if self._active + waiting >= self._capacity:
            return self.free(), _FAST_LANES
        return 1, _ALL_LANES

    def _slow_held(self) -> tuple[int, int]:
        """Return how many slots jobs of the slow lanes hold, and how many those that overran in the fast ones."""
        now = self._loop.time()
        known = overran = 0
        for job, pump in self.running.values():
            if job.delivery.digit > _FAST_LANES:
                known += 1
            elif now - job.begun_at >= pump.costs.limit_s:
                overran += 1
        known += sum(delivery.digit > _FAST_LANES for pump in self.pumps for delivery in pump.buffer)
        return known, overran

    # Starting.

    def fill(self) -> None:
        """Start slots for what is buffered; a suspect only when nothing else runs.

        Jobs that end at once need one slot, which runs them all; each slot that finds more than its own job starts
        the next.
        """
        if self._alone:
            return
        waiting = sum(len(pump.buffer) for pump in self.pumps)
        most = waiting if self._mean_s > _AT_ONCE_S else 1
        for _ in range(min(self._capacity + self._lent() - self._active, waiting, most)):
            self._start_slot()
        if not self._active:
            self._start_suspect()

    def _start_slot(self) -> None:
        self._active += 1
        self._starting += 1
        task = self._loop.create_task(self._slot(), context=self._base.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_suspect(self) -> None:
        held = [(pump, delivery) for pump in self.pumps for delivery in pump.suspects]
        if not held:
            return
        self._alone = True
        (pump, suspect), *others = held
        if others:
            task = self._loop.create_task(self._start_alone(pump, suspect))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._run_alone(pump, suspect)

    async def _start_alone(self, pump: Pump, suspect: Delivery) -> None:
        """Start a suspect once all others are handed back: what a dying worker holds is blamed, whether it ran or not."""
        for each in self.pumps:
            others = [delivery for delivery in each.suspects if delivery is not suspect]
            for delivery in others:
                each.suspects.remove(delivery)
            if others:
                await each.release(others)
        self._run_alone(pump, suspect)

    def _run_alone(self, pump: Pump, suspect: Delivery) -> None:
        if suspect not in pump.suspects:  # a drain has handed it back
            self._alone = False
            return
        for each in self.pumps:
            beside = list(each.buffer)
            each.buffer.clear()
            if beside:
                each.return_unrun(beside)
        pump.suspects.remove(suspect)
        pump.buffer.append(suspect)
        self._start_slot()

    async def _slot(self) -> None:
        """Run jobs while there are any."""
        here, task = self._take_place(), asyncio.current_task()
        clean = contextvars.copy_context()
        try:
            while (pump := self._next()) is not None:
                delivery = pump.buffer.popleft()
                if pump.buffer and not self._starting and self._may_start() and not self._alone:
                    self._start_slot()
                job = self._begin(delivery, pump, here)
                if not isinstance(job, RunningJob):
                    self._turn_away(delivery, pump, job)
                    if self._is_surplus():
                        break
                    continue
                job.task = task
                try:
                    result = await job.call(job)
                    outcome: Outcome = _DONE if result is None else Completed(result)
                except BaseException as error:  # noqa: BLE001 - a handler may raise anything; none of it may end the worker
                    outcome = came_to(job, error)
                finally:
                    self._leave(job, pump, here)
                self._end(job, pump, outcome)
                # What a handler left behind (context, a cancellation on its way) must not meet the next job.
                is_clean = not job.stop and contextvars.copy_context() == clean
                if not is_clean or self._alone or (self._burst and self._is_surplus()):
                    self._capacity -= job.is_stuck
                    self._lost.discard(delivery.token)
                    break
        finally:
            self._active -= 1
            self._alone = False
            self.fill()
            self._wake_hungry()

    def _take_place(self) -> Place:
        self._starting -= 1
        here = Place(self._told, self._lost)
        place.set(here)
        return here

    def _is_surplus(self) -> bool:
        """Whether this slot was lent, and what lent it has ended."""
        return self._active > self._capacity + self._lent()

    def _may_start(self) -> bool:
        return self._active < self._capacity or self._active < self._capacity + self._lent()

    def _next(self) -> Pump | None:
        """Tell whose job is next; each pump has its turn."""
        pumps = self.pumps
        for _ in pumps:
            self._turn += 1
            pump = pumps[self._turn % len(pumps)]
            if pump.buffer:
                return pump
        return None

    def _begin(self, delivery: Delivery, pump: Pump, here: Place) -> RunningJob | Outcome:
        """Make ready what is to run in this place, or tell what becomes of a job that must not be run here and now."""
        now = self._loop.time()
        now_ms = pump.clock.at(now)
        try:
            delivery.envelope = envelope = decode_envelope(delivery.raw)
        except ValueError:
            envelope = None
        spec, call = self._calls.find(envelope.handler) if envelope is not None else (None, None)
        refusal = verdict(delivery, spec, now_ms)
        if pump.stopped and not refusal:
            refusal = blocked(envelope, pump.stopped)
        if spec is not None and spec.gates is not None and refusal is None:
            refusal = limited(delivery, spec)
        if refusal is not None or envelope is None or spec is None or call is None:
            return refusal or Parked("?")
        if delivery.enqueued_ms < pump.doubted_before_ms:
            call = self.revived.guarded(call)
        job = RunningJob(delivery, envelope, spec, call, now_ms, now)
        here.delivery, here.max_attempts = delivery, envelope.max_attempts or spec.max_attempts
        self.running[delivery.id] = (job, pump)
        return job

    def _leave(self, job: RunningJob, pump: Pump, here: Place) -> None:
        """Make the place free for the next job.

        What is seen here, how long fast jobs take and how many end a second, decides how many to read ahead.
        """
        here.delivery = None
        self.running.pop(job.delivery.id, None)
        job.ended_at = now = self._loop.time()
        run_s = now - job.begun_at
        if job.delivery.digit > _FAST_LANES or run_s >= pump.costs.limit_s:
            return
        self._finished_at = now
        self._spread_s += (abs(run_s - self._mean_s) - self._spread_s) * 0.1
        self._mean_s += (run_s - self._mean_s) * 0.1
        self._rate_count += 1
        window_s = now - self._rate_from
        if window_s > 0.05:
            self._rate = self._rate_count / window_s
            self._rate_from, self._rate_count = now, 0

    def _told(self, delivery: Delivery) -> None:
        """Have it written down what a handler has told of its job, on whatever thread."""
        notes = delivery.notes
        if notes is not None and not notes.is_new:
            notes.is_new = True
            self._loop.call_soon_threadsafe(self._note, delivery)

    def _note(self, delivery: Delivery) -> None:
        found = self.running.get(delivery.id)
        if found is not None and found[0].delivery is delivery:
            self.notebook.take(delivery, found[1])

    # Ending.

    def _end(self, job: RunningJob, pump: Pump, outcome: Outcome) -> None:
        """Settle a job that has run, and count it. It waited from when it came into its lane."""
        delivery, envelope, run_s = job.delivery, job.envelope, job.ended_at - job.begun_at
        costs = pump.costs
        if costs.is_on and (run_s >= costs.limit_s or envelope.key is not None or envelope.cost is not None):
            self._learn(job, pump, outcome, run_s)
        kind = self._settle(delivery, pump, outcome, job.begun_ms, job.begun_ms + int(run_s * 1000))
        pump.meter.run(job.spec.name, kind, run_s, (job.begun_ms - delivery.entered_ms) / 1000)

    def _turn_away(self, delivery: Delivery, pump: Pump, outcome: Outcome) -> None:
        """Settle a job that was not run."""
        now_ms = pump.clock.at(self._loop.time())
        kind = self._settle(delivery, pump, outcome, now_ms, now_ms)
        if kind in ("dead", "expired"):
            pump.meter.end(self._known_name(delivery), kind)

    def _settle(self, delivery: Delivery, pump: Pump, outcome: Outcome, begun_ms: int, finished_ms: int) -> str:
        if type(outcome) is Completed:
            item: Settled | None = completed(delivery, outcome, begun_ms, finished_ms)
        else:
            item = settle(delivery, outcome, begun_ms, finished_ms)
        if item is not None:
            pump.finish(item)
        elif isinstance(outcome, Dropped):
            pump.left_a_stray()
        if delivery.notes is not None:
            self.notebook.tear_out(delivery, pump)
        kind = _KINDS[type(outcome)]
        self.counters[kind] += 1
        if kind != "completed":
            self._tell(delivery, outcome, kind)
        return kind

    @staticmethod
    def _learn(job: RunningJob, pump: Pump, outcome: Outcome, run_s: float) -> None:
        costs, envelope = pump.costs, job.envelope
        if run_s >= costs.limit_s and job.delivery.digit <= _FAST_LANES:
            job.delivery.why = f"overran {run_s * 1000:.0f}"
        if envelope.key is not None or envelope.cost is not None:
            costs.note(job.delivery, run_s, is_done=isinstance(outcome, Completed))

    def _known_name(self, delivery: Delivery) -> str:
        """Return the handler of a job that did not run; a name that nobody here knows is no label."""
        envelope = delivery.envelope
        return envelope.handler if envelope is not None and self._calls.find(envelope.handler)[0] else "?"

    def _tell(self, delivery: Delivery, outcome: Outcome, kind: str) -> None:
        envelope = delivery.envelope
        handler = envelope.handler if envelope is not None else "?"
        failure = getattr(outcome, "failure", None)
        fields: dict[str, Any] = {"job_id": delivery.id.decode(), "handler": handler}
        if envelope is not None:
            fields |= {"attempt": envelope.attempt, "user": envelope.key}
        if failure is not None:
            fields |= {"error_type": failure.type, "error": failure.message}
        match outcome:
            case Retrying(delay_ms=delay_ms):
                event(log, logging.INFO, "job.retrying", retry_in_s=delay_ms / 1000, **fields)
            case Crashed(delay_ms=delay_ms):
                event(log, logging.ERROR, "job.crashed", retry_in_s=delay_ms / 1000, **fields)
            case Snoozed(delay_ms=delay_ms, reason=reason):
                event(log, logging.INFO, "job.snoozed", retry_in_s=delay_ms / 1000, reason=reason, **fields)
            case Limited():
                event(log, logging.DEBUG, "job.limited", **fields)
            case Parked(what=what, reason=reason):
                # Told once: a queue full of them would say nothing else.
                level = logging.DEBUG if what in self._parked else logging.WARNING
                self._parked.add(what)
                event(log, level, "job.parked", reason=reason, **fields)
            case _:
                level = logging.WARNING if kind == "dead" else logging.INFO
                event(log, level, f"job.{kind}", **fields)

    # Stopping.

    def stop_job(self, job: RunningJob, why: Stop, reason: str = "") -> None:
        """Interrupt a running job; what it comes to follows from why."""
        if job.stop is None and job.task is not None:
            job.stop, job.stop_reason, job.stopped_at = why, reason, self._loop.time()
            if why is Stop.LEASE_LOST:
                self._lost.add(job.delivery.token)
                job.task.cancel(LeaseLost(reason))
            else:
                job.task.cancel(str(why))

    def stop_overdue(self) -> None:
        """Interrupt the jobs that run longer than their timeout; tell of those that do not let go."""
        now = self._loop.time()
        unheard = [pump for pump in self.pumps if pump.is_unheard(now)]
        lease_s = (self.settings.lease_ms - min(_LEASE_MARGIN_MS, self.settings.lease_ms / 4)) / 1000
        for job, pump in list(self.running.values()):
            limit_ms = job.spec.timeout_ms
            if job.stop is None:
                if limit_ms and (now - job.begun_at) * 1000 > limit_ms:
                    self.stop_job(job, Stop.TIMEOUT)
                elif pump in unheard and now - job.renewed_at > lease_s:
                    self._fear_lost(job, pump)
            elif not job.is_stuck and now - job.stopped_at > STUCK_S:
                job.is_stuck = True
                self._capacity += 1  # its slot is replaced: the others' throughput stays
                pump.meter.add("stuck")
                self.on_stuck(job)

    def _fear_lost(self, job: RunningJob, pump: Pump) -> None:
        """Interrupt a job whose lease ran out by our own clock, while Redis could not be asked."""
        pump.meter.add("leases_run_out")
        event(log, logging.WARNING, "job.lease_ran_out", job_id=job.delivery.id.decode(), handler=job.spec.name)
        self.stop_job(job, Stop.LEASE_LOST, "Redis cannot be reached, and the job may belong to another worker now")

    def stop_all(self, why: Stop) -> None:
        """Interrupt everything."""
        for job, _ in list(self.running.values()):
            self.stop_job(job, why)

    def cancel(self, job_id: bytes, reason: str) -> bool:
        """Interrupt a job because somebody asked for it. Returns whether it runs here."""
        found = self.running.get(job_id)
        if found is None:
            return False
        self.stop_job(found[0], Stop.CANCEL, reason)
        return True

    def lose(self, job_id: bytes) -> None:
        """Interrupt a job that belongs to another worker now."""
        found = self.running.get(job_id)
        if found is not None:
            self.stop_job(found[0], Stop.LEASE_LOST, _ANOTHERS)

    def fenced(self, pump: Pump) -> None:
        """Interrupt every job of a pump whose name was given up."""
        for job, owner in list(self.running.values()):
            if owner is pump:
                self.stop_job(job, Stop.LEASE_LOST, _ANOTHERS)

    def refused(self, pump: Pump, job_ids: Sequence[bytes]) -> None:
        """Count outcomes that came too late to be taken."""
        self.counters["late_outcomes"] += len(job_ids)
        pump.meter.add("late_outcomes", len(job_ids))
        event(log, logging.WARNING, "job.late_outcome", queue=pump.queue, refused=len(job_ids))

    def renamed(self) -> None:
        """A pump registered under a new name."""
        self.on_rename()

    def control(self, message: dict[bytes, bytes]) -> None:
        """Do what an operator says to workers."""
        self.on_control(message)

    # What is held.

    def tokens_of(self, pump: Pump) -> list[bytes]:
        """Return the tokens of everything that a pump's partition has given to this worker and that is here."""
        held = [job.delivery.token for job, owner in self.running.values() if owner is pump]
        held += [delivery.token for delivery in (*pump.buffer, *pump.suspects)]
        held += [item.token for item in pump.finished]
        return held

    def due_for_renewal(self, pump: Pump, now: float) -> list[Arg]:
        """Return rows for the `renewed` section: jobs that have run for a third of the lease since they last were."""
        every_s = self.settings.lease_ms / 3000
        rows: list[Arg] = []
        for job, owner in self.running.values():
            if owner is pump and now - job.renewed_at > every_s and len(rows) < 256:
                rows += (job.delivery.token, job.delivery.id)
        for delivery in pump.suspects:
            if now - delivery.taken_at > every_s and len(rows) < 256:
                rows += (delivery.token, delivery.id)
        return rows

    def renewed(self, pump: Pump, rows: Sequence[Arg], sent_at: float) -> None:
        """Note that Redis took the rows of `due_for_renewal`: those leases count from when it was asked."""
        ids = set(rows[1::2])
        for job, owner in self.running.values():
            if owner is pump and job.delivery.id in ids:
                job.renewed_at = sent_at
        for delivery in pump.suspects:
            if delivery.id in ids:
                delivery.taken_at = sent_at

    @property
    def busy(self) -> int:
        """How many jobs run."""
        return len(self.running)

    @property
    def stuck(self) -> list[RunningJob]:
        """The jobs that were told to stop long ago, and go on."""
        return [job for job, _ in self.running.values() if job.is_stuck]

    def give_up_stuck(self) -> int:
        """Settle the jobs that do not let go, because this process is about to end and they with it."""
        stuck = [(job, pump) for job, pump in self.running.values() if job.stop is not None]
        for job, pump in stuck:
            job.ended_at = self._loop.time()
            self._end(job, pump, interrupted(job))
            self.running.pop(job.delivery.id, None)
        return len(stuck)

    async def idle(self) -> None:
        """Wait until nothing runs but what does not let go."""
        while going_on := self._tasks - {job.task for job in self.stuck}:
            await asyncio.wait(going_on, timeout=_LOOK_AGAIN_S)

    @property
    def capacity(self) -> int:
        """How many jobs may run at once."""
        return self._capacity
