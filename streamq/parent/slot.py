"""One place in a role that is kept filled: start, wait for the death, decide, start again.

Each slot is an asyncio task of its own, so that a drain that takes a minute delays nobody else's restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.logs import event
from streamq.parent.child import Child, Death
from streamq.parentlink import SAME_ORDER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.parent.output import Output
    from streamq.parent.roles import Pace, Role

__all__ = ["Backoff", "Desk", "Slot"]

log = logging.getLogger(__name__)

START_FAILURES = frozenset({64, 78, 126, 127})
"""Exit codes that the next start would only repeat: the command line, the configuration, the program itself."""

SERVER_AWAY = 69
"""The exit code of a child that could not reach a server."""

AFTER_KILL_S = 60.0
"""A killed process that is still there after this hangs in the kernel; nothing more can be done about it."""


class Backoff:
    """How long to wait before the next start, from how the last lives ended.

    A child that dies before it was ready cannot start, and after a few times we give up. One that was ready was killed
    by its work or by somebody else, or lost its server; it is started again for ever, because what a poison job may
    cost is limited at the job.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._streak = 0
        self._failed_starts: deque[float] = deque()

    def after(self, now_s: float, lived_s: float, *, is_fit: bool) -> float | None:
        """Return the seconds to wait after a death; None to give up.

        Args:
            now_s: The monotonic clock at the death.
            lived_s: How long the child lived.
            is_fit: Whether it is known that it can work: it had been ready, or only lacks a server.
        """
        pace = self._pace
        if lived_s >= (pace.ready_settled_s if is_fit else pace.settled_s):
            self._streak = 0
            self._failed_starts.clear()
        if not is_fit and self._gives_up(now_s):
            return None
        delay_s = min(pace.most_delay_s, pace.first_delay_s * 2.0 ** min(self._streak, 30))
        is_first = self._streak == 0
        self._streak += 1
        return 0.0 if is_fit and is_first else delay_s

    def _gives_up(self, now_s: float) -> bool:
        self._failed_starts.append(now_s)
        while now_s - self._failed_starts[0] > self._pace.within_s:
            self._failed_starts.popleft()
        return len(self._failed_starts) >= self._pace.deaths


@dataclass(frozen=True, slots=True)
class Desk:
    """What all slots of a parent share."""

    output: Output
    pace: Pace
    on_ready: Callable[[Child], None]
    on_death: Callable[[Child, Death], None]
    on_given_up: Callable[[Slot, Death], None]
    spare: Callable[[Role, int], Child | None]
    """Gives a place a process that has imported everything, if there is one."""


class Slot:
    """A numbered place in a role, such as worker.3, and the child that fills it now."""

    def __init__(self, role: Role, number: int, desk: Desk, *, is_trial: bool = False) -> None:
        self.role = role
        self.number = number
        self.name = f"{role.name}.{number}"
        self.is_trial = is_trial
        """On trial, a death is not followed by a new start: a rolling restart looks whether the new child comes up."""
        self.child: Child | None = None
        self.restarts = 0
        self.last_death: Death | None = None
        self.was_ready = False
        """Whether any child here was ever ready."""
        self.has_failed = False
        self.was_killed = False
        self._desk = desk
        self._backoff = Backoff(desk.pace)
        self._is_recycling = False
        self._leaving = asyncio.Event()
        self.ready = asyncio.Event()
        """Set while the child here is ready."""
        self.settled = asyncio.Event()
        """Set as soon as it is known whether the first child comes up: it is ready, or no other one will be started."""
        self.has_ended = False

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to go, and will not start a child again."""
        return self._leaving.is_set()

    @property
    def state(self) -> str:
        """What happens here now, in one word for a person."""
        if self.child is None or not self.child.is_alive:
            return "failed" if self.has_failed else "stopped" if self.is_leaving else "waiting"
        if self.child.is_hanging:
            return "hanging"
        if self.child.is_draining:
            return "draining"
        return "ready" if self.child.ready.is_set() else "starting"

    @property
    def stopped_well(self) -> bool:
        """Whether the child drained when it was told to; true also where there was none to drain."""
        child, death = self.child, self.last_death
        if self.was_killed or child is None or death is None or not child.is_draining:
            return not self.was_killed
        return death.returncode in (0, -signal.SIGTERM)

    async def keep(self) -> None:
        """Keep a child alive here, until told to leave or there is no point in it."""
        try:
            await self._keep()
        finally:
            self.has_ended = True
            self.settled.set()

    async def _keep(self) -> None:
        while not self.is_leaving:
            death = await self._live()
            if self._is_over(death):
                return
            delay_s = self._delay_s(death)
            if delay_s is None:
                self._give_up(death, f"died {self._desk.pace.deaths} times in {self._desk.pace.within_s:g} s")
                return
            self._tell_restart(death, delay_s)
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), delay_s)

    async def retire(self) -> None:
        """Drain what runs here, in its grace and a margin, then kill it. Returns when it is gone."""
        self._leaving.set()
        if self.child is not None:
            await self._drain(self.child)

    async def recycle(self) -> None:
        """Drain what runs here and start it again; revive a slot that is waiting. Returns at the death of the old."""
        if self.child is not None and self.child.is_alive:
            self._is_recycling = True
            await self._drain(self.child)

    async def force(self) -> None:
        """Order the child once more to stop, which means now; kill it when even that takes too long."""
        self._leaving.set()
        child = self.child
        if child is None or not child.is_alive:
            return
        if child.term_sent_s is not None:
            too_soon_s = child.term_sent_s + SAME_ORDER_S * 1.2 - time.monotonic()
            await child.ends_within(max(0.0, too_soon_s))
        child.send(signal.SIGTERM)
        await self._or_kill(child, self._desk.pace.margin_s)

    async def kill(self) -> None:
        """End the child now. What it held is buried like that of any dead child."""
        self._leaving.set()
        if self.child is not None:
            self.child.send(signal.SIGKILL)
            await self.child.ends_within(AFTER_KILL_S)

    async def _live(self) -> Death:
        """Start a child and see it through."""
        try:
            self.child = child = self._new_child()
        except OSError as error:
            return self._unborn(error)
        event(log, logging.INFO, "parent.child_started", f"{self.name} started, pid {child.pid}", child=self.name)
        await self._see_ready(child)
        death = await child.exited
        self.ready.clear()
        self.last_death = death
        self._desk.on_death(child, death)
        return death

    def _new_child(self) -> Child:
        spare = self._desk.spare(self.role, self.number)
        return spare or Child(self.role, self.number, self._desk.output, self._desk.pace)

    async def _see_ready(self, child: Child) -> None:
        waiting = asyncio.ensure_future(child.ready.wait())
        first: list[asyncio.Future[Any]] = [waiting, child.exited]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if child.ready.is_set():
            self.was_ready = True
            self.ready.set()
            self.settled.set()
            self._desk.on_ready(child)

    def _unborn(self, error: OSError) -> Death:
        self.child = None
        is_missing = isinstance(error, FileNotFoundError | PermissionError)
        death = Death(127 if is_missing else 71, (f"{self.role.argv[0]}: {error.strerror}",))
        self.last_death = death
        return death

    def _is_over(self, death: Death) -> bool:
        """Whether this death is the last one here."""
        if self.is_leaving:
            return True
        if self._is_recycling:
            return False
        if self.role.once and death.returncode == 0:
            self._leaving.set()
            return True
        if death.returncode in START_FAILURES:
            self._give_up(death, "cannot start")
            return True
        if self.is_trial:
            self._give_up(death, "did not get ready")
        return self.is_trial

    def _delay_s(self, death: Death) -> float | None:
        if self._is_recycling:
            self._is_recycling = False
            return 0.0
        child = self.child
        was_ready = child is not None and child.ready.is_set()
        if was_ready and death.returncode == 0:
            return 0.0  # it drained by itself, to be replaced
        # Where a child worked before, a server that is away will be back: an outage is no crash loop.
        is_fit = was_ready or (self.was_ready and death.returncode == SERVER_AWAY)
        return self._backoff.after(time.monotonic(), child.lived_s if child else 0.0, is_fit=is_fit)

    def _give_up(self, death: Death, why: str) -> None:
        self.has_failed = True
        tail = "".join(f"\n    {line}" for line in death.tail[-10:])
        text = f"{self.name} {why}, giving up: {death.words}" + (f"; its last lines:{tail}" if tail else "")
        event(log, logging.ERROR, "parent.gave_up", text, child=self.name, returncode=death.returncode)
        if not self.is_trial:
            self._desk.on_given_up(self, death)

    def _tell_restart(self, death: Death, delay_s: float) -> None:
        when = f"in {delay_s:g} s" if delay_s else "now"
        level = logging.INFO if death.returncode == 0 else logging.WARNING
        text = f"{self.name}: {death.words}; starting it again {when}"
        event(log, level, "parent.child_died", text, child=self.name, returncode=death.returncode, delay_s=delay_s)

    async def _drain(self, child: Child) -> None:
        child.send(signal.SIGTERM)
        await self._or_kill(child, self.role.grace_ms / 1000 + self._desk.pace.margin_s)

    async def _or_kill(self, child: Child, patience_s: float) -> None:
        if await child.ends_within(patience_s):
            return
        self.was_killed = True
        event(log, logging.WARNING, "parent.child_killed", f"{self.name} did not stop in time, killing it")
        child.send(signal.SIGKILL)
        await child.ends_within(AFTER_KILL_S)
