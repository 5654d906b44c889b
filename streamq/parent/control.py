"""The parent's ear: a Unix socket on which this machine's operator scales, restarts, stops and follows.

Whoever can open the socket may stop the workers, so it is its user's alone. Without it the parent works as well: a
directory that cannot be written must not keep jobs from running.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol, cast

from streamq.errors import BadInput
from streamq.logs import event
from streamq.parent.client import socket_path
from streamq.parent.output import is_of

if TYPE_CHECKING:
    from pathlib import Path

    from streamq.parent.output import Output

__all__ = ["Control"]

log = logging.getLogger(__name__)

REQUEST_BYTES = 65_536
REQUEST_LIMIT_S = 5.0
MOST_LINES = 10_000


class Commanded(Protocol):
    """What takes the commands: the parent."""

    def scale(self, name: str, instances: int) -> int: ...
    def restart(self, name: str, *, is_rolling: bool = True) -> None: ...
    def stop(self, exit_code: int = 0) -> None: ...
    def ps(self) -> dict[str, Any]: ...
    def names(self) -> set[str]: ...


class Control:
    """Answers one request a connection: a JSON line in, a JSON line out; for `logs`, more of them follow."""

    def __init__(self, directory: Path, parent: Commanded, output: Output) -> None:
        self._path = socket_path(directory)
        self._parent = parent
        self._output = output
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()
        self._commands = {"scale": self._scale, "restart": self._restart, "stop": self._stop, "ps": self._ps}

    async def open(self) -> None:
        """Listen; if that cannot be, say why and do without."""
        try:
            listener = self._bind()
        except OSError as error:
            text = f"no control socket at {self._path}, so `streamq ps` and `scale` cannot reach this parent: {error}"
            event(log, logging.WARNING, "parent.no_control", text)
            return
        self._server = await asyncio.start_unix_server(self._on_connection, sock=listener, limit=REQUEST_BYTES)

    async def close(self) -> None:
        """Stop listening, end what follows, and take the socket away."""
        if self._server is None:
            return
        self._server.close()
        for task in self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy)
        self._path.unlink(missing_ok=True)

    def _bind(self) -> socket.socket:
        """Make the socket, in a folder that only we may enter, in place of one that nobody listens at any more."""
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else")
        folder.chmod(0o700)
        if _is_answered(self._path):
            raise FileExistsError("another parent of this directory has it")
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
        except OSError:
            listener.close()
            raise
        return listener

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_LIMIT_S):
                message = _parsed(await reader.readline())
            answer, follows = self._answer(message), message.get("command") == "logs"
            await _send(writer, answer)
            if follows:
                await self._logs(message, reader, writer)
        except BadInput as refusal:
            with contextlib.suppress(OSError):
                await _send(writer, {"ok": False, "error": str(refusal)})
        except (OSError, ValueError, TimeoutError):  # it went away, or sent a line without an end
            pass
        finally:
            writer.close()

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        command = message.get("command")
        if command == "logs":
            return self._logs_answer(message)
        if command not in self._commands:
            expected = ", ".join(["logs", *self._commands])
            raise BadInput(f"unknown command {command!r}: expected one of {expected}")
        return {"ok": True} | self._commands[command](message)

    def _scale(self, message: dict[str, Any]) -> dict[str, Any]:
        role, n = _text(message, "role"), message.get("n")
        if not isinstance(n, int) or isinstance(n, bool):
            raise BadInput(f"cannot scale {role} to {n!r}: expected a whole number")
        return {"role": role, "before": self._parent.scale(role, n), "after": n}

    def _restart(self, message: dict[str, Any]) -> dict[str, Any]:
        role = _text(message, "role")
        self._parent.restart(role, is_rolling=bool(message.get("rolling", False)))
        return {"role": role}

    def _stop(self, _message: dict[str, Any]) -> dict[str, Any]:
        self._parent.stop()
        return {"pid": os.getpid()}

    def _ps(self, _message: dict[str, Any]) -> dict[str, Any]:
        return self._parent.ps()

    def _logs_answer(self, message: dict[str, Any]) -> dict[str, Any]:
        name, known = str(message.get("role") or ""), self._parent.names()
        if name and name not in known:
            raise BadInput(f"there is no role or child {name!r} here: expected one of {', '.join(sorted(known))}")
        if not isinstance(message.get("lines", 0), int):
            raise BadInput(f"cannot give {message['lines']!r} lines: expected a whole number")
        return {"ok": True}

    async def _logs(self, message: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the kept lines, then the new ones as they come, until the other side hangs up."""
        name = str(message.get("role") or "")
        most = min(int(message.get("lines", 100)), MOST_LINES)
        with self._output.follow() as new_lines:
            for line in self._output.recent(name, most):
                await _send(writer, line)
            if not message.get("follow"):
                return
            hung_up = asyncio.ensure_future(reader.read())
            try:
                while not hung_up.done():
                    new_line = await _first(new_lines, hung_up)
                    if new_line is not None and is_of(new_line, name):
                        await _send(writer, new_line)
            finally:
                hung_up.cancel()


async def _first(lines: asyncio.Queue[dict[str, Any]], hung_up: asyncio.Future[bytes]) -> dict[str, Any] | None:
    """Wait for a line, but no longer than somebody listens."""
    line = asyncio.ensure_future(lines.get())
    first: list[asyncio.Future[Any]] = [line, hung_up]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if line.done():
        return line.result()
    line.cancel()
    return None


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message: Any = json.loads(line)
    except ValueError:
        raise BadInput("the request is not a line of JSON") from None
    if not isinstance(message, dict):
        raise BadInput("the request is not a JSON object")
    return cast("dict[str, Any]", message)


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise BadInput(f"the request needs {key!r}, a text, but has {value!r}")
    return value


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
