"""What a parent does with Redis in its children's name: beats while they live, burials when they die.

Redis may be away. A burial is repeated until it has happened; a beat is not, the next one is as good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from streamq.parent.child import Child, Death
    from streamq.parent.roles import Hooks, Pace

__all__ = ["Guard"]

log = logging.getLogger(__name__)

CALL_LIMIT_S = 10.0
"""A call of the guardian that takes longer is given up, so that a frozen server cannot stop the beats for ever."""


class Guard:
    """Beats, burials, and the end of children that hang."""

    def __init__(self, hooks: Hooks, pace: Pace, children: Callable[[], Iterable[Child]]) -> None:
        self._hooks = hooks
        self._pace = pace
        self._children = children
        self._to_bury: list[str] = []
        self._deaths = asyncio.Event()
        self._told: set[asyncio.Task[None]] = set()
        self._is_away = False

    def died(self, child: Child, death: Death) -> None:
        """Have the dead child's deliveries handed back, at once."""
        if self._hooks.guardian is not None and child.consumers and not child.said_bye:
            self._to_bury += child.consumers
            self._deaths.set()
        if self._hooks.on_death is not None:
            self._tell(self._hooks.on_death(child.role.name, child.name, child.pid, child.consumers, death.returncode))

    async def beat_forever(self) -> None:
        """Beat for every child that deserves it, each `beat_ms`, and renew for those that cannot do it themselves."""
        guardian = self._hooks.guardian
        while guardian is not None:
            began_s = time.monotonic()
            worthy = [child for child in self._children() if child.deserves_beats]
            blocked = [child for child in worthy if child.silent_s * 1000 > self._pace.renew_after_ms]
            await self._call(guardian.beat, worthy)
            await self._call(guardian.renew, blocked)
            await asyncio.sleep(max(0.0, self._pace.beat_ms / 1000 - (time.monotonic() - began_s)))

    async def bury_forever(self) -> None:
        """Bury whoever died, as soon as that is known, and again each `beat_ms` until it has worked."""
        while True:
            await self._deaths.wait()
            self._deaths.clear()
            while self._to_bury:
                if not await self._bury():
                    await asyncio.sleep(self._pace.beat_ms / 1000)

    async def watch_forever(self) -> None:
        """Look each `beat_ms` for children that have gone silent."""
        period_s = self._pace.beat_ms / 1000
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(period_s)
            if time.monotonic() - began_s > 2 * period_s + 1:
                continue  # we were frozen ourselves: their ticks are still to be read
            for child in self._children():
                if child.is_alive and child.is_silent and not child.is_hanging:
                    child.is_hanging = True
                    self._tell(self._end_hanging(child))

    async def close(self) -> None:
        """Finish the burials and calls under way, within a few seconds, and let go of the guardian."""
        await self._bury()
        if self._told:
            await asyncio.wait(self._told, timeout=CALL_LIMIT_S / 2)
        if self._hooks.guardian is not None:
            await self._safely(self._hooks.guardian.close)

    async def _bury(self) -> bool:
        """Bury all who wait for it; False if that has to be repeated."""
        guardian, consumers = self._hooks.guardian, list(self._to_bury)
        if guardian is None or not consumers:
            return True
        if not await self._safely(guardian.bury, consumers):
            return False
        del self._to_bury[: len(consumers)]  # others may have died meanwhile
        return True

    async def _call(self, method: Callable[[Sequence[str]], Awaitable[None]], children: Iterable[Child]) -> None:
        if consumers := [consumer for child in children for consumer in child.consumers]:
            await self._safely(method, consumers)

    async def _safely(self, method: Callable[..., Awaitable[None]], *args: Any) -> bool:
        """Call the guardian; a failure is told once, until the next success."""
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                await method(*args)
        except Exception as error:  # noqa: BLE001  whatever is wrong over there, the children go on
            if not self._is_away:
                what = str(error) or type(error).__name__
                event(log, logging.WARNING, "parent.guardian_lost", f"cannot beat for the workers: {what}", error=what)
            self._is_away = True
            return False
        if self._is_away:
            event(log, logging.INFO, "parent.guardian_back", "beating for the workers again")
        self._is_away = False
        return True

    async def _end_hanging(self, child: Child) -> None:
        """Have a child that hangs print its stacks, and kill it; its slot starts another one."""
        text = f"{child.name} has been silent for {child.silent_s:.1f} s: dumping its stacks and killing it"
        event(log, logging.ERROR, "parent.child_hangs", text, child=child.name)
        if self._hooks.on_hang is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALL_LIMIT_S):
                    await _logged(self._hooks.on_hang(child.role.name, child.name, child.pid, child.consumers))
        child.send(signal.SIGUSR1)
        if not await child.ends_within(self._pace.dump_s):
            child.send(signal.SIGKILL)

    def _tell(self, call: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_logged(call))
        self._told.add(task)
        task.add_done_callback(self._told.discard)


async def _logged(call: Awaitable[None]) -> None:
    try:
        await call
    except Exception:
        log.exception("a callback about a child failed")
