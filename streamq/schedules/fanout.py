"""The fan-out: one occurrence becomes one job for each user, whoever and however many work on it.

Each call of `add` has a number and stores where the fan-out stands after it; call n + 1 is taken only after call n. So a
process that is told "taken already" goes on from what is stored, and a crash loses at most the call that was under way.
While a call is under way, the jobs of the next one are made and the next page is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from streamq.broker.fanout import FanOutRecord, FanOuts, FanOutState, decode_state, encode_state
from streamq.broker.partition import BATCH, CallRepeated, Parcel, Partition
from streamq.broker.wire import ServerRefused
from streamq.logs import event
from streamq.schedules.jobs import JobMaker
from streamq.schedules.pages import Pages
from streamq.schedules.patience import Patience, Stopped
from streamq.schedules.phase import ALL, Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from streamq.schedules.occurrence import Occurrence, Schedule
    from streamq.settings import Settings

__all__ = ["WHOLE", "Desk", "FanOut", "Part"]

_log = logging.getLogger("streamq.cron")


@dataclass(frozen=True)
class Desk:
    """What the fan-outs of one queue work with."""

    partition: Partition
    fanouts: FanOuts
    settings: Settings
    patience: Patience
    stop: asyncio.Event
    now_ms: Callable[[], int]
    """The server's time, as last observed."""
    observe: Callable[[], Awaitable[None]]
    """Asks the server for its time."""
    phase: Callable[[], Phase] = lambda: ALL
    """Which users are streamq's, now."""
    divided: Sequence[Partition] = ()
    """All partitions of a queue that has several; the desk is that of the first."""

    def shares(self) -> list[Desk]:
        """Return a desk for each partition; this one if the queue is not divided."""
        if not self.divided:
            return [self]
        return [
            dataclasses.replace(self, partition=partition, fanouts=FanOuts(partition), divided=())
            for partition in self.divided
        ]

    @property
    def call_size(self) -> int:
        """How many jobs go into one call: small enough to find room in a queue that may hold only so many."""
        most = self.settings.max_depth
        return min(BATCH, max(1, most // 4)) if most else BATCH


async def _at_once() -> None:
    """Wait for nothing."""


@dataclass(frozen=True)
class Part:
    """The users of an occurrence that one fan-out makes jobs for."""

    admits: Callable[[object], bool] | None = None
    """Tells by a user's id; None: all of them."""
    tells_refused: bool = True
    """Whether users that cannot have a job are counted here."""
    before_end: Callable[[], Awaitable[None]] = _at_once
    """Waited for before the end is stored; raises to have it not stored."""

    def filter(self, other: Callable[[object], bool] | None) -> Callable[[object], bool] | None:
        """Return what admits whom both admit; None: everybody."""
        mine = self.admits
        if mine is None or other is None:
            return mine or other
        return lambda user: mine(user) and other(user)


WHOLE = Part()


@dataclass(slots=True)
class _Call:
    """What the next call will say. The counts of its state are filled in when it is made."""

    after: FanOutState
    jobs: Parcel | None = None
    done_with: str | None = None
    """Cursor of a stored page that is enqueued whole with this call."""
    is_done_with_page: bool = False


class FanOut:
    """The work of one process on one occurrence."""

    def __init__(
        self,
        schedule: Schedule,
        occurrence: Occurrence,
        desk: Desk,
        *,
        on_progress: Callable[[FanOutState], object] | None = None,
        part: Part = WHOLE,
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            schedule: What to enqueue.
            occurrence: For which of its fire times.
            desk: The partition's connection, and how to wait.
            on_progress: Told of the state after each call.
            part: Which of the users belong to this partition.
        """
        self.state = FanOutState()
        """As far as this process knows. `end` is empty while there is something left."""
        self.was_finished = False
        """Whether there was nothing left to do when `run` began."""
        self.added_here = 0
        """How many jobs the calls of this very process have added."""
        self._schedule = schedule
        self._occurrence = occurrence
        self._desk = desk
        self._on_progress = on_progress
        self._part = part
        self._run = secrets.token_hex(4)
        self._number = 0
        self._keep_ms = schedule.keep_ms(occurrence)
        self._maker: tuple[int, JobMaker] | None = None

    async def run(self) -> FanOutState:
        """Enqueue what is left of the occurrence.

        Returns:
            Where it stands: finished, or, if the process was told to stop, resumable with `end` empty.

        Raises:
            PageFailed: The page function did not give a page. What was enqueued before stays.
        """
        pages = Pages(
            self._schedule, self._occurrence, self._desk.fanouts, self._desk.patience,
            largest=self._desk.call_size, admits=self._part.filter(self._desk.phase().filter),
            tells_refused=self._part.tells_refused, by_cost=self._has_lanes,
        )  # fmt: skip
        try:
            await self._begin()
            while not self.state.end:
                await self._stretch(pages)
        except Stopped:
            pass
        finally:
            await pages.close()
        return self.state

    async def give_up(self) -> FanOutState:
        """Store that what is left will not be enqueued any more."""
        return await self._close("given up")

    async def skip(self) -> FanOutState:
        """Store that the occurrence is left out, unless it was begun meanwhile."""
        return await self._close("skipped")

    async def _close(self, end: Literal["given up", "skipped"]) -> FanOutState:
        with contextlib.suppress(Stopped):
            self._adopt_record(await self._record())
            while not self.state.end and (end == "given up" or not self._number):
                begun_ms = self.state.begun_ms or self._desk.now_ms()
                await self._send(_Call(msgspec.structs.replace(self.state, begun_ms=begun_ms, end=end)))
        return self.state

    async def _begin(self) -> None:
        record = await self._record()
        self._adopt_record(record)
        now_ms = self._desk.now_ms()
        if self.state.end:
            self.was_finished = True
        elif record is None:
            self._tell("cron.fired", logging.INFO)
            # That it was begun is stored first: when its very first page fails, it counts as unfinished, not as missed.
            await self._send(_Call(FanOutState(begun_ms=now_ms)))
        else:
            self._tell("cron.resumed", logging.INFO, users=self.state.users)
            if self._schedule.deadline_ms(self._occurrence, self.state.begun_ms) <= now_ms:
                # What is left is made up for now; with the old deadline its jobs would end unrun.
                self.state = msgspec.structs.replace(self.state, begun_ms=now_ms)

    async def _stretch(self, pages: Pages) -> None:
        """Make calls until the end, or until somebody else's call was taken instead of ours."""
        call = await self._prepared(pages, self.state)
        while True:
            upcoming = asyncio.ensure_future(self._following(pages, call.after))
            try:
                await self._send(call)
                if self.state.end or _place(self.state) != _place(call.after):
                    return
                call = await upcoming
            finally:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)
            if self._desk.stop.is_set():
                raise Stopped

    async def _following(self, pages: Pages, state: FanOutState) -> _Call:
        await asyncio.sleep(0)  # the call that is under way leaves first
        return await self._prepared(pages, state)

    async def _prepared(self, pages: Pages, state: FanOutState) -> _Call:
        """Make the call that follows a state; after the last one there is nothing but its end again."""
        if state.is_at_end or state.end:
            await self._part.before_end()
            return _Call(msgspec.structs.replace(state, count=0, end="done"))
        page, place = await pages.at(state)
        users = page.users[place : place + self._desk.call_size]
        jobs, refused = self._job_maker(state).make(users, self._desk.now_ms())
        if refused:
            self._tell_refused(state, refused)
        parcel = self._desk.partition.pack(jobs)
        after = msgspec.structs.replace(state, count=len(jobs), refused=state.refused + len(refused))
        if place + len(users) < len(page.users):
            return _Call(msgspec.structs.replace(after, offset=place + len(users)), parcel)
        anchor = pages.check_following(state, page)
        after = msgspec.structs.replace(after, cursor=page.following, offset=0, pages=state.pages + 1, anchor=anchor)
        return _Call(after, parcel, state.cursor, page.is_kept)

    @property
    def _has_lanes(self) -> bool:
        settings = self._desk.settings
        return settings.lanes and self._schedule.entry.handler.queue not in settings.fifo_queues

    def _job_maker(self, state: FanOutState) -> JobMaker:
        if self._maker is None or self._maker[0] != state.begun_ms:
            settings = self._desk.settings
            maker = JobMaker(
                self._schedule, self._occurrence, state.begun_ms, max_payload_bytes=settings.max_payload_bytes,
                lanes=self._has_lanes,
            )  # fmt: skip
            self._maker = (state.begun_ms, maker)
        return self._maker[1]

    async def _send(self, call: _Call) -> None:
        """Make a call, and take over the state that is true after it, be it of this call or of another's."""
        number = self._number + 1
        state = self.state
        after = msgspec.structs.replace(
            call.after,
            added=state.added,
            duplicates=state.duplicates,
            present=state.present,
            at_ms=self._desk.now_ms(),
            by=self._run,
        )
        try:
            added = await self._desk.patience.call(
                lambda: self._desk.partition.add(
                    self._occurrence.producer,
                    number,
                    call.jobs or [],
                    cursor=encode_state(after),
                    keep_ms=self._keep_ms,
                    max_depth=self._desk.settings.max_depth if call.jobs is not None and call.jobs.number else 0,
                    in_order=True,
                )
            )
        except CallRepeated as repeated:
            self._adopt(repeated.last, decode_state(repeated.cursor, repeated.results))
            if (repeated.last, self.state.by) == (number, self._run):  # our own, whose reply was lost
                self.added_here += self.state.added - state.added
        except ServerRefused as refusal:
            await self._look_back(number, refusal)
        else:
            self._adopt(number, after.counting(added.results))
            self.added_here += self.state.added - state.added
        if call.is_done_with_page and _place(self.state) == _place(call.after):
            await self._desk.patience.call(
                lambda: self._desk.fanouts.drop_page(self._occurrence.producer, call.done_with)
            )

    async def _look_back(self, number: int, refusal: ServerRefused) -> None:
        """Go on from an older call when Redis has lost the newer ones, and with them their jobs."""
        record = await self._record()
        if (record.number if record else 0) >= number - 1:
            raise refusal
        self._tell("cron.resumed", logging.WARNING, why="Redis has lost the calls after the stored one")
        begun_ms = self.state.begun_ms
        self._adopt_record(record)
        if record is None:
            self.state = FanOutState(begun_ms=begun_ms)

    async def _record(self) -> FanOutRecord | None:
        return await self._desk.patience.call(lambda: self._desk.fanouts.record(self._occurrence.producer))

    def _adopt_record(self, record: FanOutRecord | None) -> None:
        if record is None:
            self._number, self.state = 0, FanOutState()
        else:
            self._adopt(record.number, record.state)

    def _adopt(self, number: int, state: FanOutState) -> None:
        self._number, self.state = number, state
        if self._on_progress is not None:
            self._on_progress(state)

    def _tell(self, name: str, level: int, **fields: Any) -> None:
        occurrence = self._occurrence
        event(_log, level, name, schedule=occurrence.schedule, occurrence=occurrence.stamp, **fields)

    def _tell_refused(self, state: FanOutState, refused: list[str]) -> None:
        text = (
            f"schedule {self._occurrence}, page {state.cursor!r}: {len(refused)} users cannot be enqueued, "
            f"the others are; the first: {refused[0]}"
        )
        event(
            _log, logging.ERROR, "cron.failed", text, schedule=self._occurrence.schedule,
            occurrence=self._occurrence.stamp, cursor=state.cursor, refused=len(refused),
        )  # fmt: skip


def _place(state: FanOutState) -> tuple[object, ...]:
    """Return all of a state that the next call depends on, which is all but the counts."""
    return state.pages, state.cursor, state.offset, state.anchor, state.refused, state.begun_ms
