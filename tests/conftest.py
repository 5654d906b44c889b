"""The servers of the suite, and what most tests need.

Embedded servers by default, started once for the whole run and only if a test asks for one. `STREAMQ_TEST_REDIS` names
another server program to start; `STREAMQ_TEST_REDIS_URL` and `STREAMQ_TEST_MONGODB_URL` name servers that run already.
One that is asked for and is not there fails the run; nothing is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import hypothesis
import pymongo
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamq import embedded
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator

    from streamq import StreamQ
    from streamq.settings import Settings
    from streamq.worker import Worker

# An example may take as long as a busy machine takes for it.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# What a terminal, or CI, says of colours and sizes is not for the programs under test.
for _name in ("COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "TTY_COMPATIBLE"):
    os.environ.pop(_name, None)

T = TypeVar("T")

# Every key that may outlive its jobs, as docs/architecture.md lists them. All others must carry a TTL.
STRUCTURAL_KEY = re.compile(
    r"\{sq:[^:]+:\d+\}:"
    r"(lane:(high|normal|low)(\.slow)?|delayed|payload|index|outbox|workers|dead|producers|counts|control|pause|cost|times|gates|places|openings|fair|lineage)"
)
REDIS_FIXTURES = {"redis_url", "redis_server", "cluster"}


class Eventually(Protocol):
    """What the fixture `eventually` gives."""

    async def __call__(self, condition: Callable[[], T | Awaitable[T]], what: str = ..., *, timeout: float = ...) -> T:
        """Wait for a condition, plain or async, to give something true, and return that."""
        ...


# ---- the run


def pytest_report_header() -> list[str]:
    """Say which servers serve, before anything else."""
    try:
        return [
            f"redis: {_address('STREAMQ_TEST_REDIS_URL') or _version(_redis_program())}",
            f"mongodb: {_address('STREAMQ_TEST_MONGODB_URL') or _version(embedded.find_mongod())}",
        ]
    except ConfigurationError as error:
        raise pytest.UsageError(f"{error}; {error.hint}") from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Redis, so that a second run can repeat just that on another server."""
    for item in items:
        if REDIS_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("redis")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let what a failed test left open go with it: connections that are collected later would fail another test."""
    failed = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed:
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):  # they hold its frames
            vars(sys).pop(name, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    return result


def _redis_program() -> Path:
    return embedded.find_redis_server(os.environ.get("STREAMQ_TEST_REDIS"))


def _version(program: Path) -> str:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return f"{told.splitlines()[0]} ({program})"


def _address(variable: str) -> str:
    """Return the server that a variable names, without its password, or nothing."""
    url = urlsplit(os.environ.get(variable, ""))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path} ({variable})" if url.scheme else ""


# ---- the process


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    """Put the logger back as it was, so that no test prints into another."""
    root = logging.getLogger("streamq")
    before = (list(root.handlers), root.level, root.propagate)
    yield
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


# ---- Redis


@pytest.fixture(scope="session")
def session_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Redis server of the whole run. Tests take `redis_url`, which is empty each time."""
    if url := os.environ.get("STREAMQ_TEST_REDIS_URL"):
        with _redis_client(url) as client:
            assert client.dbsize() == 0, f"{url} holds keys: the suite empties its database, give it one of its own"
        yield url
        return
    server = embedded.RedisServer(tmp_path_factory.mktemp("redis"), binary=_redis_program())
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(session_redis_url: str) -> Iterator[str]:
    """An empty Redis database. Fails the test if it leaves a key without a TTL that is not a structural one."""
    yield session_redis_url
    with _redis_client(session_redis_url) as client:
        leaked = _leaked_keys(client)
        client.flushdb()
    assert not leaked, f"keys without a TTL were left behind: {leaked}"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[embedded.RedisServer]:
    """A running Redis server of this test alone, to kill, freeze and restart."""
    server = embedded.RedisServer(
        tmp_path / "redis-server", binary=_redis_program(), settings={"enable-debug-command": "local"}
    )
    server.start()
    yield server
    leaked: list[str] = []
    with _redis_client(server.url) as client, contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
        leaked = _leaked_keys(client)
    server.stop()
    assert not leaked, f"keys without a TTL were left behind: {leaked}"


@pytest.fixture
def queue_name() -> str:
    """A queue name that no other test uses."""
    return f"q{uuid.uuid4().hex[:8]}"


def _redis_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0))


def _leaked_keys(client: redis.Redis) -> list[str]:
    """Return the keys that would lie there for ever, though they are no structure and no living job's dedup key."""
    return sorted(
        name for name in _lasting_keys(client) if not STRUCTURAL_KEY.fullmatch(name) and not _is_held(client, name)
    )


def _is_held(client: redis.Redis, name: str) -> bool:
    """Whether a job that has not ended holds this dedup key: it has no TTL as long as that lives."""
    tag, is_dedup, _ = name.partition(":dedup:")
    return bool(is_dedup) and bool(client.hexists(f"{tag}:index", str(client.get(name))))


def _lasting_keys(client: redis.Redis) -> list[str]:
    names = list(client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(name)
    return [name for name, ttl in zip(names, pipeline.execute(), strict=True) if ttl == -1]


# ---- MongoDB


@pytest.fixture(scope="session")
def mongodb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The MongoDB server of the whole run; a test keeps to its own `mongo_database` there."""
    if url := os.environ.get("STREAMQ_TEST_MONGODB_URL"):
        with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=5000) as client:
            client.admin.command("ping")
        yield url
        return
    server = embedded.MongoServer(tmp_path_factory.mktemp("mongodb"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def mongo_database(mongodb_url: str) -> Iterator[str]:
    """The name of a database of this test alone, dropped at its end."""
    name = f"streamq_test_{uuid.uuid4().hex[:12]}"
    yield name
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        client.drop_database(name)


@pytest.fixture
def mongo_server(tmp_path: Path) -> Iterator[embedded.MongoServer]:
    """A running MongoDB server of this test alone, to kill, freeze and restart."""
    server = embedded.MongoServer(tmp_path / "mongo-server")
    server.start()
    yield server
    server.stop()


# ---- waiting


@pytest.fixture
def eventually() -> Eventually:
    """Wait for a condition, never for time to pass, as in `await eventually(lambda: job.done, "the job ends")`."""

    async def wait(condition: Callable[[], T | Awaitable[T]], what: str = "", *, timeout: float = 50) -> T:
        deadline = time.monotonic() + timeout
        while True:
            given = condition()
            value: Any = await given if inspect.isawaitable(given) else given
            if value:
                return value
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout} s: {what or inspect.getsource(condition).strip()}")
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def eventually_sync() -> Callable[..., Any]:
    """Do the same in a test without an event loop, as in `eventually_sync(lambda: answers(port), "it listens")`."""

    def wait(condition: Callable[[], T], what: str = "", *, timeout: float = 50) -> T:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout} s: {what or inspect.getsource(condition).strip()}")
            time.sleep(0.01)
        return value

    return wait


# ---- workers


@pytest.fixture
async def work(app: StreamQ) -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    """Start workers inside the test, of its `app` unless it says which; they are stopped after it, and must end well."""
    from streamq.worker import Worker

    started: list[tuple[Worker, asyncio.Task[int]]] = []

    async def start(*, app: StreamQ = app, settings: Settings | None = None, **kwargs: Any) -> Worker:
        worker = Worker(app, settings or app.settings, **kwargs)
        started.append((worker, asyncio.create_task(worker.run())))
        return worker

    yield start
    for worker, _ in started:
        worker.force()
    for _, task in started:
        assert await task in (0, 130)


# ---- the machine


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it may end between the look for its file and the look into it
        return False


def children_of(parent: int) -> set[int]:
    """Return the processes that a process has started, those that have ended and were not waited for included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(stat.parent.name))
    return found


def free_port(neighbours: int = 0) -> int:
    """Return a port that nobody listens on, and as little on so many above it.

    It is below those from which the system gives one to a connection, so that none takes it until somebody listens there.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # not of `random`: that begins alike in every process of the run
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for number in range(port, port + neighbours + 1):
                held.enter_context(socket.create_server(("127.0.0.1", number)))
            return port


# ---- systemd


@pytest.fixture
def notifications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Listen like systemd, and return all that was said to it, a line each."""
    address = tmp_path / "notify"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(address))
    listener.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    heard: list[str] = []

    def read() -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.extend(listener.recv(4096).decode().splitlines())
        return heard

    yield read
    listener.close()
