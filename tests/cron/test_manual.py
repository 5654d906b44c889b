"""Enqueueing by hand: beside the hour that runs, and all of a file or nothing of it."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
import redis

from streamq.app import StreamQ
from streamq.cron import fire_now, manual_enqueue
from streamq.errors import BadInput, ConfigurationError
from streamq.schedules.userfile import read_users
from streamq.settings import Settings
from tests.cron.conftest import Listing

USERS = [f"u{number}" for number in range(300)]


@pytest.fixture
def app(redis_url, queue_name) -> StreamQ:
    """An application whose schedule spreads its users."""
    app = StreamQ(Settings(redis_url=redis_url, history=False))

    @app.handler(queue=queue_name, key="user_id")
    async def refresh(user_id: str) -> None: ...

    app.cron("0 * * * *", handler=refresh, name="hourly", scatter=timedelta(minutes=5))(Listing(USERS))
    return app


@pytest.fixture
def jobs(redis_url, queue_name):
    """Return how often each user has a job in the lanes."""

    def count() -> Counter[str]:
        with redis.Redis.from_url(redis_url) as client:
            entries = client.xrange(f"{{sq:{queue_name}:0}}:lane:normal")
        return Counter(
            fields[b"j"].decode().rpartition(":")[2] for _, fields in entries if b"j" in fields
        )  # a marker entry only wakes a worker

    return count


async def test_one_user_is_enqueued_at_once(app, jobs):
    """Whatever the spread; and once."""
    told = await manual_enqueue(app.settings, app, "hourly", users=["u7"])
    assert (told.added, told.duplicates, told.present) == (1, 0, 0)
    again = await manual_enqueue(app.settings, app, "hourly", users=["u7", "u8", "u8"])
    assert (again.added, again.present) == (1, 2)
    assert jobs() == {"u7": 1, "u8": 1}
    assert str(again).endswith("UTC: 1 added, 0 duplicates, 2 already present")


async def test_who_has_a_job_of_this_hour_gets_no_second_one(app, jobs):
    """Neither before the hour's fan-out nor after it."""
    await manual_enqueue(app.settings, app, "hourly", users=["u1"])
    (fired,) = await fire_now(app.settings, app)
    assert (fired.state.added, fired.state.present) == (299, 1)
    told = await manual_enqueue(app.settings, app, "hourly", users=["u1", "u2", "stranger"])
    assert (told.added, told.present) == (1, 2)
    # In the first minutes of an hour some of the spread ones are due, too.
    waiting = jobs()
    assert (waiting["u1"], waiting["stranger"], max(waiting.values())) == (1, 1, 1)


async def test_all_are_fired_as_the_hour_fires_them(app):
    """A second time nobody is added."""
    told = await manual_enqueue(app.settings, app, "hourly")
    assert (told.added, told.duplicates, told.present) == (300, 0, 0)
    again = await manual_enqueue(app.settings, app, "hourly")
    assert (again.added, again.duplicates, again.present) == (0, 0, 300)


async def test_a_file_of_users(app, jobs, tmp_path):
    """More than one call takes."""
    path = tmp_path / "users.csv"
    path.write_text("user_id,plan\n" + "".join(f"{user},pro\n" for user in USERS))
    told = await manual_enqueue(app.settings, app, "hourly", file=path)
    assert told.added == 300
    assert set(jobs()) == set(USERS)


@pytest.mark.parametrize("user", [None, 2.5, "", "u" * 513, ["a"]])
async def test_an_id_that_cannot_be_one_is_refused_with_all_the_others(app, jobs, user):
    """Nothing is enqueued unless every one is good."""
    with pytest.raises(BadInput, match="nothing was enqueued: "):
        await manual_enqueue(app.settings, app, "hourly", users=["u1", user])
    assert not jobs()


async def test_bad_lines_are_named_by_number_and_nothing_is_enqueued(app, jobs, tmp_path):
    """Half a file would leave nobody knowing which half."""
    path = tmp_path / "users.ndjson"
    path.write_text('"u1"\n{"user_id": 7}\n{"name": "x"}\nu4\n\n')
    with pytest.raises(BadInput) as refused:
        await manual_enqueue(app.settings, app, "hourly", file=path)
    top, third, fourth = str(refused.value).splitlines()
    assert top == f"{path}: 2 lines are not good, so nothing was enqueued"
    assert third == "line 3: the object has none of user_id, id, user"
    assert fourth.startswith("line 4: not JSON")
    path.write_text('user_id,plan\nu1,"pro\n')
    with pytest.raises(BadInput, match="one line is not good.*\nline 2: not CSV: unexpected end of data"):
        await manual_enqueue(app.settings, app, "hourly", file=path)
    path.write_text('"u1"\nnull\n')
    with pytest.raises(BadInput, match="one line is not good.*\nline 2: None is no user id"):
        await manual_enqueue(app.settings, app, "hourly", file=path)
    assert not jobs()


async def test_an_unknown_schedule_is_refused(app):
    """Before the file is read."""
    with pytest.raises(ConfigurationError, match="no schedule is named 'daily'"):
        await manual_enqueue(app.settings, app, "daily", users=["u1"])


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("u1\nu2\n", [(1, "u1"), (2, "u2")]),
        ("\ufeffid\r\nu1\r\n\r\nu2", [(2, "u1"), (4, "u2")]),
        ('name,User\n"x, y",u1\n', [(2, "u1")]),
        ('{"id": 7}\n"u2"\n8\n', [(1, 7), (2, "u2"), (3, 8)]),
    ],
)
def test_what_a_file_may_look_like(tmp_path, text, users):
    """CSV with and without a header, and NDJSON."""
    path = tmp_path / "users"
    path.write_bytes(text.encode())
    assert read_users(path) == users


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds no users"),
        (b"user_id\n", "holds a header and no users"),
        (b"a,b\n", "line 1: 2 columns, and none is called user_id, id, user"),
        (b"id,b\nx\n", "line 2: 1 columns instead of 2"),
        (b"ok\n\xff\n", "line 2 is not UTF-8 text: nothing of it counts"),
        (b'"u"\n' + b"x\n" * 12, "and 2 more"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, raw, message):
    """The message names the line."""
    path = tmp_path / "users"
    path.write_bytes(raw)
    with pytest.raises(BadInput) as refused:
        read_users(path)
    assert message in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    """With the system's reason."""
    with pytest.raises(BadInput, match="cannot read .*: No such file"):
        read_users(tmp_path / "none")
