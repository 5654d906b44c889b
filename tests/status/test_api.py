"""The four original routes: their shapes, who may ask, and what they say while a server is away."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import quote

import msgspec
import pytest
from starlette.routing import Route

from streamq.api import create_app, main
from streamq.api.application import OPERATIONS
from streamq.api.role import listen
from streamq.errors import ConfigurationError, Unavailable
from streamq.settings import Settings
from tests.conftest import free_port

TOKEN = "token-of-the-tests"
BASE = "/app/job-status"
FOUR = [f"{BASE}/queue/stats", f"{BASE}/status/user/u1", f"{BASE}/recent", f"{BASE}/failed"]


# Who may ask


@pytest.mark.parametrize(
    "header",
    [
        None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic " + TOKEN.encode(), TOKEN.encode(), b"Bearer \xff\xfe",
        b"Bearer " + TOKEN.encode() + b"x", b"Bearer " + TOKEN.encode()[:-1], "Bearer tökén".encode(), "Bearer tökén".encode("latin-1"),
    ],
)  # fmt: skip
async def test_without_the_token_every_route_says_401_and_how_to_ask(client, header):
    """An odd byte in a header must not turn into a 500."""
    del client.headers["authorization"]
    for path in [*FOUR, "/metrics", "/nowhere"]:
        answer = await client.get(path, headers={} if header is None else {"authorization": header})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="streamq"'
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:streamq:problem:unauthorized"
        assert TOKEN not in answer.text


async def test_every_route_but_the_probes_is_behind_the_gate(settings, client):
    """The table of routes is the list of what is tested: one that is added cannot be forgotten."""
    del client.headers["authorization"]
    is_open = {(each.method, each.path) for each in OPERATIONS if each.is_open}
    assert is_open == {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/healthz"), ("POST", "/v1/session")}
    for route in create_app(settings).routes:
        assert isinstance(route, Route)
        path = re.sub(r"{\w+(:\w+)?}", "u1", route.path)
        for method in {*(route.methods or ()), "OPTIONS", "PUT"}:
            answer = await client.request(method, path)
            assert (answer.status_code == 401) == (("GET" if method == "HEAD" else method, path) not in is_open), path


async def test_the_scheme_may_be_written_in_any_case(client):
    """RFC 9110 says so."""
    answer = await client.get(FOUR[2], headers={"authorization": b"bearer " + TOKEN.encode()})
    assert answer.status_code == 200


async def test_a_token_may_hold_any_characters(settings, statuses, serving):
    """Comparing text that is not ASCII raises; comparing digests does not."""
    token = "tökén ключ"
    async with serving(msgspec.structs.replace(settings, api_token=token)) as client:
        del client.headers["authorization"]
        for given, status in ((token, 200), ("tökén", 401)):
            answer = await client.get(FOUR[2], headers={"authorization": f"Bearer {given}".encode()})
            assert answer.status_code == status


async def test_two_authorization_headers_let_nobody_in(client):
    """A proxy may look at one and we at the other."""
    both = [("authorization", "Bearer wrong"), ("authorization", b"Bearer " + TOKEN.encode())]
    del client.headers["authorization"]
    assert (await client.get(FOUR[2], headers=both)).status_code == 401


def test_without_a_token_nothing_is_served():
    """Nobody would notice that everybody can read every job."""
    with pytest.raises(ConfigurationError, match=r"^the API has no token: ") as caught:
        create_app(Settings())
    assert (caught.value.exit_code, "STREAMQ_API_TOKEN" in caught.value.hint) == (78, True)
    with pytest.raises(ConfigurationError, match=r"^the API has no token: "):
        main(Settings(api_host="0.0.0.0"))


# Their shapes


async def test_stats_count_what_lives_and_what_has_ended(client, hand, statuses, store, eventually):
    """Live numbers come from Redis, ended ones from the history."""
    await store(statuses, ("a", hand.record()), ("b", hand.record("dead")), ("c", hand.record()))
    for job in ("d", "e"):
        await hand.enqueue(job)
    await hand.take("w1")
    await hand.delay("f", 4_000_000_000_000)

    async def stats():
        answer = (await client.get(FOUR[0])).json()
        return answer if answer["completed"] else None

    answer = await eventually(stats, "the history is counted")
    numbers = {"waiting": 1, "active": 1, "delayed": 1, "completed": 2, "failed": 1, "paused": 0}
    assert {word: answer[word] for word in numbers} == numbers
    queue = answer["queues"][hand.keys.queue]
    assert {word: queue[word] for word in numbers} == numbers
    assert (queue["isPaused"], queue["workers"], answer["stale"]) == (False, 1, False)
    assert queue["lanes"] == {"normal": {"waiting": 1, "in_flight": 1}}
    assert answer["countedAt"].endswith("Z")


async def test_stats_of_a_paused_queue_say_who_paused_it_and_why(client, hand):
    """Somebody will ask."""
    await hand.enqueue("a")
    await hand.wire.call("HSET", hand.keys.pause, "queue", '0|{"reason":"deploy","by":"ada"}')
    answer = (await client.get(FOUR[0])).json()
    assert (answer["waiting"], answer["paused"]) == (1, 1)
    queue = answer["queues"][hand.keys.queue]
    assert (queue["isPaused"], queue["pausedBecause"], queue["pausedBy"]) == (True, "deploy", "ada")


async def test_the_status_of_a_user_is_that_of_the_latest_job_with_all_its_attempts(client, hand, statuses, store):
    """What happened to user 1?"""
    start = hand.record()["e"]
    await store(
        statuses,
        ("old", hand.record(e=start - 3_600_000)),
        ("new", hand.record("dead", n=2, r=None, x={"t": "ValueError", "m": "bad SKU", "tb": "...", "fp": "f"})),
    )
    answer = (await client.get(FOUR[1])).json()
    assert {
        "userId": "u1", "jobId": "new", "jobName": "refresh", "status": "failed", "state": "dead", "attempts": 2,
        "maxAttempts": 3, "error": "bad SKU", "errorType": "ValueError", "durationMs": 30, "worker": "w1", "stale": False,
    }.items() <= answer.items()  # fmt: skip
    assert answer["startedAt"] < answer["completedAt"]
    assert [(job["jobId"], job["status"]) for job in answer["history"]] == [("old", "completed")]
    assert answer["attemptLog"][0]["error"] == "bad SKU"


async def test_the_status_of_a_user_has_the_result_whatever_it_looks_like(client, hand, statuses, store):
    """A result is data, also when it looks like a query."""
    await store(statuses, ("a", hand.record(r={"$gt": 1, "refs": [{"$ref": "x", "$id": 1}]})))
    assert (await client.get(FOUR[1])).json()["result"] == {"$gt": 1, "refs": [{"$ref": "x", "$id": 1}]}


async def test_the_status_of_a_user_is_one_question_and_only_the_latest_job_has_its_result(
    client, hand, statuses, store, mongo
):
    """The jobs before it are a list, and lists have none."""
    await store(statuses, ("old", hand.record(e=1000, r=1)), ("new", hand.record(r=2)))
    await mongo.database.command("profile", 2)
    answer = (await client.get(FOUR[1])).json()
    await mongo.database.command("profile", 0)
    assert (answer["jobId"], answer["result"]) == ("new", 2)
    assert [(job["jobId"], job["result"]) for job in answer["history"]] == [("old", None)]
    about_the_user = {
        "op": "query",
        "$or": [{"command.filter.user": "u1"}, {"command.filter._id": {"$in": ["old", "new"]}}],
    }
    assert await mongo.collection("system.profile").count_documents(about_the_user) == 1


async def test_redis_knows_better_what_a_live_job_does(client, hand, statuses, store):
    """The history of a job that lives is a second late."""
    await store(statuses, ("job", hand.record("retrying", x={"t": "E", "m": "no"})))
    assert (await client.get(FOUR[1])).json()["status"] == "delayed"
    await hand.enqueue("job", u="u1", n=2, m=3)
    assert (await client.get(FOUR[1])).json()["status"] == "waiting"
    await hand.take("w7")
    answer = (await client.get(FOUR[1])).json()
    assert (answer["status"], answer["worker"], answer["attempts"], answer["jobId"]) == ("active", "w7", 2, "job")


async def test_a_job_that_was_enqueued_a_moment_ago_is_found_by_its_dedup_key(client, hand, statuses, store):
    """The recorder has not seen it yet, and the caller has just been told that it was accepted."""
    await store(statuses, ("old", hand.record(e=1_000)))
    await hand.enqueue("fresh", u="u1")
    await hand.wire.call("SET", hand.keys.dedup("refresh:u1"), "fresh", "PX", 60_000)
    answer = (await client.get(FOUR[1])).json()
    assert (answer["jobId"], answer["status"], answer["attempts"]) == ("fresh", "waiting", 0)
    assert [job["jobId"] for job in answer["history"]] == ["old"]


ODD_USERS = [
    "a/b/c", "a b", "ü", "日本", "100%", "a?b=c", "#", "../../etc", '{"$ne":null}', "$where", "(a+)+$", "a\nb",
    "\x01", "x" * 2_000, "'; DROP", "<script>", "%2F", "\\", "+", "a%00b",
]  # fmt: skip


@pytest.mark.parametrize("user", ODD_USERS, ids=range(len(ODD_USERS)))
async def test_a_user_id_is_just_text(client, hand, statuses, store, user):
    """Whatever it looks like, it finds that user and no other."""
    await store(statuses, ("mine", hand.record(u=user)), ("other", hand.record(u="somebody")))
    answer = await client.get(f"{BASE}/status/user/{quote(user, safe='')}")
    assert answer.status_code == 200
    assert (answer.json()["userId"], answer.json()["jobId"], answer.json()["history"]) == (user, "mine", [])
    assert (await client.get(f"{BASE}/status/user/{quote(user + 'x', safe='')}")).status_code == 404


async def test_an_unknown_user_is_a_404_that_says_so(client):
    """Not to be mixed up with an unknown path."""
    answer = await client.get(f"{BASE}/status/user/nobody")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:streamq:problem:user-unknown")
    assert answer.json()["instance"] == f"{BASE}/status/user/nobody"


async def test_recent_jobs_are_the_newest_of_both_servers_and_each_stands_there_once(client, hand, statuses, store):
    """A job may be in the history, in Redis, or in both."""
    start = hand.record()["e"]
    await store(statuses, *((f"j{n}", hand.record(e=start - 60_000 + n)) for n in range(5)))
    await store(statuses, ("both", hand.record("retrying", e=start - 1_000)))
    await hand.enqueue("both", n=2)
    await hand.enqueue("live")
    answer = (await client.get(FOUR[2], params={"limit": 4})).json()
    assert [(job["jobId"], job["status"]) for job in answer["jobs"]] == [
        ("live", "waiting"), ("both", "waiting"), ("j4", "completed"), ("j3", "completed"),
    ]  # fmt: skip
    assert (answer["limit"], answer["stale"]) == (4, False)
    assert answer["jobs"][1]["attemptLog"], "what Redis does not know comes from the history"


async def test_failed_jobs_are_those_that_will_not_be_tried_again(client, hand, statuses, store):
    """One that retries has not failed yet."""
    await store(
        statuses,
        ("dead", hand.record("dead", x={"t": "E", "m": "no"})),
        ("retrying", hand.record("retrying")),
        ("fine", hand.record()),
    )
    answer = (await client.get(FOUR[3])).json()
    assert [(job["jobId"], job["error"]) for job in answer["jobs"]] == [("dead", "no")]


@pytest.mark.parametrize("path", FOUR[2:])
@pytest.mark.parametrize(("limit", "counts_as"), [("1", 1), ("007", 7), ("100", 100), ("101", 100), ("9" * 5000, 100)])
async def test_a_large_limit_counts_as_the_most(client, path, limit, counts_as):
    """The original never refused one."""
    assert (await client.get(path, params={"limit": limit})).json()["limit"] == counts_as


@pytest.mark.parametrize("path", FOUR[2:])
@pytest.mark.parametrize("limit", ["-1", "0", "00", "abc", "1e9", "1.5", "", " 1", "+1", "٣", '{"$gt":0}', "1\x00"])
async def test_a_limit_that_is_no_number_is_a_422_that_says_what_is(client, path, limit):
    """A negative limit means something else to MongoDB."""
    answer = await client.get(path, params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == "limit"
    assert "a whole number from 1" in answer.json()["detail"]


async def test_a_limit_given_twice_is_ambiguous(client):
    """Which one counts should not depend on the library."""
    assert (await client.get(f"{FOUR[2]}?limit=1&limit=2")).status_code == 422


async def test_without_a_limit_there_are_twenty(client):
    """As in the original."""
    assert (await client.get(FOUR[2])).json()["limit"] == 20


async def test_unknown_paths_and_wrong_methods_are_problems_too(client):
    """A client has one way to read an error."""
    missing = await client.get("/app/job-status/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong = await client.post(FOUR[0])
    assert (wrong.status_code, wrong.json()["title"]) == (405, "Method Not Allowed")
    assert "GET" in wrong.headers["allow"]


async def test_answers_are_not_kept_and_not_guessed_at_by_browsers(client):
    """Job texts come from strangers."""
    answer = await client.get(FOUR[2])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


async def test_a_mistake_of_ours_is_a_500_that_tells_nothing(client, monkeypatch, caplog):
    """What went wrong inside is for the log."""

    async def broken(self, limit):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("streamq.api.legacy.Desk.recent", broken)
    answer = await client.get(FOUR[2])
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:streamq:problem:internal-server-error")
    assert "secret" not in answer.text
    assert "api.error" in caplog.text


# While a server is away


async def test_without_mongodb_what_lives_is_told_and_called_stale(settings, hand, absent_server, serving):
    """Half an answer is better than none, as long as it says so."""
    away = msgspec.structs.replace(settings, mongodb_url="mongodb://127.0.0.1:9")
    await hand.enqueue("live", u="u1")
    letter = b'{"s":"dead","h":"refresh","u":"u2","n":3,"f":1750000000000,"x":{"t":"E","m":"no"}}'
    await hand.wire.call("XADD", hand.keys.dead, "*", "j", "gone", "d", "{}", "r", letter)
    await hand.wire.call("XADD", hand.keys.dead, "*", "j", "odd", "d", "{}", "r", "junk")
    async with serving(away) as client:
        stats = (await client.get(FOUR[0])).json()
        assert (stats["waiting"], stats["completed"], stats["failed"], stats["stale"]) == (1, None, 2, True)
        user = (await client.get(FOUR[1])).json()
        assert (user["jobId"], user["status"], user["stale"]) == ("live", "waiting", True)
        recent = (await client.get(FOUR[2])).json()
        assert ([job["jobId"] for job in recent["jobs"]], recent["stale"]) == (["live"], True)
        failed = (await client.get(FOUR[3])).json()
        assert failed["stale"]
        assert {(job["jobId"], job["userId"], job["error"]) for job in failed["jobs"]} == {
            ("gone", "u2", "no"),
            ("odd", None, None),
        }
        unknown = await client.get(f"{BASE}/status/user/u9")
        assert (unknown.status_code, unknown.json()["type"]) == (503, "urn:streamq:problem:store-away")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.text) == (200, "degraded")


async def test_without_redis_the_history_is_told_and_called_stale(settings, hand, statuses, store, eventually, serving):
    """Also the numbers of live jobs, as they were last written."""
    await store(
        statuses, ("a", hand.record()), ("b", hand.record("dead", u="u2")), ("c", hand.record("retrying", u="u3"))
    )
    away = msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:9/0")
    async with serving(away) as client:
        await eventually(lambda: _counted(client))
        stats = (await client.get(FOUR[0])).json()
        numbers = [stats[word] for word in ("waiting", "active", "delayed", "completed", "failed", "stale")]
        assert numbers == [0, 0, 1, 1, 1, True]
        user = (await client.get(FOUR[1])).json()
        assert (user["jobId"], user["status"], user["stale"]) == ("a", "completed", True)
        recent = (await client.get(FOUR[2])).json()
        assert ({job["jobId"] for job in recent["jobs"]}, recent["stale"]) == ({"a", "b", "c"}, True)
        assert [job["jobId"] for job in (await client.get(FOUR[3])).json()["jobs"]] == ["b"]
        unknown = await client.get(f"{BASE}/status/user/u9")
        assert (unknown.status_code, "while Redis is away" in unknown.json()["detail"]) == (503, True)


async def _counted(client):
    answer = await client.get(FOUR[0])
    return answer.status_code == 200 and answer.json()["completed"]


async def test_without_both_every_route_is_a_503_and_the_process_lives(settings, absent_server, serving):
    """Restarting the API would bring neither back."""
    away = msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:9/0", mongodb_url="mongodb://127.0.0.1:9")
    async with serving(away) as client:
        for path in FOUR:
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:streamq:problem:stores-away")
            assert answer.headers["retry-after"] == "2"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "unavailable")
        assert (await client.get("/livez")).text == "ok"


async def test_a_server_that_comes_back_is_used_again(
    settings, redis_server, hand_at, statuses, eventually, absent_server, serving
):
    """Without a restart, and within seconds."""
    hand = hand_at(redis_server.url)
    async with serving(msgspec.structs.replace(settings, redis_url=redis_server.url)) as client:
        await hand.enqueue("a")
        assert not (await client.get(FOUR[0])).json()["stale"]
        await asyncio.to_thread(redis_server.kill9)
        assert (await client.get(FOUR[0])).json()["stale"]
        await asyncio.to_thread(redis_server.restart)

        async def fresh():
            return not (await client.get(FOUR[0])).json()["stale"]

        await eventually(fresh)


async def test_a_history_that_is_switched_off_leaves_what_lives(settings, hand, serving):
    """`history = false` runs without MongoDB altogether."""
    await hand.enqueue("a", u="u1")
    async with serving(msgspec.structs.replace(settings, history=False)) as client:
        assert (await client.get(FOUR[0])).json()["waiting"] == 1
        assert (await client.get(FOUR[1])).json()["jobId"] == "a"


# Probes and metrics


async def test_probes_need_no_token_and_tell_nothing(client):
    """They are asked by machines that have none."""
    del client.headers["authorization"]
    assert (await client.get("/livez")).text == "ok"
    for path in ("/readyz", "/healthz"):
        assert (await client.get(path)).text == "ok"


async def test_metrics_are_what_prometheus_reads(client, hand, statuses, store):
    """Parsed by its own library."""
    from prometheus_client.parser import text_string_to_metric_families

    await store(statuses, ("a", hand.record()))
    await hand.enqueue("b")
    await hand.finish(("c", hand.record()))
    partition = hand.broker.partition(hand.keys.queue)
    await partition.learn(20, runs=["refresh|ada", 900])
    await partition.wire.close()
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    samples = {tuple(s.labels.values()): s.value for s in families["streamq_queue_jobs"].samples}
    assert samples[hand.keys.queue, "waiting"] == 1
    assert families["streamq_outbox_entries"].samples[0].value == 1
    assert families["streamq_redis_up"].samples[0].value == 1
    lanes = {tuple(s.labels.values()): s.value for s in families["streamq_lane_jobs"].samples}
    assert lanes[hand.keys.queue, "normal", "waiting"] == 1
    assert [families[name].samples[0].value for name in ("streamq_slow_keys", "streamq_slow_limit_seconds")] == [
        1,
        0.02,
    ]
    assert all(family.documentation for family in families.values())


# The process


def test_a_port_in_use_is_told_in_one_sentence():
    """Exit 69: it may be free later."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            Unavailable, match=rf"^the API cannot listen on 127\.0\.0\.1:{port}: the port is in use$"
        ) as caught:
            main(Settings(api_token="t", api_port=port))
    assert caught.value.exit_code == 69


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "not a host"])
def test_a_host_that_is_not_ours_is_told_in_one_sentence(host):
    """Exit 78: a person has to correct it."""
    with pytest.raises(ConfigurationError, match=r"^the API cannot listen on ") as caught:
        listen(host, 0)
    assert (caught.value.exit_code, "STREAMQ_API_HOST" in caught.value.hint) == (78, True)


def test_it_listens_on_ipv6_too():
    """Where there is one."""
    if not socket.has_ipv6:
        pytest.fail("this machine has no IPv6")
    try:
        listener = listen("::1", 0)
    except ConfigurationError:
        return  # compiled in, and switched off
    with listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_and_ends_with_0_when_it_is_told_to(
    redis_url, mongodb_url, mongo_database, queue_name, number, eventually_sync
):
    """A supervisor counts anything else as a failure."""
    port = free_port()
    code = (
        "import sys; from streamq import logs; from streamq.settings import Settings; from streamq.api import main;"
        "logs.configure(); "
        f"sys.exit(main(Settings(redis_url={redis_url!r}, mongodb_url={mongodb_url!r}, api_token='t', api_port={port}, "
        f"mongodb_database={mongo_database!r}, queues=({queue_name!r},))))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ)) as process:
        try:
            assert any(b"api.started" in line for line in process.stderr or ())
            request = urllib.request.Request(f"http://127.0.0.1:{port}{FOUR[0]}", headers={"authorization": "Bearer t"})
            with urllib.request.urlopen(request, timeout=50) as answer:  # noqa: S310
                assert answer.status == 200
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{FOUR[0]}", timeout=50)
            refused.value.close()
            process.send_signal(number)
            assert process.wait(50) == 0
        finally:
            process.kill()
