"""Looks after one schedule: at each fire time, at the start and every minute it does what is due and was missed.

What is done is decided by the records in Redis and by the time of the Redis server. The lock here only keeps several
processes from doing the same work at once; whatever it says, no user gets two jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from streamq.clock import from_ms
from streamq.cron.overlap import cancel_earlier, earlier_lives
from streamq.errors import ConfigurationError, HistoryUnavailable
from streamq.logs import event
from streamq.meters import fired_field, missed_field
from streamq.schedules.divided import Divided, fan_out
from streamq.schedules.firing import tell_finished
from streamq.schedules.pages import PageFailed
from streamq.schedules.patience import Stopped
from streamq.schedules.plan import looked_at, plan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from streamq.broker.fanout import FanOutRecord, FanOutState
    from streamq.schedules.book import Pause
    from streamq.schedules.fanout import Desk, FanOut
    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.schedules.shadow import Shadow

__all__ = ["CHECK_PERIOD_S", "Minder"]

_log = logging.getLogger("streamq.cron")

CHECK_PERIOD_S = 60.0
_LOCK_MS = 15_000
_LOCK_RENEWAL_S = 3.0
_LOCK_LOOK_S = 1.0
_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 60.0
_MARK_KEPT_MS = 10 * 366 * 86_400_000
_NEVER_MS = 1 << 53
_CLOCK_SLACK_MS = 600_000
"""A mark further than this in the future was set by a clock that was wrong."""


class Minder:
    """Looks after one schedule."""

    def __init__(self, schedule: Schedule, desk: Desk, *, shadow: Shadow | None = None) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            schedule: What to look after.
            desk: The connection of its queue, and how to wait.
            shadow: What runs occurrences dry, while that is asked for.
        """
        self.schedule = schedule
        self._shadow = shadow
        self.wake = asyncio.Event()
        """Set it to have the schedule looked at now."""
        self._desk = desk
        self._owner = secrets.token_hex(8)
        self._failures: dict[Occurrence, tuple[int, float]] = {}
        self._has_moved = False
        self._looked: list[Occurrence] = []
        self._next_ms = 0
        self.is_paused = False
        """While it is, nothing is begun, and fire times that pass are not made up for."""
        self.pause: Pause | None = None

    async def mind(self) -> None:
        """Look after the schedule until the process is told to stop."""
        with contextlib.suppress(Stopped):
            while not self._desk.stop.is_set():
                self.wake.clear()
                await self.check()
                await self._rest()

    async def check(self) -> None:
        """Do what is due and what was missed.

        Raises:
            Stopped: The process was told to stop.
            ConfigurationError: Redis does not let us in.
        """
        await self._desk.patience.call(self._desk.observe)
        now_ms = self._desk.now_ms()
        occurrences = self._looked_at(now_ms)
        producers = [self.schedule.mark, *(occurrence.producer for occurrence in occurrences)]
        mark, *records = await self._desk.patience.call(lambda: self._desk.fanouts.records(producers))
        mark_ms = await self._known_mark(mark, now_ms)
        states = {
            occurrence: record.state if record else None
            for occurrence, record in zip(occurrences, records, strict=True)
        }
        if self.is_paused:
            await self._pass_over(occurrences, mark_ms)
            return
        if self._desk.phase().is_shadow:
            await self._shadow_check(occurrences, mark_ms)
            return
        todo = plan(self.schedule, now_ms, mark_ms, states)
        for occurrence in todo.missed:
            self._tell("cron.missed", logging.WARNING, occurrence, policy=self.schedule.entry.misfire)
            await self._note(missed_field, occurrence)
        for occurrence in todo.given_up:
            await self._give_up(occurrence)
        for occurrence in todo.work:
            await self._work(occurrence)
        await self._pass_over(occurrences, mark_ms)

    async def _pass_over(self, occurrences: Sequence[Occurrence], mark_ms: int) -> None:
        if occurrences and occurrences[-1].fire_ms > mark_ms:
            await self._set_mark(occurrences[-1].fire_ms)

    async def _shadow_check(self, occurrences: Sequence[Occurrence], mark_ms: int) -> None:
        """Run the newest occurrence dry, and compare the one before, which is over."""
        if self._shadow is None:
            raise ConfigurationError("a shadow needs MongoDB, and history is off", hint="set STREAMQ_HISTORY=true")
        if not occurrences or self._failures.get(occurrences[-1], (0, 0.0))[1] > time.monotonic():
            return
        newest = occurrences[-1]
        try:
            if newest.fire_ms > mark_ms:
                await self._run_dry(self._shadow, newest)
            for earlier in occurrences[-2:-1]:
                if await self._shadow.waiting(self.schedule, earlier):
                    await self._shadow.compare(self.schedule, earlier)
        except (PageFailed, HistoryUnavailable) as error:
            self._failed(newest, error)
        else:
            self._failures.pop(newest, None)

    async def _run_dry(self, shadow: Shadow, occurrence: Occurrence) -> None:
        async with self._leading(occurrence):
            mark = await self._desk.patience.call(lambda: self._desk.fanouts.record(self.schedule.mark))
            if mark is not None and mark.number * 1000 >= occurrence.fire_ms:
                return  # another process was faster
            await shadow.run(self.schedule, occurrence, self._desk)
            await self._set_mark(occurrence.fire_ms)

    def _looked_at(self, now_ms: int) -> list[Occurrence]:
        """Return the last occurrences; they change with each fire time, and are looked at far more often."""
        if not (self._looked and self.schedule.due_ms(self._looked[-1]) <= now_ms < self._next_ms):
            self._looked = looked_at(self.schedule, now_ms)
            self._next_ms = self._next_due_ms(now_ms)
        return self._looked

    def _next_due_ms(self, now_ms: int) -> int:
        following = self.schedule.next(now_ms)
        return self.schedule.due_ms(following) if following is not None else _NEVER_MS

    async def _known_mark(self, record: FanOutRecord | None, now_ms: int) -> int:
        """Return up to when the schedule is decided; one that is new, or changed, begins now."""
        if record is not None and record.cursor == self.schedule.signature:
            mark_ms = record.number * 1000
            if mark_ms <= now_ms + _CLOCK_SLACK_MS:
                return mark_ms
        if record is not None and record.number * 1000 > now_ms + _CLOCK_SLACK_MS:
            text = (
                f"schedule {self.schedule.name!r} is decided up to {from_ms(record.number * 1000):%Y-%m-%d %H:%M} UTC, "
                "which is in the future: the server's clock was wrong then, or is now; going on from now"
            )
            event(_log, logging.ERROR, "cron.failed", text, schedule=self.schedule.name)
            await self._desk.patience.call(lambda: self._desk.fanouts.forget(self.schedule.mark))
        await self._set_mark(now_ms)
        return now_ms

    async def _set_mark(self, mark_ms: int) -> None:
        await self._desk.patience.call(
            lambda: self._desk.fanouts.advance(
                self.schedule.mark, mark_ms // 1000, self.schedule.signature, _MARK_KEPT_MS
            )
        )

    async def _work(self, occurrence: Occurrence) -> None:
        """Enqueue what is left of an occurrence, or wait for another process to do it. A failure is tried again later."""
        if self._failures.get(occurrence, (0, 0.0))[1] > time.monotonic():
            return
        fanout = fan_out(self.schedule, occurrence, self._desk, on_progress=self._moved)
        try:
            async with self._leading(occurrence) as leads:
                if leads and await self._may_begin(occurrence, fanout):
                    await fanout.run()
        except (Stopped, ConfigurationError):
            raise
        except Exception as error:  # noqa: BLE001 - a schedule that fails must not stop the others
            self._failed(occurrence, error)
            return
        self._failures.pop(occurrence, None)
        if fanout.state.end and fanout.state.end != "skipped" and not fanout.was_finished:
            tell_finished(occurrence, fanout.state)
            await self._note(fired_field, occurrence)
        if self._desk.stop.is_set():
            raise Stopped

    async def _may_begin(self, occurrence: Occurrence, fanout: FanOut | Divided) -> bool:
        """Apply the overlap policy to an occurrence that is not begun yet."""
        overlap = self.schedule.entry.overlap
        if overlap == "queue":
            return True
        if await self._desk.patience.call(lambda: self._desk.fanouts.record(occurrence.producer)) is not None:
            return True
        if overlap == "cancel":
            cancelled = await cancel_earlier(self._desk, occurrence)
            self._tell("cron.cancelled", logging.INFO if not cancelled else logging.WARNING, occurrence, jobs=cancelled)
            return True
        if not await earlier_lives(self._desk, occurrence):
            return True
        state = await fanout.skip()
        if state.end == "skipped":
            why = "jobs of an earlier occurrence still wait or run"
            self._tell("cron.skipped", logging.WARNING, occurrence, why=why)
        return not state.end

    def _failed(self, occurrence: Occurrence, error: Exception) -> None:
        count = self._failures.get(occurrence, (0, 0.0))[0] + 1
        pause_s = min(_FIRST_RETRY_S * 2 ** (count - 1), _LONGEST_RETRY_S)
        self._failures[occurrence] = (count, time.monotonic() + pause_s)
        text = f"{error}; trying again in {pause_s:g} s"
        expected = isinstance(error, PageFailed)
        cause = error.__cause__ if expected else error
        _log.error(
            "cron.failed",
            exc_info=cause,
            extra={
                "text": text if expected else f"schedule {occurrence}: {type(error).__name__}: {text}",
                "fields": {"schedule": occurrence.schedule, "occurrence": occurrence.stamp, "failures": count},
            },
        )

    async def _give_up(self, occurrence: Occurrence) -> None:
        state = await fan_out(self.schedule, occurrence, self._desk).give_up()
        self._tell(
            "cron.missed", logging.WARNING, occurrence, policy=self.schedule.entry.misfire, enqueued=state.users,
            why="the fan-out was not finished before its deadline",
        )  # fmt: skip
        await self._note(missed_field, occurrence)

    @contextlib.asynccontextmanager
    async def _leading(self, occurrence: Occurrence) -> AsyncGenerator[bool]:
        """Hold the lock of the schedule for as long as the fan-out moves. Gives False when another has finished it."""
        if not await self._take_lock(occurrence):
            yield False
            return
        renewal = asyncio.create_task(self._renew())
        try:
            yield True
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            with contextlib.suppress(Exception):  # it lapses by itself
                await self._desk.fanouts.lead(self.schedule.name, self._owner, 0)

    async def _take_lock(self, occurrence: Occurrence) -> bool:
        while not await self._desk.patience.call(self._lock):
            record = await self._desk.patience.call(lambda: self._desk.fanouts.record(occurrence.producer))
            if record is not None and record.state.end:
                return False
            await self._desk.patience.pause(_LOCK_LOOK_S)
        return True

    async def _lock(self) -> bool:
        return await self._desk.fanouts.lead(self.schedule.name, self._owner, _LOCK_MS)

    def _moved(self, _: FanOutState) -> None:
        self._has_moved = True

    async def _renew(self) -> None:
        """Renew the lock while calls are accepted: a process whose page function hangs loses it."""
        while True:
            await asyncio.sleep(_LOCK_RENEWAL_S)
            if self._has_moved:
                self._has_moved = False
                with contextlib.suppress(Exception):
                    await self._lock()

    async def _rest(self) -> None:
        """Wait for the next fire time, the next trial of what failed, the next check, or a wake-up."""
        now_ms = self._desk.now_ms()
        until_fire_s = (self._next_due_ms(now_ms) - now_ms) / 1000
        retries = [retry_at - time.monotonic() for _, retry_at in self._failures.values()]
        seconds = max(0.02, min([CHECK_PERIOD_S, until_fire_s, *retries]))
        woken = asyncio.ensure_future(self.wake.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._desk.patience.unless_stopped(woken)
        woken.cancel()

    async def _note(self, field: Callable[[str], str], occurrence: Occurrence) -> None:
        """Keep a fire time for metrics. However many processes do so, it is the same."""
        await self._desk.patience.call(lambda: self._desk.fanouts.note(field(self.schedule.name), occurrence.fire_ms))

    def _tell(self, name: str, level: int, occurrence: Occurrence, **fields: Any) -> None:
        event(_log, level, name, schedule=occurrence.schedule, occurrence=occurrence.stamp, **fields)
