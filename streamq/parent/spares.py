"""Spares: processes that have imported the application, and wait for a place.

A new program takes its time to import an application; a fork of one that has would inherit its threads, loops and
connections as well. So a spare is a program like the others, started ahead.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

from streamq.logs import event
from streamq.parent.child import Child
from streamq.parent.slot import AFTER_KILL_S, Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from streamq.parent.output import Output
    from streamq.parent.roles import Pace, Role

__all__ = ["Spares"]

log = logging.getLogger(__name__)


class Spares:
    """The spares of all roles."""

    def __init__(
        self, output: Output, pace: Pace, start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        """Note where their lines go, how patient to be, and what makes a task of ours."""
        self._output = output
        self._pace = pace
        self._start = start
        self._begun: set[str] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self.waiting: list[Child] = []
        """Those that have no place yet, warm or not."""

    def begin(self, role: Role) -> None:
        """Start to keep spares of a role, unless that is done already: when its first child is ready, none is in the way."""
        if role.spares and role.name not in self._begun:
            self._begun.add(role.name)
            self._keepers += [self._start(self._keep(role)) for _ in range(role.spares)]

    def take(self, role: Role, number: int) -> Child | None:
        """Send a warm spare to a place; None: there is none."""
        for child in self.waiting:
            if child.role is role and child.warm.is_set() and child.is_alive and not child.is_draining:
                self.waiting.remove(child)
                child.take_place(number)
                return child
        return None

    def renew(self, role: Role) -> None:
        """Replace the spares of a role, which have imported what is old now."""
        for child in self.waiting:
            if child.role is role:
                _end(child)

    async def close(self) -> None:
        """End all, and start none again."""
        for keeper in self._keepers:
            keeper.cancel()
        for child in self.waiting:
            _end(child)
        await asyncio.gather(*(child.ends_within(AFTER_KILL_S) for child in self.waiting))
        self.waiting.clear()

    async def _keep(self, role: Role) -> None:
        """Keep one spare."""
        backoff = Backoff(self._pace)
        while True:
            try:
                child = Child(role, 0, self._output, self._pace)
            except OSError:
                return  # its places say what is wrong
            self.waiting.append(child)
            if await self._is_placed(child):
                continue
            self.waiting.remove(child)
            delay_s = backoff.after(time.monotonic(), child.lived_s, is_fit=child.warm.is_set() or child.is_draining)
            if delay_s is None:
                text = f"{child.name} cannot start, so there is none: {child.exited.result().words}"
                event(log, logging.WARNING, "parent.no_spare", text, child=child.name)
                return
            await asyncio.sleep(delay_s)

    @staticmethod
    async def _is_placed(child: Child) -> bool:
        """Wait until a spare has a place, or has died without one."""
        placed = asyncio.ensure_future(child.placed.wait())
        first: list[asyncio.Future[Any]] = [placed, child.exited]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        placed.cancel()
        return child.placed.is_set()


def _end(child: Child) -> None:
    """End a spare at once: it holds nothing yet. The first signal marks it as told to stop."""
    child.send(signal.SIGTERM)
    child.send(signal.SIGKILL)
