"""The API as a process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from streamq import logs, process
from streamq.api.application import create_app
from streamq.errors import ConfigurationError, Unavailable
from streamq.parentlink import ParentLink

if TYPE_CHECKING:
    from collections.abc import Generator

    from starlette.applications import Starlette

    from streamq.settings import Settings

__all__ = ["listen", "main"]

BACKLOG = 1024
KEEP_ALIVE_S = 30
DRAIN_S = 10

_log = logging.getLogger(__name__)


def main(settings: Settings, app_path: str | None = None) -> int:
    """Serve until told to stop. Returns the exit code.

    Args:
        settings: As loaded.
        app_path: Not needed: the status of a job says all about it. All roles are started alike.

    Raises:
        ConfigurationError: There is no token, or the host is none of this machine's.
        Unavailable: The port is in use.
    """
    del app_path
    app = create_app(settings)
    listener = listen(settings.api_host, settings.api_port)
    with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(app, listener))
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


async def _serve(app: Starlette, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        access_log=False,
        date_header=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = _Server(config)

    def stop() -> None:
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    link = ParentLink.open()
    link.hello([])
    tasks = [
        asyncio.create_task(link.keep_ticking(lambda: (0, 0))),
        asyncio.create_task(_when_gone(link, server)),
        asyncio.create_task(_say_ready(link, server, listener)),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        link.bye()
        link.close()


async def _when_gone(link: ParentLink, server: uvicorn.Server) -> None:
    await link.gone.wait()
    server.should_exit = True


async def _say_ready(link: ParentLink, server: uvicorn.Server, listener: socket.socket) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    logs.event(_log, logging.INFO, "api.started", f"API listens on {address}", address=address)
    link.ready()
    process.notify("READY=1")
