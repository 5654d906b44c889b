"""Waiting for what comes back by itself: Redis that is away, a queue that is full. Neither is an error of a schedule."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, TypeVar

from streamq.errors import BrokerUnavailable, QueueFull
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Patience", "Stopped"]

T = TypeVar("T")

_log = logging.getLogger("streamq.cron")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 15.0
_SILENCE_S = 60.0


class Stopped(Exception):
    """The process was told to stop while it waited."""


class Patience:
    """Repeats calls until they succeed or the process is to stop, and says once what it waits for."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._waits_for = ""
        self._silent_until = 0.0

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make a call that may be repeated until it succeeds.

        Raises:
            Stopped: It did not succeed before the process was told to stop.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                value = await attempt()
            except BrokerUnavailable as error:
                self._say("redis.lost", error)
            except QueueFull as error:
                self._say("cron.waiting", error)
            else:
                self._go_on()
                return value
            await self.pause(pause_s * (0.5 + random.random()))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopped: The process was told to stop meanwhile.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        raise Stopped

    async def unless_stopped(self, work: asyncio.Future[T]) -> T:
        """Wait for work; when the process is to stop, cancel it.

        Raises:
            Stopped: The process was told to stop first.
        """
        if work.done():
            return work.result()
        stopping = asyncio.ensure_future(self._stop.wait())
        both: set[asyncio.Future[Any]] = {work, stopping}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise Stopped
            return work.result()
        finally:
            stopping.cancel()

    def _say(self, what: str, error: Exception) -> None:
        if self._waits_for == what:
            return
        self._waits_for = what
        # A full queue takes a call now and then; that it is full is told now and then, too.
        if what == "redis.lost" or time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENCE_S
            event(_log, logging.WARNING, what, f"{error}; trying again", error=str(error))

    def _go_on(self) -> None:
        if self._waits_for == "redis.lost":
            event(_log, logging.INFO, "redis.back")
        self._waits_for = ""
