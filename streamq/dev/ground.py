"""What `streamq dev` stands on: one run at a time in a folder, servers, a port, and a token."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamq import embedded
from streamq.errors import ConfigurationError
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from streamq.settings import Settings

__all__ = ["Servers", "alone", "free_port", "keep", "servers", "token"]

log = logging.getLogger("streamq.dev")

_LOOK_EVERY_S = 0.5
_TRY_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Servers:
    """Where Redis and MongoDB are, and which of them are ours to stop."""

    redis_url: str
    mongodb_url: str
    embedded: frozenset[str]
    """Which of `redis` and `mongodb` come out of wheels."""
    started: frozenset[str]
    shell: Path
    """A file for other shells to read, with the variables that lead there."""


@contextlib.contextmanager
def alone(directory: Path) -> Generator[None]:
    """Let one `streamq dev` at a time use the folder: two would stop each other's servers.

    Raises:
        ConfigurationError: Another one runs there.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "dev.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigurationError(
                f"another `streamq dev` runs in {directory.absolute().parent} (process {lock.read().strip() or 'unknown'})",
                hint="stop it with Ctrl-C, or start this one in another folder",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def servers(settings: Settings, directory: Path) -> Generator[Servers]:
    """Start what has no address in the settings, and stop at the end what was started here.

    Servers that a killed `streamq dev` left behind count as started here; others that run already stay.

    Raises:
        ConfigurationError: A server could not be started; nothing was.
    """
    shell = directory / "env"
    wanted = {name for name in ("redis", "mongodb") if _is_left_to_us(settings, name, shell)}
    with _running(wanted, directory) as (found, started):
        servers = Servers(
            found.redis_url or settings.redis_url,
            found.mongodb_url or settings.mongodb_url,
            frozenset(wanted),
            started,
            shell,
        )
        _write_shell(servers, settings.app)
        yield servers


def _is_left_to_us(settings: Settings, name: str, shell: Path) -> bool:
    """Tell whether no server is named, or the embedded one of an earlier run, by a shell that has read our file."""
    if settings.sources.get(f"{name}_url", "default") == "default":
        return True
    url = getattr(settings, f"{name}_url")
    return shell.exists() and f"{name.upper()}_URL={shlex.quote(url)}" in shell.read_text()


def _write_shell(servers: Servers, app: str) -> None:
    """Write the variables. Those of servers that were named are where the person has set them."""
    urls = {"redis": servers.redis_url, "mongodb": servers.mongodb_url}
    variables = {"STREAMQ_APP": app} | {f"{name.upper()}_URL": urls[name] for name in sorted(servers.embedded)}
    servers.shell.unlink(missing_ok=True)
    with os.fdopen(os.open(servers.shell, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


@contextlib.contextmanager
def _running(wanted: set[str], directory: Path) -> Generator[tuple[embedded.Endpoints, frozenset[str]]]:
    """Give the servers that are wanted, and which of them are ours to stop; at the end they are."""
    if not wanted:
        yield embedded.Endpoints("", "", 0, 0, frozenset()), frozenset()
        return
    found = embedded.start(directory, redis="redis" in wanted, mongodb="mongodb" in wanted)
    record = _record(directory)
    pids = {"redis": found.redis_pid, "mongodb": found.mongodb_pid}
    started = found.started_here | {name for name, pid in _left_behind(record).items() if pid and pids.get(name) == pid}
    try:
        record.write_text(json.dumps({name: pids[name] for name in started}))
        yield found, started
    finally:
        embedded.stop(directory, started)
        record.unlink(missing_ok=True)


async def keep(directory: Path, started: frozenset[str]) -> None:
    """Start again what was started here and has died, on its address and its data, until cancelled."""
    while started:
        await asyncio.sleep(_LOOK_EVERY_S)
        for name in sorted(embedded.dead(directory, started)):
            event(log, logging.ERROR, "dev.server_died", f"the embedded {name} died; starting it again", server=name)
            revival = asyncio.ensure_future(asyncio.to_thread(_revive, directory, name))
            try:
                await asyncio.shield(revival)
                event(log, logging.INFO, "dev.server_back", f"the embedded {name} is back, with its data", server=name)
            except asyncio.CancelledError:
                await asyncio.wait([revival])  # what it starts must be there to be stopped
                raise
            except ConfigurationError as error:
                event(log, logging.ERROR, "dev.server_failed", f"{error}; trying again", server=name)
                await asyncio.sleep(_TRY_AGAIN_S)


def _revive(directory: Path, name: str) -> None:
    found = embedded.start(directory, redis=name == "redis", mongodb=name == "mongodb")
    record = _record(directory)
    record.write_text(json.dumps(_left_behind(record) | {name: found.redis_pid or found.mongodb_pid}))


def _record(directory: Path) -> Path:
    """Return the file that says which servers are ours to stop, for the next run should this one be killed."""
    return directory / "started-by-dev.json"


def _left_behind(record: Path) -> dict[str, int]:
    try:
        left: dict[str, int] = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return left


def free_port(host: str, port: int) -> int:
    """Return the port if the API can listen on it, or for 0 one that is free.

    Raises:
        Unavailable: Another program has it.
        ConfigurationError: We may not use it, or the host is none of this machine's.
    """
    from streamq.api.role import listen  # costs the import of a web server

    with listen(host, port) as listener:
        return int(listener.getsockname()[1])


def token(directory: Path) -> str:
    """Return the API token of this folder; made once, and readable by its user only."""
    path = directory / "api-token"
    with contextlib.suppress(FileNotFoundError):
        if known := path.read_text().strip():
            path.chmod(0o600)
            return known
        path.unlink()
    made = secrets.token_urlsafe(24)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(made + "\n")
    return made
