"""The embedded servers: found, started once, shared, kept through crashes, and stopped by whom they belong to."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
import redis

from streamq import embedded
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder with a blank in its name, whose servers are stopped at the end."""
    folder = tmp_path / "my data"
    yield folder
    embedded.stop(folder)


def redis_at(url: str) -> redis.Redis:
    """Connect to a Redis server."""
    return redis.Redis.from_url(url, decode_responses=True)


def mongo_at(url: str) -> pymongo.MongoClient[dict[str, Any]]:
    """Connect to a MongoDB server, and wait for one that is coming back."""
    return pymongo.MongoClient(url, serverSelectionTimeoutMS=10_000)


def mode_of(path: Path) -> int:
    """Return a file's permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_both_servers_start_and_serve(folder: Path) -> None:
    """`start` returns when clients are served, not merely when processes exist."""
    endpoints = embedded.start(folder)
    with redis_at(endpoints.redis_url) as client, mongo_at(endpoints.mongodb_url) as mongo:
        assert client.ping()
        assert mongo.admin.command("ping")["ok"] == 1
    assert endpoints.started_here == {"redis", "mongodb"}


def test_a_second_caller_attaches(folder: Path) -> None:
    """The API, a worker and the command line share one pair of servers; only the first may stop them."""
    first = embedded.start(folder, mongodb=False)
    second = embedded.start(folder, mongodb=False)
    assert (second.redis_url, second.redis_pid) == (first.redis_url, first.redis_pid)
    assert second.started_here == frozenset()


def test_callers_at_the_same_moment_get_one_server(folder: Path) -> None:
    """Each thread opens the lock file anew, so they exclude each other as processes do."""
    with ThreadPoolExecutor(8) as pool:
        endpoints = list(pool.map(lambda _: embedded.start(folder, mongodb=False), range(8)))
    assert len({each.redis_pid for each in endpoints}) == 1
    assert sum(len(each.started_here) for each in endpoints) == 1


def test_servers_outlive_the_process_that_started_them(folder: Path) -> None:
    """A `streamq` command that ends must not take the servers of the others with it."""
    program = (
        "import sys, pathlib, streamq.embedded as e; print(e.start(pathlib.Path(sys.argv[1]), mongodb=False).redis_pid)"
    )
    started = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert embedded.start(folder, mongodb=False).redis_pid == int(started.stdout)


def test_a_crash_of_both_loses_neither_data_nor_address(folder: Path) -> None:
    """Clients that still hold the old addresses find the restarted servers there."""
    before = embedded.start(folder)
    with redis_at(before.redis_url) as client, mongo_at(before.mongodb_url) as mongo:
        client.set("kept", "yes", ex=600)
        mongo.test.get_collection("kept", write_concern=pymongo.WriteConcern(j=True)).insert_one({"_id": 1})
        os.kill(before.redis_pid, 9)
        os.kill(before.mongodb_pid, 9)
        after = embedded.start(folder)
        assert (after.redis_url, after.mongodb_url) == (before.redis_url, before.mongodb_url)
        assert client.get("kept") == "yes"
        with contextlib.suppress(pymongo.errors.AutoReconnect):  # the pool's connection to the one that was killed
            mongo.test.kept.find_one()
        assert mongo.test.kept.find_one() == {"_id": 1}


def test_stop_ends_what_it_is_told_and_keeps_the_data(folder: Path) -> None:
    """`streamq dev` stops the servers that it started, not those that it found."""
    endpoints = embedded.start(folder)
    with redis_at(endpoints.redis_url) as client:
        client.set("kept", "yes", ex=600)
    embedded.stop(folder, ["redis"])
    again = embedded.start(folder)
    assert again.started_here == {"redis"}
    assert again.mongodb_pid == endpoints.mongodb_pid
    with redis_at(again.redis_url) as client:
        assert client.get("kept") == "yes"


def test_stop_without_servers_is_no_error(folder: Path) -> None:
    """Clean-up code calls it whatever came before."""
    embedded.stop(folder)


def test_a_recycled_process_id_is_left_alone(folder: Path) -> None:
    """After a reboot the recorded id may be anybody's: here, this test's own."""
    embedded.start(folder, mongodb=False)
    embedded.stop(folder)
    records = json.loads((folder / "endpoints.json").read_text())
    records["redis"]["pid"] = os.getpid()
    (folder / "endpoints.json").write_text(json.dumps(records))
    embedded.stop(folder)
    assert embedded.start(folder, mongodb=False).started_here == {"redis"}


def test_a_torn_record_is_as_good_as_none(folder: Path) -> None:
    """A full disk may have cut it short; the servers start anew."""
    folder.mkdir()
    (folder / "endpoints.json").write_text('{"redis": {"pi')
    assert embedded.start(folder, mongodb=False).started_here == {"redis"}


def test_nobody_else_can_read_or_reach_them(folder: Path) -> None:
    """The folder is the owner's, Redis wants its password, and MongoDB has no port at all."""
    endpoints = embedded.start(folder)
    assert mode_of(folder) == 0o700
    assert {mode_of(folder / name) for name in ("endpoints.json", "redis/redis.conf", "mongodb/mongodb.sock")} == {
        0o600
    }
    stranger = redis_at(endpoints.redis_url.replace("redis://:", "redis://:wrong"))
    with stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    password = endpoints.redis_url.split(":")[2].partition("@")[0]
    command_line = subprocess.run(["ps", "-o", "args=", "-p", str(endpoints.redis_pid)], capture_output=True, text=True)
    assert password not in command_line.stdout
    assert (folder / ".gitignore").read_text() == "*\n"


def test_redis_is_set_up_as_streamq_needs_it(redis_server: embedded.RedisServer) -> None:
    """Nothing is evicted, and every write is in the append-only file before its reply."""
    with redis_at(redis_server.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("append*only") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
    with redis_at(redis_server.unix_url) as client:
        assert client.ping()


def test_mongod_compresses_nothing(mongodb_url: str) -> None:
    """The zlib compressor of 6.0.5 leaks memory (CVE-2025-14847); a server without one agrees on none."""
    with mongo_at(mongodb_url) as client:
        assert "compression" not in client.admin.command("hello", compression=["zlib", "snappy"])


def test_redis_survives_kill_and_freeze_on_its_address(redis_server: embedded.RedisServer) -> None:
    """What the recovery tests build on."""
    url = redis_server.url
    with redis_at(url) as client:
        client.set("kept", "yes", ex=600)
    redis_server.kill9()
    assert not redis_server.is_running()
    redis_server.start()
    redis_server.restart()
    assert redis_server.url == url
    redis_server.sigstop()
    impatient = redis.Redis.from_url(url, socket_timeout=0.2, retry=None)
    with impatient, pytest.raises(redis.TimeoutError):
        impatient.ping()
    redis_server.sigcont()
    with redis_at(url) as client:
        assert client.get("kept") == "yes"


def test_a_frozen_server_can_be_stopped(redis_server: embedded.RedisServer) -> None:
    """Nothing is left behind by a test that freezes one and fails."""
    redis_server.sigstop()
    redis_server.stop()
    assert not redis_server.is_running()


def test_a_server_never_started_can_be_handled(tmp_path: Path) -> None:
    """Every order is harmless before the first start."""
    server = embedded.RedisServer(tmp_path / "redis")
    for order in (server.stop, server.kill9, server.sigstop, server.sigcont):
        order()
    assert (server.pid, server.is_running()) == (0, False)


def test_a_replica_set_of_one_has_transactions(tmp_path: Path) -> None:
    """And has them again after a restart, when it is one already."""
    server = embedded.MongoServer(tmp_path / "mongodb", replica_set=True)
    server.start()
    try:
        server.restart()
        with mongo_at(server.url) as client, client.start_session() as session, session.start_transaction():
            client.test.kept.insert_one({"_id": 1}, session=session)
    finally:
        server.stop()


def test_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    """A unix socket's path has room for about a hundred bytes; a pytest folder alone can take them."""
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    try:
        endpoints = embedded.start(folder)
        with mongo_at(endpoints.mongodb_url) as client:
            assert client.admin.command("ping")["ok"] == 1
        assert embedded.start(folder).mongodb_url == endpoints.mongodb_url
    finally:
        embedded.stop(folder)


def test_a_planted_socket_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else could have made the folder in /tmp first, and would own the socket in it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    planted = embedded.MongoServer(folder)._socket.parent
    planted.chmod(0o755)
    with pytest.raises(ConfigurationError, match="is not a private folder of yours"):
        embedded.MongoServer(folder).start()


def test_a_taken_port_is_not_fought_over(folder: Path) -> None:
    """If another program got the port while the server was down, the server moves."""
    first = embedded.start(folder, mongodb=False)
    embedded.stop(folder)
    port = json.loads((folder / "endpoints.json").read_text())["redis"]["port"]
    with socket.create_server(("127.0.0.1", port)):
        second = embedded.start(folder, mongodb=False)
    assert second.redis_url != first.redis_url


def test_a_program_that_ends_at_once_is_named_with_its_last_words(tmp_path: Path) -> None:
    """A wrong setting or a damaged file is told in the server's own words, and the log's place with them."""
    server = embedded.RedisServer(tmp_path / "redis", settings={"appendfsync": "sometimes"})
    with pytest.raises(ConfigurationError, match="did not come up: ") as caught:
        server.start()
    assert "server.log" in caught.value.hint
    assert "argument" in str(caught.value)


def test_mongod_tells_why_it_ended(tmp_path: Path) -> None:
    """Its log is JSON; the one error in it is what a person needs."""
    server = embedded.MongoServer(tmp_path / "mongodb")
    server.start()
    second = embedded.MongoServer(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data").symlink_to(tmp_path / "mongodb" / "data")
    try:
        with pytest.raises(ConfigurationError, match="did not come up: DBPathInUse"):
            second.start()
    finally:
        server.stop()


def test_a_failed_start_leaves_nothing_running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ConfigurationError` promises that nothing was started, so Redis goes again when MongoDB does not come."""
    monkeypatch.setenv("STREAMQ_MONGOD", "/bin/false")
    with pytest.raises(ConfigurationError, match="no MongoDB server runs here") as caught:
        embedded.start(folder)
    assert "STREAMQ_MONGOD" in caught.value.hint
    monkeypatch.delenv("STREAMQ_MONGOD")
    assert embedded.start(folder, mongodb=False).started_here == {"redis"}


def test_a_server_that_hangs_is_not_taken_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still holds the data: starting another on it would be worse than saying so."""
    server = embedded.RedisServer(folder / "redis")
    endpoints = embedded.start(folder, mongodb=False)
    records = json.loads((folder / "endpoints.json").read_text())
    os.kill(endpoints.redis_pid, 19)
    monkeypatch.setattr(embedded, "_START_LIMIT_S", 0.2)
    try:
        with pytest.raises(ConfigurationError, match="does not answer"):
            server.adopt(records["redis"])
    finally:
        os.kill(endpoints.redis_pid, 18)


@pytest.mark.parametrize("find", [embedded.find_redis_server, embedded.find_mongod])
def test_a_missing_program_is_named(find: Callable[[str], Path]) -> None:
    """The message says which program was tried, and the hint says which setting names a server instead."""
    with pytest.raises(ConfigurationError, match="nonesuch: No such file or directory") as caught:
        find("nonesuch")
    assert "_URL to a server of yours" in caught.value.hint


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    """The dynamic linker's line, as mongod gives it on a slim system without libcurl."""
    program = tmp_path / "mongod"
    program.write_text("#!/bin/sh\necho 'mongod: error while loading libcurl.so.4' >&2\nexit 127\n")
    program.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"error while loading libcurl\.so\.4") as caught:
        embedded.find_mongod(program)
    assert "apt-get install -y libcurl4" in caught.value.hint


def test_programs_on_the_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheels, a server that the machine has is as good."""
    for name in ("valkey-server", "mongod"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(embedded, "_in_wheel", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("STREAMQ_MONGOD", raising=False)
    assert embedded.find_redis_server() == tmp_path / "valkey-server"
    assert embedded.find_mongod() == tmp_path / "mongod"


def test_without_wheel_or_program_the_hint_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing installed."""
    monkeypatch.setattr("importlib.metadata.distribution", _no_distribution)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError, match="no Redis server runs here: none was found"):
        embedded.find_redis_server()


def _no_distribution(name: str) -> None:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_processes_are_told_apart_where_there_is_no_proc() -> None:
    """On macOS `ps` answers instead."""
    assert embedded._ask_ps(os.getpid())[0]
    assert embedded._ask_ps(2**22 - 1) == (False, "")
