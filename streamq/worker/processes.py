"""Jobs in processes that can be killed: warm children, each running one job at a time.

A child may exit, crash or hang: it costs the one job that it runs, and is replaced. It is the head of a process group
of its own, so what a handler has started dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from streamq import tracing
from streamq.errors import ConfigurationError
from streamq.job import Completed, Snoozed
from streamq.logs import event
from streamq.notes import Notes
from streamq.process import exit_words
from streamq.worker.pipe import LENGTH, PARK_MS, Ended, FromChild, FromWorker, Hello, Order, Ready, Stop, Told, framed
from streamq.worker.run import Decided, ProcessDied, Stop as Why

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from streamq.job import Delivery
    from streamq.registry import Registry
    from streamq.settings import Settings
    from streamq.worker.run import RunningJob

__all__ = ["KILL_AFTER_S", "Processes"]

log = logging.getLogger("streamq.worker")

KILL_AFTER_S = 1.5
"""How long a job that was told to stop may take, before its process is killed."""
START_LIMIT_S = 60.0
"""How long a child may take to import the application."""
_DUMP_S = 0.1
_LAST_WORDS_S = 0.5
_DECODER = msgspec.json.Decoder(FromChild)


class ChildFailed(Exception):
    """A child could not import the application."""


class Child:
    """One process."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._answer: asyncio.Future[Ready | Ended] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
        self.is_spent = False
        self.on_told: Callable[[Told], None] = lambda _: None

    @classmethod
    async def start(cls, settings: Settings) -> Child:
        """Start a child and wait until it has imported the application.

        Raises:
            ChildFailed: It cannot.
            ProcessDied: It died over it.
        """
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-u", "-m", "streamq.worker.child", str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            writer.close()
            raise
        child = cls(process, reader, writer)
        try:
            ready = await child.ask(Hello(settings))
        except BaseException:
            await child.kill()
            raise
        if isinstance(ready, Ready) and ready.problem:
            await child.kill()
            raise ChildFailed(ready.problem)
        return child

    async def ask(self, message: FromWorker) -> Ready | Ended:
        """Say something, and wait for the answer.

        Raises:
            ProcessDied: It died instead.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._writer.write(framed(message))
        return await asyncio.shield(self._answer)

    async def stop(self, why: Why, reason: str) -> Ended | None:
        """Have the running job interrupted; kill the process if it goes on. Returns what it came to, unless killed."""
        self._writer.write(framed(Stop(why, reason)))
        await asyncio.wait({self._answer}, timeout=KILL_AFTER_S)
        if not self._answer.done():
            self.dump()
            await asyncio.sleep(_DUMP_S)
            await self.kill()
        if self._answer.done() and self._answer.exception() is None:
            answer = self._answer.result()
            return answer if isinstance(answer, Ended) else None
        return None

    def dump(self) -> None:
        """Have it write where it stands."""
        if not self.is_dead:
            self._process.send_signal(signal.SIGUSR1)

    async def kill(self) -> None:
        """End it now, and all that it has started."""
        self._kill_group()
        await self._process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Let it end in order, in the time that a running job would get."""
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), KILL_AFTER_S)
        await self.kill()

    @property
    def is_dead(self) -> bool:
        """Whether it can run no more jobs."""
        return self.is_spent or self._process.returncode is not None

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH), "big")
                message = _DECODER.decode(await self._reader.readexactly(length))
                if isinstance(message, Told):
                    self.on_told(message)
                    continue
                self.is_spent = isinstance(message, Ended) and message.is_spent
                if not self._answer.done():
                    self._answer.set_result(message)

    async def _watch(self) -> None:
        """Tell of its death, but only after its last words. What it has started may keep the line open."""
        code = await self._process.wait()
        self._kill_group()
        await asyncio.wait({self._tasks[0]}, timeout=_LAST_WORDS_S)
        self._tasks[0].cancel()
        self._writer.close()
        if not self._answer.done():
            self._answer.set_exception(ProcessDied(f"the process that ran it ended: {exit_words(code)}"))
            self._answer.exception()  # nobody need be waiting


class Processes:
    """The children of a worker. There are never more than jobs that run at once, and none before the first one."""

    def __init__(self, settings: Settings, on_notes: Callable[[Delivery], None]) -> None:
        """Take what children need to know, and whom to tell when a handler there has told something of its job."""
        self._settings = settings
        self._on_notes = on_notes
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._warming: asyncio.Task[None] | None = None
        self._is_first = True

    def prepare(self, registry: Registry) -> None:
        """See that children could find the application, and start one ahead, if there are handlers that need it.

        Raises:
            ConfigurationError: A handler needs one, and the application has no name to import it by.
        """
        needing = next((spec.name for spec in registry if spec.isolation == "process"), None)
        if needing is None:
            return
        if not self._settings.app:
            raise ConfigurationError(
                f"handler {needing!r} has isolation='process', and a process imports the application by its name",
                hint="name it, as in streamq worker shop.tasks:app",
            )
        self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        with contextlib.suppress(ProcessDied, Decided):  # the first job will tell
            self._idle.append(await self._child())

    async def run(self, job: RunningJob) -> Any:
        """Run a job in a child.

        Raises:
            ProcessDied: The child died.
            Decided: The child says what the job came to.
        """
        child = await self._child_for(job)
        self._busy.add(child)
        delivery = job.delivery

        def told(message: Told) -> None:
            delivery.notes = Notes.of(message.notes)
            self._on_notes(delivery)

        child.on_told = told
        order = Order(delivery.id, delivery.raw, delivery.digit, delivery.enqueued_ms, delivery.delivery, job.begun_ms)
        if tracing.is_on():
            order.trace = tracing.carried(None)
        try:
            ended: Ready | Ended | None = await child.ask(order)
        except asyncio.CancelledError:
            ended = await child.stop(job.stop or Why.SHUTDOWN, job.stop_reason)
            if ended is None or ended.kind != "Completed":
                raise
        finally:
            self._busy.discard(child)
            if child.is_dead:
                await child.kill()
            else:
                self._idle.append(child)
        return _result(ended)

    async def _child_for(self, job: RunningJob) -> Child:
        """Return a child; the time that it takes to start one is not the job's."""
        loop, begun_at = asyncio.get_running_loop(), job.begun_at
        job.begun_at = math.inf
        is_first, self._is_first = self._is_first, False
        try:
            if is_first and self._warming is not None:
                await asyncio.wait([self._warming])  # it is started for this one
            return await self._child()
        finally:
            job.begun_at = loop.time()
            job.begun_ms += int((job.begun_at - begun_at) * 1000)

    async def _child(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if not child.is_dead:
                return child
        try:
            async with asyncio.timeout(START_LIMIT_S):
                return await Child.start(self._settings)
        except (ChildFailed, TimeoutError) as error:
            reason = str(error) or f"it takes longer than {START_LIMIT_S:g} s"
            event(log, logging.ERROR, "worker.child_failed", reason=reason)
            raise Decided(Snoozed(PARK_MS, f"its process cannot import the application: {reason}")) from None

    def dump(self) -> None:
        """Have all that run something write where they stand."""
        for child in self._busy:
            child.dump()

    async def close(self) -> None:
        """End all children."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.close() for child in idle), *(child.kill() for child in self._busy))


def _result(ended: Ready | Ended | None) -> Any:
    if not isinstance(ended, Ended):
        raise ProcessDied("the process that ran it said something else than how it ended")
    outcome = ended.outcome
    if isinstance(outcome, Completed):
        return outcome.result
    raise Decided(outcome)
