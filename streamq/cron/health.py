"""The health port of cron: whether it lives, whether the hour is in order, and figures for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import logging
from typing import TYPE_CHECKING

from streamq.errors import ConfigurationError
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from streamq.cron.watch import Watch
    from streamq.settings import Settings

__all__ = ["serving"]

_log = logging.getLogger("streamq.cron")

_LONGEST_HEAD = 8192
_PATIENCE_S = 5.0
_FIRST_WAIT_S = 1.0
_RETRY_S = 1.0
_REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@contextlib.asynccontextmanager
async def serving(settings: Settings, watch: Watch) -> AsyncGenerator[int]:
    """Serve `/livez`, `/readyz`, `/healthz` and, with the API's token, `/metrics`. Gives the port; 0: none is asked for.

    A port that is in use is waited for: in a rolling restart the process before still has it.

    Raises:
        ConfigurationError: The host is no address of this machine, or the port may not be used.
    """
    if not settings.cron_port:
        yield 0
        return
    opening = asyncio.create_task(_opened(settings, _Health(watch, settings.api_token)))
    await asyncio.wait({opening}, timeout=_FIRST_WAIT_S)
    if opening.done() and (error := opening.exception()) is not None:
        raise error
    try:
        yield settings.cron_port
    finally:
        opening.cancel()
        (server,) = await asyncio.gather(opening, return_exceptions=True)
        if not isinstance(server, BaseException):
            server.close()


async def _opened(settings: Settings, health: _Health) -> asyncio.Server:
    where, has_told = f"{settings.cron_host}:{settings.cron_port}", False
    while True:
        try:
            return await asyncio.start_server(
                health.answer, settings.cron_host, settings.cron_port, limit=_LONGEST_HEAD
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigurationError(
                    f"cron cannot serve its probes on {where}: {error.strerror or error}",
                    hint="set STREAMQ_CRON_PORT to one above 1023, and STREAMQ_CRON_HOST to an address of this machine",
                ) from error
            if not has_told:
                event(
                    _log, logging.WARNING, "cron.probes", f"{where} is in use; waiting for it to serve the probes there"
                )
            has_told = True
        await asyncio.sleep(_RETRY_S)


class _Health:
    def __init__(self, watch: Watch, token: str) -> None:
        self._watch = watch
        self._token = hashlib.sha256(token.encode()).digest() if token else None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, body = self._respond(head)
            writer.write(
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                f"Content-Length: {len(body.encode())}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n{body}".encode()
            )
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or speaks no HTTP
        finally:
            writer.close()

    def _respond(self, head: str) -> tuple[int, str]:
        method, _, rest = head.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return 405, "only GET\n"
        match path:
            case "/livez":
                return 200, "alive\n"
            case "/readyz" | "/healthz":
                return self._ready()
            case "/metrics":
                return (
                    (200, "".join(_metrics(self._watch))) if self._may(head) else (401, "the API's token is needed\n")
                )
            case _:
                return 404, "there are /livez, /readyz, /healthz and /metrics\n"

    def _ready(self) -> tuple[int, str]:
        if self._watch.is_blind:
            return 503, "blind\n"
        return (503, "alarm\n") if self._watch.alarms else (200, "ready\n")

    def _may(self, head: str) -> bool:
        lines = [line.partition(":") for line in head.split("\r\n")]
        given = next((value.strip() for name, _, value in lines if name.lower() == "authorization"), "")
        told = hashlib.sha256(given.removeprefix("Bearer ").encode()).digest()
        return self._token is not None and given.startswith("Bearer ") and hmac.compare_digest(told, self._token)


def _metrics(watch: Watch) -> Iterator[str]:
    """See https://prometheus.io/docs/instrumenting/exposition_formats/."""
    conditions = watch.conditions.values()
    yield from _family(
        "streamq_schedule_alarm", "Whether an alarm of a schedule is raised.",
        [
            (f'schedule="{each.schedule}",kind="{kind}"', float(any(alarm.kind == kind for alarm in each.alarms)))
            for each in conditions
            for kind in ("not_fired", "unfinished", "stale_users")
        ],
    )  # fmt: skip
    yield from _family(
        "streamq_schedule_next_timestamp_seconds", "When a schedule fires next.",
        [(f'schedule="{each.schedule}"', each.next_ms / 1000) for each in conditions if each.next_ms is not None],
    )  # fmt: skip
    yield from _family(
        "streamq_schedule_fired_timestamp_seconds", "The newest fire time that was begun.",
        [(f'schedule="{each.schedule}"', each.fired_ms / 1000) for each in conditions if each.fired_ms is not None],
    )  # fmt: skip
    yield from _family(
        "streamq_fanout_users", "Users that the newest fan-out has handled.",
        [(f'schedule="{each.schedule}"', float(each.users)) for each in conditions],
    )  # fmt: skip
    yield from _family(
        "streamq_fanout_progress", "How much of the newest fan-out is done, by the size of the one before.",
        [(f'schedule="{each.schedule}"', each.progress) for each in conditions if each.progress is not None],
    )  # fmt: skip


def _family(name: str, about: str, samples: list[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {about}\n# TYPE {name} gauge\n"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value:.15g}\n"
