"""Orders over HTTP: enqueue, retry, cancel, the same to many jobs, workers, schedules; and the questions around them."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
import orjson
import pytest

from streamq import StreamQ
from streamq.broker.orders import Orders
from streamq.codec import decode_envelope
from streamq.errors import Conflict, JobNotFound
from streamq.mongo import StatusWrite
from streamq.schedules import book, definition_of
from streamq.worker import Worker

NOON = datetime(2099, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def app(settings):
    """Give an application with one handler and one schedule."""
    app = StreamQ(settings)

    @app.handler(queue=settings.queues[0], key="user_id", dedup="user_id", max_attempts=4)
    async def refresh(user_id: str, depth: int = 1, tags: list[str] | None = None) -> None:
        """Bring the data of a user up to date."""

    @app.cron("0 * * * *", handler=refresh)
    async def everybody(page):
        return ["ada", "grace", ""], None

    @app.handler(queue="elsewhere")
    def odd(anything: NoSuchType): ...  # noqa: F821

    return app


@pytest.fixture(autouse=True)
async def _nothing_lives_on(hand):
    """End what a test has enqueued, for a job that lives holds its dedup key."""
    yield
    orders = Orders(hand.wire, hand.keys)
    for job in [*await hand.inspection.newest(100), *await hand.inspection.delayed(limit=100)]:
        with contextlib.suppress(JobNotFound):
            await orders.cancel(job.job_id)


@pytest.fixture
async def api(settings, statuses, serving, app):
    """Give a client of the API that knows the application."""
    async with serving(settings, app) as client:
        yield client


async def letter(hand, job_id, *, at="*", user="u1", error="ValueError", fingerprint="f1", **envelope):
    """Put a dead letter where a worker would."""
    record = hand.record("dead", u=user, l="low", x={"t": error, "m": "no", "fp": fingerprint})
    body = orjson.dumps({"v": 1, "h": "refresh", "u": user, **envelope})
    return await hand.wire.call("XADD", hand.keys.dead, at, "j", job_id, "d", body, "r", orjson.dumps(record))


async def ended(api, answer, eventually):
    """Wait for an order to end, and return it."""
    assert answer.status_code == 202, answer.text
    where = answer.headers["location"]

    async def over():
        told = (await api.get(where)).json()
        return told if told["state"] != "running" else None

    return await eventually(over)


# Enqueue


async def test_a_job_is_enqueued_by_the_name_of_its_handler(api, hand):
    """As `enqueue` does it: key, dedup key and queue are as the handler says."""
    answer = await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u7"], "kwargs": {"depth": 2}})
    assert answer.status_code == 201
    job = answer.json()
    assert (job["handler"], job["queue"], job["status"]) == ("refresh", hand.keys.queue, "new")
    assert (await api.get(answer.headers["location"])).json()["user"] == "u7"
    (entry,) = await hand.inspection.newest(5)
    envelope = decode_envelope(entry.envelope)
    assert (envelope.args, envelope.kwargs, envelope.dedup) == (["u7"], {"depth": 2}, "refresh:u7")
    again = await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u7"]})
    assert again.json() == {**job, "status": "duplicate"}


async def test_what_is_said_of_a_job_counts(api, hand):
    """The options of `enqueue`."""
    body = {
        "handler": "refresh", "kwargs": {"user_id": "u1"}, "key": "k", "dedup": "d", "delay_s": 60, "priority": "low",
        "max_attempts": 2, "deadline_s": 3600,
    }  # fmt: skip
    await api.post("/v1/jobs", json=body)
    (job,) = await hand.inspection.delayed(limit=5)
    envelope = decode_envelope(job.envelope)
    assert (envelope.key, envelope.dedup, envelope.max_attempts, job.lane) == ("k", "d", 2, "low")
    assert 60_000 <= job.due_ms - job.enqueued_ms <= 60_001
    assert 3_500_000 < envelope.deadline_ms - job.enqueued_ms < 3_700_000
    assert (await api.get(f"/v1/jobs/{job.job_id}")).json()["max_attempts"] == 2
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    other = (await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u2"], "at": at})).json()
    assert (await api.get(f"/v1/jobs/{other['id']}")).json()["max_attempts"] is None, "its handler's number holds"
    assert len(await hand.inspection.delayed(limit=5)) == 2


async def test_an_idempotency_key_is_one_job_and_one_answer(api, hand):
    """Whatever happens to the answers, and even when the job has ended long before the repeat."""
    header = {"idempotency-key": "order-42"}
    body = {"handler": "refresh", "args": ["u7"]}
    answers = await asyncio.gather(*(api.post("/v1/jobs", json=body, headers=header) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["status"] == "new"
    assert (await hand.inspection.counts()).jobs == 1
    (entry,) = await hand.inspection.newest(5)
    await api.post(f"/v1/jobs/{entry.job_id}:cancel")
    assert (await hand.inspection.counts()).jobs == 0
    repeat = await api.post("/v1/jobs", json=body, headers=header)
    assert (repeat.status_code, repeat.text) == (201, answers[0].text)
    assert (await hand.inspection.counts()).jobs == 0
    audit = [each["action"] for each in (await api.get("/v1/audit")).json()["items"]]
    assert audit == ["job.cancel", "job.enqueue"]


async def test_an_idempotency_key_with_another_body_is_refused(api, hand):
    """Somebody has mixed up two orders; neither answer would be right."""
    header = {"idempotency-key": "order-42"}
    await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u7"]}, headers=header)
    answer = await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u8"]}, headers=header)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:streamq:problem:idempotency-key-reused")
    assert (await hand.inspection.counts()).jobs == 1


async def test_the_idempotency_keys_of_two_callers_are_two(api, hand, tokens):
    """Else one could find out what the other has ordered."""
    body, key = {"handler": "refresh", "args": ["u7"], "dedup": "a"}, {"idempotency-key": "1"}
    mine = await api.post("/v1/jobs", json=body, headers=key)
    issued = await tokens.issue("other", ["jobs:write"], by="x")
    other = await api.post("/v1/jobs", json=body, headers={**key, "authorization": f"Bearer {issued.text}"})
    assert (mine.json()["status"], other.json()["status"]) == ("new", "duplicate")


@pytest.mark.parametrize("key", [b"", b"a b", b"\xff", b"x" * 256, "schlüssel".encode()])
async def test_an_idempotency_key_that_is_none_is_refused(api, hand, key):
    """A key that is cut off or read otherwise somewhere would be another one."""
    answer = await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u"]}, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "Idempotency-Key")
    assert (await hand.inspection.counts()).jobs == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"handler": "nobody"}, "no handler is named 'nobody'; there are odd, refresh"),
        ({"handler": "odd", "args": [1]}, "its queue 'elsewhere' is none of this API's"),
        ({"handler": "refresh"}, "missing a required argument: 'user_id'"),
        ({"handler": "refresh", "args": ["u"], "kwargs": {"depht": 1}}, "unexpected keyword argument 'depht'"),
        ({"handler": "refresh", "args": ["u"], "delay_s": -1}, "Expected `float` >= 0"),
        ({"handler": "refresh", "args": ["u"], "delay_s": 1, "at": "2099-01-01T00:00:00Z"}, "delay= and at= both say when"),
        ({"handler": "refresh", "args": ["u"], "at": "2099-01-01T00:00:00"}, "timezone"),
        ({"handler": "refresh", "args": ["u"], "kwargs": {"tags": ["x" * 300_000]}}, "at most 262,144 are allowed"),
        ({"handler": "refresh", "args": ["u"], "max_attempts": 0}, "Expected `int` >= 1"),
        ({"handler": "refresh", "args": ["u"], "queue": "x"}, "unknown field `queue`"),
        ({}, "missing required field `handler`"),
    ],
)  # fmt: skip
async def test_a_job_that_cannot_be_is_refused_with_the_reason(api, hand, body, says):
    """And nothing is enqueued."""
    answer = await api.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert says in answer.json()["detail"]
    assert (await hand.inspection.counts()).jobs == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"handler":"refresh","args":["\\ud800"]}',
        b'{"handler":"refresh","args":[NaN]}', b'{"handler":"refresh","args":["u",%s]}' % (b"9" * 5_000),
        b'{"handler":"refresh","args":["u",1e999]}', b'{"handler":"refresh","args":["u",9223372036854775808000]}',
        b'{"handler":"refresh","args":["u"],"kwargs":{"tags":%s1%s}}' % (b"[" * 3_000, b"]" * 3_000),
    ],
)  # fmt: skip
async def test_bodies_that_break_naive_code_are_refused(api, hand, raw):
    """Each of them has brought down something somewhere."""
    answer = await api.post("/v1/jobs", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await hand.inspection.counts()).jobs == 0


async def test_a_queue_is_purged_of_what_has_not_started(api, hand, eventually):
    """Only by who says its name twice; what runs goes on."""
    queue = hand.keys.queue
    await hand.enqueue("runs", u="u1")
    await hand.take("w1")
    for name in ("a", "b"):
        await hand.enqueue(name, u="u1")
    await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u7"], "delay_s": 60})
    refused = await api.post(f"/v1/queues/{queue}:purge", json={"confirm": "another"})
    assert (refused.status_code, (await hand.inspection.counts()).jobs) == (422, 4)
    assert refused.json()["detail"] == f"confirm has to be the name of the queue, '{queue}', not 'another'"
    order = await api.post(f"/v1/queues/{queue}:purge", json={"confirm": queue, "reason": "a mistake"})
    told = await ended(api, order, eventually)
    assert (told["action"], told["state"], told["done"], told["total"]) == ("purge", "done", 3, 3)
    counts = await hand.inspection.counts()
    assert (counts.jobs, counts.in_flight) == (1, 1)
    (entry,) = (await api.get("/v1/audit", params={"limit": 1})).json()["items"]
    assert (entry["action"], entry["count"], entry["filter"]) == ("bulk.purge", 3, {"queue": queue})


# Many at once


async def test_many_jobs_are_enqueued_and_each_is_told(api, hand):
    """With all that may be said of one; what cannot be is refused, and holds up none of the others."""
    jobs = [
        {"handler": "refresh", "args": ["u1"], "delay_s": 60, "priority": "low"},
        {"handler": "refresh", "args": ["u1"]},
        {"handler": "nobody"},
        {"handler": "refresh", "args": ["u2"], "dedup": "other", "max_attempts": 2},
        {"handler": "refresh", "kwargs": {"depth": 1}},
        {"handler": "odd", "args": [1]},
    ]
    answer = await api.post("/v1/jobs:batch", json={"jobs": jobs})
    assert answer.status_code == 200
    told = answer.json()
    assert {name: told[name] for name in ("accepted", "refused", "unknown")} == {
        "accepted": 3, "refused": 3, "unknown": 0,
    }  # fmt: skip
    first, again, nobody, other, short, odd = told["items"]
    assert (first["status"], first["queue"], first["error"]) == ("new", hand.keys.queue, None)
    assert (again["status"], again["id"], other["status"]) == ("duplicate", first["id"], "new")
    assert "no handler is named 'nobody'" in nobody["error"]["detail"]
    assert (short["id"], short["error"]["status"]) == (None, 422)
    assert "missing a required argument: 'user_id'" in short["error"]["detail"]
    assert "none of this API's" in odd["error"]["detail"]
    (delayed,) = await hand.inspection.delayed(limit=5)
    assert (delayed.job_id, delayed.lane) == (first["id"], "low")
    (entry,) = (await api.get("/v1/audit")).json()["items"]
    assert (entry["action"], entry["count"]) == ("job.enqueue_many", 3)
    assert entry["after"] == {"handlers": {"refresh": 3}, "refused": 3, "unknown": 0}


async def test_many_jobs_with_an_idempotency_key_are_enqueued_once(api, hand):
    """Also when it takes several calls, and when they have ended meanwhile."""
    header = {"idempotency-key": "import-7"}
    body = {"jobs": [{"handler": "refresh", "args": [f"u{number}"]} for number in range(300)]}
    answers = await asyncio.gather(*(api.post("/v1/jobs:batch", json=body, headers=header) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert (await hand.inspection.counts()).jobs == 300
    told = answers[0].json()["items"]
    assert len({each["id"] for each in told}) == 300
    await api.post(f"/v1/jobs/{told[0]['id']}:cancel")
    repeat = await api.post("/v1/jobs:batch", json=body, headers=header)
    assert repeat.text == answers[0].text
    assert (await hand.inspection.counts()).jobs == 299
    audit = [each["action"] for each in (await api.get("/v1/audit")).json()["items"]]
    assert audit == ["job.cancel", "job.enqueue_many"]
    body["jobs"][0]["args"] = ["u9"]
    other = await api.post("/v1/jobs:batch", json=body, headers=header)
    assert (other.status_code, other.json()["type"]) == (422, "urn:streamq:problem:idempotency-key-reused")
    wire = hand.broker.wire()
    await wire.call("FLUSHDB")
    await wire.close()


async def test_a_queue_that_fills_up_takes_what_fits(settings, serving, statuses, app, hand):
    """In the order that was given, and a repeat with the key says the same."""
    app.settings = msgspec.structs.replace(settings, max_depth=3)
    body = {"jobs": [{"handler": "refresh", "args": [f"u{number}"]} for number in range(5)]}
    async with serving(app.settings, app) as client:
        answers = [await client.post("/v1/jobs:batch", json=body, headers={"idempotency-key": "a"}) for _ in range(2)]
    for answer in answers:
        told = answer.json()
        assert [each["status"] for each in told["items"]] == ["new"] * 3 + ["refused"] * 2
        assert told["items"][4]["error"]["type"] == "urn:streamq:problem:queue-full"
        assert told["items"][4]["error"]["status"] == 507
    assert "there was room for 3 of 5 jobs: queue" in answers[0].text
    assert "the queue was full when this was first asked" in answers[1].text
    assert (await hand.inspection.counts()).jobs == 3


@pytest.mark.parametrize("count", [0, 1_001])
async def test_no_jobs_and_too_many_jobs_are_refused(api, count):
    """The limit is in the document."""
    answer = await api.post("/v1/jobs:batch", json={"jobs": [{"handler": "refresh", "args": ["u"]}] * count})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:streamq:problem:bad-parameter")


async def test_jobs_of_the_ledger_are_written_down_first(api, hand, mongo):
    """One or many, beside others."""
    one = await api.post("/v1/jobs", json={"handler": "refresh", "args": ["u1"], "ledger": True})
    jobs = [{"handler": "refresh", "args": [f"u{number}"], "ledger": number == 3} for number in (2, 3)]
    many = (await api.post("/v1/jobs:batch", json={"jobs": jobs})).json()["items"]
    assert [each["status"] for each in many] == ["new", "new"]
    written = {each["_id"] async for each in mongo.collection("ledger").find()}
    assert written == {one.json()["id"], many[1]["id"]}


async def test_without_mongodb_a_job_of_the_ledger_is_not_enqueued_and_others_are(
    settings, serving, app, hand, absent_server
):
    """That it is written down first was promised."""
    app.settings = msgspec.structs.replace(settings, mongodb_url="mongodb://127.0.0.1:9")
    async with serving(app.settings, app) as client:
        ledger = {"handler": "refresh", "args": ["u1"], "ledger": True}
        answer = await client.post("/v1/jobs", json=ledger)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:streamq:problem:store-away")
        both = await client.post("/v1/jobs:batch", json={"jobs": [ledger, {"handler": "refresh", "args": ["u2"]}]})
    told = both.json()
    assert [each["status"] for each in told["items"]] == ["refused", "new"]
    assert (told["accepted"], told["refused"], told["items"][0]["error"]["status"]) == (1, 1, 503)
    assert (await hand.inspection.counts()).jobs == 1


async def test_a_full_queue_says_so(settings, serving, statuses, app, hand):
    """507, and when to try again: the caller has to slow down."""
    app.settings = msgspec.structs.replace(settings, max_depth=1)
    async with serving(app.settings, app) as client:
        assert (await client.post("/v1/jobs", json={"handler": "refresh", "args": ["a"]})).status_code == 201
        answer = await client.post("/v1/jobs", json={"handler": "refresh", "args": ["b"]})
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:streamq:problem:queue-full")
    assert answer.headers["retry-after"]


async def test_handlers_are_told_with_what_they_take(api):
    """A form can be made of it; an annotation that means nothing to JSON may be anything."""
    handlers = {each["name"]: each for each in (await api.get("/v1/handlers")).json()["items"]}
    refresh = handlers["refresh"]
    assert refresh["description"] == "Bring the data of a user up to date."
    assert (refresh["max_attempts"], refresh["timeout_s"], refresh["dedup"]) == (4, 900.0, ["user_id"])
    assert refresh["arguments"] == {
        "type": "object",
        "properties": {
            "user_id": {"type": "string"},
            "depth": {"type": "integer"},
            "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["user_id"],
        "additionalProperties": False,
    }
    assert handlers["odd"]["arguments"]["properties"] == {"anything": {}}


async def test_an_api_without_an_application_says_how_to_start_one(client):
    """It reads, and can enqueue nothing."""
    for request in (
        client.get("/v1/handlers"),
        client.get("/v1/schedules"),
        client.post("/v1/jobs", json={"handler": "x"}),
        client.post("/v1/schedules/x:run"),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:streamq:problem:application-unknown")


# One job


async def test_a_waiting_job_is_cancelled_and_a_running_one_is_asked_to_end(api, hand):
    """The answer says which of the two happened."""
    for job in ("run", "wait"):
        await hand.enqueue(job)
    await hand.take("w1")
    waiting = await api.post("/v1/jobs/wait:cancel", json={"reason": "typing error"})
    assert (waiting.status_code, waiting.json()) == (200, {"id": "wait", "became": "cancelled"})
    running = await api.post("/v1/jobs/run:cancel")
    assert (running.status_code, running.json()["became"]) == (202, "asked")
    unknown = await api.post("/v1/jobs/wait:cancel")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:streamq:problem:job-unknown")
    audit = (await api.get("/v1/audit")).json()["items"]
    assert [(each["target"], each["after"]["reason"]) for each in audit] == [("run", ""), ("wait", "typing error")]


async def test_a_dead_job_is_retried_under_its_id(api, hand):
    """With its first attempt, in the lane that it was in."""
    for number in range(3):
        await letter(hand, f"d{number}", args=[number])
    answer = await api.post("/v1/jobs/d1:retry")
    assert (answer.status_code, answer.json()) == (200, {"id": "d1", "became": "replayed"})
    (entry,) = await hand.inspection.newest(5)
    assert (entry.job_id, entry.lane) == ("d1", "low")
    assert (await hand.inspection.counts()).dead == 2
    again = await api.post("/v1/jobs/d1:retry")
    assert (again.status_code, again.json()["detail"]) == (404, "no such job is there")


async def test_a_dead_job_is_retried_with_other_arguments(api, hand):
    """The typing error was in the call."""
    await letter(hand, "d", args=["u1"], g="refresh:u1")
    answer = await api.post("/v1/jobs/d:retry", json={"args": ["u2"], "key": "u2", "reason": "wrong user"})
    assert answer.status_code == 200, answer.text
    (entry,) = await hand.inspection.newest(5)
    envelope = decode_envelope(entry.envelope)
    assert (envelope.args, envelope.key, envelope.dedup) == (["u2"], "u2", None)
    (told,) = (await api.get("/v1/audit")).json()["items"]
    assert told["after"] == {"reason": "wrong user", "changed": ["args", "key"]}


async def test_a_dead_job_whose_dedup_key_is_taken_is_not_retried(api, hand):
    """The other one does its work."""
    await letter(hand, "old", g="refresh:u1")
    await hand.enqueue("new", u="u1")
    await hand.wire.call("SET", hand.keys.dedup("refresh:u1"), "new", "PX", 60_000)
    answer = await api.post("/v1/jobs/old:retry")
    assert (answer.status_code, answer.json()["held_by"]) == (409, "new")
    await letter(hand, "new")
    alive = await api.post("/v1/jobs/new:retry")
    assert (alive.status_code, alive.json()["type"]) == (409, "urn:streamq:problem:job-moved")


async def test_what_is_kept_of_a_job_that_has_ended_is_deleted(api, hand, statuses, store):
    """Status and dead letter, also when only one of them is left; and it is written down who did it."""
    await store(statuses, ("done", hand.record()), ("dead", hand.record("dead")), ("half", hand.record("dead")))
    for name in ("dead", "stray"):
        await letter(hand, name, at="1-1" if name == "dead" else "1-2")
    for name in ("done", "dead", "half", "stray"):
        assert (await api.delete(f"/v1/jobs/{name}")).status_code == 204, name
        assert (await api.get(f"/v1/jobs/{name}")).status_code == 404
        repeat = await api.delete(f"/v1/jobs/{name}")
        assert (repeat.status_code, repeat.json()["type"]) == (404, "urn:streamq:problem:job-unknown")
    assert (await hand.inspection.counts()).dead == 0
    audit = [(each["action"], each["target"]) for each in (await api.get("/v1/audit")).json()["items"]]
    assert audit == [("job.delete", name) for name in ("stray", "half", "dead", "done")]


async def test_a_job_that_has_not_ended_is_not_deleted(api, hand):
    """It would run all the same."""
    await hand.enqueue("a")
    refused = await api.delete("/v1/jobs/a")
    assert (refused.status_code, refused.json()["detail"]) == (409, "the job has not ended; cancel it first")
    assert (await hand.inspection.counts()).jobs == 1


async def test_a_job_whose_end_is_on_its_way_to_mongodb_is_not_deleted_yet(api, hand, statuses):
    """The recorder would bring it back a moment later."""
    await letter(hand, "fresh")
    fields = {"queue": hand.keys.queue, "state": "running", "handler": "refresh", "user": "u", "enqueued_at": NOON}
    await statuses.write([StatusWrite("ending", 1, True, fields, [])])
    for name in ("fresh", "ending"):
        refused = await api.delete(f"/v1/jobs/{name}")
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:streamq:problem:job-moved")
        assert refused.headers["retry-after"] == "2"
    assert (await hand.inspection.counts()).dead == 1


async def test_a_job_of_the_ledger_that_is_deleted_does_not_come_back(api, hand, statuses, store, mongo):
    """Who is in there and has no status would be enqueued again."""
    await mongo.collection("ledger").insert_one({"_id": "done", "queue": hand.keys.queue})
    await store(statuses, ("done", hand.record()))
    assert (await api.delete("/v1/jobs/done")).status_code == 204
    assert await mongo.collection("ledger").count_documents({}) == 0


async def test_orders_to_a_job_are_heeded_only_as_it_was_seen(api, hand, statuses, store):
    """Nobody cancels a job that has begun meanwhile, or deletes one whose end they have not seen."""
    await hand.enqueue("a")
    seen = {"if-match": (await api.get("/v1/jobs/a")).headers["etag"]}
    await hand.take("w1")
    late = await api.post("/v1/jobs/a:cancel", headers=seen)
    assert (late.status_code, late.json()["type"]) == (412, "urn:streamq:problem:changed-meanwhile")
    now = {"if-match": (await api.get("/v1/jobs/a")).headers["etag"]}
    assert (await api.post("/v1/jobs/a:cancel", headers=now)).status_code == 202
    await store(statuses, ("dead", hand.record("dead")))
    await letter(hand, "dead")
    for method, path in (("DELETE", "/v1/jobs/dead"), ("POST", "/v1/jobs/dead:retry")):
        assert (await api.request(method, path, headers=seen)).status_code == 412
    now = {"if-match": (await api.get("/v1/jobs/dead")).headers["etag"]}
    assert (await api.post("/v1/jobs/dead:retry", headers=now)).status_code == 200
    assert (await api.delete("/v1/jobs/none", headers=seen)).status_code == 404


async def test_attempts_are_told_alone(client, hand, statuses, store):
    """A job with a large result need not be read for them."""
    await store(statuses, ("job", hand.record("retrying", x={"t": "E", "m": "no"})))
    await store(statuses, ("job", hand.record(n=2)))
    answer = (await client.get("/v1/jobs/job/attempts")).json()
    assert [(each["number"], each["state"]) for each in answer["items"]] == [(1, "retrying"), (2, "completed")]
    assert answer["items"][0]["error"]["type"] == "E"
    assert (await client.get("/v1/jobs/nobody/attempts")).status_code == 404


async def test_what_a_running_handler_tells_is_told(client, hand):
    """How far it is, and what it wrote, before any of it is in the history."""
    await hand.enqueue("job", u="u1")
    await hand.take("w1")
    notes = b'{"p":[0.5,"half"],"lg":[[1750000000000,"page 1"],[1750000001000,"page 2"]],"ln":7}'
    await hand.wire.call("SET", hand.keys.notes("job"), notes, "PX", 60_000)
    assert (await client.get("/v1/jobs/job")).json()["progress"] == {"fraction": 0.5, "note": "half"}
    log = (await client.get("/v1/jobs/job/log")).json()
    assert [each["line"] for each in log["items"]] == ["page 1", "page 2"]
    assert (log["lines"], log["items"][0]["at"]) == (7, "2025-06-15T15:06:40.000Z")
    assert (await client.get("/v1/jobs/nobody/log")).status_code == 404


async def test_waiting_for_a_job_ends_with_it(client, hand, statuses, store):
    """No polling, and no longer than the job takes."""
    await hand.enqueue("job", u="u1")
    waiting = asyncio.create_task(client.get("/v1/jobs/job", params={"wait": 30}))
    unchanged = (await client.get("/v1/jobs/job")).headers["etag"]
    assert not waiting.done()
    await hand.wire.call("HDEL", hand.keys.index, "job")
    await store(statuses, ("job", hand.record()))
    answer = await waiting
    assert (answer.json()["state"], answer.headers["cache-control"]) == ("completed", "private, max-age=60")
    assert answer.headers["etag"] != unchanged
    ended = await client.get("/v1/jobs/job", params={"wait": 30})
    assert ended.json()["state"] == "completed"


async def test_waiting_with_an_etag_ends_with_the_first_change(client, hand, statuses):
    """A page shows each step."""
    await hand.enqueue("job", u="u1")
    etag = (await client.get("/v1/jobs/job")).headers["etag"]
    header = {"if-none-match": f'"other", W/{etag}'}
    none = await client.get("/v1/jobs/job", params={"wait": 0}, headers=header)
    assert none.status_code == 304
    waiting = asyncio.create_task(client.get("/v1/jobs/job", params={"wait": 30}, headers=header))
    await hand.take("w1")
    assert (await waiting).json()["state"] == "running"
    assert (await client.get("/v1/jobs/job", params={"wait": 31})).status_code == 422


# Lists


@pytest.fixture
async def crowd(statuses, hand):
    """Store jobs of two handlers with three kinds of errors."""
    writes = []
    for number in range(24):
        kind = number % 3
        error = {"type": f"E{kind}", "message": f"no {number}", "traceback": "", "fingerprint": f"f{kind}"}
        at = NOON + timedelta(minutes=number)
        fields = {
            "queue": hand.keys.queue, "handler": "refresh" if number % 2 else "clean", "user": f"u{number % 4}",
            "attempt": 1, "state": "dead" if kind else "completed", "enqueued_at": at, "finished_at": at,
            **({"error": error} if kind else {}),
        }  # fmt: skip
        writes.append(StatusWrite(f"j{number:02}", number + 1, False, fields, []))
    await statuses.write(writes)


async def test_jobs_are_filtered_by_handler_and_by_type_of_error(client, crowd):
    """Alone and together."""

    async def ids(**params):
        return [int(job["id"][1:]) for job in (await client.get("/v1/jobs", params=params)).json()["items"]]

    numbers = range(23, -1, -1)
    assert await ids(handler="refresh") == [n for n in numbers if n % 2]
    assert await ids(error_type="E2") == [n for n in numbers if n % 3 == 2]
    assert await ids(handler="clean", error_type="E1") == [n for n in numbers if n % 3 == 1 and n % 2 == 0]
    assert await ids(handler="clean", state="dead", user="u2") == [
        n for n in numbers if n % 3 and n % 2 == 0 and n % 4 == 2
    ]
    assert await ids(handler="$ne") == await ids(error_type='{"$gt":""}') == []


async def test_filters_by_handler_and_error_are_served_by_an_index(statuses, mongo, crowd):
    """At any depth."""
    from streamq.history import Filter, History

    history = History(statuses)
    await mongo.database.command("profile", 2)
    for which in (Filter(handler="refresh"), Filter(error_type="E1"), Filter(error_type="E1", handler="clean")):
        page = await history.page(which, limit=3)
        await history.page(which, limit=3, after=page.after)
    await mongo.database.command("profile", 0)
    profiled = await mongo.collection("system.profile").find({"ns": {"$regex": "job_status$"}, "op": "query"}).to_list()
    assert len(profiled) == 6
    assert not [entry for entry in profiled if "COLLSCAN" in entry["planSummary"] or entry.get("hasSortStage")]


async def test_errors_are_grouped_by_where_they_happened(client, crowd, hand):
    """Twelve failures in 700,000 are one or two reasons."""
    answer = (await client.get("/v1/errors")).json()
    assert (answer["counted"], answer["is_complete"], answer["stale"]) == (16, True, False)
    groups = {(group["handler"], group["fingerprint"]): group for group in answer["items"]}
    group = groups["refresh", "f1"]
    mine = [n for n in range(24) if n % 3 == 1 and n % 2]
    assert (group["jobs"], group["type"], group["message"]) == (len(mine), "E1", f"no {mine[-1]}")
    assert (group["last_job"], group["users"]) == (f"j{mine[-1]:02}", len({n % 4 for n in mine}))
    assert group["first_at"] == "2099-01-01T12:01:00.000Z" and group["queue"] == hand.keys.queue
    few = (await client.get("/v1/errors", params={"handler": "clean", "error_type": "E2", "limit": 1})).json()
    assert [(each["handler"], each["type"]) for each in few["items"]] == [("clean", "E2")]
    late = (await client.get("/v1/errors", params={"since": "2099-01-01T12:20:00Z", "user": "u0"})).json()
    assert late["counted"] == len([n for n in range(20, 24) if n % 3 and n % 4 == 0])


async def test_without_mongodb_errors_are_those_that_redis_keeps(settings, serving, hand, absent_server):
    """The newest ones, and marked."""
    for number in range(3):
        await letter(hand, f"d{number}", fingerprint="a" if number else "b", user=f"u{number}")
    async with serving(msgspec.structs.replace(settings, mongodb_url="mongodb://127.0.0.1:9")) as client:
        answer = (await client.get("/v1/errors")).json()
        assert [(each["fingerprint"], each["jobs"], each["users"]) for each in answer["items"]] == [
            ("a", 2, 2), ("b", 1, 1),
        ]  # fmt: skip
        assert (answer["stale"], answer["counted"], answer["is_complete"]) == (True, 3, True)
        one = (await client.get("/v1/errors", params={"user": "u2", "queue": hand.keys.queue})).json()
        assert one["counted"] == 1
        assert (await client.get("/v1/stats/series")).status_code == 503


async def test_series_count_jobs_over_time(client, crowd, hand):
    """By when they were enqueued, and what has become of them."""
    span = {"since": "2099-01-01T12:00:00Z", "until": "2099-01-01T12:24:00Z"}
    answer = (await client.get("/v1/stats/series", params=span)).json()
    assert (answer["step_s"], len(answer["points"])) == (60, 24)
    assert answer["points"][1] == {"at": "2099-01-01T12:01:00.000Z", "jobs": {"dead": 1}}
    hours = (await client.get("/v1/stats/series", params={**span, "step": "hour", "queue": hand.keys.queue})).json()
    assert hours["points"] == [{"at": "2099-01-01T12:00:00.000Z", "jobs": {"completed": 8, "dead": 16}}]
    assert (await client.get("/v1/stats/series", params={**span, "queue": "nowhere"})).json()["points"] == []


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"step": "second"}, "step"), ({"since": "2099-01-01", "until": "2098-01-01"}, "since"),
        ({"since": "0001-01-01"}, "since"), ({"until": "0001-01-01"}, "until"), ({"user": "u1"}, "user"),
    ],
)  # fmt: skip
async def test_a_series_without_end_is_refused(client, params, parameter):
    """Counting takes time for each job in the span."""
    answer = await client.get("/v1/stats/series", params=params)
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, parameter)


# Many jobs


async def test_all_dead_jobs_that_a_filter_leaves_are_retried(api, hand, eventually):
    """The answer comes at once; how far it is stands under its address, for as long as people ask."""
    for number in range(7):
        await letter(hand, f"d{number}", error="Timeout" if number % 2 else "ValueError", user=f"u{number}")
    body = {"action": "retry", "filter": {"error_type": "Timeout", "queue": hand.keys.queue}}
    told = await ended(api, await api.post("/v1/bulk", json=body), eventually)
    assert (told["state"], told["total"], told["done"], told["refused"]) == ("done", 3, 3, 0)
    assert (told["action"], told["filter"], told["by"]) == ("retry", body["filter"], "bootstrap")
    assert {entry.job_id for entry in await hand.inspection.newest(9)} == {"d1", "d3", "d5"}
    assert (await hand.inspection.counts()).dead == 4

    async def audited():
        return [each for each in (await api.get("/v1/audit")).json()["items"] if each["action"] == "bulk.retry"]

    (entry,) = await eventually(audited)
    assert (entry["count"], entry["filter"], entry["after"]["state"]) == (3, body["filter"], "done")


async def test_jobs_of_one_error_are_deleted(api, hand, eventually):
    """By the fingerprint that the list of errors gives."""
    for number in range(4):
        await letter(hand, f"d{number}", fingerprint=f"f{number % 2}")
    body = {"action": "delete", "filter": {"fingerprint": "f1"}}
    told = await ended(api, await api.post("/v1/bulk", json=body), eventually)
    assert (told["done"], told["state"]) == (2, "done")
    assert sorted(each.job_id for each in await hand.inspection.dead(9)) == ["d0", "d2"]


async def test_all_live_jobs_that_a_filter_leaves_are_cancelled(api, hand, statuses, eventually, recording):
    """Those that end meanwhile are counted as refused."""
    for number in range(5):
        await hand.enqueue(f"j{number}", u=f"u{number % 2}")
    gone = StatusWrite(
        "gone", 1, False, {"queue": hand.keys.queue, "state": "queued", "user": "u1", "enqueued_at": NOON}, []
    )
    await statuses.write([gone])
    async with recording(hand, statuses):

        async def seen():
            jobs = (await api.get("/v1/jobs", params={"user": "u1"})).json()["items"]
            return len(jobs) == 3

        await eventually(seen)
        body = {"action": "cancel", "filter": {"user": "u1"}, "reason": "left"}
        told = await ended(api, await api.post("/v1/bulk", json=body), eventually)
    assert (told["state"], told["total"], told["done"], told["refused"]) == ("done", 3, 2, 1)
    assert (await hand.inspection.counts()).jobs == 3


async def test_an_order_to_many_jobs_can_be_slowed_and_stopped(api, hand, eventually):
    """What is done stays done."""
    for number in range(50):
        await letter(hand, f"d{number}")
    answer = await api.post("/v1/bulk", json={"action": "retry", "filter": {}, "per_s": 4})
    await eventually(lambda: hand.wire.call("XLEN", hand.keys.lanes[2]))
    stopped = await api.post(f"{answer.headers['location']}:stop")
    assert stopped.status_code == 202
    told = await ended(api, answer, eventually)
    assert (told["state"], told["total"]) == ("stopped", None)
    assert 1 <= told["done"] < 50
    assert (await hand.inspection.counts()).dead == 50 - told["done"]


async def test_an_order_whose_process_is_gone_is_lost(api, mongo):
    """It says so, rather than running for ever."""
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    stored = {
        "_id": "op", "action": "retry", "filter": {}, "state": "running", "total": 9, "done": 3, "refused": 0, "by": "x",
        "started_at": long_ago, "updated_at": long_ago, "finished_at": None, "error": None,
    }  # fmt: skip
    await mongo.collection("operations").insert_one(stored)
    assert (await api.get("/v1/bulk/op")).json()["state"] == "lost"
    for odd in ("nobody", "$ne", "a%00b", "%ED%A0%80"):
        answer = await api.get(f"/v1/bulk/{odd}")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:streamq:problem:operation-unknown")


async def test_only_so_many_orders_run_at_once(api, hand):
    """Each of them costs as much as many requests."""
    for number in range(5):
        await letter(hand, f"d{number}")
    body = {"action": "retry", "filter": {}, "per_s": 0.1}
    answers = [await api.post("/v1/bulk", json=body) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202] * 4 + [429]
    for answer in answers[:4]:
        await api.post(f"{answer.headers['location']}:stop")


@pytest.mark.parametrize(
    "body",
    [
        {"action": "explode", "filter": {}}, {"action": "retry"}, {"filter": {}}, {"action": "retry", "filter": {"x": 1}},
        {"action": "retry", "filter": {"queue": "nowhere"}}, {"action": "retry", "filter": {"error_type": "a", "fingerprint": "b"}}, {"action": "cancel", "filter": {"fingerprint": "f"}},
        {"action": "retry", "filter": {"user": {"$ne": None}}}, {"action": "retry", "filter": {}, "per_s": -1},
    ],
)  # fmt: skip
async def test_an_order_that_cannot_be_read_is_not_begun(api, hand, body):
    """Least of all one to all jobs."""
    await letter(hand, "d")
    assert (await api.post("/v1/bulk", json=body)).status_code == 422
    assert (await hand.inspection.counts()).dead == 1


# Blocks, workers and schedules


async def test_jobs_of_a_handler_or_a_user_are_blocked_and_let_go(client, hand):
    """The rest of the queue goes on."""
    path = f"/v1/queues/{hand.keys.queue}"
    blocked = await client.post(
        f"{path}:block", json={"kind": "handler", "name": "refresh", "reason": "bad SKU", "for_s": 60}
    )
    assert blocked.status_code == 200, blocked.text
    (block,) = blocked.json()["blocks"]
    assert (block["kind"], block["name"], block["reason"], block["by"]) == (
        "handler",
        "refresh",
        "bad SKU",
        "bootstrap",
    )
    assert block["until_ms"] > 10**12
    both = (await client.post(f"{path}:block", json={"kind": "key", "name": "u1"})).json()["blocks"]
    assert {(each["kind"], each["name"]) for each in both} == {("handler", "refresh"), ("key", "u1")}
    await client.post(f"{path}:unblock", json={"kind": "handler", "name": "refresh"})
    assert (await client.post(f"{path}:unblock", json={"kind": "key", "name": "u1"})).json()["blocks"] == []
    actions = [each["action"] for each in (await client.get("/v1/audit")).json()["items"]]
    assert actions == ["queue.unblock"] * 2 + ["queue.block"] * 2
    for body in ({}, {"kind": "job", "name": "b"}, {"kind": "handler", "name": ""}, {"kind": "key"}):
        assert (await client.post(f"{path}:block", json=body)).status_code == 422


async def test_a_worker_is_told_what_to_do(client, hand):
    """By its name, through the control stream."""
    await hand.enqueue("a")
    await hand.take("w1")
    for order in ("quiet", "resume", "stop"):
        answer = await client.post(f"/v1/workers/w1:{order}")
        assert (answer.status_code, answer.json()) == (202, {"id": "w1", "became": "told"})
    entries = await hand.wire.call("XRANGE", hand.keys.control, "-", "+")
    assert [fields[1::2] for _, fields in entries] == [[order, b"w1"] for order in (b"quiet", b"resume", b"stop")]
    unknown = await client.post("/v1/workers/w2:stop")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:streamq:problem:worker-unknown")
    actions = [each["action"] for each in (await client.get("/v1/audit")).json()["items"]]
    assert actions == ["worker.stop", "worker.resume", "worker.quiet"]


async def test_a_worker_tells_where_it_stands(client, settings, hand, eventually):
    """Which line a job hangs at, without a shell on its machine; and not what was told an hour ago."""
    app = StreamQ(msgspec.structs.replace(settings, beat_ms=100, history=False))
    release = asyncio.Event()

    @app.handler(queue=hand.keys.queue)
    async def hangs_here(user_id: str) -> None:
        await release.wait()

    worker = Worker(app, app.settings)
    ending = asyncio.create_task(worker.run())
    job = await hangs_here.enqueue("a-secret-argument")
    await eventually(lambda: worker.slots is not None and worker.slots.running, "it runs")
    (seen,) = (await client.get("/v1/workers")).json()["items"]
    where = f"/v1/workers/{seen['name']}/dump"
    missing = await client.get(where)
    assert (missing.status_code, missing.json()["type"]) == (404, "urn:streamq:problem:dump-unknown")
    told = await client.post(f"/v1/workers/{seen['name']}:dump")
    assert (told.status_code, told.headers["location"]) == (202, where)

    async def answered():
        answer = await client.get(where)
        return answer.json() if answer.status_code == 200 else None

    dump = await eventually(answered, "it answers")
    assert (dump["worker"], dump["running"]) == (seen["name"], 1)
    assert f"Stack of job {job.id} of hangs_here" in dump["stacks"]
    assert "await release.wait()" in dump["stacks"] and "thread" in dump["stacks"]
    assert "a-secret-argument" not in dump["stacks"]
    await client.post(f"/v1/workers/{seen['name']}:dump")
    release.set()
    worker.drain()
    assert await ending == 0
    await app.close()
    audit = [each["action"] for each in (await client.get("/v1/audit")).json()["items"]]
    assert audit == ["worker.dump", "worker.dump"]


async def test_schedules_are_listed_and_fired_by_hand(api, hand, eventually):
    """Once for each occurrence, however often it is asked."""
    (schedule,) = (await api.get("/v1/schedules")).json()["items"]
    assert (schedule["name"], schedule["expression"], schedule["handler"]) == ("everybody", "0 * * * *", "refresh")
    assert len(schedule["next_at"]) == 3
    for _ in range(2):
        told = await ended(api, await api.post("/v1/schedules/everybody:run"), eventually)
        assert (told["state"], told["total"], told["done"], told["refused"]) == ("done", 3, 2, 1)
        assert (await hand.inspection.counts()).jobs == 2
    assert (await api.post("/v1/schedules/nobody:run")).status_code == 404


async def test_a_schedule_is_paused_with_a_reason_and_resumed(api, hand):
    """Whoever wonders why nothing is refreshed reads why."""
    paused = await api.post("/v1/schedules/everybody:pause", json={"reason": "database moves"})
    assert paused.status_code == 200, paused.text
    assert (paused.json()["paused"]["reason"], paused.json()["paused"]["by"]) == ("database moves", "bootstrap")
    (listed,) = (await api.get("/v1/schedules")).json()["items"]
    assert listed == paused.json()
    for _ in range(2):
        assert (await api.post("/v1/schedules/everybody:resume")).json()["paused"] is None
    for body in ({}, {"reason": ""}, {"reason": "  "}):
        assert (await api.post("/v1/schedules/everybody:pause", json=body)).status_code == 422
    assert (await api.post("/v1/schedules/nobody:pause", json={"reason": "x"})).status_code == 404
    entries = (await api.get("/v1/audit")).json()["items"]
    assert [(each["action"], each["target"]) for each in entries] == [
        ("schedule.resume", "everybody"), ("schedule.pause", "everybody"),
    ]  # fmt: skip
    assert entries[0]["before"]["reason"] == "database moves"


async def test_a_stored_schedule_is_listed_and_fired_like_one_in_code(api, hand, settings, app, eventually):
    """Also one that cannot be used, with the reason."""
    async with book(app, settings) as pages:
        definition = {"expression": "0 5 * * *", "handler": "refresh", "users": {"ids": ["u1", "u2"]}}
        await pages.put("mornings", definition_of(definition))
    app.registry._specs.pop("odd")
    schedules = {each["name"]: each for each in (await api.get("/v1/schedules")).json()["items"]}
    assert (schedules["mornings"]["source"], schedules["everybody"]["source"]) == ("stored", "code")
    assert schedules["mornings"]["words"] and len(schedules["mornings"]["next_at"]) == 3
    told = await ended(api, await api.post("/v1/schedules/mornings:run"), eventually)
    assert (told["state"], told["done"]) == ("done", 2)
    app.registry._specs.pop("refresh")
    broken = {each["name"]: each for each in (await api.get("/v1/schedules")).json()["items"]}["mornings"]
    assert "refresh" in broken["error"] and broken["next_at"] == []


def nested(levels):
    """Make lists within lists."""
    return [nested(levels - 1)] if levels else []


STORED = {"expression": "0 2 * * *", "handler": "refresh", "users": {"ids": ["ada"]}}


async def test_a_schedule_is_stored_changed_and_removed_over_http(api, settings, app):
    """As `streamq schedule set` and `rm` do it, with before and after in the audit."""
    made = await api.put("/v1/schedules/nightly", json=STORED)
    assert made.status_code == 201, made.text
    assert (made.json()["source"], made.json()["expression"], made.json()["handler"]) == (
        "stored",
        "0 2 * * *",
        "refresh",
    )
    assert made.json()["definition"] == STORED
    shown = await api.get("/v1/schedules/nightly")
    assert (shown.json(), shown.headers["etag"]) == (made.json(), made.headers["etag"])
    changed = await api.put("/v1/schedules/nightly", json={**STORED, "expression": "every 15m"})
    assert (changed.status_code, changed.json()["expression"]) == (200, "every 15m")
    assert changed.headers["etag"] != made.headers["etag"]
    async with book(app, settings) as opened:
        assert (await opened.find("nightly")).schedule.timing.text == "every 15m"
    assert (await api.delete("/v1/schedules/nightly")).status_code == 204
    assert (await api.get("/v1/schedules/nightly")).status_code == 404
    assert (await api.delete("/v1/schedules/nightly")).status_code == 404
    audit = [(each["action"], each["before"], each["after"]) for each in (await api.get("/v1/audit")).json()["items"]]
    every = {**STORED, "expression": "every 15m"}
    assert audit == [
        ("schedule.delete", every, None), ("schedule.put", STORED, every), ("schedule.put", None, STORED),
    ]  # fmt: skip


async def test_a_schedule_is_changed_only_as_it_was_seen(api):
    """Two people at two pages: the second one is told, and overwrites nothing."""
    made = await api.put("/v1/schedules/nightly", json=STORED, headers={"if-none-match": "*"})
    seen = {"if-match": made.headers["etag"]}
    first = await api.put("/v1/schedules/nightly", json={**STORED, "misfire": "all"}, headers=seen)
    assert first.status_code == 200
    refused = [
        await api.put("/v1/schedules/nightly", json=STORED, headers=seen),
        await api.put("/v1/schedules/nightly", json=STORED, headers={"if-none-match": "*"}),
        await api.put("/v1/schedules/other", json=STORED, headers=seen),
        await api.post("/v1/schedules/nightly:pause", json={"reason": "x"}, headers=seen),
        await api.post("/v1/schedules/nightly:resume", headers=seen),
        await api.delete("/v1/schedules/nightly", headers=seen),
        await api.delete("/v1/schedules/nightly", headers={"if-match": f"W/{first.headers['etag']}"}),
    ]
    assert {(each.status_code, each.json()["type"]) for each in refused} == {
        (412, "urn:streamq:problem:changed-meanwhile")
    }
    assert (await api.get("/v1/schedules/nightly")).json()["misfire"] == "all"
    paused = await api.post(
        "/v1/schedules/nightly:pause", json={"reason": "x"}, headers={"if-match": first.headers["etag"]}
    )
    resumed = await api.post("/v1/schedules/nightly:resume", headers={"if-match": paused.headers["etag"]})
    assert (paused.status_code, resumed.status_code) == (200, 200)
    assert resumed.headers["etag"] == first.headers["etag"] != paused.headers["etag"]
    both = f'"other", {resumed.headers["etag"]}'
    assert (await api.delete("/v1/schedules/nightly", headers={"if-match": both})).status_code == 204


async def test_what_is_written_at_the_same_moment_is_not_lost(api, app, settings):
    """The database decides, not who looked last."""
    async with book(app, settings) as opened:
        definition = definition_of(STORED)
        await opened.put("nightly", definition)
        seen = (await opened.find("nightly")).seen
        await opened.put("nightly", definition, seen)
        nothing = (await opened.find("everybody")).seen
        assert nothing.is_nothing
        await opened.pause("everybody", reason="x", by="me", seen=nothing)
        late = [
            opened.put("nightly", definition, seen), opened.put("nightly", definition, nothing),
            opened.remove("nightly", seen), opened.pause("nightly", reason="x", by="me", seen=seen),
            opened.pause("everybody", reason="y", by="you", seen=nothing),
        ]  # fmt: skip
        for writing in late:
            with pytest.raises(Conflict, match=r"^schedule '\w+' was changed by somebody else meanwhile$"):
                await writing
        paused = (await opened.find("everybody")).seen
        await opened.resume("everybody")
        await opened.pause("everybody", reason="z", by="them")
        with pytest.raises(Conflict):
            await opened.resume("everybody", paused)
        assert (await opened.find("everybody")).pause.reason == "z"
        assert await opened.resume("everybody", (await opened.find("everybody")).seen)


@pytest.mark.parametrize(
    ("name", "change", "status", "says"),
    [
        ("everybody", {}, 409, "schedule 'everybody' is written in code: change it there, or pause it"),
        ("nightly", {"handler": "nobody"}, 422, "schedule 'nightly': no handler"),
        ("nightly", {"expression": "0 0 * * 7"}, 422, "schedule 'nightly'"),
        ("nightly", {"users": {}}, 422, "its users are one of pages, collection and ids"),
        ("nightly", {"people": 1}, 422, "unknown field `people`"),
        ("nightly", {"misfire": "never"}, 422, "misfire is skip, once or all, not 'never'"),
        ("nightly", {"start": "2026-01-01T00:00:00"}, 422, ""),
        ("nightly", {"grace_s": 1e18}, 422, "Expected `float` <= 316224000"),
        ("nightly", {"limit": 2**70}, 422, ""),
        ("nightly", {"users": {"ids": [2**63]}}, 422, ""),
        (
            "nightly",
            {"users": {"collection": "u", "query": {"a": 2**63}}},
            422,
            "schedule 'nightly' cannot be stored: ",
        ),
        (
            "nightly",
            {"users": {"collection": "u", "query": {"a": nested(300)}}},
            422,
            "schedule 'nightly' cannot be stored",
        ),
        ("nightly", {"users": {"collection": "u", "query": {"a\0": 1}}}, 422, "schedule 'nightly' cannot be stored: "),
        ("a b", {}, 422, "a name is 1 to 64 letters, digits, '_', '.' or '-'"),
        ("x" * 65, {}, 422, "a name is 1 to 64 letters"),
    ],
)
async def test_a_schedule_that_cannot_be_is_not_stored(api, name, change, status, says):
    """With the reason, and nothing changes."""
    answer = await api.put(f"/v1/schedules/{name}", json={**STORED, **change})
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert [each["name"] for each in (await api.get("/v1/schedules")).json()["items"]] == ["everybody"]
    assert (await api.delete("/v1/schedules/everybody")).status_code == 409


async def test_a_schedule_whose_page_function_fails_says_so(settings, serving, statuses, hand, eventually):
    """Whoever fired it reads why."""
    app = StreamQ(settings)

    @app.handler(queue=settings.queues[0])
    async def refresh(user_id): ...

    @app.cron("0 * * * *", handler=refresh)
    async def everybody(page):
        raise LookupError("no database")

    async with serving(settings, app) as client:
        told = await ended(client, await client.post("/v1/schedules/everybody:run"), eventually)
    assert told["state"] == "failed"
    assert "no database" in told["error"]


async def test_an_order_that_hangs_does_not_keep_the_process(settings, serving, statuses, hand, monkeypatch):
    """It is stopped, and what is left can be ordered again."""
    monkeypatch.setattr("streamq.api.running.CLOSE_WITHIN_S", 0.1)
    app, begun = StreamQ(settings), asyncio.Event()

    @app.handler(queue=settings.queues[0])
    async def refresh(user_id): ...

    @app.cron("0 * * * *", handler=refresh)
    async def everybody(page):
        begun.set()
        await asyncio.Event().wait()

    async with serving(settings, app) as client:
        assert (await client.post("/v1/schedules/everybody:run")).status_code == 202
        await begun.wait()
    # Else the end of the context would be waited for until this test is out of time.
