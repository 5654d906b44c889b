"""What `streamq cron` does, in this process and as a program that is stopped and killed."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

import streamq
from streamq import cron
from streamq.app import StreamQ
from streamq.cron import program
from streamq.cron.service import run
from streamq.errors import ConfigurationError
from streamq.settings import Settings
from tests.cron.conftest import Listing

USERS = [f"u{number}" for number in range(250)]

TASKS = """
import asyncio
from streamq import StreamQ

app = StreamQ()

@app.handler(queue="{queue}", key="user_id", dedup="user_id")
async def refresh(user_id: str) -> None: ...

@app.cron("{expression}", handler=refresh, misfire="all")
async def hourly(page):
    start = int(page or 0)
    await asyncio.sleep({pause})
    ids = [f"u{{number}}" for number in range(start, min(start + {size}, {users}))]
    return ids, (str(start + {size}) if start + {size} < {users} else None)
"""


def app_of(url: str, queue: str, *listings: Listing, **options) -> StreamQ:
    """Return an application with a schedule for each listing."""
    app = StreamQ(Settings(redis_url=url, history=False))

    @app.handler(queue=queue, key="user_id")
    async def refresh(user_id: str) -> None: ...

    for number, listing in enumerate(listings):
        app.cron("0 * * * *", handler=refresh, name=f"list{number}", **options)(listing)
    return app


@pytest.fixture
def client(redis_url):
    """A plain client, to look at what was enqueued; it clears the queue at the end."""
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.flushdb()


def job_ids(client, queue) -> Counter[str]:
    """Return how often each job id was enqueued."""
    return Counter(fields[b"j"].decode() for _, fields in client.xrange(f"{{sq:{queue}:0}}:lane:normal"))


class TestByHand:
    """`--now`, `--dry-run`, `--once` and `--list`."""

    def test_it_fires_each_schedule_and_tells_what_became_of_it(self, redis_url, queue_name, client, capsys):
        """A second time it adds nothing, and says so."""
        app = app_of(redis_url, queue_name, Listing(USERS), Listing(USERS[:3]))
        assert cron.main(app.settings, app, now=True) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"list0 of .* UTC: 250 added, 0 duplicates, 0 already present", first)
        assert re.fullmatch(r"list1 of .* UTC: 3 added, 0 duplicates, 0 already present", second)
        assert cron.main(app.settings, app, now=True, schedule="list1") == 0
        (again,) = capsys.readouterr().out.splitlines()
        assert re.search(r"list1 .*: nothing added, it was done at .* UTC \(3 added", again)
        assert job_ids(client, queue_name).total() == 253

    def test_users_that_were_refused_are_told_by_the_exit_code(self, redis_url, queue_name, capsys):
        """The others have their jobs."""
        app = app_of(redis_url, queue_name, Listing(["a", None]))
        assert cron.main(app.settings, app, now=True) == 65
        assert "1 added, 0 duplicates, 0 already present, 1 refused" in capsys.readouterr().out

    def test_a_failing_page_function_is_an_error(self, redis_url, queue_name):
        """With schedule, occurrence and cursor; it is not tried again by hand."""
        app = app_of(redis_url, queue_name, Listing(USERS, fails=[KeyError("x")]))
        with pytest.raises(cron.PageFailed, match="schedule list0 of .* with cursor None, raised KeyError: 'x'"):
            cron.main(app.settings, app, now=True)

    def test_a_dry_run_counts_and_writes_nothing(self, redis_url, queue_name, client, capsys):
        """Not even a page that would take several calls."""
        app = app_of(redis_url, queue_name, Listing(USERS, 200))
        assert cron.main(app.settings, app, dry_run=True) == 0
        assert "would enqueue 250 users in 2 pages (dry run)" in capsys.readouterr().out
        assert client.keys() == []

    def test_once_does_what_is_due_and_ends(self, redis_url, queue_name, client):
        """The first time nothing is: the schedule is new."""
        app = app_of(redis_url, queue_name, Listing(USERS))
        assert cron.main(app.settings, app, once=True) == 0
        assert client.hkeys(f"{{sq:{queue_name}:0}}:producers") == [b"cron:list0"]

    def test_the_next_fire_times_are_listed_without_redis(self, capsys):
        """In UTC and in the schedule's zone."""
        app = app_of("redis://127.0.0.1:1/0", "default", Listing([]), timezone="Asia/Kabul")
        assert cron.main(app.settings, app, list_next=2) == 0
        title, first, second = capsys.readouterr().out.splitlines()
        assert title == "list0  0 * * * *  Asia/Kabul  ->  refresh"
        assert re.fullmatch(r"  \w{3} [\d-]{10} \d\d:30 UTC  \w{3} [\d-]{10} \d\d:00 \+0430", first)
        assert first != second

    def test_an_unknown_schedule_is_refused_with_those_that_are_known(self):
        """It may be misspelled."""
        app = app_of("redis://127.0.0.1:1/0", "default", Listing([]), Listing([]))
        with pytest.raises(ConfigurationError, match="no schedule is named 'lists' .known: list0, list1."):
            cron.main(app.settings, app, now=True, schedule="lists")

    def test_an_application_without_schedules_is_refused(self):
        """A cron process that has nothing to do would hide a mistake."""
        app = StreamQ(Settings(history=False))
        with pytest.raises(ConfigurationError, match="the application has no schedule"):
            cron.main(app.settings, app)

    async def test_firing_can_be_watched_and_stopped(self, redis_url, queue_name):
        """As a program does that shows a bar of its own."""
        app = app_of(redis_url, queue_name, Listing(USERS, 50))
        stop, seen = asyncio.Event(), []

        def watch(occurrence, state):
            seen.append(state.users)
            if state.users >= 100:
                stop.set()

        (fired,) = await cron.fire_now(app.settings, app, stop=stop, on_progress=watch)
        assert fired.state.end == ""
        assert f"stopped after {fired.state.users} users" in str(fired)
        (again,) = await cron.fire_now(app.settings, app)
        assert again.state.end == "done"
        assert again.added_here == 250 - fired.state.users
        assert seen == sorted(seen)

    def test_a_bar_is_shown_on_a_terminal_only(self, redis_url, queue_name, capsys, monkeypatch):
        """What reads a pipe gets the result alone."""
        app = app_of(redis_url, queue_name, Listing(USERS))
        cron.main(app.settings, app, now=True)
        assert capsys.readouterr().err == ""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        app = app_of(redis_url, f"{queue_name}b", Listing(USERS))
        cron.main(app.settings, app, now=True)
        assert "users" in capsys.readouterr().err


class TestAsARole:
    """Started once, and stopped by a signal."""

    async def test_it_fires_what_was_missed_at_the_start_and_ends_when_told(
        self, redis_url, queue_name, client, said, eventually
    ):
        """The schedule was known an hour ago."""
        app = app_of(redis_url, queue_name, Listing(USERS), grace=timedelta(hours=2))
        hour_ago = int(time.time()) - 3600
        signature = b"0 * * * *|UTC"
        client.hset(
            f"{{sq:{queue_name}:0}}:producers",
            "cron:list0",
            b"%d|%d|%d|%s" % (hour_ago, (hour_ago + 90_000) * 1000, len(signature), signature),
        )
        stop = asyncio.Event()
        running = asyncio.create_task(run(app.settings, app, stop))
        await eventually(lambda: said("cron.finished"))
        stop.set()
        await running
        assert job_ids(client, queue_name).total() == 250
        assert said("cron.started")[0]["schedules"] == "list0"
        assert said("cron.stopped")

    async def test_wrong_servers_and_schedules_end_it(self, queue_name):
        """Before anything is fired."""
        app = app_of("redis://127.0.0.1:1/0", queue_name, Listing([]), timezone="Nowhere")
        with pytest.raises(ConfigurationError, match="schedule 'list0': 'Nowhere' is not a time zone"):
            await run(app.settings, app, asyncio.Event())
        app = app_of("http://127.0.0.1:1/0", queue_name, Listing([]))
        with pytest.raises(ConfigurationError, match="is not the address of a Redis server"):
            await run(app.settings, app, asyncio.Event())

    async def test_a_server_that_is_not_there_yet_is_waited_for(self, queue_name, said, eventually):
        """It says so, and can be stopped meanwhile."""
        app = app_of("redis://127.0.0.1:1/0", queue_name, Listing([]))
        stop = asyncio.Event()
        running = asyncio.create_task(run(app.settings, app, stop))
        await eventually(lambda: said("redis.lost"))
        stop.set()
        await running
        assert "cannot reach Redis" in said("redis.lost")[0]["text"]


@pytest.fixture
def start(tmp_path, redis_url, queue_name):
    """Start `streamq cron` on an application of its own, and end what is left of it at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def go(*arguments: str, users=3000, size=100, pause=0.005, expression="0 0 1 1 *") -> subprocess.Popen[str]:
        tasks = TASKS.format(queue=queue_name, users=users, size=size, pause=pause, expression=expression)
        (tmp_path / "tasks.py").write_text(tasks)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "STREAMQ_"))}
        home = str(Path(streamq.__file__).parent.parent)
        process = subprocess.Popen(
            [sys.executable, "-m", "streamq", "cron", "tasks:app", *arguments],
            cwd=tmp_path,
            env=environ | {"PYTHONPATH": home, "REDIS_URL": redis_url, "STREAMQ_HISTORY": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def progress(client, queue) -> int:
    """Return the number of the last call of the only fan-out."""
    records = client.hgetall(f"{{sq:{queue}:0}}:producers")
    return max((int(raw.split(b"|")[0]) for name, raw in records.items() if name.count(b":") == 2), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 1000])
def test_killed_at_random_moments_every_user_has_exactly_one_job(start, client, queue_name, size):
    """`kill -9`, twelve times and more, in the middle of pages and between them, with workers that end jobs meanwhile."""
    draw, enqueued = random.Random(size), Counter()
    tag, users, kills, process = f"{{sq:{queue_name}:0}}", 30 * size, 0, None

    def work() -> None:
        """End what was enqueued so far, so that nothing of a job is left but its producer's record."""
        pipe = client.pipeline()
        pipe.xrange(f"{tag}:lane:normal")
        pipe.delete(f"{tag}:lane:normal", f"{tag}:index")
        entries, _ = pipe.execute()
        names = [fields[b"j"].decode() for _, fields in entries]
        enqueued.update(names)
        if names:
            client.delete(*(f"{tag}:dedup:refresh:{name.split(':')[-1]}" for name in names))

    while process is None or process.returncode != 0:
        process = start("--now", users=users, size=size, pause=size / 20_000)
        before = progress(client, queue_name)
        if kills < 12:
            _until(lambda before=before: progress(client, queue_name) > before)
            time.sleep(draw.random() * 0.01)
            process.kill()
            kills += 1
        process.wait(60)
        work()
    assert kills == 12
    assert "done" not in process.stdout.read()
    assert set(enqueued.values()) == {1}
    assert {name.split(":")[-1] for name in enqueued} == {f"u{number}" for number in range(users)}


def _until(condition, limit_s=30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_five_programs_at_once_make_one_job_each(start, client, queue_name):
    """All of them end well, and say the same."""
    programs = [start("--now") for _ in range(5)]
    told = [process.communicate(timeout=60)[0] for process in programs]
    assert [process.returncode for process in programs] == [0] * 5
    assert all("3000 added, 0 duplicates, 0 already present" in text for text in told)
    assert set(job_ids(client, queue_name).values()) == {1}
    assert job_ids(client, queue_name).total() == 3000


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_at_a_call_and_the_next_one_goes_on(start, client, queue_name, number):
    """Exit code 75 says that there is something left."""
    process = start("--now", pause=0.02)
    _until(lambda: progress(client, queue_name) > 3)
    process.send_signal(number)
    out, _ = process.communicate(timeout=50)
    assert process.returncode == 75
    assert "run it again to go on" in out
    again = start("--now")
    assert again.wait(60) == 0
    assert set(job_ids(client, queue_name).values()) == {1}
    assert job_ids(client, queue_name).total() == 3000


@pytest.mark.slow
def test_the_role_ends_soon_after_a_signal(start, client, queue_name):
    """With exit code 0, as a supervisor expects."""
    process = start()
    _until(lambda: client.hexists(f"{{sq:{queue_name}:0}}:producers", "cron:hourly"))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 0
    assert '"event": "cron.started"' in err
    assert '"event": "cron.stopped"' in err


def test_what_a_second_signal_means_is_left_to_python():
    """The first one stops in order; after it, Ctrl-C interrupts."""
    stopped, removed = asyncio.Event(), []
    program._stop(SimpleNamespace(remove_signal_handler=removed.append), stopped)  # type: ignore[arg-type]
    assert stopped.is_set()
    assert removed == [signal.SIGINT]
