"""`replicas=`: a job is confirmed by so many replicas, or the caller is told that it is not."""

from __future__ import annotations

import asyncio

import pytest

from streamq import StreamQ
from streamq.broker import replicas as module
from streamq.embedded import RedisServer
from streamq.errors import NotConfirmed


@pytest.fixture(params=["as the server can", "by WAIT"])
async def app(request, redis_server, monkeypatch):
    """An application on a server of its own; in one of two runs the server is said to know no WAITAOF."""
    if request.param == "by WAIT":

        async def cannot(_self) -> bool:
            return False

        monkeypatch.setattr(module.Confirmations, "_can_wait_for_disk", cannot)
    monkeypatch.setattr(module, "_WAIT_MS", 300)
    made = StreamQ(redis_url=redis_server.url)

    @made.handler
    async def refresh(n: int) -> None: ...

    yield made
    await made.close()


@pytest.fixture
async def replica(tmp_path, redis_server, app, eventually):
    """A replica of that server, in step with it."""
    server = RedisServer(tmp_path / "replica", binary=redis_server._asked_binary)
    server.start()
    told = StreamQ(redis_url=server.url)
    wire = told.client.broker.wire()
    await wire.call("CONFIG", "SET", "masterauth", redis_server.password)
    await wire.call("REPLICAOF", "127.0.0.1", redis_server.port)

    async def follows() -> bool:
        return b"master_link_status:up" in await wire.call("INFO", "replication")

    await eventually(follows, "the replica follows")
    await wire.close()
    await told.close()
    yield server
    server.stop()


async def waits_for_disk(app) -> bool:
    """Whether the server knows WAITAOF and we have not said otherwise."""
    wire = app.client.broker.wire()
    try:
        known = (await wire.call("COMMAND", "INFO", "WAITAOF"))[0] is not None
    finally:
        await wire.close()
    return known and module.Confirmations._can_wait_for_disk.__name__ == "_can_wait_for_disk"


async def test_a_job_is_confirmed_by_a_replica(app, replica):
    """One by one, by many at once, and in a batch."""
    refresh = app.handler_named("refresh").options(replicas=1)
    assert (await refresh.enqueue(1)).is_new
    jobs = await asyncio.gather(*(refresh.enqueue(n) for n in range(20)))
    assert all(job.is_new for job in jobs)
    many = await refresh.enqueue_many(range(300))
    assert [job.error for job in many] == [None] * 300


async def test_without_enough_replicas_the_caller_is_told_and_the_job_is_there(app, monkeypatch):
    """It is enqueued all the same; only how safe it is differs."""
    monkeypatch.setattr(module, "_WAIT_FOR_DISK_MS", 300)
    refresh = app.handler_named("refresh").options(replicas=2)
    where = " on disk" if await waits_for_disk(app) else ""
    words = f"the job is enqueued, but 0 of 2 replicas have it{where} within 300 ms"
    with pytest.raises(NotConfirmed, match=words) as refusal:
        await refresh.enqueue(1)
    assert "look at the replicas" in refusal.value.hint
    (job,) = await refresh.enqueue_many([2])
    assert job.is_new
    assert str(job.error) == words


async def test_a_server_that_has_forgotten_the_call_confirms_nothing(app, replica):
    """After a failover to a replica that lacks the job, that server would say yes for itself."""
    refresh = app.handler_named("refresh").options(replicas=1)
    await refresh.enqueue(1)
    producer = app.client.producer("default")
    wire = app.client.broker.wire()
    await wire.call("FLUSHALL")
    await wire.close()
    with pytest.raises(NotConfirmed, match="accepted, but Redis does not know of it any more") as refusal:
        await producer._confirmations.wait(1, producer._accepted + 1)
    assert refusal.value.hint == "enqueue it again with the same id"


async def test_a_server_that_may_not_be_asked_for_its_commands_is_taken_to_know_no_waitaof(redis_server):
    """An ACL may forbid COMMAND; replicas are asked in the older way."""
    app = StreamQ(redis_url=redis_server.url)
    admin = app.client.broker.wire()
    await admin.call("ACL", "SETUSER", "shop", "on", ">word", "~*", "+@all", "-command")
    shop = StreamQ(redis_url=redis_server.url.replace(f":{redis_server.password}@", "shop:word@"))

    @shop.handler
    async def refresh(n: int) -> None: ...

    with pytest.raises(NotConfirmed, match="0 of 1 replicas have it within 1000 ms"):
        await refresh.options(replicas=1).enqueue(1)
    await admin.close()
    await shop.close()
    await app.close()
