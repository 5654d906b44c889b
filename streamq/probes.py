"""How a process is, said in one way by all roles: over HTTP to probes, to its parent, to systemd and in the heartbeat file.

A plain HTTP server on the role's own loop, so that an answer shows that the loop turns. Nothing here asks a server: the
checks look at what is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING, NamedTuple

from streamq.errors import ConfigurationError
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from streamq.parentlink import ParentLink
    from streamq.process import Reporter

    Checks = Callable[[], Sequence["Check"]]
    Page = Callable[[Mapping[str, str]], "Answer"]

__all__ = ["Answer", "Check", "keep_reporting", "problem_of", "serving"]

_ASK_LIMIT_S = 5.0
"""How long somebody may take to ask."""
_LONGEST_LINE = 4096
_MOST_HEADERS = 100
_RETRY_S = 1.0
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    503: "Service Unavailable",
}  # fmt: skip


class Check(NamedTuple):
    """One thing that must be so for a process to be ready."""

    name: str
    problem: str
    """Why it is not so; empty if it is. Anybody may read it, so it names no address."""


class Answer(NamedTuple):
    """A reply to a probe."""

    status: int
    body: str
    kind: str = "text/plain; charset=utf-8"


def problem_of(checks: Sequence[Check]) -> str:
    """Say in one line what is wrong; empty if nothing is."""
    return "; ".join(check.problem for check in checks if check.problem)


async def keep_reporting(
    link: ParentLink, reporter: Reporter, checks: Checks, status: Callable[[], str], load: Callable[[], tuple[int, int]]
) -> None:
    """Tell parent and machine each second how things stand, until cancelled.

    Args:
        link: The line to the parent; it may lead nowhere.
        reporter: Tells systemd and the heartbeat file.
        checks: What readiness needs.
        status: One line for a person.
        load: The busy slots, and all slots.
    """
    while True:
        problem = problem_of(checks())
        link.tick(*load(), problem)
        reporter.tell(status(), problem)
        await asyncio.sleep(reporter.period_s)


@contextlib.asynccontextmanager
async def serving(
    role: str, where: tuple[str, int], checks: Checks, *, setting: str = "", pages: Mapping[str, Page] | None = None
) -> AsyncGenerator[None]:
    """Answer `/livez`, `/readyz` and `/healthz`, which is another name of the second, for as long as the block runs.

    `?verbose` lists the checks. A port that is in use is waited for: in a rolling restart it is the predecessor's until
    that has drained, and a process that cannot answer its probes still does its work.

    Args:
        role: Who answers.
        where: Host and port; with port 0 nothing is served.
        checks: Gives the state of everything that readiness needs, at once.
        setting: How the names of its settings begin; as the role unless given.
        pages: More paths, and what answers them; each gets the headers of the request, their names in lower case.

    Raises:
        ConfigurationError: The host is no address of this machine, or the port may not be used.
    """
    if not where[1]:
        yield
        return
    door = _Door(role, where, checks, setting or role, pages or {})
    server = await door.open()
    waiting = None if server is not None else asyncio.create_task(door.wait_and_open())
    try:
        yield
    finally:
        if waiting is not None:
            waiting.cancel()
            (opened,) = await asyncio.gather(waiting, return_exceptions=True)
            server = None if isinstance(opened, BaseException) else opened
        if server is not None:
            server.close()


class _Door:
    def __init__(
        self, role: str, where: tuple[str, int], checks: Checks, setting: str, pages: Mapping[str, Page]
    ) -> None:
        self._role = role
        self._log = logging.getLogger(f"streamq.{role}")
        self._host, self._port = where
        self._where = f"{self._host}:{self._port}"
        self._checks = checks
        self._setting = setting.upper()
        self._pages: dict[str, Page] = {**pages}

    async def open(self) -> asyncio.Server | None:
        """Listen; None if somebody else does."""
        try:
            server = await asyncio.start_server(self._serve_one, self._host, self._port, limit=_LONGEST_LINE)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise ConfigurationError(
                f"{self._role} cannot serve its probes on {self._where}: {error.strerror or error}",
                hint=f"set STREAMQ_{self._setting}_PORT to one above 1023, and STREAMQ_{self._setting}_HOST to an address "
                "of this machine",
            ) from error
        event(
            self._log, logging.INFO, f"{self._role}.probes", f"probes on http://{self._where}/readyz", port=self._port
        )
        return server

    async def wait_and_open(self) -> asyncio.Server:
        """Listen as soon as the port is free."""
        event(
            self._log, logging.WARNING, f"{self._role}.no_probes",
            f"probes cannot listen on {self._where}: it is in use; trying again each second",
        )  # fmt: skip
        while True:
            await asyncio.sleep(_RETRY_S)
            if (server := await self.open()) is not None:
                return server

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ASK_LIMIT_S):
                try:
                    answer = self._answer(*await _asked(reader))
                except ValueError:
                    answer = Answer(400, "this is not a request of HTTP\n")
                writer.write(_written(answer))
                await writer.drain()
        writer.close()

    def _answer(self, line: bytes, headers: dict[str, str]) -> Answer:
        method, target, version = line.decode("latin-1").split()
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        path, _, query = target.partition("?")
        if path not in ("/livez", "/readyz", "/healthz", *self._pages):
            *most, last = ("/livez", "/readyz", "/healthz", *self._pages)
            return Answer(404, f"there are {', '.join(most)} and {last}\n")
        if method not in ("GET", "HEAD"):
            return Answer(405, "only GET and HEAD are answered\n")
        if path in self._pages:
            return self._pages[path](headers)
        if path == "/livez":
            return Answer(200, "ok\n")  # whoever reads this has seen the loop turn
        return self._readiness(is_verbose=query.split("=")[0] == "verbose")

    def _readiness(self, *, is_verbose: bool) -> Answer:
        checks = self._checks()
        status = 503 if problem_of(checks) else 200
        word = "unavailable\n" if problem_of(checks) else "ok\n"
        lines = (f"[{'-' if check.problem else '+'}] {check.name}: {check.problem or 'ok'}\n" for check in checks)
        return Answer(status, "".join(lines) + word if is_verbose else word)


async def _asked(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str]]:
    """Read a request, and return its first line and its headers."""
    first = await reader.readline()
    headers: dict[str, str] = {}
    for _ in range(_MOST_HEADERS):
        line = (await reader.readline()).strip()
        if not line:
            return first, headers
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    raise ValueError(f"more than {_MOST_HEADERS} headers")


def _written(answer: Answer) -> bytes:
    body = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\nContent-Type: {answer.kind}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
