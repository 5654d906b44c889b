"""Whatever stands in a parameter, a path or a body, and whichever server is away: a right answer, and never a 500."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import msgspec
import pytest

from streamq import StreamQ
from streamq.api.application import OPERATIONS
from streamq.mongo import StatusWrite

CORPUS = [
    '{"$ne":null}', '{"$gt":""}', "[$ne]=", "$where", "this.a==1", "(a+)+$", "a" * 5_000, "-1", "0", "abc", "1e9", "9" * 400,
    "NaN", "Infinity", "null", "true", "\x00", "a\x00b", "\ud800", "\U0010ffff", "é", "%00", "%ED%A0%80", "../../etc/passwd",
    "<script>alert(1)</script>", "'; DROP TABLE x; --", "a\r\nx-evil: 1", "[" * 500, "🦆", " ", "+", ",", ",,,", "\\", "٣",
]  # fmt: skip

CALLS = [operation for operation in OPERATIONS if operation.name not in ("stream_events", "log_in")]


@pytest.fixture
def app(settings):
    """Give an application, so that all operations do something."""
    app = StreamQ(settings)

    @app.handler(queue=settings.queues[0])
    async def refresh(user_id: str) -> None: ...

    return app


@pytest.fixture
async def api(settings, statuses, serving, app, hand):
    """Give a client of the API that knows the application; one job is stored, which nothing of the corpus may find."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    fields = {"queue": hand.keys.queue, "handler": "refresh", "user": "u1", "state": "dead", "enqueued_at": at,
              "finished_at": at, "error": {"type": "E", "message": "", "traceback": "", "fingerprint": "f"}}  # fmt: skip
    await statuses.write([StatusWrite("j1", 1, False, fields, [])])
    async with serving(settings, app) as client:
        yield client


def escaped(text):
    """Percent-encode, also what has no UTF-8 form."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def filled(path, value):
    return re.sub(r"{\w+(:\w+)?}", lambda _: escaped(value), path)


def good(answer, what):
    """Check what is true of every answer."""
    assert answer.status_code != 500 and (answer.status_code < 500 or answer.status_code in (503, 507)), what
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", what
        assert answer.json()["status"] == answer.status_code, what


@pytest.mark.parametrize("operation", [each for each in CALLS if each.parameters], ids=lambda each: each.name)
async def test_no_parameter_means_anything_but_its_text(api, operation):
    """An operator of MongoDB finds nothing, a number out of bounds is refused, and a cursor is one that was given out."""
    for parameter in operation.parameters:
        for value in CORPUS:
            url = f"{filled(operation.path, 'nobody')}?{parameter.name}={escaped(value)}"
            answer = await api.request(operation.method, url)
            good(answer, f"{url!r}: {answer.text[:200]}")
            if (
                parameter.name in ("user", "handler", "queue", "error_type")
                and answer.status_code == 200
                and value.strip(", ")
            ):
                told = answer.json()
                assert not (told.get("items") or told.get("points")), url


@pytest.mark.parametrize("operation", [each for each in CALLS if "{" in each.path], ids=lambda each: each.name)
async def test_no_id_in_a_path_means_anything_but_its_text(api, operation):
    """Ids are looked up as they are; none of these is there."""
    for value in CORPUS:
        answer = await api.request(operation.method, filled(operation.path, value))
        good(answer, f"{operation.path} {value!r}: {answer.text[:200]}")
        assert answer.status_code in (404, 405, 422), f"{operation.path} {value!r}: {answer.status_code}"


BODIES = [
    b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{}" * 2, b'{"a":' * 50_000, b'{"\\u0000":1}',
    b'{"$where":"1"}', b'{"a":%s}' % (b"9" * 5_000), b'{"a":NaN}', b'{"a":1e400}', b'{"a":"\\ud800"}', b'{"__proto__":{}}',
]  # fmt: skip


@pytest.mark.parametrize("operation", [each for each in CALLS if each.body is not None], ids=lambda each: each.name)
async def test_no_body_breaks_anything(api, hand, operation):
    """Each of these has brought down something somewhere."""
    path = filled(operation.path, hand.keys.queue)
    for content in BODIES:
        answer = await api.request(operation.method, path, content=content)
        good(answer, f"{path} {content[:30]!r}: {answer.text[:200]}")
        assert answer.status_code in (200, 404, 422), f"{path} {content[:30]!r}: {answer.status_code}"
    for name in msgspec.structs.fields(operation.body):
        for value in ({"$ne": None}, [], -1, 2**70, "x" * 2_000, None, 1.5, "\x00", {"a": {"b": [1]}}):
            content = msgspec.json.encode({name.encode_name: value})
            answer = await api.request(operation.method, path, content=content)
            good(answer, f"{path} {content[:60]!r}: {answer.text[:200]}")


async def test_a_body_that_is_not_json_is_refused_by_its_type(api, hand):
    """What a form of another site can send is none of these."""
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"):
        answer = await api.post(f"/v1/queues/{hand.keys.queue}:pause", content=b"{}", headers={"content-type": media})
        assert (answer.status_code, answer.json()["title"]) == (415, "Unsupported Media Type")
    assert (await hand.inspection.counts()).pause is None


async def test_a_result_that_looks_like_an_operator_is_a_result(client, hand, statuses, store):
    """Also names that mean something to MongoDB or to BSON."""
    result = {"$gt": 1, "$where": "1", "a.b": {"$ref": "x", "$id": 1}, "": None, "$oid": "0" * 24}
    await store(statuses, ("job", hand.record(r=result)))
    assert (await client.get("/v1/jobs/job")).json()["result"] == result


AWAY = {
    "Redis": {"redis_url": "redis://127.0.0.1:9/0"},
    "MongoDB": {"mongodb_url": "mongodb://127.0.0.1:9"},
    "both": {"redis_url": "redis://127.0.0.1:9/0", "mongodb_url": "mongodb://127.0.0.1:9"},
}


@pytest.mark.parametrize("who", AWAY)
async def test_with_a_server_away_every_operation_answers_and_none_with_500(
    settings, statuses, serving, hand, absent_server, app, who
):
    """503 and when to try again, or what the other server knows."""
    away = msgspec.structs.replace(settings, **AWAY[who])
    app.settings = away
    bodies = {"enqueue": {"handler": "refresh", "args": ["u"]}, "begin_bulk": {"action": "retry", "filter": {}}}
    bodies["enqueue_many"] = {"jobs": [bodies["enqueue"]]}
    bodies |= {name: {"kind": "key", "name": "u"} for name in ("block_jobs", "unblock_jobs")}
    bodies["purge_queue"] = {"confirm": hand.keys.queue}
    bodies["put_schedule"] = {"expression": "0 2 * * *", "handler": "refresh", "users": {"ids": ["u"]}}
    bodies |= {"pause_schedule": {"reason": "x"}, "make_token": {"name": "x", "scopes": ["admin"]}}
    async with serving(away, app) as client:
        unavailable = set()
        for operation in CALLS:
            body = bodies.get(operation.name)
            path = filled(operation.path, hand.keys.queue)
            answer = await client.request(operation.method, path, json=body)
            if operation.media != "text/plain":
                good(answer, f"{operation.name}: {answer.text[:200]}")
            if answer.status_code == 503:
                unavailable.add(operation.name)
        assert (await client.get("/v1/schedules")).json()["stale"] is (who != "Redis")
        assert (await client.get("/livez")).status_code == 200
    expected = {
        "Redis": {
            "block_jobs", "cancel_job", "delete_job", "delete_schedule", "dump_worker", "enqueue", "enqueue_many", "follow_job", "list_attempts", "list_queues", "list_workers", "pause_queue", "quiet_worker", "resume_queue", "resume_worker", "retry_job", "show_dump", "show_gates", "show_job", "show_log", "show_queue", "status_of_user", "stop_worker", "unblock_jobs",
        },
        "MongoDB": {
            "list_jobs", "show_series", "begin_bulk", "purge_queue", "show_bulk", "stop_bulk", "list_audit", "list_tokens", "make_token", "rotate_token", "revoke_token", "show_job", "list_attempts", "show_log", "delete_job", "follow_job",
            "status_of_user", "show_schedule", "put_schedule", "delete_schedule", "run_schedule", "pause_schedule", "resume_schedule",
        },
    }  # fmt: skip
    both = (
        expected["Redis"]
        | expected["MongoDB"]
        | {"list_errors", "recent", "failed", "queue_stats", "readyz", "healthz"}
    )
    assert unavailable == {**expected, "both": both}[who]


@pytest.mark.parametrize(
    "header",
    [b"Bearer \xff\xfe", "Bearer ключ".encode(), b"Bearer " + b"x" * 8_000, b"Bearer sq_\xc3\xa9_x", b"\x80"],
)
async def test_a_token_of_odd_bytes_is_a_401(settings, statuses, listening, header):
    """Over a real connection, where nobody has tidied it up."""
    async with listening(settings) as (_, address), httpx.AsyncClient(base_url=address) as client:
        answer = await client.get("/v1/session", headers={"authorization": header})
        assert answer.status_code in (400, 401)
        assert (await client.get("/livez")).status_code == 200
