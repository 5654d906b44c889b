"""The children's output: split into lines, labelled, kept for a while, and shown without ever blocking the parent.

A terminal that is stopped with Ctrl-S must not stop the beats: a thread writes, and what it cannot write in time is
counted and left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import queue
import sys
import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO, cast

from streamq.clock import utc_now
from streamq.logs import is_colourful

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["LineReader", "Output", "Stream"]

Stream = Literal["stdout", "stderr"]
Line = dict[str, Any]

READ_BYTES = 65_536
LAST_READ_BYTES = 1_048_576
"""The most that is read after a death: a grandchild may hold the pipe and write for ever."""
KEPT_LINES = 1_000
KEPT_CHARS = 4_096
WAITING_LINES = 10_000
_COLOURS = ("36", "32", "33", "35", "34", "96", "92", "93", "95", "94")


class LineReader:
    """Calls back with each line that arrives at a descriptor. It does not own the descriptor."""

    def __init__(self, fd: int, on_line: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._on_line = on_line
        self._rest = b""
        os.set_blocking(fd, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def finish(self) -> None:
        """Hand over what has arrived until now, even half a line, and stop reading."""
        self._loop.remove_reader(self._fd)
        most = LAST_READ_BYTES
        while most > 0 and (chunk := self._take()):
            most -= len(chunk)
            self._split(chunk)
        if self._rest:
            self._on_line(self._rest)
            self._rest = b""

    def _read(self) -> None:
        chunk = self._take()
        if chunk:
            self._split(chunk)
        elif chunk == b"":
            self._loop.remove_reader(self._fd)

    def _take(self) -> bytes | None:
        """Read what is there: None for nothing yet, empty for the end."""
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _split(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._on_line(line)
        if len(self._rest) > READ_BYTES:  # a line without an end must not eat the memory
            self._on_line(self._rest)
            self._rest = b""


class _Writer:
    """Writes in a thread, so that a stalled reader of our output stalls nothing but the output."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[BinaryIO, bytes] | None] = queue.Queue(WAITING_LINES)
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="parent-output", daemon=True)
        self._thread.start()

    def put(self, stream: BinaryIO, line: bytes) -> None:
        if self._left_out and self._waiting.qsize() < WAITING_LINES // 2:
            line = b"(%d lines were not shown: nobody read them in time)\n" % self._left_out + line
            self._left_out = 0
        try:
            self._waiting.put_nowait((stream, line))
        except queue.Full:
            self._left_out += 1

    def close(self, timeout_s: float) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            stream, line = item
            with contextlib.suppress(OSError, ValueError):  # the terminal was closed
                stream.write(line)
                stream.flush()


class Output:
    """Where the lines of all children come together."""

    def __init__(self, out: BinaryIO | None = None, err: BinaryIO | None = None, *, colour: bool | None = None) -> None:
        self._streams: dict[Stream, BinaryIO] = {
            "stdout": out or sys.stdout.buffer,
            "stderr": err or sys.stderr.buffer,
        }
        self._colour = is_colourful(sys.stdout) if colour is None else colour
        self._terminal = {stream: target.isatty() for stream, target in self._streams.items()}
        self._writer = _Writer()
        self._kept: defaultdict[str, deque[Line]] = defaultdict(lambda: deque(maxlen=KEPT_LINES))
        self._followers: set[asyncio.Queue[Line]] = set()
        self._painted: dict[str, str] = {}
        self._width = 8

    def line(self, role: str, child: str, stream: Stream, text: str) -> None:
        """Take one line of a child: show it, keep it, and pass it to whoever follows."""
        kept: Line = {
            "ts": utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "role": role, "child": child, "stream": stream, "line": text[:KEPT_CHARS],
        }  # fmt: skip
        self._kept[role].append(kept)
        for follower in self._followers:
            with contextlib.suppress(asyncio.QueueFull):  # who reads too slowly misses lines
                follower.put_nowait(kept)
        self._writer.put(self._streams[stream], self._shown(child, stream, text).encode(errors="replace"))

    def recent(self, name: str, most: int) -> list[Line]:
        """Return the last lines of a role or of one child, oldest first; of everybody if the name is empty."""
        lines = sorted((line for kept in self._kept.values() for line in kept), key=lambda line: line["ts"])
        return [line for line in lines if is_of(line, name)][-most:] if most else []

    @contextlib.contextmanager
    def follow(self) -> Generator[asyncio.Queue[Line]]:
        """Give a queue that gets every new line for as long as the block runs."""
        follower: asyncio.Queue[Line] = asyncio.Queue(WAITING_LINES)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def stream_of(self, name: str) -> TextIO:
        """Give a text stream whose lines appear under this label, for the parent's own log."""
        return cast("TextIO", _Labelled(self, name))

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for a moment at most."""
        self._writer.close(timeout_s)

    def _shown(self, child: str, stream: Stream, text: str) -> str:
        if text.startswith("{") and not self._terminal[stream]:
            return text + "\n"  # JSON for a machine, which a label would only break; it names its worker itself
        self._width = max(self._width, len(child))
        label = f"{child:<{self._width}} | "
        if self._colour:
            paint = self._painted.setdefault(child, _COLOURS[len(self._painted) % len(_COLOURS)])
            label = f"\x1b[{paint}m{label}\x1b[0m"
        return f"{label}{text}\n"


def is_of(line: Line, name: str) -> bool:
    """Whether the line belongs to the role or child of that name; every line belongs to the empty name."""
    return not name or name in (line["role"], line["child"])


class _Labelled(io.TextIOBase):
    def __init__(self, output: Output, name: str) -> None:
        self._output = output
        self._name = name

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._output.line(self._name, self._name, "stderr", line)
        return len(text)

    def isatty(self) -> bool:
        return sys.stderr.isatty()
