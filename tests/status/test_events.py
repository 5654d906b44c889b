"""Server-sent events: what happens, as it happens, and what was missed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import orjson
import pytest

from streamq.broker.outbox import Feed
from streamq.errors import BrokerUnavailable, HistoryUnavailable

TOKEN = {"authorization": "Bearer token-of-the-tests"}


class Ear:
    """Listens to the events of an API."""

    def __init__(self, response):
        self.lines = response.aiter_lines()
        self.headers = response.headers

    async def next(self, *wanted):
        """Return name, data and id of the next event of these names."""
        event = {}
        async for line in self.lines:
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                event[name] = value
            elif event:
                if event.get("event") in wanted:
                    return event["event"], orjson.loads(event["data"]), event.get("id", "")
                event = {}
        return None


@pytest.fixture
def hearing(listening, settings, statuses):
    """Give a context in which somebody listens to the API, and may come back."""

    @contextlib.asynccontextmanager
    async def hearing(**changes):
        async with listening(settings, **changes) as (app, address), httpx.AsyncClient(base_url=address) as client:

            @contextlib.asynccontextmanager
            async def ear(headers=TOKEN, last="", path="/v1/events"):
                extra = {"last-event-id": last} if last else {}
                async with client.stream("GET", path, headers={**headers, **extra}, timeout=50) as response:
                    assert response.status_code == 200, await response.aread()
                    yield Ear(response)

            ear.app, ear.client = app, client
            yield ear

    return hearing


async def test_what_becomes_of_jobs_is_told_as_it_happens(hearing, hand):
    """A batch for each entry of the outbox."""
    async with hearing() as ear, ear() as listener:
        assert listener.headers["content-type"].startswith("text/event-stream")
        assert (listener.headers["cache-control"], listener.headers["x-accel-buffering"]) == ("no-store", "no")
        await hand.finish(("a", hand.record()), ("b", hand.record("dead", u="u2", n=3)), ("odd", b"junk"))
        name, data, event_id = await listener.next("jobs")
    assert (name, data["queue"]) == ("jobs", hand.keys.queue)
    assert data["items"] == [
        {"id": "a", "state": "completed", "handler": "refresh", "user": "u1", "attempt": 1},
        {"id": "b", "state": "dead", "handler": "refresh", "user": "u2", "attempt": 3},
    ]
    assert event_id


async def test_what_queues_hold_is_told_when_it_changes(hearing, hand):
    """A page need not ask every second."""
    async with hearing() as ear, ear() as listener:
        await hand.enqueue("a")

        async def waiting():
            while True:
                _, data, _ = await listener.next("queues")
                if data["items"][0]["waiting"]:
                    return data["items"][0]

        assert (await waiting())["name"] == hand.keys.queue


async def test_who_comes_back_hears_what_was_missed(hearing, hand):
    """Once each, in order, also if the recorder has deleted it from the outbox."""
    async with hearing() as ear:
        async with ear() as listener:
            await hand.finish(("a", hand.record()))
            _, _, last = await listener.next("jobs")
        entries = [await hand.finish((job, hand.record())) for job in ("b", "c")]
        async with ear() as other:  # has heard both when it hears the next one
            await hand.finish(("d", hand.record()))
            while (await other.next("jobs"))[1]["items"][0]["id"] != "d":
                pass
        await hand.wire.call("XDEL", hand.keys.outbox, *entries)
        async with ear(last=last) as listener:
            heard = [(await listener.next("jobs", "resync"))[1]["items"][0]["id"] for _ in range(3)]
    assert heard == ["b", "c", "d"]


@pytest.mark.parametrize("last", ["x", "é".encode(), "e30", "eyJxIjoiMC0wIn0", "W10", "eyJxIjoieCJ9"])
async def test_who_was_away_for_too_long_is_told_to_ask_anew(hearing, hand, last):
    """Also with an id that is none."""
    async with hearing() as ear, ear(last=last) as listener:
        assert await listener.next("jobs", "resync") == ("resync", {}, "")
        await hand.finish(("a", hand.record()))
        assert (await listener.next("jobs"))[1]["items"][0]["id"] == "a"


async def test_events_older_than_what_is_kept_cannot_be_brought(hearing, hand, monkeypatch):
    """The page asks anew, and misses nothing."""
    monkeypatch.setattr("streamq.api.events.KEPT", 2)
    async with hearing() as ear:
        async with ear() as listener:
            await hand.finish(("a", hand.record()))
            _, _, last = await listener.next("jobs")
            for job in ("b", "c", "d"):
                await hand.finish((job, hand.record()))
                await listener.next("jobs")
        async with ear(last=last) as listener:
            assert (await listener.next("jobs", "resync"))[0] == "resync"


async def test_a_user_hears_of_their_own_jobs_only(hearing, hand, tokens):
    """Not even that there are others."""
    issued = await tokens.issue("u2", ["user:u2"], by="x")
    async with hearing() as ear, ear({"authorization": f"Bearer {issued.text}"}) as listener:
        await hand.finish(("theirs", hand.record()))
        await hand.finish(("a", hand.record()), ("mine", hand.record(u="u2")))
        name, data, _ = await listener.next("jobs", "queues", "resync")
    assert name == "jobs"
    assert [item["id"] for item in data["items"]] == ["mine"]


async def test_a_listener_that_is_too_slow_is_sent_away(hearing, hand, monkeypatch):
    """What waits for it must not fill the memory; it comes back and is told to ask anew."""
    monkeypatch.setattr("streamq.api.events.MOST_WAITING", 2)
    async with hearing() as ear:
        listener = await ear.app.state.hub.join("")
        for number in range(4):
            ear.app.state.hub._send(f"queues{number}")
        assert listener.waiting.get_nowait() is None


async def test_only_so_many_may_listen(hearing, monkeypatch):
    """Each holds a connection."""
    monkeypatch.setattr("streamq.api.events.MOST_LISTENERS", 1)
    async with hearing() as ear, ear():
        refused = await ear.client.get("/v1/events", headers=TOKEN)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:streamq:problem:too-many")


async def test_a_stream_ends_so_that_the_token_is_looked_at_again(hearing, monkeypatch):
    """Whose token was revoked does not hear on for days."""
    monkeypatch.setattr("streamq.api.events.LONGEST_S", 0.05)
    async with hearing() as ear, ear() as listener:
        assert await listener.next("nothing") is None


async def test_without_redis_nobody_can_listen(settings, statuses, serving):
    """503, at once and not after a time-out."""
    import msgspec

    async with serving(msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:9/0")) as client:
        answer = await client.get("/v1/events")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:streamq:problem:store-away")


async def test_a_process_that_ends_does_not_wait_for_its_listeners(hearing, hand):
    """They come back to the next one."""
    async with asyncio.timeout(40), hearing() as ear:
        listening = ear()
        await listening.__aenter__()
    with contextlib.suppress(httpx.HTTPError):
        await listening.__aexit__(None, None, None)


async def test_entries_that_were_deleted_unread_are_noticed(hand):
    """Then nobody can say what was missed."""
    feed = Feed(hand.broker.wire, {"q": hand.keys})
    await hand.finish(("before", hand.record()))
    await feed.start()
    assert await feed.read(limit=9, block_ms=1) == []
    assert not await feed.has_gap()
    lost = await hand.finish(("lost", hand.record()))
    await hand.wire.call("XDEL", hand.keys.outbox, lost)
    assert await feed.has_gap()
    assert not await feed.has_gap()
    await hand.finish(("a", hand.record()))
    assert not await feed.has_gap(), "it is still there to be read"
    ((name, entry),) = await feed.read(limit=9, block_ms=1)
    assert (name, entry.records[0][0]) == ("q", "a")
    assert not await feed.has_gap()
    await feed.close()


# One job


async def end(hand, statuses, store, job_id, **record):
    """End a job as its worker and the recorder would."""
    token = await hand.wire.call("HGET", hand.keys.index, job_id)
    await hand.wire.call("XDEL", hand.keys.lanes[1], token[1:])
    await hand.wire.call("HDEL", hand.keys.index, job_id)
    await store(statuses, (job_id, hand.record(**record)))


async def test_a_job_is_followed_to_its_end(hearing, hand, statuses, store):
    """Each event is the whole job, and a browser that comes back after the end stays away."""
    async with hearing() as ear:
        await hand.enqueue("a", u="u1")
        async with ear(path="/v1/jobs/a/events") as listener:
            assert listener.headers["content-type"].startswith("text/event-stream")
            _, queued, _ = await listener.next("job")
            await hand.take("w1")
            _, running, _ = await listener.next("job")
            await end(hand, statuses, store, "a", r={"n": 1})
            _, ended, last = await listener.next("job")
            assert await listener.next("job", "gone") is None, "the stream ends with the job"
        assert [each["state"] for each in (queued, running, ended)] == ["queued", "running", "completed"]
        assert (running["worker"], ended["result"]) == ("w1", {"n": 1})
        whole = await ear.client.get("/v1/jobs/a", headers=TOKEN)
        assert (ended, f'"{last}"') == (whole.json(), whole.headers["etag"])
        again = await ear.client.get("/v1/jobs/a/events", headers={**TOKEN, "last-event-id": last})
        assert (again.status_code, again.content) == (204, b"")


async def test_who_comes_back_to_a_job_hears_only_what_is_new(hearing, hand, statuses):
    """At any process: the id of an event says what the job was like."""
    await hand.enqueue("a", u="u1")
    async with hearing() as ear, ear(path="/v1/jobs/a/events") as listener:
        _, _, last = await listener.next("job")
    async with hearing() as ear, ear(path="/v1/jobs/a/events", last=last) as listener:
        await hand.take("w1")
        assert (await listener.next("job"))[1]["state"] == "running"


async def test_a_job_that_is_deleted_meanwhile_is_gone(hearing, hand, statuses, monkeypatch):
    """Nobody waits for it for ever."""
    monkeypatch.setattr("streamq.api.following.GONE_AFTER_S", 0.5)
    async with hearing() as ear:
        await hand.enqueue("a", u="u1")
        async with ear(path="/v1/jobs/a/events") as listener:
            await listener.next("job")
            await hand.wire.call("DEL", hand.keys.index, *hand.keys.lanes)
            assert await listener.next("job", "gone") == ("gone", {}, "")
            assert await listener.next("job", "gone") is None


async def test_a_user_follows_their_own_jobs_and_nobody_one_that_is_not_there(hearing, hand, tokens, statuses):
    """404 in both cases."""
    issued = await tokens.issue("u2", ["user:u2"], by="x")
    header = {"authorization": f"Bearer {issued.text}"}
    await hand.enqueue("mine", u="u2")
    await hand.enqueue("theirs", u="u1")
    async with hearing() as ear:
        for job in ("theirs", "none"):
            assert (await ear.client.get(f"/v1/jobs/{job}/events", headers=header)).status_code == 404
        async with ear(header, path="/v1/jobs/mine/events") as listener:
            assert (await listener.next("job"))[1]["user"] == "u2"


async def test_only_so_many_may_follow_jobs(hearing, hand, statuses, monkeypatch, eventually):
    """Each asks both servers twice a second; who leaves makes room."""
    monkeypatch.setattr("streamq.api.following.MOST_FOLLOWERS", 1)
    await hand.enqueue("a", u="u1")
    async with hearing() as ear:
        async with ear(path="/v1/jobs/a/events") as listener:
            await listener.next("job")
            refused = await ear.client.get("/v1/jobs/a/events", headers=TOKEN)
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:streamq:problem:too-many")
            assert refused.json()["detail"] == "1 follow a job already"
        await eventually(lambda: ear.app.state.followers.count == 0, "the place is free")


async def test_following_goes_on_while_a_server_is_away(hearing, hand, statuses, monkeypatch):
    """What was told stays true, and what comes next is told once it is back."""
    monkeypatch.setattr("streamq.api.following.GONE_AFTER_S", 0.1)
    await hand.enqueue("a", u="u1")
    async with hearing() as ear, ear(path="/v1/jobs/a/events") as listener:
        await listener.next("job")
        redis, mongodb = ear.app.state.stores.redis, ear.app.state.stores.mongodb
        redis._error, mongodb._error = BrokerUnavailable("away"), HistoryUnavailable("away")
        await hand.take("w1")
        while (told := (await listener.next("job", "gone"))[1])["stale"]:
            pass
        assert told["state"] == "running"
