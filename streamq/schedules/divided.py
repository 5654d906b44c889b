"""The fan-out over a queue of several partitions: one for each, as a producer of its own, over its own users.

Each goes through all pages and takes the users that belong to its partition, so that page and cursor are stored in one
call there as ever. While they keep in step a page is read once for all. The first stores its end when the others have
stored theirs: its record says how the occurrence stands.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from functools import reduce
from typing import TYPE_CHECKING, Any

from streamq.broker.fanout import FanOutState
from streamq.keys import partition_for, queue_of
from streamq.schedules.fanout import Desk, FanOut, Part
from streamq.schedules.pages import called
from streamq.schedules.patience import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamq.schedules.occurrence import Occurrence, Schedule

__all__ = ["Divided", "fan_out", "shared"]

_PAGES_HELD = 4
"""How far one fan-out may be ahead of another before pages are read once more."""


def fan_out(
    schedule: Schedule,
    occurrence: Occurrence,
    desk: Desk,
    *,
    on_progress: Callable[[FanOutState], object] | None = None,
) -> FanOut | Divided:
    """Prepare the fan-out of an occurrence over whatever partitions its queue has; see `FanOut`."""
    if not desk.divided:
        return FanOut(schedule, occurrence, desk, on_progress=on_progress)
    entry = dataclasses.replace(schedule.entry, page=shared(schedule.entry.page))
    schedule = dataclasses.replace(schedule, entry=entry)

    def begin(share: Desk, part: Part, moved: Callable[[FanOutState], object]) -> FanOut:
        return FanOut(schedule, occurrence, share, on_progress=moved, part=part)

    return Divided(desk.shares(), begin, on_progress)


class Divided:
    """The work of one process on one occurrence, over all partitions."""

    def __init__(
        self,
        desks: Sequence[Desk],
        begin: Callable[[Desk, Part, Callable[[FanOutState], object]], FanOut],
        on_progress: Callable[[FanOutState], object] | None,
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            desks: Of the partitions, in their order.
            begin: Makes the fan-out of a partition over its part of the users; it tells when its state has moved.
            on_progress: Told of the state of all after each call.
        """
        self._on_progress = on_progress
        self._others: asyncio.Future[list[FanOutState]] | None = None
        self._parts = [
            begin(share, self._part(share, len(desks), place), self._moved) for place, share in enumerate(desks)
        ]

    def _part(self, desk: Desk, count: int, place: int) -> Part:
        name = desk.partition.keys.queue
        queue = queue_of(name)

        def admits(user: object) -> bool:
            return partition_for(queue, str(user), count) == name

        return Part(admits, tells_refused=True, before_end=self._others_end) if not place else Part(admits, False)

    @property
    def state(self) -> FanOutState:
        """Where the first partition stands, with the counts of all."""
        first, *others = [part.state for part in self._parts]
        return reduce(FanOutState.plus, others, first)

    @property
    def was_finished(self) -> bool:
        """Whether there was nothing left to do when `run` began."""
        return self._parts[0].was_finished

    @property
    def added_here(self) -> int:
        """How many jobs the calls of this very process have added."""
        return sum(part.added_here for part in self._parts)

    async def run(self) -> FanOutState:
        """Enqueue what is left of the occurrence; see `FanOut.run`."""
        first, *others = self._parts
        self._others = asyncio.gather(*(part.run() for part in others))
        try:
            await first.run()
            if first.state.end == "done":
                await self._others
        finally:
            self._others.cancel()
            await asyncio.gather(self._others, return_exceptions=True)
        return self.state

    async def give_up(self) -> FanOutState:
        """Store that what is left will not be enqueued any more; see `FanOut.give_up`."""
        for part in reversed(self._parts):
            await part.give_up()
        return self.state

    async def skip(self) -> FanOutState:
        """Store that the occurrence is left out, unless it was begun meanwhile; see `FanOut.skip`."""
        await self._parts[0].skip()
        return self.state

    async def _others_end(self) -> None:
        """Wait until all other partitions have stored their end.

        Raises:
            Stopped: The process is to stop, and one has not.
        """
        if self._others is None:
            return
        await asyncio.wait([self._others])
        if not all(state.end for state in self._others.result()):
            raise Stopped

    def _moved(self, _: FanOutState) -> None:
        if self._on_progress is not None:
            self._on_progress(self.state)


def shared(page: Callable[[str | None], Any]) -> Callable[[str | None], Any]:
    """Let fan-outs that keep in step share what the page function gives; a page that failed is asked for again."""
    held: OrderedDict[str | None, asyncio.Future[Any]] = OrderedDict()

    async def share(cursor: str | None) -> Any:
        if cursor not in held:
            held[cursor] = asyncio.ensure_future(called(page, cursor))
            if len(held) > _PAGES_HELD:
                held.popitem(last=False)
        try:
            return await asyncio.shield(held[cursor])
        except BaseException:  # it failed, or took too long: the next one asks anew
            held.pop(cursor, None)
            raise

    return share
