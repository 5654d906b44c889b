"""The API as a process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h11
import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol

from streamq import logs, process
from streamq.api.application import create_app
from streamq.errors import ConfigurationError, Unavailable
from streamq.parentlink import ParentLink

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from starlette.applications import Starlette

    from streamq.app import StreamQ
    from streamq.settings import Settings

__all__ = ["listen", "main", "server_of"]

BACKLOG = 1024
KEEP_ALIVE_S = 30
DRAIN_S = 10
HEADERS_WITHIN_S = 10.0
MOST_CONNECTIONS = 1_000

_log = logging.getLogger(__name__)


def main(settings: Settings, application: StreamQ | None = None) -> int:
    """Serve until told to stop. Returns the exit code.

    Args:
        settings: As loaded.
        application: Whose handlers and schedules are served, and whose login is asked.

    Raises:
        ConfigurationError: There is no token, the host is none of this machine's, or others could read along there.
        Unavailable: The port is in use.
    """
    app = create_app(settings, application, authenticate=application.authenticator if application else None)
    tls = _tls(settings)
    listener = listen(settings.api_host, settings.api_port)
    _check_reach(listener, settings)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, listener, tls))
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on; port 0 takes any that is free.

    Raises:
        ConfigurationError: The host is no address of this machine, or the port may not be used.
        Unavailable: The port is in use.
    """
    where = f"{host}:{port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Unavailable(
                f"the API cannot listen on {where}: the port is in use",
                hint="stop what uses it, or choose another with --port",
            ) from error
        raise ConfigurationError(
            f"the API cannot listen on {where}: {error.strerror or error}",
            hint="set STREAMQ_API_HOST to an address of this machine, and STREAMQ_API_PORT to a port above 1023",
        ) from error


class _Server(uvicorn.Server):
    """uvicorn, which would otherwise end the process by the signal that it was stopped with."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals to `_serve`."""
        yield


class Tls(NamedTuple):
    """The files of a certificate and its key."""

    certificate: str
    key: str


def _tls(settings: Settings) -> Tls | None:
    """Return what is needed for TLS; None if there is to be none."""
    tls = Tls(settings.api_tls_certificate, settings.api_tls_key)
    if not any(tls):
        return None
    if not all(tls):
        raise ConfigurationError(
            "TLS needs a certificate and its key, and one of them is given",
            hint="set both STREAMQ_API_TLS_CERTIFICATE and STREAMQ_API_TLS_KEY",
        )
    if missing := next((path for path in tls if not Path(path).is_file()), None):
        raise ConfigurationError(f"there is no file {missing!r}, which TLS needs")
    return tls


def _check_reach(listener: socket.socket, settings: Settings) -> None:
    """Refuse to listen where others can read tokens along.

    Raises:
        ConfigurationError: Other machines reach the address, and there is no TLS.
    """
    address = listener.getsockname()[0]
    is_safe = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if is_safe or settings.api_tls_certificate or settings.api_behind_proxy:
        return
    listener.close()
    raise ConfigurationError(
        f"the API would listen on {address}, where other machines reach it, without TLS: tokens could be read along",
        hint="set STREAMQ_API_TLS_CERTIFICATE and STREAMQ_API_TLS_KEY, or say --behind-proxy if a proxy does TLS",
    )


class _Protocol(H11Protocol):
    """uvicorn's, with a limit on how long a client may take to say what it wants."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Go on waiting until all headers are there; bytes that trickle in buy no time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_more()
        elif self._patience is None:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """End to wait."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._patience = self.loop.call_later(HEADERS_WITHIN_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def server_of(app: Starlette, tls: Tls | None = None) -> uvicorn.Server:
    """Make the HTTP server of an application, with all its limits."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        access_log=False,
        date_header=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    return _Server(config)


async def _serve(app: Starlette, listener: socket.socket, tls: Tls | None) -> None:
    server = server_of(app, tls)

    def stop() -> None:
        server.should_exit = True
        if hub := getattr(app.state, "hub", None):
            hub.close()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    link = ParentLink.open()
    link.hello([])
    tasks = [
        asyncio.create_task(link.keep_ticking(lambda: (0, 0))),
        asyncio.create_task(_when_gone(link, stop)),
        asyncio.create_task(_say_ready(link, server, listener)),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        link.bye()
        link.close()


async def _when_gone(link: ParentLink, stop: Callable[[], None]) -> None:
    await link.gone.wait()
    stop()


async def _say_ready(link: ParentLink, server: uvicorn.Server, listener: socket.socket) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    scheme = "https" if server.config.is_ssl else "http"
    address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    logs.event(_log, logging.INFO, "api.started", f"API listens on {address}", address=address)
    link.ready()
    process.notify("READY=1")
