"""Probes: how a worker answers when a machine asks whether it lives and whether it does its work.

A plain HTTP server on the worker's own loop, so that an answer shows that the loop turns. Nothing here asks Redis: the
checks look at when the last round trip was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Check", "Probes", "problem_of"]

log = logging.getLogger("streamq.worker")

_ASK_LIMIT_S = 5.0
"""How long somebody may take to ask."""
_LONGEST_LINE = 4096
_RETRY_S = 1.0
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Check(NamedTuple):
    """One thing that must be so for a worker to be ready."""

    name: str
    problem: str
    """Why it is not so; empty if it is."""


class Answer(NamedTuple):
    """A reply to a probe."""

    status: int
    body: str


def problem_of(checks: Sequence[Check]) -> str:
    """Say in one line what is wrong; empty if nothing is."""
    return "; ".join(check.problem for check in checks if check.problem)


class Probes:
    """`/livez`, `/readyz` and `/healthz`, which is another name of the second; `?verbose` lists the checks."""

    def __init__(self, host: str, port: int, checks: Callable[[], Sequence[Check]]) -> None:
        """Note where to listen.

        Args:
            host: An address of this machine.
            port: The port, 1 to 65535.
            checks: Gives the state of everything that readiness needs, at once.
        """
        self._where = host, port
        self._checks = checks

    async def serve(self) -> None:
        """Answer until cancelled.

        A port that is in use is waited for: in a rolling restart it is the predecessor's until that has drained. A worker
        that cannot answer its probes still does its work.
        """
        host, port = self._where
        told = ""
        while True:
            try:
                server = await asyncio.start_server(self._serve_one, host, port, limit=_LONGEST_LINE)
            except OSError as error:
                if str(error) != told:
                    event(
                        log, logging.WARNING, "worker.no_probes",
                        f"probes cannot listen on {host}:{port}, trying again each second: {error.strerror or error}",
                    )  # fmt: skip
                told = str(error)
                await asyncio.sleep(_RETRY_S)
            else:
                event(log, logging.INFO, "worker.probes", f"probes on http://{host}:{port}/readyz", port=port)
                async with server:
                    await server.serve_forever()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ASK_LIMIT_S):
                try:
                    answer = self._answer(await _asked(reader))
                except ValueError:
                    answer = Answer(400, "this is not a request of HTTP\n")
                writer.write(_written(answer))
                await writer.drain()
        writer.close()

    def _answer(self, line: bytes) -> Answer:
        method, target, version = line.decode("latin-1").split()
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        path, _, query = target.partition("?")
        if path not in ("/livez", "/readyz", "/healthz"):
            return Answer(404, "there are /livez, /readyz and /healthz\n")
        if method not in ("GET", "HEAD"):
            return Answer(405, "only GET and HEAD are answered\n")
        is_verbose = query.split("=")[0] == "verbose"
        if path == "/livez":
            return Answer(200, "ok\n")  # whoever reads this has seen the loop turn
        return self._readiness(is_verbose=is_verbose)

    def _readiness(self, *, is_verbose: bool) -> Answer:
        checks = self._checks()
        status = 503 if problem_of(checks) else 200
        word = "unavailable\n" if problem_of(checks) else "ok\n"
        lines = (f"[{'-' if check.problem else '+'}] {check.name}: {check.problem or 'ok'}\n" for check in checks)
        return Answer(status, "".join(lines) + word if is_verbose else word)


async def _asked(reader: asyncio.StreamReader) -> bytes:
    """Read a request, and return its first line; the rest says nothing to us."""
    first = await reader.readline()
    for _ in range(100):
        if (await reader.readline()).strip() == b"":
            return first
    raise ValueError("more than a hundred headers")


def _written(answer: Answer) -> bytes:
    body = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
