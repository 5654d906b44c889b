"""Keeps the roles of one machine alive: starts, restarts, scales, rolls and stops their processes.

Nothing in here waits for one child while another needs something: every slot, drain and roll is a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from streamq.clock import utc_now
from streamq.errors import BadInput
from streamq.logs import event
from streamq.parent.control import Control
from streamq.parent.guard import Guard
from streamq.parent.output import Output
from streamq.parent.roles import Hooks, Pace
from streamq.parent.signals import Signals
from streamq.parent.slot import Desk, Slot
from streamq.parent.spares import Spares
from streamq.process import Reporter, exit_status, rss_bytes

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from pathlib import Path

    from streamq.parent.child import Child, Death
    from streamq.parent.roles import Role

__all__ = ["MOST_INSTANCES", "Parent"]

log = logging.getLogger(__name__)

MOST_INSTANCES = 1_000
"""More processes than this on one machine is a typing error."""
FORCED, QUIT, INTERNAL_ERROR = 130, 131, 70


class Parent:
    """The supervisor. `await run()` ends when everything has ended, with the exit code of the whole."""

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        directory: Path | None = None,
        hooks: Hooks | None = None,
        pace: Pace | None = None,
        output: Output | None = None,
        heartbeat_file: Path | None = None,
    ) -> None:
        """Make a parent; nothing is started yet.

        Args:
            roles: What to run; names differ.
            directory: Where the control socket goes; None for no control socket.
            hooks: Who is told of deaths, and who beats.
            pace: How patient to be.
            output: Where the children's lines go.
            heartbeat_file: What `streamq health` reads; None for none.
        """
        self._roles = {role.name: role for role in roles}
        self._output = output or Output()
        self._pace = pace or Pace()
        self._reporter = Reporter(heartbeat_file)
        self._guard = Guard(hooks or Hooks(), self._pace, self._children)
        self._spares = Spares(self._output, self._pace, self._start)
        self._desk = Desk(
            self._output, self._pace, self._on_ready, self._guard.died, self._on_given_up, self._spares.take
        )
        self._control = Control(directory, self, self._output) if directory else None
        self._slots: list[Slot] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._rolling: set[str] = set()
        self._finished = asyncio.Event()
        self._exit_code = 0
        self._is_stopping = self._is_quiet = self._told_ready = False
        self._started_at = utc_now()

    async def run(self) -> int:
        """Start everything, and keep it running until told to stop.

        Returns:
            0 after a clean stop, 1 if a child had to be killed or failed while stopping, 130 when forced, and the
            child's own code if a role could not be started.
        """
        signals = Signals(self)
        if self._control is not None:
            await self._control.open()
        for role in self._roles.values():
            self._fill(role, role.instances)
        watchers = [self._guard.beat_forever(), self._guard.bury_forever(), self._guard.watch_forever()]
        background = [self._start(watcher) for watcher in (*watchers, self._report_forever())]
        try:
            await self._finished.wait()
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await self._spares.close()
            await self._guard.close()
            if self._control is not None:
                await self._control.close()
            self._output.close()
            signals.close()
        return self._exit_code

    # What an operator may ask for.

    def scale(self, name: str, instances: int) -> int:
        """Set how many children a role has. Those too many drain in parallel, the highest numbers first.

        Returns:
            How many it was meant to have before.

        Raises:
            BadInput: There is no such role, the number is out of range, or we are stopping; nothing was changed.
        """
        role = self._role(name)
        if not 0 <= instances <= MOST_INSTANCES:
            raise BadInput(f"cannot scale {name} to {instances}: expected 0 to {MOST_INSTANCES}")
        self._drop_failed(role)
        before = self._active(role)
        self._fill(role, instances)
        for slot in before[instances:]:
            self._start(slot.retire())
        if len(before) != instances:
            event(log, logging.INFO, "parent.scaled", f"{name}: {len(before)} → {instances}", role=name, n=instances)
        return len(before)

    def restart(self, name: str, *, is_rolling: bool = True) -> None:
        """Restart every child of a role: one at a time and the new one ready first, or all at once.

        Raises:
            BadInput: There is no such role, a rolling restart of it is under way, or we are stopping.
        """
        role = self._role(name)
        if name in self._rolling:
            raise BadInput(f"a rolling restart of {name} is under way")
        failed = self._drop_failed(role)
        self._spares.renew(role)
        for slot in self._active(role):
            if not is_rolling:
                self._start(slot.recycle())
        if is_rolling:
            self._rolling.add(name)
            self._start(self._roll(role))
        self._fill(role, len(self._active(role)) + failed)

    def stop(self, exit_code: int = 0) -> None:
        """Drain everything in parallel, then end `run`. The first call counts."""
        if not self._is_stopping:
            self._is_stopping = True
            self._exit_code = exit_code
            self._reporter.stopping()
            event(log, logging.INFO, "parent.stopping", "stopping: running jobs get their grace")
            self._start(self._stop_all())

    def force(self) -> None:
        """Order everything to stop now rather than to drain, and kill what takes longer than `Pace.margin_s`."""
        event(log, logging.WARNING, "parent.forced", "stopping by force")
        self._exit_code = FORCED
        for slot in self._slots:
            self._start(slot.force())

    def quit(self) -> None:
        """Kill everything. What the children held is buried, so that others take it."""
        self.stop()
        self._exit_code = QUIT
        for slot in self._slots:
            self._start(slot.kill())

    def set_quiet(self, *, is_quiet: bool) -> None:
        """Have the children take no new work, those started later included; or have them go on."""
        self._is_quiet = is_quiet
        self.forward(signal.SIGTSTP if is_quiet else signal.SIGCONT)

    def forward(self, number: signal.Signals) -> None:
        """Send a signal to every child that has said it is ready; others may not expect it, and die of it."""
        for child in self._children():
            if child.speaks and child.ready.is_set():
                child.send(number)

    def ps(self) -> dict[str, Any]:
        """Describe the parent and its children, for `streamq ps`."""
        return {
            "parent": {"pid": os.getpid(), "started_at": self._started_at.isoformat(), "state": self._state},
            "roles": self.counts(),
            "children": [
                *(_described(slot) for slot in sorted(self._slots, key=lambda slot: (slot.role.name, slot.number))),
                *(_described_spare(child) for child in self._spares.waiting),
            ],
        }

    def counts(self) -> dict[str, int]:
        """Return how many children each role is meant to have."""
        return {name: len(self._active(role)) for name, role in self._roles.items()}

    def names(self) -> set[str]:
        """Return the names of all roles and children, and `parent`, whose lines may be asked for."""
        return {"parent", *self._roles, *(slot.name for slot in self._slots)}

    # Slots.

    @property
    def _state(self) -> str:
        return "stopping" if self._is_stopping else "quiet" if self._is_quiet else "running"

    def _role(self, name: str) -> Role:
        if self._is_stopping:
            raise BadInput("the parent is stopping")
        try:
            return self._roles[name]
        except KeyError:
            raise BadInput(f"there is no role {name!r} here: expected one of {', '.join(self._roles)}") from None

    def _active(self, role: Role) -> list[Slot]:
        """The slots that count, lowest number first: not those that leave, are on trial, or have failed."""
        slots = [slot for slot in self._slots if slot.role is role and not (slot.is_leaving or slot.is_trial)]
        return sorted((slot for slot in slots if not slot.has_failed), key=lambda slot: slot.number)

    def _children(self) -> Iterable[Child]:
        return [slot.child for slot in self._slots if slot.child is not None]

    def _fill(self, role: Role, instances: int) -> None:
        """Add slots until the role has so many, each with the lowest free number."""
        active = self._active(role)
        taken = {slot.number for slot in active}
        free = (number for number in range(1, len(taken) + instances + 1) if number not in taken)
        for _ in range(instances - len(active)):
            self._open(Slot(role, next(free), self._desk))

    def _open(self, slot: Slot) -> Slot:
        self._slots.append(slot)
        self._start(self._keep(slot))
        return slot

    async def _keep(self, slot: Slot) -> None:
        await slot.keep()
        if not slot.has_failed or slot.is_trial:  # a slot that was given up stays in sight
            self._slots.remove(slot)
        if self._is_stopping and not slot.stopped_well and self._exit_code == 0:
            self._exit_code = 1
        self._finish_if_over(is_done=slot.role.once)

    def _finish_if_over(self, *, is_done: bool = False) -> None:
        """End `run` when nothing runs and nothing will: a role that was scaled to 0 may be wanted again."""
        if all(slot.has_ended for slot in self._slots) and (self._is_stopping or is_done):
            self._finished.set()

    def _drop_failed(self, role: Role) -> int:
        """Forget the slots that were given up, so that they are tried again."""
        failed = [slot for slot in self._slots if slot.role is role and slot.has_failed and not slot.is_trial]
        for slot in failed:
            self._slots.remove(slot)
        return len(failed)

    def _on_ready(self, child: Child) -> None:
        event(log, logging.INFO, "parent.child_ready", f"{child.name} is ready", child=child.name)
        if self._is_quiet and child.speaks:
            child.send(signal.SIGTSTP)
        if not self._is_stopping:
            self._spares.begin(child.role)
        self._tell_ready()

    def _on_given_up(self, slot: Slot, death: Death) -> None:
        """Stop everything with the child's exit code, unless others of its role are known to work."""
        others = [other for other in self._active(slot.role) if other is not slot and other.was_ready]
        if not others:
            self.stop(exit_status(death.returncode) or 1)

    # Tasks.

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            event(log, logging.CRITICAL, "parent.failed", f"an error inside the parent: {error!r}")
            log.critical("stopping everything", exc_info=error)
            self.stop(INTERNAL_ERROR)

    async def _roll(self, role: Role) -> None:
        """Replace the children of a role one after another, and stop at the first replacement that does not come up."""
        try:
            for old in self._active(role):
                if old.is_leaving or await self._replace(old):
                    continue
                text = f"the rolling restart of {role.name} ends here; the others stay as they are"
                event(log, logging.ERROR, "parent.roll_failed", text, role=role.name)
                return
            event(log, logging.INFO, "parent.rolled", f"{role.name}: rolling restart done", role=role.name)
        finally:
            self._rolling.discard(role.name)

    async def _replace(self, old: Slot) -> bool:
        """Put a new child in the place of an old one; False if the new one did not come up."""
        role, number = old.role, old.number
        if not role.overlap:
            await old.retire()
            return self._is_stopping or await self._comes_up(self._open(Slot(role, number, self._desk)))
        new = self._open(Slot(role, number, self._desk, is_trial=True))
        if not await self._comes_up(new):
            await new.retire()
            return False
        if old.is_leaving:  # scaled down meanwhile
            await new.retire()
            return True
        new.is_trial = False
        await old.retire()
        return True

    async def _comes_up(self, slot: Slot) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace.ready_limit_s):
                await slot.settled.wait()
        return slot.ready.is_set()

    async def _stop_all(self) -> None:
        await asyncio.gather(*(slot.retire() for slot in list(self._slots)))
        self._finish_if_over()

    # The machine.

    async def _report_forever(self) -> None:
        """Tell the machine how things stand, each second, or more often where its watchdog asks for that."""
        while True:
            self._reporter.tell(self._summary(), self.problem())
            await asyncio.sleep(self._reporter.period_s)

    def _tell_ready(self) -> None:
        """Say once that every role works."""
        if not self._told_ready and all(self._is_up(role) for role in self._roles.values()):
            self._told_ready = True
            self._reporter.ready(self._summary())
            event(log, logging.INFO, "parent.ready", f"ready: {self._summary()}")

    def problem(self) -> str:
        """Say why not everything does its work; empty if each role has a child that does."""
        if self._state != "running":
            return self._state
        problems = (self._problem_of(role) for role in self._roles.values())
        return "; ".join(problem for problem in problems if problem)

    def _problem_of(self, role: Role) -> str:
        ready = [slot.child for slot in self._active(role) if slot.ready.is_set() and slot.child is not None]
        if not ready:
            return "" if self._is_up(role) else f"no {role.name} is ready"
        return "" if any(not child.problem for child in ready) else f"{ready[0].name}: {ready[0].problem}"

    def _is_up(self, role: Role) -> bool:
        slots = self._active(role)
        return not slots or any(slot.ready.is_set() for slot in slots)

    def _summary(self) -> str:
        active = [slot for role in self._roles.values() for slot in self._active(role)]
        children = [slot.child for slot in active if slot.child is not None and slot.ready.is_set()]
        busy, slots = sum(child.busy for child in children), sum(child.slots for child in children)
        return f"{len(children)}/{len(active)} ready, {busy}/{slots} busy" + (", stopping" * self._is_stopping)


def _described(slot: Slot) -> dict[str, Any]:
    child, death = slot.child, slot.last_death
    alive = child if child is not None and child.is_alive else None
    return {
        "role": slot.role.name,
        "name": slot.name,
        "state": slot.state,
        **_described_process(alive),
        "restarts": slot.restarts,
        "last_death": death.words if death else None,
    }


def _described_spare(child: Child) -> dict[str, Any]:
    state = "spare" if child.warm.is_set() else "starting"
    told = {"role": child.role.name, "name": child.name, "state": state}
    return told | _described_process(child) | {"restarts": 0, "last_death": None}


def _described_process(alive: Child | None) -> dict[str, Any]:
    return {
        "pid": alive.pid if alive else None,
        "started_at": alive.started_at.isoformat() if alive else None,
        "uptime_s": round(alive.lived_s, 1) if alive else None,
        "busy": alive.busy if alive else 0,
        "slots": alive.slots if alive else 0,
        "problem": alive.problem if alive else "",
        "silent_s": round(alive.silent_s, 1) if alive else None,
        "rss_bytes": rss_bytes(alive.pid) if alive else None,
        "consumers": list(alive.consumers) if alive else [],
    }
