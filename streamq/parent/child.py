"""One process that a parent started: its output, what it says about itself, and the moment of its death.

The death is seen through a pidfd, whatever the pipes do: a grandchild that holds one must not hide it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.clock import utc_now
from streamq.parent.output import LineReader
from streamq.parentlink import PARENT_FD, STANDBY
from streamq.process import exit_words, is_frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamq.parent.output import Output, Stream
    from streamq.parent.roles import Pace, Role

__all__ = ["Child", "Death"]

TAIL_LINES = 20
TAIL_CHARS = 500
LATE_S = 3.0
"""Three ticks missed: worth asking the system whether the process is frozen."""
_ONLY_FOR_US = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""systemd talks to the parent; a child that answered would be taken for it."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended."""

    returncode: int
    """As `subprocess` has it: minus the number of the signal that ended it."""
    tail: tuple[str, ...] = ()
    """The last lines of its standard error."""

    @property
    def words(self) -> str:
        """How it ended, for a person."""
        return exit_words(self.returncode)


class Child:
    """A running process, and afterwards the memory of it. `exited` is set with its `Death`."""

    def __init__(self, role: Role, number: int, output: Output, pace: Pace) -> None:
        """Start the process.

        Args:
            role: What to run.
            number: Of its place in the role, from 1; 0: it is a spare, which waits for one.
            output: Where its lines go.
            pace: How patient to be.

        Raises:
            OSError: It could not be started, for example because there is no such program.
        """
        self.role = role
        self.number = number
        self.name = f"{role.name}.{number or 'spare'}"
        self.consumers: tuple[str, ...] = ()
        self.busy = self.slots = 0
        self.problem = ""
        """Why it does not do its work just now, in its own words; empty if it does."""
        self.warm = asyncio.Event()
        """Set when a spare has imported everything."""
        self.placed = asyncio.Event()
        """Set when a spare has been given a place."""
        self.ready = asyncio.Event()
        self.exited: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self.started_at = utc_now()
        self.started_s = time.monotonic()
        self.term_sent_s: float | None = None
        self.is_hanging = self.said_bye = self.speaks = False
        self._last_tick_s: float | None = None
        self._output = output
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._start()
        if not role.speaks:
            asyncio.get_running_loop().call_later(pace.presumed_ready_s, self._presume_ready)

    def _start(self) -> None:
        self._line, theirs = socket.socketpair()
        try:
            # A spare puts its name in for itself, when it has one.
            argv = [word.replace("{name}", self.name if self.number else "{name}") for word in self.role.argv]
            self._process = _spawn(argv, _environment(self.role, self.number, theirs.fileno()), theirs.fileno())
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._readers = [LineReader(self._line.fileno(), self._hear)]
        self._read_output(self._process.stdout, "stdout")
        self._read_output(self._process.stderr, "stderr")
        self._watch()

    @property
    def is_alive(self) -> bool:
        """Whether its death has not been seen yet."""
        return not self.exited.done()

    @property
    def is_draining(self) -> bool:
        """Whether it was told to stop."""
        return self.term_sent_s is not None

    @property
    def lived_s(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self.started_s

    @property
    def silent_s(self) -> float:
        """How long ago it last showed that its event loop turns; 0 before it was ready."""
        return 0.0 if self._last_tick_s is None else time.monotonic() - self._last_tick_s

    @property
    def is_silent(self) -> bool:
        """Whether it has been silent past the limit of its role."""
        return 0 < self.role.hang_limit_ms < self.silent_s * 1000

    @property
    def deserves_beats(self) -> bool:
        """Whether its deliveries are in good hands: it lives, does not hang, and is not stopped by SIGSTOP."""
        if not self.is_alive or self.is_hanging or self.is_silent:
            return False
        return self.silent_s < LATE_S or not is_frozen(self.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is dead."""
        if not self.is_alive:
            return
        if number == signal.SIGTERM and self.term_sent_s is None:
            self.term_sent_s = time.monotonic()
        os.kill(self.pid, number)  # not yet waited for, so the number still belongs to it

    def take_place(self, number: int) -> None:
        """Send a warm spare to work in a place of its role. Should it have died just now, that is seen as its death."""
        self.number, self.name = number, f"{self.role.name}.{number}"
        self.started_at, self.started_s = utc_now(), time.monotonic()
        told = {"name": self.name, "numbers": _numbered(self.role, number)}
        with contextlib.suppress(OSError):
            self._line.send(json.dumps(told).encode() + b"\n")
        self.placed.set()

    async def ends_within(self, seconds: float) -> bool:
        """Wait for the death, and say whether it came in time."""
        await asyncio.wait([self.exited], timeout=seconds)
        return self.exited.done()

    def _read_output(self, pipe: Any, stream: Stream) -> None:
        def on_line(line: bytes) -> None:
            text = line.decode(errors="replace").rstrip("\r")
            if stream == "stderr":
                self._tail.append(text[:TAIL_CHARS])
            self._output.line(self.role.name, self.name, stream, text)

        self._readers.append(LineReader(pipe.fileno(), on_line))

    def _hear(self, line: bytes) -> None:
        """Take in what the child says of itself; what this version does not know, it ignores."""
        try:
            message = json.loads(line)
            self._take_in(message["type"], message)
        except (ValueError, TypeError, KeyError):
            return

    def _take_in(self, kind: str, message: dict[str, Any]) -> None:
        self.speaks = True
        if kind == "warm":
            self.warm.set()
        elif kind == "hello":
            self.consumers = tuple(str(consumer) for consumer in message["consumers"])
        elif kind == "ready":
            self._last_tick_s = time.monotonic()
            self.ready.set()
        elif kind == "tick":
            self._last_tick_s = time.monotonic()
            self.busy, self.slots = int(message["busy"]), int(message["slots"])
            self.problem = str(message.get("problem", ""))
        elif kind == "bye":
            self.said_bye = True

    def _presume_ready(self) -> None:
        if self.is_alive:
            self.ready.set()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(self.pid)
            loop.add_reader(self._pidfd, self._on_pidfd)
        else:  # macOS
            threading.Thread(target=self._wait_in_thread, args=(loop,), daemon=True).start()

    def _on_pidfd(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_code != os.CLD_EXITED or ended.si_status != 0:
            self._kill_group()
        self._on_exit(self._process.wait())

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        returncode = self._process.wait()
        loop.call_soon_threadsafe(self._on_exit, returncode)

    def _kill_group(self) -> None:
        """Kill what a crashed child has left running, such as the process of an isolated job: it will run elsewhere.

        The dead child is not waited for yet, so the number of its group cannot have been given to others.
        """
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _on_exit(self, returncode: int) -> None:
        for reader in self._readers:
            reader.finish()
        self._line.close()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self.exited.set_result(Death(returncode, tuple(self._tail)))


def _spawn(argv: Sequence[str], env: Mapping[str, str], fd: int) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own: Ctrl-C at the terminal must reach the parent alone."""
    return subprocess.Popen(  # noqa: S603  the command line is ours
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        pass_fds=(fd,),
        start_new_session=True,
        bufsize=0,
    )


def _environment(role: Role, number: int, fd: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _ONLY_FOR_US}
    numbered = {name: str(value) for name, value in _numbered(role, number).items()}
    standby = {} if number else {STANDBY: "1"}
    return inherited | {"PYTHONUNBUFFERED": "1"} | dict(role.env) | numbered | {PARENT_FD: str(fd)} | standby


def _numbered(role: Role, number: int) -> dict[str, int]:
    return {name: first + max(number, 1) - 1 for name, first in role.numbered.items()}
