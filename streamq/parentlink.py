"""A child's line to the parent that started it: who it is, that it lives, and that the parent does.

One socket, inherited; its number stands in STREAMQ_PARENT_FD. JSON lines go up: `hello`, `ready`, `tick`, `bye`,
and `warm` from a spare. Nothing comes down but a spare's place, and the end of the line, which means that the parent is dead. Without a parent every call here
does nothing. Nothing may block: a stuck parent must not hold up a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

__all__ = ["PARENT_FD", "SAME_ORDER_S", "STANDBY", "TICK_PERIOD_S", "ParentLink", "Place", "wait_for_place"]

PARENT_FD: Final = "STREAMQ_PARENT_FD"
STANDBY: Final = "STREAMQ_PARENT_STANDBY"
"""Set for a spare: it imports everything, and begins when it is given a place."""
TICK_PERIOD_S: Final = 1.0
SAME_ORDER_S: Final = 1.0
"""A child with a parent takes a second TERM or INT that comes sooner than this for the first one arriving twice.

PM2 signals the whole process tree, and so does systemd with KillMode=control-group; the parent then forwards the same
order. A parent that means force sends its second TERM later than this.
"""


class Place(NamedTuple):
    """Where a spare is to work."""

    name: str
    """Such as `worker.2`."""
    numbers: dict[str, int]
    """Variables that differ from place to place, such as a port."""


def wait_for_place(environ: MutableMapping[str, str] = os.environ) -> Place | None:
    """Tell the parent that everything is imported, and wait until it has a place for this process.

    For a process that has neither a loop nor threads yet; it blocks. Afterwards `ParentLink.open` takes the same line.

    Returns:
        None if this process is no spare.

    Raises:
        SystemExit: The parent is gone, or has no use for spares any more.
    """
    if not environ.pop(STANDBY, ""):
        return None
    with socket.socket(fileno=os.dup(int(environ[PARENT_FD]))) as line:
        line.setblocking(True)
        line.sendall(b'{"type":"warm"}\n')
        heard = b""
        while not heard.endswith(b"\n"):
            more = line.recv(4096)
            if not more:
                raise SystemExit(0)
            heard += more
    told = json.loads(heard)
    return Place(told["name"], told["numbers"])


class ParentLink:
    """The child's end of the line. Make it with `open`, inside the event loop."""

    def __init__(self, line: socket.socket | None) -> None:
        self._line = line
        self._unsent = bytearray()
        self.gone = asyncio.Event()
        """Set when the parent has died: nobody beats for this process or reads its output any more. Drain and stop."""

    @classmethod
    def open(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Take over the line that the environment names, and take it out of the environment.

        What this process starts in turn must not speak for it. A number that is no socket counts as no parent.
        """
        line = _inherited(environ.pop(PARENT_FD, ""))
        link = cls(line)
        if line is not None:
            asyncio.get_running_loop().add_reader(line, link._listen)
        return link

    @property
    def present(self) -> bool:
        """Whether there is a parent at the other end."""
        return self._line is not None

    def hello(self, consumers: Sequence[str]) -> None:
        """Name the consumers that the parent beats for, and buries when this process dies. Replaces earlier names."""
        self._send({"type": "hello", "consumers": list(consumers)})

    def ready(self) -> None:
        """Say that this process does its work now. From here on it must tick."""
        self._send({"type": "ready"})

    def tick(self, busy: int, slots: int, problem: str = "") -> None:
        """Show that the event loop turns, about once a second; a process that stays silent is killed in the end.

        Args:
            busy: Jobs that run.
            slots: Jobs that may run at once.
            problem: Why this process does not do its work just now; empty if it does.
        """
        if self._unsent:  # a parent that does not read needs no more ticks
            self._flush()
        else:
            self._send({"type": "tick", "busy": busy, "slots": slots, "problem": problem})

    def bye(self) -> None:
        """Say that everything was settled or handed back, so that nothing is left to bury."""
        self._send({"type": "bye"})

    async def keep_ticking(self, load: Callable[[], tuple[int, int]], period_s: float = TICK_PERIOD_S) -> None:
        """Tick until cancelled; `load` gives the busy slots and all slots."""
        while True:
            self.tick(*load())
            await asyncio.sleep(period_s)

    def close(self) -> None:
        """Let go of the line; the parent does not take this for a death."""
        if self._line is not None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()
            self._line = None

    def _send(self, message: dict[str, Any]) -> None:
        if self._line is not None:
            self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
            self._flush()

    def _flush(self) -> None:
        if self._line is None:
            return
        try:
            del self._unsent[: self._line.send(self._unsent)]
        except BlockingIOError:
            return  # the rest goes before the next message
        except OSError:
            self._lose()

    def _listen(self) -> None:
        if self._line is None:
            return
        try:
            heard = self._line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard:
            self._lose()

    def _lose(self) -> None:
        self.close()
        _silence_output()
        self.gone.set()


def _inherited(number: str) -> socket.socket | None:
    if not number.isdecimal():
        return None
    try:
        line = socket.socket(fileno=int(number))
    except OSError:
        return None
    line.setblocking(False)
    line.set_inheritable(False)
    return line


def _silence_output() -> None:
    """Send output nowhere: its reader died with the parent, and a broken pipe must not stop the drain."""
    with Path(os.devnull).open("wb") as nowhere:
        for stream in (1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISFIFO(os.fstat(stream).st_mode):
                    os.dup2(nowhere.fileno(), stream)
