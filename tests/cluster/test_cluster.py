"""A queue whose partitions lie on several masters of a cluster: nothing is lost there, and nothing runs twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from pymongo import AsyncMongoClient

from streamq import RetryPolicy, StreamQ, current_job
from streamq.broker.nodes import Nodes
from streamq.broker.outbox import Feed
from streamq.broker.server import Broker
from streamq.errors import BrokerUnavailable, ConfigurationError
from streamq.keys import Keys, partition_for, partition_names
from streamq.leases import guardian
from streamq.recorder import run as record
from streamq.schedules.firing import fire_now
from streamq.worker import Worker, service
from tests.cluster.conftest import PARTITIONS

ACL = Path(__file__).parents[2] / "docs/deploy/redis.acl"
KEPT = timedelta(seconds=60)
NAMES = partition_names("default", PARTITIONS)
AT_ONCE = RetryPolicy(base=timedelta(milliseconds=1))


def counting(app, runs, *, seconds=0.0):
    """Make a handler that notes whom it ran for."""

    @app.handler(key="user", retry=AT_ONCE)
    async def refresh(user: str) -> str:
        runs[user] += 1
        await asyncio.sleep(seconds)
        return user

    return refresh


async def test_a_queue_over_three_masters_runs_retries_and_deduplicates(app, work, cluster):
    """As on one server."""
    assert {cluster.owner(name) for name in NAMES} == {0, 1, 2}

    @app.handler(key="user", dedup="user", retry=AT_ONCE)
    async def flaky(user: str) -> str:
        if current_job().attempt < 2:
            raise RuntimeError("not yet")
        return user

    users = [f"u{number}" for number in range(40)]
    jobs = [await flaky.options(keep_result=KEPT).enqueue(user) for user in users]
    again = await flaky.enqueue_many(users)
    assert [(job.id, job.status) for job in again] == [(job.id, "duplicate") for job in jobs]
    assert {cluster.owner(job.queue) for job in jobs} == {0, 1, 2}
    await work()
    assert await asyncio.gather(*(job.result() for job in jobs)) == users
    assert (await flaky.enqueue("u1")).is_new
    counts = await app.operator.counts()
    assert sum(each.jobs for each in counts.values()) <= 1


@pytest.mark.parametrize("places", [(0,), (1,), (2, 0)])
async def test_any_node_leads_to_all_others(cluster, places):
    """The address may name one, or several should one be away."""
    app = StreamQ(redis_url=cluster.url_of(*places), partitions=(str(PARTITIONS),), history=False)

    @app.handler(key="user")
    async def refresh(user: str) -> None: ...

    jobs = await refresh.enqueue_many([f"u{number}" for number in range(60)])
    assert {job.status for job in jobs} == {"new"}
    assert {cluster.owner(job.queue) for job in jobs} == {0, 1, 2}
    info = await app.client.broker.check()
    assert info.has_aof
    assert await app.operator.cancel(jobs[0].id) == "cancelled"
    await app.close()


async def test_a_queue_that_is_not_divided_is_found_wherever_it_lies(cluster):
    """One partition costs one more round trip on a new connection, and no setting."""
    name = next(name for name in map("q{}".format, range(99)) if cluster.owner(name) == 2)
    app = StreamQ(redis_url=cluster.url_of(0), history=False)

    @app.handler(queue=name)
    async def nothing() -> None: ...

    assert [(await nothing.enqueue()).status for _ in range(3)] == ["new"] * 3
    assert cluster.ask(cluster.servers[2], "HLEN", f"{{sq:{name}:0}}:index") == 3
    await app.close()


async def test_a_slot_is_moved_while_jobs_run_and_none_is_lost_or_runs_twice(app, work, cluster, eventually):
    """What is asked meanwhile waits; then everybody follows."""
    runs = Counter()
    refresh = counting(app, runs, seconds=0.005)
    moved = NAMES[0]
    slot, source = cluster.slot(moved), cluster.owner(moved)
    target = (source + 1) % 3
    users = [f"u{number}" for number in range(400)]
    await refresh.enqueue_many(users)
    await work()
    await eventually(lambda: len(runs) > 20, "jobs run")
    await asyncio.to_thread(cluster.begin_move, slot, source, target)
    enqueuing = asyncio.create_task(refresh.enqueue_many([f"v{number}" for number in range(100)]))
    before = len(runs)
    await eventually(lambda: len(runs) > before + 20, "the other partitions go on")
    await asyncio.to_thread(cluster.end_move, slot, source, target)
    assert {job.status for job in await enqueuing} == {"new"}
    await eventually(lambda: len(runs) == 500, "all jobs run")
    await eventually(lambda: _is_empty(app), "all jobs are settled")
    assert set(runs.values()) == {1}
    assert cluster.ask(cluster.servers[target], "EXISTS", Keys(moved).outbox, Keys(moved).workers) >= 1
    await asyncio.to_thread(cluster.begin_move, slot, target, source)
    await asyncio.to_thread(cluster.end_move, slot, target, source)
    last = [await refresh.options(keep_result=KEPT).enqueue(f"w{number}") for number in range(20)]
    assert [await job.result() for job in last] == [f"w{number}" for number in range(20)]


def on(cluster, **settings):
    """Make an application on a cluster."""
    told = {"worker_concurrency": 8, "dead_after_ms": 2_000, "beat_ms": 100, "grace_ms": 2_000}
    return StreamQ(redis_url=cluster.url, partitions=(str(PARTITIONS),), **{**told, **settings})


async def _is_empty(app):
    try:
        return not any(each.jobs for each in (await app.operator.counts()).values())
    except BrokerUnavailable:
        return False


async def test_a_master_is_killed_and_comes_back_and_none_of_its_jobs_is_lost_or_runs_twice(
    app, work, cluster, eventually
):
    """The other partitions go on meanwhile."""
    runs = Counter()
    refresh = counting(app, runs, seconds=0.005)
    victim = cluster.servers[1]
    jobs = await refresh.enqueue_many([f"u{number}" for number in range(600)])
    there = {f"u{number}" for number, job in enumerate(jobs) if cluster.owner(job.queue) == 1}
    assert 0 < len(there) < 600
    await work()
    await eventually(lambda: len(runs) > 20, "jobs run")
    await asyncio.to_thread(victim.kill9)
    await eventually(lambda: set(runs) >= {f"u{n}" for n in range(600)} - there, "the others go on")
    await asyncio.to_thread(victim.start)
    await eventually(lambda: len(runs) == 600, "those of the victim go on")
    await eventually(lambda: _is_empty(app), "all jobs are settled")
    assert set(runs.values()) == {1}
    last = [await refresh.options(keep_result=KEPT).enqueue(f"w{number}") for number in range(20)]
    assert [await job.result() for job in last] == [f"w{number}" for number in range(20)]


async def test_a_replica_takes_over_from_a_master_that_is_gone_for_good_with_all_that_it_had_confirmed(
    own_cluster, work, eventually
):
    """Nobody is told where it is: the other masters say it."""
    app, runs = on(own_cluster, history=False), Counter()
    refresh = counting(app, runs, seconds=0.005)
    replica = await asyncio.to_thread(own_cluster.begin_replica, 1)
    await eventually(lambda: own_cluster.replicate(replica, 1), "the replica has met its master")
    await eventually(lambda: own_cluster.follows(replica), "the replica is in step")
    users = [f"u{number}" for number in range(400)]
    jobs = await refresh.enqueue_many(users)
    there = {user for user, job in zip(users, jobs, strict=True) if own_cluster.owner(job.queue) == 1}
    last = next(user for user in reversed(users) if user in there)
    await refresh.options(replicas=1).enqueue(last)  # what came before it on that connection is confirmed with it
    await work(app=app)
    await eventually(lambda: len(there & set(runs)) > 5, "jobs of that master run")
    await asyncio.to_thread(own_cluster.servers[1].kill9)
    await eventually(lambda: set(runs) == set(users), "those that it had go on")
    await eventually(lambda: _is_empty(app), "all jobs are settled")
    twice = {user for user, times in runs.items() if times > 1} - {last}
    assert len(twice) <= app.settings.worker_concurrency, "more than what was in flight"
    late = [await refresh.options(keep_result=KEPT).enqueue(user) for user in sorted(there)[:10]]
    assert [await job.result() for job in late] == sorted(there)[:10]
    await app.close()


async def test_the_history_has_every_job_on_whichever_master_and_while_one_is_away_those_of_the_others(
    cluster, work, mongodb_url, mongo_database, eventually
):
    """A recorder of several masters does not wait for one."""
    app, runs, stop = on(cluster, mongodb_url=mongodb_url, mongodb_database=mongo_database), Counter(), asyncio.Event()
    refresh = counting(app, runs)
    recording = asyncio.create_task(record(app.settings, stop))
    mongo = AsyncMongoClient(mongodb_url)

    async def completed() -> dict[str, str]:
        found = mongo[mongo_database].job_status.find({"state": "completed"}, {"user": 1, "queue": 1})
        return {each["user"]: each["queue"] async for each in found}

    await work(app=app)
    users = [f"u{number}" for number in range(120)]
    placed = {user: job.queue for user, job in zip(users, await refresh.enqueue_many(users), strict=True)}

    async def told() -> bool:
        return await completed() == placed

    await eventually(told, "the history tells of all")
    victim = cluster.servers[1]
    await asyncio.to_thread(victim.kill9)
    away = [name for name in NAMES if cluster.owner(name) == 1]
    others = [f"v{number}" for number in range(120) if partition_for("default", f"v{number}", PARTITIONS) not in away]
    placed |= {user: job.queue for user, job in zip(others, await refresh.enqueue_many(others), strict=True)}
    await eventually(told, "the history tells of the others meanwhile")
    await asyncio.to_thread(victim.start)
    placed |= {user: job.queue for user, job in zip(away, await refresh.enqueue_many(away), strict=True)}
    await eventually(told, "and of all when it is back")
    stop.set()
    await recording
    await mongo.close()
    await app.close()


async def test_what_is_enqueued_while_a_master_is_away_is_there_when_it_is_back(app, cluster):
    """A producer tries again with the same number; or says after its patience that it does not know."""

    @app.handler(key="user")
    async def refresh(user: str) -> None: ...

    users = [f"u{number}" for number in range(60)]
    await refresh.enqueue_many(users[:1])
    victim = cluster.servers[2]
    await asyncio.to_thread(victim.kill9)
    enqueuing = asyncio.create_task(refresh.enqueue_many(users))
    await asyncio.to_thread(victim.start)
    jobs = await enqueuing
    assert Counter(job.status for job in jobs) == {"new": 60}
    counts = await app.operator.counts()
    assert sum(each.jobs for each in counts.values()) == 61
    assert {cluster.owner(job.queue) for job in jobs} == {0, 1, 2}


async def test_a_cluster_is_found_by_the_second_node_when_the_first_is_away(cluster):
    """So name several."""
    victim = cluster.servers[0]
    await asyncio.to_thread(victim.kill9)
    broker, alone = Broker(cluster.url_of(0, 1)), Broker(cluster.url_of(0))
    try:
        for name in NAMES:
            partition = broker.partition(name)
            if cluster.owner(name) == 0:
                with pytest.raises(BrokerUnavailable, match=f"cannot reach Redis at redis://127.0.0.1:{victim.port}"):
                    await partition.divided()
            else:
                assert await partition.divided() == 1
            await partition.wire.close()
        with pytest.raises(BrokerUnavailable, match="cannot reach Redis"):
            await alone.check()
    finally:
        await broker.close()
        await alone.close()
        await asyncio.to_thread(victim.start)


async def test_a_schedule_gives_every_user_one_job_on_whichever_master(app, cluster):
    """Its calls are packed before it is known where they go."""

    @app.handler(key="user", dedup="user")
    async def refresh(user: str) -> None: ...

    async def everybody(cursor):
        first = int(cursor or 0)
        return [f"u{number}" for number in range(first, first + 200)], str(first + 200) if first < 800 else None

    app.cron("0 * * * *", handler=refresh, name="hourly")(everybody)
    [fired] = await fire_now(app.settings, app)
    assert (fired.state.end, fired.state.added) == ("done", 1000)
    counts = await app.operator.counts()
    assert sum(each.jobs for each in counts.values()) == 1000
    assert min(each.jobs for each in counts.values()) > 100
    [again] = await fire_now(app.settings, app)
    assert (again.was_finished, again.state.added) == (True, 1000)


async def test_workers_of_the_other_masters_are_vouched_for_while_one_is_away(cluster):
    """A parent that gave up at the first one would cost the workers everything that they have elsewhere."""
    settings = StreamQ(redis_url=cluster.url, partitions=(str(PARTITIONS),)).settings
    broker, guard = Broker(cluster.url), guardian(settings)
    partitions = {name: broker.partition(name) for name in NAMES}
    for name, partition in partitions.items():
        await partition.register("w1")
        await partition.wire.call("ZADD", Keys(name).workers, 1, "w1")
    await guard.beat(["w1"])
    for name, partition in partitions.items():
        await partition.wire.call("ZADD", Keys(name).workers, 1, "w1")
    victim = cluster.servers[0]
    await asyncio.to_thread(victim.kill9)
    try:
        with pytest.raises(BrokerUnavailable):
            await guard.beat(["w1"])
        for name, partition in partitions.items():
            if cluster.owner(name) != 0:
                assert float(await partition.wire.call("ZSCORE", Keys(name).workers, "w1")) > 1
        elsewhere = Broker(cluster.url_of(1))
        told = (await elsewhere.check()).warnings
        assert any(warning.startswith("a master of the cluster is away: cannot reach Redis at") for warning in told)
        await elsewhere.close()
    finally:
        for partition in partitions.values():
            await partition.wire.close()
        await guard.close()
        await broker.close()
        await asyncio.to_thread(victim.start)


def test_a_worker_ends_for_silence_when_no_node_is_heard_but_not_for_one_that_is_known_to_be_away():
    """A new process would not reach it either, and the jobs of the other nodes would wait for nothing."""
    here, away = SimpleNamespace(last_good=90.0, failure=None), SimpleNamespace(last_good=20.0, failure=OSError())
    silent = SimpleNamespace(last_good=30.0, failure=None)
    assert service._heard_at([here, away], 10.0) == 90.0
    assert service._heard_at([here, silent, away], 10.0) == 30.0
    assert service._heard_at([away], 10.0) == 20.0
    assert service._heard_at([SimpleNamespace(last_good=0.0, failure=None)], 10.0) == 10.0


async def test_the_users_of_the_documented_rights_work_on_a_cluster(cluster):
    """Asking for the masters is the one thing more that they need."""
    rules = [line.split()[1:] for line in ACL.read_text().splitlines() if line.startswith("user ")]
    for server in cluster.servers:
        for name, *rule in rules:
            cluster.ask(server, "ACL", "SETUSER", name, *(word.replace(">change-me", ">pw") for word in rule))
    url = cluster.url.replace(f":{cluster.servers[0].password}@", "streamq:pw@")
    app = StreamQ(redis_url=url, partitions=(str(PARTITIONS),), history=False)
    producer = StreamQ(redis_url=url.replace("streamq:pw@", "streamq-producer:pw-too@"), partitions=(str(PARTITIONS),))

    @app.handler(key="user")
    async def refresh(user: str) -> str:
        return user

    enqueue = producer.handler(key="user")(refresh.spec.function).options(keep_result=KEPT)
    jobs = [await enqueue.enqueue(f"u{number}") for number in range(20)]
    worker = Worker(app, app.settings)
    running = asyncio.create_task(worker.run())
    assert await asyncio.gather(*(job.result() for job in jobs)) == [f"u{number}" for number in range(20)]
    worker.drain()
    assert await running == 0
    await app.close()
    await producer.close()
    for server in cluster.servers:
        cluster.ask(server, "ACL", "DELUSER", *(name for name, *_ in rules))


async def test_what_happens_on_all_masters_is_heard_by_who_listens(app, work, cluster, eventually):
    """One read cannot span several nodes."""
    runs = Counter()
    refresh = counting(app, runs)
    broker = Broker(cluster.url)
    feed = Feed(broker.wire, {name: Keys(name) for name in NAMES})
    await feed.start()
    await refresh.enqueue_many([f"u{number}" for number in range(40)])
    app.settings = StreamQ(redis_url=cluster.url, partitions=(str(PARTITIONS),), beat_ms=100).settings
    await work()
    heard = Counter()

    async def listen():
        for name, entry in await feed.read(limit=100, block_ms=100):
            heard[name] += len(entry.records)
        return sum(heard.values()) == 40

    await eventually(listen, "all is heard")
    assert set(heard) == set(NAMES)
    assert not await feed.has_gap()
    await feed.close()
    await broker.close()


async def test_a_master_that_may_evict_is_found_out_wherever_it_is(cluster):
    """Each has a configuration of its own."""
    cluster.ask(cluster.servers[2], "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    broker = Broker(cluster.url_of(0))
    with pytest.raises(ConfigurationError, match="has maxmemory-policy allkeys-lru: it may evict jobs"):
        await broker.check()
    await broker.close()
    cluster.ask(cluster.servers[2], "CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_where_a_node_sends_us_is_read_with_and_without_its_host():
    """A node may leave out the host, which then is its own."""
    nodes = Nodes("rediss://u:p@a:7001,b:7002/0")
    first, second = nodes.first, nodes.after(nodes.first)
    assert (first.where, second.where) == ("rediss://a:7001/0", "rediss://b:7002/0")
    assert nodes.after(second) is first
    assert nodes.moved("MOVED 7 b:7002", first) is second
    third = nodes.moved("MOVED 7 ::1:7003", first)
    assert third.where == "rediss://[::1]:7003"
    assert third.pool.connection_kwargs["password"] == "p"
    assert nodes.moved("MOVED 7 ::1:7003", second) is third
    assert nodes.moved("MOVED 7 :7009", second).where == "rediss://b:7009"
    assert nodes.moved("ASK 7 b:7002", first) is None
    assert Nodes("unix:///x.sock").moved("MOVED 7 b:7002", Nodes("unix:///x.sock").first) is None
