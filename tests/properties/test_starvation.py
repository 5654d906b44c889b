"""No starvation: the oldest slow job starts within its fair share, whatever arrives.

The real scripts on a real server decide who is read; only the time that jobs take is simulated, so that an hour is over
in a second.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from streamq.broker.partition import NewJob, Partition, Report
from streamq.broker.server import Broker
from streamq.lanes import reads, slow_right, slow_room, slow_share

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST_MS, SLOW_MS = 5, 60
FAST, SLOW, UNKNOWN = "fast", "slow", "unknown"
"""Unknown jobs take as long as slow ones, and nobody knew: they come through the fast lane."""

kinds = st.sampled_from([FAST, FAST, SLOW, UNKNOWN])
bursts = st.tuples(st.integers(0, 80), kinds, st.integers(1, 6))
"""Ms since the last burst, what comes, and how many."""

names = count()


@dataclass
class Started:
    """How long a slow job waited, and how many slow ones were before it."""

    waited_ms: int
    ahead: int


@dataclass
class Shop:
    """A worker with some slots, in simulated time."""

    partition: Partition
    capacity: int
    share: float
    now_ms: int = 0
    cycles: int = 0
    running: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """Job to its kind, and when it began."""
    ends: list[tuple[int, bytes]] = field(default_factory=list)
    tokens: dict[bytes, bytes] = field(default_factory=dict)
    arrived: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Slow job to its arrival, and to how many slow ones were waiting or running then."""
    started: list[Started] = field(default_factory=list)
    waiting_slow: int = 0
    slow_digit: int = 5
    """Of the lane of slow jobs."""
    held: list[tuple[int, int]] = field(default_factory=list)
    """After each cycle: slots that slow jobs hold, and fast jobs that wait."""
    waiting_fast: int = 0

    async def arrive(self, kind: str, number: int) -> None:
        """Enqueue some jobs."""
        digit = self.slow_digit if kind == SLOW else 2
        self.waiting_fast += number * (kind == FAST)
        jobs = [NewJob(f"{kind}-{next(names)}", digit, b"{}") for _ in range(number)]
        for job in jobs:
            if kind == SLOW:
                busy = sum(known == SLOW for known, _ in self.running.values())
                self.arrived[job.id.encode()] = (self.now_ms, self.waiting_slow + busy)
                self.waiting_slow += 1
        await self.partition.add(f"p{next(names)}", 1, jobs)

    def end_due(self) -> list[bytes]:
        """End what is over by now. Returns rows for the report."""
        rows: list[bytes] = []
        while self.ends and self.ends[0][0] <= self.now_ms:
            _, job_id = heapq.heappop(self.ends)
            del self.running[job_id]
            rows += (self.tokens.pop(job_id), job_id, b"{}")
        return rows

    async def cycle(self) -> None:
        """Settle what is over, and start what there is room for."""
        settled = self.end_due()
        self.cycles += 1
        free = self.capacity - len(self.running)
        known = sum(kind == SLOW for kind, _ in self.running.values())
        overran = sum(kind == UNKNOWN and self.now_ms - began >= 2 * FAST_MS for kind, began in self.running.values())
        share = slow_share(self.capacity, self.share)
        due = max(0, slow_right(share) - known)
        order = reads(slow_room(share, known, overran), due, free, reverse=self.cycles % 8 == 0)
        reply = await self.partition.cycle(
            "w", Report(settled=list(settled)), want=free, reads=order, dead_after_ms=1 << 50, control_cursor=b"0-0",
            limits=(0, 1), now=0.0,
        )  # fmt: skip
        for delivery in reply.deliveries:
            kind = delivery.id.decode().split("-")[0]
            self.running[delivery.id] = (kind, self.now_ms)
            self.tokens[delivery.id] = delivery.token
            heapq.heappush(self.ends, (self.now_ms + (FAST_MS if kind == FAST else SLOW_MS), delivery.id))
            self.waiting_fast -= kind == FAST
            if kind == SLOW:
                at_ms, ahead = self.arrived[delivery.id]
                self.started.append(Started(self.now_ms - at_ms, ahead))
                self.waiting_slow -= 1
        self.held.append((sum(kind == SLOW for kind, _ in self.running.values()), self.waiting_fast))

    async def work_until(self, end_ms: int | None) -> None:
        """Let time pass, from one end of a job to the next; without an end, until all is done."""
        await self.cycle()
        while self.ends and (end_ms is None or self.ends[0][0] <= end_ms):
            self.now_ms = self.ends[0][0]
            await self.cycle()
        self.now_ms = max(self.now_ms, end_ms or 0)


async def simulated(partition: Partition, arrivals: list[tuple[int, str, int]], capacity: int, share: float) -> Shop:
    await partition.register("w")
    shop = Shop(partition, capacity, share)
    for gap_ms, kind, number in arrivals:
        await shop.work_until(shop.now_ms + gap_ms)
        await shop.arrive(kind, number)
    await shop.work_until(None)
    return shop


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(bursts, min_size=5, max_size=40),
    capacity=st.integers(2, 8),
    share=st.sampled_from([0.25, 0.5, 0.75]),
)
def test_the_oldest_slow_job_starts_within_its_fair_share(redis_url, loop, arrivals, capacity, share):
    """For each slow job before it, one turn of a share's slots; and one until the slots that others hold are free.

    Jobs that nobody knew to be slow take their part of the share, but never the last slot.
    """

    async def run() -> Shop:
        broker = Broker(redis_url)
        partition = broker.partition(f"q{next(names)}")
        try:
            return await simulated(partition, arrivals, capacity, share)
        finally:
            await partition.wire.close()
            await broker.close()

    shop = loop.run(run())
    unknown = any(kind == UNKNOWN for _, kind, _ in arrivals)
    slots = slow_right(slow_share(capacity, share))
    wait_for_a_slot_ms = SLOW_MS if unknown else FAST_MS
    for job in shop.started:
        turns = math.ceil((job.ahead + 1) / slots)
        assert job.waited_ms <= turns * (SLOW_MS + wait_for_a_slot_ms) + SLOW_MS
    assert len(shop.started) == len(shop.arrived)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(capacity=st.integers(2, 8), slow=st.integers(1, 4))
def test_a_fast_lane_that_never_runs_empty_does_not_starve_the_slow_one(redis_url, loop, capacity, slow):
    """The first slow job starts as soon as any job ends."""

    async def run() -> Shop:
        broker = Broker(redis_url)
        partition = broker.partition(f"q{next(names)}")
        try:
            await partition.register("w")
            shop = Shop(partition, capacity, 0.5)
            await shop.arrive(FAST, 100)
            await shop.cycle()
            await shop.arrive(SLOW, slow)
            await shop.work_until(None)
            return shop
        finally:
            await partition.wire.close()
            await broker.close()

    shop = loop.run(run())
    assert shop.started[0].waited_ms <= FAST_MS


@pytest.mark.parametrize(
    ("capacity", "share", "slow_digit", "beside_fast_ones"),
    [
        (16, 0.5, 5, 2),
        (16, 0.5, 4, 8),
        (16, 0.25, 4, 4),
        (16, 1.0, 5, 4),
        (6, 0.5, 5, 1),
        (6, 0.5, 4, 3),
        (8, 0.1, 4, 1),
    ],
)
def test_slow_jobs_hold_their_right_beside_fast_ones_their_share_with_a_higher_priority_and_everything_alone(
    redis_url, loop, capacity, share, slow_digit, beside_fast_ones
):
    """What `slow_share` says: never more while fast jobs wait, and a quarter of it by right. 4 is the lane `high.slow`."""

    async def run() -> Shop:
        broker = Broker(redis_url)
        partition = broker.partition(f"q{next(names)}")
        try:
            await partition.register("w")
            shop = Shop(partition, capacity, share, slow_digit=slow_digit)
            for _ in range(4):
                await shop.arrive(FAST, 100)
            await shop.arrive(SLOW, 100)
            await shop.work_until(None)
            return shop
        finally:
            await partition.wire.close()
            await broker.close()

    held = loop.run(run()).held
    beside = [slow for slow, waiting_fast in held if waiting_fast]
    assert set(beside) == {beside_fast_ones}
    assert beside_fast_ones <= slow_share(capacity, share)
    assert max(slow for slow, waiting_fast in held if not waiting_fast) == capacity
