"""The API in streamq's own words: lists that hold still while jobs come in, and orders to queues."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import orjson
import pytest

from streamq.history import Filter, History
from streamq.mongo import StatusWrite

NOON = datetime(2099, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def thirty(statuses, hand):
    """Store 30 jobs of 3 users in two queues; several were enqueued in the same moment."""
    writes = []
    for number in range(30):
        fields = {
            "queue": hand.keys.queue if number % 2 else "other", "handler": "refresh", "user": f"u{number % 3}",
            "attempt": 1, "state": "dead" if number % 5 == 0 else "completed",
            "enqueued_at": NOON + timedelta(seconds=number // 4), "result": [number, {"$gt": 1}],
        }  # fmt: skip
        writes.append(
            StatusWrite(f"j{number:02}", number + 1, False, fields, [{"number": 1, "version": 1, "started_at": NOON}])
        )
    await statuses.write(writes)
    return [write.job_id for write in reversed(writes)]


async def walk(client, **params):
    """Follow the cursor to the end, and return the ids in order."""
    ids, cursor = [], None
    while True:
        answer = await client.get("/v1/jobs", params=params | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        ids += [job["id"] for job in answer.json()["items"]]
        cursor = answer.json()["next"]
        assert ('rel="next"' in answer.headers.get("link", "")) == bool(cursor)
        if not cursor:
            return ids


@pytest.mark.parametrize("limit", [1, 4, 29, 30, 31])
async def test_following_the_cursor_shows_every_job_once_newest_first(client, thirty, limit):
    """Whatever the size of the pages, and also among jobs of the same moment."""
    assert await walk(client, limit=limit) == thirty


async def test_jobs_that_come_in_meanwhile_shift_nothing(client, thirty, statuses):
    """Pages by number would show some jobs twice."""
    first = (await client.get("/v1/jobs", params={"limit": 10})).json()
    new = {"queue": "other", "state": "completed", "attempt": 1, "enqueued_at": NOON + timedelta(hours=1)}
    await statuses.write([StatusWrite("new", 99, False, new, [])])
    second = (await client.get("/v1/jobs", params={"limit": 20, "cursor": first["next"]})).json()
    assert [job["id"] for job in first["items"] + second["items"]] == thirty


async def test_filters_narrow_the_list_and_may_be_combined(client, thirty, hand):
    """One grammar for all who ask."""
    dead = [job for job in thirty if int(job[1:]) % 5 == 0]
    assert await walk(client, state="dead", limit=2) == dead
    assert await walk(client, state="dead,completed", limit=7) == thirty
    assert await walk(client, user="u1", limit=3) == [job for job in thirty if int(job[1:]) % 3 == 1]
    assert await walk(client, queue=hand.keys.queue, limit=4) == [job for job in thirty if int(job[1:]) % 2]
    assert await walk(client, queue="other", state="dead") == [job for job in dead if int(job[1:]) % 2 == 0]
    assert await walk(client, user="u0", state="dead") == [job for job in dead if int(job[1:]) % 3 == 0]
    span = {"since": "2099-01-01T12:00:02Z", "until": "2099-01-01T13:00:04+01:00"}
    assert await walk(client, **span, limit=3) == [job for job in thirty if 8 <= int(job[1:]) < 16]
    assert await walk(client, user="$ne") == []
    assert await walk(client, queue="nowhere") == []


async def test_no_page_scans_the_collection_or_sorts(statuses, mongo, thirty):
    """A filter that no index knows is not offered; those that are must be quick at any depth."""
    history = History(statuses)
    cursor = (NOON + timedelta(seconds=3), "j14")
    filters = [
        Filter(), Filter(user="u1"), Filter(states=("dead",)), Filter(queues=("other",)),
        Filter(states=("dead",), queues=("other",)), Filter(user="u1", states=("dead",)), Filter(since=NOON),
    ]  # fmt: skip
    await mongo.database.command("profile", 2)
    for which in filters:
        await history.page(which, limit=3)
        await history.page(which, limit=3, after=cursor)
    await mongo.database.command("profile", 0)
    profiled = await mongo.collection("system.profile").find({"ns": {"$regex": "job_status$"}, "op": "query"}).to_list()
    assert len(profiled) >= 14
    assert not [entry for entry in profiled if "COLLSCAN" in entry["planSummary"] or entry.get("hasSortStage")]
    assert max(entry["docsExamined"] for entry in profiled) <= 12


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"limit": "0"}, "limit is a whole number from 1 to 200"), ({"limit": "201"}, "from 1 to 200"),
        ({"limit": "-1"}, "from 1 to 200"), ({"limit": "1e9"}, "from 1 to 200"), ({"limit": "٣"}, "from 1 to 200"),
        ({"state": "done"}, "'done' is no state; there are scheduled, queued"),
        ({"state[$gt]": ""}, "is no parameter; there are cursor, error_type, handler"), ({"skip": "9"}, "'skip' is no parameter"),
        ({"queue": ",".join(map(str, range(30)))}, "at most 20 values of queue"),
        ({"since": "yesterday"}, "since is a time such as 2026-01-31T12:00:00Z, not 'yesterday'"),
        ({"until": "9999999-01-01"}, "until is a time"), ({"since": "0001-01-01T00:00:00+23:00"}, "since is a time"),
        ({"cursor": "x"}, "the cursor is none"), ({"cursor": "é"}, "the cursor is none"), ({"cursor": ""}, "the cursor is none"),
        ({"cursor": base64.urlsafe_b64encode(b'["2099-01-01T00:00:00",{"$ne":1},"x"]').decode()}, "the cursor is none"),
        ({"cursor": base64.urlsafe_b64encode(b"[" * 30_000).decode()}, "the cursor is none"),
    ],
)  # fmt: skip
async def test_what_cannot_be_used_is_a_422_that_names_it(client, params, says):
    """The caller is to read what was expected, not to guess."""
    answer = await client.get("/v1/jobs", params=params)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert answer.json()["errors"][0]["parameter"] == next(iter(params))


async def test_a_parameter_given_twice_is_ambiguous(client):
    """Which one counts should not depend on the library."""
    answer = await client.get("/v1/jobs?user=a&user=b")
    assert (answer.status_code, answer.json()["detail"]) == (422, "user is given 2 times")


async def test_a_cursor_of_another_filter_is_refused(client, thirty):
    """It would begin somewhere that means nothing there."""
    cursor = (await client.get("/v1/jobs", params={"limit": 3})).json()["next"]
    answer = await client.get("/v1/jobs", params={"cursor": cursor, "state": "dead"})
    assert answer.status_code == 422
    assert "another filter" in answer.json()["detail"]
    naive = orjson.loads(base64.urlsafe_b64decode(cursor + "=="))
    forged = base64.urlsafe_b64encode(orjson.dumps(["2099-01-01T00:00:00", *naive[1:]])).decode()
    assert (await client.get("/v1/jobs", params={"cursor": forged})).status_code == 422


async def test_a_job_is_told_whole_with_an_etag_that_changes_with_it(client, hand, statuses, store):
    """Who polls need not read the same thing again."""
    await store(statuses, ("a/job\n#1", hand.record("retrying", x={"t": "E", "m": "no", "tb": "Traceback", "fp": "f"})))
    path = "/v1/jobs/a%2Fjob%0A%231"
    first = await client.get(path)
    assert (first.json()["state"], first.json()["error"]["traceback"]) == ("retrying", "Traceback")
    assert first.json()["attempts"][0]["started_at"].endswith("Z")
    again = await client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    await store(statuses, ("a/job\n#1", hand.record(n=2, r=[{"$gt": 1}])))
    changed = await client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["result"]) == (200, [{"$gt": 1}])


async def test_a_live_job_is_told_as_redis_has_it_with_what_the_history_knows(client, hand, statuses, store):
    """Its earlier attempts are in MongoDB only."""
    await store(statuses, ("job", hand.record("retrying", x={"t": "E", "m": "no"})))
    await hand.enqueue("job", n=2, u="u1")
    await hand.take("w9")
    answer = (await client.get("/v1/jobs/job")).json()
    assert (answer["state"], answer["worker"], answer["attempt"], len(answer["attempts"])) == ("running", "w9", 2, 1)
    await hand.enqueue("fresh")
    assert (await client.get("/v1/jobs/fresh")).json()["state"] == "queued"
    unknown = await client.get("/v1/jobs/nobody")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:streamq:problem:job-unknown")


async def test_queues_are_paused_and_resumed_with_a_reason(client, hand):
    """Everybody who looks at the queue reads it."""
    path = f"/v1/queues/{hand.keys.queue}"
    await hand.enqueue("a")
    paused = await client.post(f"{path}:pause", json={"reason": "deploy"})
    assert (paused.status_code, paused.json()["waiting"]) == (200, 1)
    assert paused.json()["paused"] == {"until_ms": 0, "reason": "deploy", "by": "bootstrap"}
    assert (await client.get(path)).json()["paused"]["reason"] == "deploy"
    assert (await client.post(f"{path}:resume")).json()["paused"] is None
    assert (await client.post(f"{path}:resume")).json()["paused"] is None
    for_a_while = (await client.post(f"{path}:pause", json={"for_s": 60})).json()
    assert for_a_while["paused"]["until_ms"] > 10**12
    assert [queue["name"] for queue in (await client.get("/v1/queues")).json()["items"]] == [hand.keys.queue]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422), (b"[]", 422), (b'{"for_s":-1}', 422), (b'{"for_s":1e300}', 422), (b'{"for_s":"1"}', 422),
        (b'{"until":1}', 422), (b'{"reason":"%s"}' % (b"x" * 501), 422), (b"\xff", 422), (b"[" * 16_000, 422),
        (b" " * 1_000_001, 413), (b'{"for_s":NaN}', 422), (b'{"reason":"\\ud800"}', 422),
    ],
)  # fmt: skip
async def test_an_order_that_cannot_be_read_changes_nothing(client, hand, body, status):
    """A queue must not stop because of a typing error."""
    answer = await client.post(f"/v1/queues/{hand.keys.queue}:pause", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (await hand.inspection.counts()).pause is None


async def test_a_queue_that_is_not_known_cannot_be_paused(client):
    """Else a typing error would pause a queue that comes into being later."""
    for path in ("/v1/queues/nobody:pause", "/v1/queues/nobody:resume"):
        answer = await client.post(path)
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:streamq:problem:queue-unknown")
    assert (await client.get("/v1/queues/nobody")).status_code == 404


async def test_workers_are_alive_lost_or_given_up(client, hand):
    """The operator wants to know which machine to look at."""
    await hand.enqueue("a")
    await hand.take("w1")
    await hand.wire.call("ZADD", hand.keys.workers, 1_000, "lost", 0, "void")
    workers = {worker["name"]: worker for worker in (await client.get("/v1/workers")).json()["items"]}
    assert {name: worker["state"] for name, worker in workers.items()} == {
        "w1": "alive",
        "lost": "lost",
        "void": "given_up",
    }
    assert (workers["w1"]["held"], workers["w1"]["queue"], workers["void"]["beat_age_ms"]) == (1, hand.keys.queue, None)


async def test_without_mongodb_lists_are_503_and_queues_go_on(settings, serving, hand, absent_server):
    """What cannot be known is not made up."""
    await hand.enqueue("live")
    async with serving(msgspec.structs.replace(settings, mongodb_url="mongodb://127.0.0.1:9")) as client:
        answer = await client.get("/v1/jobs")
        assert (answer.status_code, answer.json()["detail"]) == (503, "MongoDB is away")
        job = (await client.get("/v1/jobs/live")).json()
        assert (job["state"], job["stale"]) == ("queued", True)
        assert (await client.get("/v1/jobs/nobody")).status_code == 503
        assert (await client.get("/v1/queues")).status_code == 200


async def test_without_redis_queues_are_503_and_lists_go_on(settings, serving, hand, statuses, store):
    """As they were last written, and marked."""
    await store(statuses, ("job", hand.record("retrying")))
    async with serving(msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:9/0")) as client:
        answer = (await client.get("/v1/jobs")).json()
        assert ([job["state"] for job in answer["items"]], answer["stale"]) == (["retrying"], True)
        assert (await client.get("/v1/jobs/job")).json()["stale"]
        for request in (
            client.get("/v1/queues"),
            client.get("/v1/workers"),
            client.post(f"/v1/queues/{hand.keys.queue}:pause"),
        ):
            assert (await request).json()["detail"] == "Redis is away"


async def test_a_job_that_runs_tells_how_far_it_is_and_what_it_has_logged(client, hand):
    """From Redis; the history gets it with the end of the attempt."""
    await hand.enqueue("live")
    told = '{"n":1,"p":[0.4,"page 3"],"lg":[[1750000000000,"x"]],"ln":1}'
    await hand.wire.call("SET", hand.keys.notes("live"), told, "PX", 60_000)
    job = (await client.get("/v1/jobs/live")).json()
    assert job["progress"] == {"fraction": 0.4, "note": "page 3"}
    assert (job["log"], job["log_lines"]) == ([{"at": "2025-06-15T15:06:40.000Z", "line": "x"}], 1)
