"""What `streamq dev` stands on: arguments that go together, a folder of its own, a port, a token, servers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from streamq import demo, dev, embedded
from streamq.dev import ground
from streamq.dev.plan import DEMO_APP, chosen_app, demo_users
from streamq.errors import BadInput, ConfigurationError, Unavailable
from streamq.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _demo_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run gives the application its settings; the next test must not find them."""
    monkeypatch.setattr(demo.app, "settings", demo.app.settings)


@pytest.fixture
def settings() -> Settings:
    """Settings of which nothing was set."""
    return load({}, environ={}, directory=Path("/nonexistent"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for servers, which are stopped at the end whatever happens."""
    yield tmp_path / "data"
    embedded.stop(tmp_path / "data")


def is_running(folder: Path, name: str) -> bool:
    """Tell whether the embedded server of that folder runs."""
    record = json.loads((folder / "endpoints.json").read_text()).get(name, {})
    server = embedded.RedisServer(folder / "redis")
    return server.adopt(record)


# ---- arguments


def test_the_demo_needs_no_name(settings: Settings):
    """One word is enough to see something."""
    assert chosen_app(settings, None, demo=True) == DEMO_APP
    assert chosen_app(settings, DEMO_APP, demo=True) == DEMO_APP


def test_the_application_may_come_from_the_settings():
    """As it does for the other commands."""
    assert chosen_app(load({"app": "shop:app"}, environ={}), None, demo=False) == "shop:app"


def test_an_application_beside_the_demo_is_refused(settings: Settings):
    """One of the two would be left out silently."""
    with pytest.raises(ConfigurationError, match="--demo runs an application of its own, and shop:app was named too"):
        chosen_app(settings, "shop:app", demo=True)


def test_without_an_application_both_ways_on_are_named(settings: Settings):
    """It is the first thing that a newcomer types."""
    with pytest.raises(ConfigurationError, match="no application is named") as refusal:
        chosen_app(settings, None, demo=False)
    assert "streamq dev --demo" in refusal.value.hint


def test_a_thousand_users_are_made_unless_told_otherwise():
    """Enough to see lanes and percentiles, few enough to wait for."""
    assert len(demo_users(None, None, demo=True) or ()) == 1000
    assert demo_users(2, None, demo=True) == ("user-000001", "user-000002")
    assert demo_users(None, None, demo=False) is None


def test_users_of_no_demo_are_refused(tmp_path: Path):
    """They would be ignored."""
    for count, path in ((3, None), (None, tmp_path)):
        with pytest.raises(BadInput, match="--users and --users-from are for the demo"):
            demo_users(count, path, demo=False)


def test_users_by_number_and_by_file_are_refused(tmp_path: Path):
    """Which of them was meant?"""
    with pytest.raises(BadInput, match="--users and --users-from both say who the users are"):
        demo_users(3, tmp_path / "users.csv", demo=True)


def test_a_bad_file_of_users_starts_nothing(settings: Settings, tmp_path: Path):
    """Not even a folder is made."""
    (tmp_path / "users.csv").write_text("u1\nu1\n")

    with pytest.raises(BadInput, match="line 2: 'u1' stands in line 1 already"):
        dev.main(settings, demo=True, users_from=tmp_path / "users.csv", directory=tmp_path / "data")
    assert not (tmp_path / "data").exists()


# ---- schedules to fire


@pytest.mark.parametrize(
    ("schedules", "has"), [("", "no schedule"), ("early late", "2 schedules: early, late")], ids=["none", "two"]
)
def test_once_needs_one_schedule(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedules: str, has: str
):
    """With several, nobody knows which one is meant."""
    name = f"shop_{len(schedules)}"
    source = ["from streamq import StreamQ", "app = StreamQ()", "@app.handler", "async def refresh(user): ..."]
    source += [
        f"app.cron('0 * * * *', handler=refresh, name='{each}')(lambda page: None)" for each in schedules.split()
    ]
    (tmp_path / f"{name}.py").write_text("\n".join(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(
        ConfigurationError, match=f"--once fires the schedule of an application, and {name}:app has {has}"
    ):
        dev.main(settings, f"{name}:app", once=True)
    assert not (tmp_path / ".streamq").exists()


def test_a_round_without_a_history_is_refused(tmp_path: Path):
    """Its figures come from there."""
    settings = load({"history": False}, environ={}, directory=tmp_path)

    with pytest.raises(
        ConfigurationError, match=r"a round reads its figures from the history, which is off \(--history\)"
    ):
        dev.main(settings, demo=True, once=True, directory=tmp_path / "data")


# ---- folder, port, token


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path):
    """The first one to end would stop the servers of the other."""
    with (
        ground.alone(tmp_path / "data"),
        pytest.raises(ConfigurationError, match=r"another `streamq dev` runs in .* \(process \d+\)"),
        ground.alone(tmp_path / "data"),
    ):
        pass
    with ground.alone(tmp_path / "data"):
        pass


def test_a_port_in_use_is_refused_before_anything_starts(settings: Settings, tmp_path: Path):
    """The API would find out later, and be started again and again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"127.0.0.1:{port}: the port is in use"):
            dev.main(settings, demo=True, users=1, port=port, directory=tmp_path / "data")
    assert not (tmp_path / "data" / "endpoints.json").exists()


def test_port_zero_is_any_that_is_free():
    """For tests, and for a second run in another folder."""
    assert ground.free_port("127.0.0.1", 0) > 1023


def test_a_host_of_another_machine_is_refused():
    """192.0.2.1 is nobody's address; see RFC 5737."""
    with pytest.raises(ConfigurationError, match=r"the API cannot listen on 192.0.2.1:0"):
        ground.free_port("192.0.2.1", 0)


def test_the_token_is_made_once_and_for_its_user_only(tmp_path: Path):
    """A line that was copied yesterday works today."""
    made = ground.token(tmp_path)

    assert len(made) >= 32
    assert ground.token(tmp_path) == made
    assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600


def test_a_token_that_others_could_read_is_hidden_again_and_an_empty_one_is_replaced(tmp_path: Path):
    """Whatever an editor or a full disk has done to it."""
    (tmp_path / "api-token").write_text("known\n")
    (tmp_path / "api-token").chmod(0o644)
    assert ground.token(tmp_path) == "known"
    assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600

    (tmp_path / "api-token").write_text("")
    assert len(ground.token(tmp_path)) >= 32


# ---- servers


def test_servers_that_were_started_here_are_stopped(settings: Settings, folder: Path):
    """Ctrl-C leaves nothing behind."""
    only_redis = load({"mongodb_url": "mongodb://db-1"}, environ={})

    with ground.servers(only_redis, folder) as servers:
        assert servers.embedded == servers.started == {"redis"}
        assert servers.mongodb_url == "mongodb://db-1"
        assert is_running(folder, "redis")
    assert not is_running(folder, "redis")


async def test_a_server_that_dies_comes_back_at_its_address_and_is_stopped_at_the_end(folder: Path, eventually: Any):
    """Killed for its memory, for example. Whoever waits for it finds it where it was."""
    only_redis = load({"mongodb_url": "mongodb://db-1"}, environ={})
    with ground.servers(only_redis, folder) as servers:
        keeper = asyncio.create_task(ground.keep(folder, servers.started))
        pid = json.loads((folder / "endpoints.json").read_text())["redis"]["pid"]
        os.kill(pid, 9)

        def is_noted_anew() -> bool:
            noted = json.loads((folder / "started-by-dev.json").read_text())["redis"]
            return noted != pid and is_running(folder, "redis")

        await eventually(is_noted_anew, "it runs again, and is known as ours")
        assert f":{json.loads((folder / 'endpoints.json').read_text())['redis']['port']}/" in servers.redis_url
        keeper.cancel()
        await asyncio.wait([keeper])
    assert not is_running(folder, "redis")


async def test_a_server_that_cannot_come_back_is_told_and_tried_again(folder: Path, eventually: Any, caplog: Any):
    """Its data may be damaged, or the disk full; somebody may be mending that."""
    only_redis = load({"mongodb_url": "mongodb://db-1"}, environ={})
    with ground.servers(only_redis, folder) as servers:
        keeper = asyncio.create_task(ground.keep(folder, servers.started))
        (manifest,) = (folder / "redis/appendonlydir").glob("*.manifest")
        manifest.write_text("damaged\n")
        os.kill(json.loads((folder / "endpoints.json").read_text())["redis"]["pid"], 9)

        def told() -> list[str]:
            return [record.text for record in caplog.records if record.message == "dev.server_failed"]

        await eventually(told, "that it does not come up is told")
        assert "did not come up: " in told()[0]
        assert told()[0].endswith("; trying again")
        assert not keeper.done()
        keeper.cancel()
        await asyncio.wait([keeper])


def test_servers_that_were_running_stay(folder: Path):
    """Somebody else uses them."""
    only_redis = load({"mongodb_url": "mongodb://db-1"}, environ={})
    embedded.start(folder, mongodb=False)

    with ground.servers(only_redis, folder) as servers:
        assert servers.started == frozenset()
    assert is_running(folder, "redis")


def test_servers_that_a_killed_run_left_behind_are_stopped(folder: Path):
    """Otherwise they would run for ever: nobody would feel responsible."""
    only_redis = load({"mongodb_url": "mongodb://db-1"}, environ={})
    found = embedded.start(folder, mongodb=False)
    (folder / "started-by-dev.json").write_text(json.dumps({"redis": found.redis_pid}))

    with ground.servers(only_redis, folder) as servers:
        assert servers.started == {"redis"}
    assert not is_running(folder, "redis")
    assert not (folder / "started-by-dev.json").exists()


def test_servers_of_ones_own_are_taken_as_they_are(tmp_path: Path):
    """Nothing is started."""
    (tmp_path / "data").mkdir()
    own = load({"redis_url": "redis://cache-1", "mongodb_url": "mongodb://db-1"}, environ={})

    with ground.servers(own, tmp_path / "data") as servers:
        assert (servers.redis_url, servers.mongodb_url) == ("redis://cache-1", "mongodb://db-1")
        assert servers.embedded == servers.started == frozenset()
        assert "_URL" not in servers.shell.read_text()
    assert not (tmp_path / "data" / "endpoints.json").exists()


def test_another_shell_finds_the_servers_and_the_application(folder: Path):
    """`streamq enqueue` and a program of one's own must reach what `dev` has started, at an address made up then."""
    only_redis = load({"app": "shop:app", "mongodb_url": "mongodb://db-1"}, environ={})

    with ground.servers(only_redis, folder) as servers:
        told = subprocess.check_output(["sh", "-c", f". {servers.shell} && echo $STREAMQ_APP $REDIS_URL"], text=True)
        assert told.split() == ["shop:app", servers.redis_url]
        assert servers.shell.stat().st_mode & 0o777 == 0o600


def test_a_shell_that_has_read_that_file_can_start_dev_again(folder: Path):
    """The address in its environment is that of a server which has been stopped meanwhile."""
    unset = load({"mongodb_url": "mongodb://db-1"}, environ={})
    with ground.servers(unset, folder) as servers:
        url = servers.redis_url

    set_by_file = load({"mongodb_url": "mongodb://db-1"}, environ={"REDIS_URL": url})
    with ground.servers(set_by_file, folder) as servers:
        assert servers.embedded == {"redis"}
        assert is_running(folder, "redis")


def test_a_server_of_ones_own_that_is_away_ends_the_run_at_once(tmp_path: Path):
    """Five deaths of a worker would say the same, later and less clearly."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    own = load({"redis_url": f"redis://127.0.0.1:{port}/0", "mongodb_url": "mongodb://127.0.0.1:1"}, environ={})

    with pytest.raises(Unavailable, match=rf"cannot reach Redis at redis://127.0.0.1:{port}/0"):
        dev.main(own, demo=True, users=1, port=0, directory=tmp_path / "data")
