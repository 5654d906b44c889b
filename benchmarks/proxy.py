"""A wire that loses one reply: what happens when a connection breaks after the server has done its work."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LossyProxy"]

_CHUNK = 1 << 18


class LossyProxy:
    """Passes bytes on to a port of this machine; once armed, drops one reply and the connection that carried it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._needle: bytes | None = None
        self._dropped_at_ns = 0
        self._dropped = threading.Event()
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._open):
            _close(each)

    def arm(self, needle: bytes) -> None:
        """Drop the next reply that holds these bytes."""
        self._dropped.clear()
        self._needle = needle

    def dropped_at_ns(self, *, wait_s: float) -> int:
        """Wait for the drop; return when it was, on the monotonic clock."""
        if not self._dropped.wait(wait_s):
            raise TimeoutError(f"no reply with {self._needle!r} came by in {wait_s:g} s")
        return self._dropped_at_ns

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._port))
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._open.append(each)
                for source, target, is_reply in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, target, is_reply), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if is_reply and self._needle is not None and self._needle in chunk:
                    self._needle = None
                    self._dropped_at_ns = time.monotonic_ns()
                    self._dropped.set()
                    break
                target.sendall(chunk)
        _close(source)
        _close(target)


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
