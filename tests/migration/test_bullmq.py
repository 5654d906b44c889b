"""Jobs of a real BullMQ, taken over: the same jobs, in the same order, and nothing of the source changed.

The recordings beside this file were made by BullMQ 4, 5 and 6 (`record.sh`); they are replayed into a Redis. `live.py` runs some
of these tests on what the real ones have just written.
"""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pymongo
import pytest
import redis

from streamq.app import StreamQ
from streamq.broker.bullmq import BullQueue
from streamq.broker.server import Broker
from streamq.errors import BadInput
from streamq.importing import Source, import_bullmq
from streamq.settings import Settings

HERE = Path(__file__).parent
VERSIONS = ["4", "4-paused", "5", "5-paused", "latest", "latest-paused"]
FOUND = {
    "waiting": 45,
    "prioritized": 6,
    "delayed": 12,
    "failed": 4,
    "completed": 3,
    "active": 0,
    "waiting_children": 1,
}
"""Two of those that wait are the children of the one that waits for them; one of the delayed is a schedule's next."""
IMPORTED = {state: FOUND[state] for state in ("waiting", "prioritized", "delayed", "failed")}


def recorded(version: str) -> list[list]:
    """Return the commands of a recording; the first line is about it."""
    return [json.loads(line) for line in (HERE / f"bullmq-{version}.ndjson").read_text().splitlines()]


def told(commands: list[list]) -> tuple[dict[str, dict], dict[str, int]]:
    """Return what the jobs of a recording are: id to hash, and id to due time of the delayed ones."""
    hashes, due = {}, {}
    for command in commands:
        key = command[1].removeprefix("bull:user-data:")
        if command[0] == "HSET" and key != "meta":
            hashes[key] = dict(zip(command[2::2], command[3::2], strict=True))
        if key == "delayed":
            due = {command[i + 1]: int(command[i]) // 4096 for i in range(2, len(command), 2)}
    return hashes, due


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
        client.flushdb()


@pytest.fixture
def replayed(client):
    """Replay a recording, and return what its jobs are."""

    def replay(version: str):
        commands = recorded(version)[1:]
        for command in commands:
            client.execute_command(*command)
        return told(commands)

    return replay


def everything(url: str) -> dict[bytes, bytes]:
    """Return all keys of BullMQ as the server dumps them, but for those that lapse by themselves."""
    with redis.Redis.from_url(url) as client:
        return {key: client.dump(key) for key in client.keys("bull:*") if client.pttl(key) < 0}


@pytest.fixture
def app(redis_url, mongodb_url, mongo_database):
    app = StreamQ(Settings(redis_url=redis_url, mongodb_url=mongodb_url, mongodb_database=mongo_database))

    @app.handler(key="user_id", max_attempts=9)
    async def process_user_data(user_id: str, page: int = 0, deep: dict | None = None) -> None: ...

    @app.handler
    async def send_email(to: str, user_id: str) -> None: ...

    return app


def jobs_of(client) -> dict[str, tuple[str, dict, int]]:
    """Return job id to (lane or `delayed`, envelope, due ms), in the order of the lanes."""
    found = {}
    for lane in ("normal", "low"):
        for _, fields in client.xrange(f"{{sq:default:0}}:lane:{lane}"):
            if "j" in fields:
                found[fields["j"]] = (lane, orjson.loads(fields["d"]), 0)
    for name, due in client.zrange("{sq:default:0}:delayed", 0, -1, withscores=True):
        _, _, envelope = client.hget("{sq:default:0}:payload", name).split("|", 2)
        found[name] = ("delayed", orjson.loads(envelope), int(due))
    return found


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_job_comes_over_with_its_payload_and_its_place(app, client, replayed, redis_url, version):
    hashes, due = replayed(version)
    before = everything(redis_url)
    dry = await import_bullmq(app.settings, app, Source("user-data", redis_url), is_dry=True)
    report = await import_bullmq(app.settings, app, Source("user-data", redis_url))
    assert (dry.found, dry.imported) == (report.found, report.imported)
    jobs = jobs_of(client)
    assert {state: report.found[state] for state in FOUND} == FOUND
    # The bare string is a job as well: it is the handler's first argument.
    assert dict(report.imported) == IMPORTED
    assert report.faults == []
    assert len(jobs) == sum(IMPORTED.values())
    for name, (lane, envelope, due_ms) in jobs.items():
        old = hashes[name.removeprefix("bullmq:user-data:")]
        data = json.loads(old["data"])
        given = envelope["k"] if isinstance(data, dict) else envelope["a"][0]
        if isinstance(data, dict):
            data = {{"userId": "user_id"}.get(key, key): value for key, value in data.items()}
        assert given == data
        assert envelope["h"] == {"processUserData": "process_user_data", "sendEmail": "send_email"}[old["name"]]
        if lane == "delayed":
            assert abs(due_ms - due[name.removeprefix("bullmq:user-data:")]) < 2000
        else:
            assert (lane == "low") == (int(old.get("priority", 0)) > 0)
    waiting = [name for name, (lane, _, _) in jobs.items() if lane == "normal"]
    users = [jobs[name][1]["k"].get("user_id") for name in waiting if "k" in jobs[name][1]]
    assert [user for user in users if user and user.startswith("wait-")] == [f"wait-{n}" for n in range(40)]
    assert everything(redis_url) == before
    await app.close()


@pytest.mark.parametrize("version", ["4", "latest"])
async def test_attempts_go_on_where_they_were_and_a_failed_job_gets_one_more(app, client, replayed, redis_url, version):
    replayed(version)
    await import_bullmq(app.settings, app, Source("user-data", redis_url))
    jobs = {envelope["k"]["user_id"]: envelope for _, envelope, _ in jobs_of(client).values() if "k" in envelope}
    assert (jobs["bad-0"]["n"], jobs["bad-0"]["m"]) == (3, 3)
    assert (jobs["bad-1"]["n"], jobs["bad-1"]["m"]) == (2, 2)
    assert ("n" in jobs["own id"], jobs["own id"]["m"]) == (False, 5)
    await app.close()


async def test_a_dry_run_tells_the_same_and_writes_nothing(app, client, replayed, redis_url):
    replayed("5")
    before = set(client.keys())
    report = await import_bullmq(app.settings, app, Source("user-data", redis_url), is_dry=True)
    assert report.imported.total() == sum(IMPORTED.values())
    assert set(client.keys()) == before
    await app.close()


async def test_a_second_import_adds_nothing_also_when_the_jobs_have_ended(
    app, client, replayed, redis_url, mongodb_url
):
    replayed("5")
    await import_bullmq(app.settings, app, Source("user-data", redis_url))
    again = await import_bullmq(app.settings, app, Source("user-data", redis_url))
    assert (again.imported.total(), again.present.total()) == (0, sum(IMPORTED.values()))
    with pymongo.MongoClient(mongodb_url) as mongo:
        statuses = mongo[app.settings.mongodb_database]["job_status"]
        statuses.insert_many([{"_id": name, "state": "completed"} for name in jobs_of(client)])
    client.delete(*client.keys("{sq:*"))
    third = await import_bullmq(app.settings, app, Source("user-data", redis_url))
    assert (third.imported.total(), third.present.total()) == (0, sum(IMPORTED.values()))
    await app.close()


async def test_what_cannot_be_a_job_here_is_told_and_the_others_come_over(app, client, replayed, redis_url):
    replayed("5")
    client.delete("bull:user-data:9")
    client.hset("bull:user-data:10", "data", "{")
    source = Source("user-data", redis_url, states=("waiting",), handlers={"sendEmail": "send_letter"})
    report = await import_bullmq(app.settings, app, source)
    assert (report.imported["waiting"], report.refused["waiting"]) == (42, 3)
    faults = "\n".join(report.faults)
    assert "waiting job 9 (): its hash is gone" in faults
    assert "waiting job 10 (): its hash cannot be read: JSONDecodeError" in faults
    assert "send_letter" in faults
    await app.close()


async def test_a_queue_that_is_not_there_is_named(app, redis_url):
    with pytest.raises(BadInput, match="BullMQ has no queue 'user-date' under the prefix 'bull' there"):
        await import_bullmq(app.settings, app, Source("user-date", redis_url))


async def test_entries_of_version_4_that_only_wake_a_worker_are_no_jobs(client, redis_url):
    client.rpush("bull:q:wait", "2", "0:123", "1")
    for name in "12":
        client.hset(f"bull:q:{name}", mapping={"name": "x", "data": "{}"})
    broker = Broker(redis_url)
    wire = broker.wire()
    assert [job.id async for job in BullQueue(wire, "q").jobs("waiting")] == ["1", "2"]
    await wire.close()
    await broker.close()
