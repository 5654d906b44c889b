"""Slow users do not hold up fast ones: what a worker does about its slots, and what it learns."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import orjson
import pytest

from streamq import RetryPolicy, StreamQ
from streamq.broker.inspection import Inspection
from streamq.errors import BadArguments
from streamq.keys import Keys

KEPT = timedelta(seconds=60)
SLOW_MS, LIMIT_MS = 900.0, 30
VALLEY = ["t4", 80, "t30", 20]
"""What was counted of runs of 2 and of 200 ms: the limit lies between."""


@dataclass
class Doors:
    """Lets jobs out one by one, by kind."""

    running: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    doors: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    async def hold(self, kind: str) -> None:
        """Run until let out."""
        self.running[kind] += 1
        try:
            await self.door(kind).acquire()
        finally:
            self.running[kind] -= 1
        self.ended[kind] += 1

    def door(self, kind: str) -> asyncio.Semaphore:
        return self.doors.setdefault(kind, asyncio.Semaphore(0))

    def let_out(self, kind: str, count: int = 100) -> None:
        for _ in range(count):
            self.door(kind).release()

    def now(self) -> dict[str, int]:
        return {kind: count for kind, count in self.running.items() if count}


@pytest.fixture
def doors():
    return Doors()


@pytest.fixture
def visit(app, doors):
    """A handler whose jobs run until they are let out; the kind is the part of the user before the number."""

    @app.handler(key="user")
    async def visit(user: str) -> None:
        await doors.hold(user.split("-")[0])

    return visit


@pytest.fixture
async def partition(app):
    """The partition of the application, to look and to make it know something."""
    partition = app.client.broker.partition("default")
    yield partition
    await partition.wire.close()


async def know(partition, *users: str, handler: str = "visit", limit_ms: float = 20.0) -> None:
    """Make users known as slow."""
    rows = [word for user in users for word in (f"{handler}|{user}", SLOW_MS)]
    await partition.learn(limit_ms, counts=VALLEY, runs=rows)


def named(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


async def records(app) -> dict[str, dict]:
    """Return the last record of each job."""
    wire = app.client.broker.wire()
    entries = await wire.call("XRANGE", Keys("default").outbox, "-", "+")
    await wire.close()
    found = {}
    for _, fields in entries:
        found |= {fields[at].decode(): orjson.loads(fields[at + 1]) for at in range(2, len(fields), 2)}
    return found


async def test_slow_jobs_hold_no_more_than_their_share_while_fast_ones_wait(
    app, visit, doors, partition, work, eventually
):
    """And everything when there are none."""
    await know(partition, *named("slow", 8))
    await visit.enqueue_many([*named("slow", 8), *named("fast", 8)])
    await work()
    await eventually(lambda: doors.now() == {"slow": 1, "fast": 3})
    doors.let_out("fast")
    await eventually(lambda: doors.ended["fast"] == 8)
    await eventually(lambda: doors.now() == {"slow": 4})
    doors.let_out("slow")
    await eventually(lambda: doors.ended["slow"] == 8)


async def test_an_idle_worker_does_not_fill_all_its_slots_with_slow_jobs_when_fast_ones_come_with_them(
    app, visit, doors, partition, work, eventually
):
    """What it waits for inside Redis is read without regard to shares."""
    await know(partition, *named("slow", 8))
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.pumps[0]._reader is not None)
    await visit.enqueue_many([*named("slow", 8), *named("fast", 8)])
    await eventually(lambda: sum(doors.now().values()) == 4)
    assert doors.now() == {"slow": 1, "fast": 3}
    doors.let_out("fast")
    doors.let_out("slow")
    await eventually(lambda: doors.ended.total() == 16)


async def test_when_all_slots_went_slow_each_that_becomes_free_goes_to_the_fast_jobs_that_came_meanwhile(
    app, visit, doors, partition, work, eventually
):
    """Until slow jobs are back at what is theirs by right."""
    await know(partition, *named("slow", 8))
    await visit.enqueue_many(named("slow", 8))
    await work()
    await eventually(lambda: doors.now() == {"slow": 4})
    await visit.enqueue_many(named("fast", 8))
    doors.let_out("slow", 1)
    await eventually(lambda: doors.now() == {"slow": 3, "fast": 1})
    doors.let_out("slow", 1)
    await eventually(lambda: doors.now() == {"slow": 2, "fast": 2})
    doors.let_out("slow", 1)
    await eventually(lambda: doors.now() == {"slow": 1, "fast": 3})
    doors.let_out("slow", 1)
    await eventually(lambda: doors.ended["slow"] == 4)
    await eventually(lambda: doors.now() == {"slow": 1, "fast": 3})
    doors.let_out("fast")
    doors.let_out("slow")
    await eventually(lambda: doors.ended.total() == 16)


async def test_a_job_that_overruns_in_the_fast_lane_counts_as_slow_while_it_runs(redis_url, work_on, doors, eventually):
    """Nobody knew them; they hold slots all the same. The slow lane keeps one."""
    _app, visit, partition = work_on(slow_limit_ms=LIMIT_MS)
    await know(partition, *named("slow", 8), limit_ms=LIMIT_MS)
    await visit.enqueue_many(named("unknown", 2))
    worker = await work_on.start()
    await eventually(lambda: doors.now() == {"unknown": 2})
    began = max(job.begun_at for job, _ in worker.slots.running.values())
    await eventually(lambda: asyncio.get_running_loop().time() > began + LIMIT_MS / 1000)
    await visit.enqueue_many([*named("slow", 8), *named("fast", 8)])
    await eventually(lambda: sum(doors.now().values()) == 4)
    doors.let_out("fast", 3)
    await eventually(lambda: doors.ended["fast"] == 3)
    await eventually(lambda: doors.now() == {"unknown": 2, "slow": 1, "fast": 1})
    for kind in ("unknown", "fast", "slow"):
        doors.let_out(kind)
    await eventually(lambda: doors.ended.total() == 18)


async def test_more_fast_jobs_start_while_unknown_slow_ones_hold_the_slots(redis_url, work_on, doors, eventually):
    """In the first hour nobody is known. There are no more of them than was said."""
    _app, visit, _partition = work_on(slow_limit_ms=LIMIT_MS, burst_slots=2, worker_concurrency=3)
    await visit.enqueue_many(named("unknown", 3))
    worker = await work_on.start()
    await eventually(lambda: doors.now() == {"unknown": 3})
    await visit.enqueue_many(named("fast", 6))
    await eventually(lambda: doors.now() == {"unknown": 3, "fast": 2})
    assert worker.slots.room() == 0
    doors.let_out("fast")
    await eventually(lambda: doors.ended["fast"] == 6)
    doors.let_out("unknown")
    await eventually(lambda: doors.ended["unknown"] == 3)


async def test_plain_handlers_lend_no_slots(redis_url, work_on, eventually):
    """There would be no thread for what starts."""
    app, _, _ = work_on(slow_limit_ms=LIMIT_MS, burst_slots=2, worker_concurrency=1)
    gate = threading.Event()

    @app.handler(key="user")
    def plain(user: str) -> None:
        gate.wait(50)

    await plain.enqueue("u1")
    worker = await work_on.start()
    await eventually(lambda: worker.slots is not None and worker.slots.busy == 1)
    ((job, _),) = worker.slots.running.values()
    await eventually(lambda: asyncio.get_running_loop().time() > job.begun_at + LIMIT_MS / 1000)
    assert worker.slots.room() == 0
    gate.set()


async def test_a_slow_user_is_learned_and_leaves_when_its_jobs_are_fast_again(app, partition, work, eventually):
    """Memory follows the slow users."""
    takes_s = {"slow": 0.1, "fast": 0.0}

    @app.handler(key="user")
    async def visit(user: str) -> None:
        await asyncio.sleep(takes_s[user])

    async def is_slow() -> bool:
        return await partition.wire.call("HEXISTS", partition.keys.cost, "visit|slow") == 1

    await partition.learn(counts=VALLEY)
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.pumps[0].costs.limit_ms)
    await visit.enqueue("slow")
    await visit.enqueue("fast")
    await eventually(is_slow, "its user is known")
    view = Inspection(partition.wire, partition.keys)
    job = await visit.options(delay=timedelta(minutes=1)).enqueue("slow")
    assert (await view.locate(job.id)).lane == "normal.slow"
    await job.cancel()
    takes_s["slow"] = 0.0

    async def is_fast() -> bool:
        await (await visit.options(keep_result=KEPT).enqueue("slow")).result()
        return not await is_slow()

    await eventually(is_fast, "it is forgotten after some fast jobs")


async def test_the_slow_jobs_that_ended_before_there_was_a_limit_are_learned_too(app, partition, work, eventually):
    """The first ones that start in the first hour: else they would hold up the second one."""

    @app.handler(key="user")
    async def visit(user: str) -> None:
        await asyncio.sleep(0.1 if user.startswith("slow") else 0)

    await visit.enqueue_many([*named("slow", 4), *named("fast", 40)])
    await work()

    async def slow_users() -> set[bytes]:
        return set((await partition.wire.call("HGETALL", partition.keys.cost))[::2])

    expected = {b"visit|slow-%d" % number for number in range(4)}

    async def are_known() -> bool:
        return await slow_users() >= expected  # a fast one may have had to wait for the processor and count as slow

    await eventually(are_known)


async def test_the_record_of_a_job_says_why_it_is_slow(app, partition, work, eventually):
    """The status of a job tells which lane it took, and why."""

    @app.handler(key="user", retry=RetryPolicy(base=timedelta(milliseconds=1)), max_attempts=2)
    async def visit(user: str, fails: bool = False) -> None:
        await asyncio.sleep(0.05)
        if fails:
            raise RuntimeError("too much")

    await know(partition, "known")
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.pumps[0].costs.limit_ms)
    known, unknown, failing = [
        await visit.enqueue(*call) for call in (("known",), ("unknown",), ("failing", True))
    ]  # fmt: skip

    async def all_ended() -> dict:
        found = await records(app)
        return len(found) == 3 and found[failing.id]["s"] == "dead" and found

    found = await eventually(all_ended)
    assert (found[known.id]["l"], found[known.id]["y"]) == ("normal.slow", "learned 900")
    assert found[unknown.id]["l"] == "normal"
    assert found[unknown.id]["y"].startswith("overran ")
    assert (found[failing.id]["n"], found[failing.id]["l"]) == (2, "normal.slow")


async def test_a_hint_puts_the_jobs_that_stand_out_into_the_slow_lane(app, partition):
    """In the very first hour, when nothing was measured."""

    @app.handler(key="user", cost="records")
    async def visit(user: str, records: int) -> None:
        """Never runs here."""

    calls = [(f"u{number}", 5000 + number if number % 5 == 0 else 50 + number) for number in range(100)]
    await visit.enqueue_many(calls)
    lanes = (await Inspection(partition.wire, partition.keys).counts()).lanes
    assert (lanes["normal.slow"].waiting, lanes["normal"].waiting) == (20, 80)
    (entry, *_) = await Inspection(partition.wire, partition.keys).tail("normal.slow", b"0-0", limit=1)
    assert entry.why == "hint"


async def test_hints_are_measured_against_what_their_jobs_took(app, partition, work, eventually):
    """A producer that starts anew then need not guess."""

    @app.handler(key="user")
    async def visit(user: str) -> None:
        await asyncio.sleep(0.04 if user.startswith("slow") else 0)

    await partition.learn(counts=VALLEY)
    worker = await work()
    await eventually(lambda: worker.slots is not None and worker.slots.pumps[0].costs.limit_ms)
    for number in range(6):
        await visit.options(cost=2000).enqueue(f"slow{number}")
        await visit.options(cost=20).enqueue(f"fast{number}")

    async def cut() -> bytes | None:
        return await partition.wire.call("HGET", partition.keys.times, "cut")

    async def told() -> bool:
        await visit.options(cost=20).enqueue("fast")  # the cut is told with the news after those it follows from
        return await cut() is not None

    await eventually(told)
    assert 25 <= int(await cut()) <= 30


@pytest.mark.parametrize("cost", [-1, float("inf"), float("nan"), "many", True])
async def test_a_hint_that_is_no_number_is_refused(visit, cost):
    with pytest.raises(BadArguments, match="a cost is a number, 0 or more, and .* came for 'visit'"):
        await visit.options(cost=cost).enqueue("u1")


@pytest.mark.parametrize("settings", [{"lanes": False}, {"fifo_queues": ("default",)}])
async def test_without_lanes_nobody_is_slow_and_what_was_known_is_forgotten(work_on, doors, eventually, settings):
    """Switched off, and on again later, it starts from nothing."""
    app, visit, partition = work_on(**settings)
    await know(partition, *named("slow", 4))
    await visit.enqueue_many([*named("slow", 4), *named("fast", 4)])
    worker = await work_on.start()

    async def is_forgotten() -> bool:
        return not await partition.wire.call("EXISTS", partition.keys.cost, partition.keys.times)

    await eventually(is_forgotten)
    await eventually(lambda: sum(doors.now().values()) == 4)
    doors.let_out("slow")
    doors.let_out("fast")
    await eventually(lambda: doors.ended.total() == 8)
    assert not any("y" in record for record in (await records(app)).values())
    assert worker.slots.pumps[0].costs.limit_ms is None


def counts_of_runs(times: dict[str, str]) -> list[str]:
    """Return how many jobs ran for how long; on a busy machine, one that ends at once may take some milliseconds."""
    return [count for field, count in times.items() if field.startswith("t")]


async def test_jobs_without_a_key_are_not_counted(app, partition, work, eventually):
    """They cost nothing, and nothing is known of them."""

    @app.handler
    async def plain() -> None:
        """Ends at once."""

    await work()
    job = await plain.options(keep_result=KEPT).enqueue()
    await job.result()
    other = await app.handler(key="user")(_nothing).options(keep_result=KEPT).enqueue("u1")
    await other.result()

    async def counted() -> list[str]:
        return counts_of_runs(await partition.learn())

    assert await eventually(counted) == ["1"]


async def _nothing(user: str) -> None:
    """Ends at once."""


async def test_what_a_worker_saw_last_is_told_when_it_leaves(app, partition, work, eventually):
    """A worker that is restarted each hour would else never teach anybody."""
    worker = await work()
    job = await app.handler(key="user")(_nothing).options(keep_result=KEPT).enqueue("u1")
    await job.result()
    worker.drain()

    async def counted() -> bool:
        return counts_of_runs(await partition.learn()) == ["1"]

    await eventually(counted)


async def test_a_full_redis_forgets_what_is_new_and_lets_jobs_run(app, work, eventually, monkeypatch):
    """Learning is the first thing that may be left out."""
    from streamq.broker.partition import Partition
    from streamq.errors import QueueFull

    asked = []

    async def full(*_: object, **__: object) -> None:
        asked.append(1)
        raise QueueFull("out of memory")

    monkeypatch.setattr(Partition, "learn", full)
    await work()
    job = await app.handler(key="user")(_nothing).options(keep_result=KEPT).enqueue("u1")
    assert await job.result() is None
    await eventually(lambda: len(asked) > 1)


@pytest.fixture
async def work_on(redis_url, doors):
    """Make an application with settings of its own, and start a worker of it."""
    from streamq.worker import Worker

    started = []

    class WorkOn:
        """Callable once."""

        def __call__(self, **settings):
            settings = {"worker_concurrency": 4, "dead_after_ms": 500, "beat_ms": 100, "grace_ms": 2_000} | settings
            self.app = StreamQ(redis_url=redis_url, **settings)
            self.partition = self.app.client.broker.partition("default")

            @self.app.handler(key="user")
            async def visit(user: str) -> None:
                await doors.hold(user.split("-")[0])

            return self.app, visit, self.partition

        async def start(self):
            worker = Worker(self.app, self.app.settings)
            started.append((worker, asyncio.create_task(worker.run())))
            return worker

    work_on = WorkOn()
    yield work_on
    for worker, task in started:
        worker.force()
        assert await task in (0, 130)
    await work_on.partition.wire.close()
    await work_on.app.close()
