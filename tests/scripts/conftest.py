"""A partition on a real server, and the plain commands to look behind the scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from streamq.broker.partition import NewJob, Report
from streamq.broker.server import Broker
from streamq.keys import HANDBACK, LANES, lane_digit
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from streamq.broker.partition import Added, CycleReply, Partition
    from streamq.job import Delivery

EVERY_LANE = tuple((digit, 128, 0) for digit in range(1, 7))
LONG_MS = 3_600_000


@dataclass
class Board:
    """One partition: its scripts, and what lies under its keys."""

    partition: Partition
    redis: Any
    """A plain client, to look and to wind time."""
    calls: int = 0

    @property
    def keys(self) -> Any:
        """The names of the partition's keys."""
        return self.partition.keys

    # What producers and workers do.

    async def add(
        self, *job_ids: str, lane: str = "normal", delay_ms: int = 0, dedup: str | None = None, scope: str = ""
    ) -> Added:
        """Add jobs in one call; the envelope of each is its id in brackets."""
        self.calls += 1
        jobs = [NewJob(job_id, lane_digit(lane), f"<{job_id}>".encode(), delay_ms, dedup, scope) for job_id in job_ids]
        return await self.partition.add("producer", self.calls, jobs)

    async def join(self, *consumers: str) -> None:
        """Register workers."""
        for consumer in consumers:
            await self.partition.register(consumer)

    async def cycle(self, consumer: str, want: int = 0, **options: Any) -> CycleReply:
        """Run a worker's cycle; rows of the report are options, as are `reads`, `dead_after_ms` and `limits`."""
        plain = {"reads": EVERY_LANE, "dead_after_ms": LONG_MS, "control_cursor": b"0-0", "limits": (1000, 1000)}
        settings = {name: options.pop(name, default) for name, default in plain.items()}
        return await self.partition.cycle(consumer, Report(**options), want=want, now=0.0, **settings)

    async def read(self, consumer: str, want: int = 128, **options: Any) -> list[Delivery]:
        """Read jobs as a worker does."""
        return (await self.cycle(consumer, want, **options)).deliveries

    async def take(self, consumer: str, job_id: str, lane: str = "normal") -> Delivery:
        """Add a job and read it."""
        await self.add(job_id, lane=lane)
        (delivery,) = await self.read(consumer)
        return delivery

    async def settle(self, consumer: str, *deliveries: Delivery, **options: Any) -> CycleReply:
        """Report jobs as ended."""
        rows = [value for delivery in deliveries for value in (delivery.token, delivery.id, b'{"s":"completed"}')]
        return await self.cycle(consumer, settled=rows, **options)

    async def requeue(self, consumer: str, delivery: Delivery, delay_ms: int, record: bytes = b"") -> CycleReply:
        """Report a job as to be run again; the new envelope is `again`."""
        row = (delivery.token, delivery.id, delay_ms, delivery.digit, delivery.enqueued_ms, b"again", record)
        return await self.cycle(consumer, requeued=list(row))

    async def die(self, consumer: str) -> None:
        """Make a worker's last beat so old that it counts as gone at once."""
        await self.redis.zadd(self.keys.workers, {consumer: 1}, xx=True)

    async def take_over(self, consumer: str, want: int = 128) -> list[Delivery]:
        """Read with a limit after which a worker whose beat is from 1970 is given up."""
        return await self.read(consumer, want, dead_after_ms=LONG_MS)

    async def run(self, script: str, keys: list[str], *args: Any) -> Any:
        """Call a script with these very keys and arguments."""
        return await self.redis.eval(load(script).source, len(keys), *keys, *args)

    # What lies there.

    async def token(self, job_id: str) -> str | None:
        """Return what the index holds for a job."""
        return await self.redis.hget(self.keys.index, job_id)

    async def held(self, consumer: str) -> list[str]:
        """Return the ids of the jobs that a consumer has and has not settled."""
        return [
            fields.get("j", "<marker>")
            for lane in self.keys.lanes
            if await self.has_group(lane)
            for row in await self.redis.xpending_range(lane, "g", "-", "+", 1000, consumer)
            for _, fields in await self.redis.xrange(lane, row["message_id"], row["message_id"])
        ]

    async def handed_back(self) -> list[str]:
        """Return the ids of the jobs that were handed back."""
        return await self.held(HANDBACK)

    async def has_group(self, stream: str) -> bool:
        """Whether a worker has ever joined."""
        return bool(await self.redis.exists(stream)) and bool(await self.redis.xinfo_groups(stream))

    async def lane(self, lane: str = "normal") -> list[str]:
        """Return the ids of all jobs in a lane, held or not."""
        entries = await self.redis.xrange(self.keys.lanes[LANES.index(lane)])
        return [fields["j"] for _, fields in entries if "j" in fields]

    async def markers(self) -> int:
        """Count the wake-up entries that wait."""
        return sum("w" in fields for _, fields in await self.redis.xrange(self.keys.lanes[0]))

    async def outbox(self) -> list[dict[str, str]]:
        """Return the entries of the outbox."""
        return [fields for _, fields in await self.redis.xrange(self.keys.outbox)]

    async def make_due(self, job_id: str) -> None:
        """Wind time forward for one delayed job."""
        await self.redis.zadd(self.keys.delayed, {job_id: 1}, xx=True)

    async def forget_living_holders(self) -> None:
        """Remove the dedup keys of jobs that still live: that they lie there is right."""
        for name in await self.redis.keys(self.keys.dedup("*")):
            if await self.token(await self.redis.get(name)) is not None:
                await self.redis.delete(name)

    async def now_us(self) -> int:
        """Return the server's time in microseconds since 1970."""
        seconds, micros = await self.redis.time()
        return seconds * 1_000_000 + micros

    async def now_ms(self) -> int:
        """Return the server's time."""
        seconds, micros = await self.redis.time()
        return seconds * 1000 + micros // 1000

    async def snapshot(self) -> dict[str, bytes | None]:
        """Return everything that the database holds, for a comparison."""
        return {name: await self.redis.dump(name) for name in sorted(await self.redis.keys("*"))}


@pytest.fixture
async def board(redis_url: str, queue_name: str) -> AsyncIterator[Board]:
    """A fresh partition that no worker has joined."""
    broker = Broker(redis_url)
    partition = broker.partition(queue_name)
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True, retry=Retry(NoBackoff(), 0))
    board = Board(partition, client)
    yield board
    await board.forget_living_holders()
    await partition.wire.close()
    await broker.close()
    await client.aclose()
