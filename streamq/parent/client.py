"""How a command reaches the parent that runs on this machine: one JSON line over its Unix socket."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamq.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST_PATH_BYTES", "follow", "request", "socket_path"]

MOST_PATH_BYTES = 103
"""What the address of a Unix socket holds on every system: 107 on Linux, 103 on macOS."""


def socket_path(directory: Path) -> Path:
    """Return where the parent of this directory listens.

    That is in `run/` below it, which is private to its user; or, where that path is too long for a socket, in a folder
    of the user's in the system's temporary one, under a name made from the directory's.
    """
    path = directory.absolute() / "run" / "parent.sock"
    if len(os.fsencode(path)) <= MOST_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"streamq-{os.getuid()}" / f"{digest}.sock"


def request(directory: Path, message: dict[str, Any], *, timeout_s: float = 5.0) -> dict[str, Any]:
    """Ask the parent for something, for example `{"command": "scale", "role": "worker", "n": 5}`.

    Returns:
        Its answer; what is in it depends on the command.

    Raises:
        Unavailable: No parent runs for this directory, or it did not answer.
        BadInput: The parent refused, and changed nothing.
    """
    with _ask(directory, message, timeout_s) as answers:
        try:
            answer: dict[str, Any] = json.loads(answers.readline() or b"{}")
        except (OSError, ValueError) as error:
            raise Unavailable(f"the parent at {socket_path(directory)} did not answer: {error}") from error
    return _accepted(answer, directory)


def follow(directory: Path, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask for lines of output, `{"command": "logs", "role": "worker", "lines": 100, "follow": true}`, and give each.

    Ends when the parent does, or after the kept lines without `follow`.

    Raises:
        Unavailable: No parent runs for this directory.
        BadInput: The parent knows no such role or child.
    """
    with _ask(directory, message, None) as answers:
        _accepted(json.loads(answers.readline() or b"{}"), directory)
        for line in answers:
            yield json.loads(line)


def _ask(directory: Path, message: dict[str, Any], timeout_s: float | None) -> Any:
    path = socket_path(directory)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(json.dumps(message).encode() + b"\n")
        return connection.makefile("rb")
    except OSError as error:
        hint = "start one with `streamq up` or `streamq worker -n 2`, or name its directory"
        raise Unavailable(f"no parent answers at {path}: {error.strerror or error}", hint=hint) from error
    finally:
        connection.close()  # the file keeps it open for as long as it needs it


def _accepted(answer: dict[str, Any], directory: Path) -> dict[str, Any]:
    if answer.get("ok"):
        return answer
    if "error" in answer:
        raise BadInput(answer["error"])
    raise Unavailable(f"the parent at {socket_path(directory)} went away before it answered")
