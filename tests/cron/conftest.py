"""An application with one schedule, a desk on a real server, and a look at what was enqueued."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from streamq.app import CronEntry, StreamQ
from streamq.cron.minder import Minder
from streamq.schedules.desks import Bureau, desks
from streamq.schedules.fanout import FanOut
from streamq.schedules.occurrence import Occurrence, Schedule, checked
from streamq.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from streamq.schedules.fanout import Desk

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def ms(moment: datetime) -> int:
    """Return a moment as it is on the wire."""
    return int(moment.timestamp() * 1000)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return ms(self.now)

    def move(self, **by: float) -> None:
        """Go on by that much."""
        self.now += timedelta(**by)


@dataclass
class Listing:
    """A page function over a list of users, which notes how it was called."""

    users: Sequence[Any]
    size: int = 100
    calls: list[str | None] = field(default_factory=list)
    fails: list[BaseException] = field(default_factory=list)
    """Raised by the next calls, one each."""

    async def __call__(self, cursor: str | None) -> tuple[list[Any], str | None]:
        self.calls.append(cursor)
        if self.fails:
            raise self.fails.pop(0)
        start = int(cursor or 0)
        end = start + self.size
        return list(self.users[start:end]), (str(end) if end < len(self.users) else None)


def entry_of(page: Callable[..., Any], expression: str = "0 * * * *", **options: Any) -> CronEntry:
    """Return a schedule named `hourly` whose handler is deduplicated by user."""
    app = StreamQ(Settings())
    queue = options.pop("queue", "default")
    dedup = options.pop("dedup", "user_id")
    limits = options.pop("limits", {})

    @app.handler(queue=queue, key="user_id", dedup=dedup, **limits)
    async def refresh(user_id: str, depth: int = 3) -> None: ...

    app.cron(expression, handler=refresh, name=options.pop("name", "hourly"), **options)(page)
    return next(iter(app.cron_entries.values()))


class Office:
    """Runs fan-outs of one schedule on a real server."""

    def __init__(self, bureau: Bureau, queue: str, clock: Clock, stop: asyncio.Event) -> None:
        self.bureau = bureau
        self.queue = queue
        self.clock = clock
        self.stop = stop

    @property
    def desk(self) -> Desk:
        """The desk of the test's queue."""
        return self.bureau.desk(self.queue)

    def schedule(self, page: Callable[..., Any], expression: str = "0 * * * *", **options: Any) -> Schedule:
        """Make a schedule that enqueues into the test's queue."""
        return checked(entry_of(page, expression, queue=self.queue, **options))

    def fanout(self, schedule: Schedule, fire: datetime = NOON, **options: Any) -> FanOut:
        """Make the fan-out of an occurrence."""
        return FanOut(schedule, Occurrence(schedule.name, ms(fire)), self.desk, **options)

    def minder(self, schedule: Schedule) -> Minder:
        """Make what looks after a schedule."""
        return Minder(schedule, self.desk)

    async def jobs(self) -> Counter[str]:
        """Return how often each job id was enqueued, those that are delayed included."""
        wire, keys = self.desk.partition.wire, self.desk.partition.keys
        ids: Counter[str] = Counter(name.decode() for name in await wire.call("HKEYS", keys.payload))
        for lane in keys.lanes:
            ids.update(fields[1].decode() for _, fields in await wire.call("XRANGE", lane, "-", "+"))
        return ids

    async def envelopes(self) -> list[dict[str, Any]]:
        """Return the envelopes in the lanes."""
        keys = self.desk.partition.keys
        entries = [
            entry for lane in keys.lanes for entry in await self.desk.partition.wire.call("XRANGE", lane, "-", "+")
        ]
        return [orjson.loads(fields[3]) for _, fields in entries]

    async def finish_all(self) -> None:
        """Make every job end, so that nothing but the producers' records is left."""
        keys, wire = self.desk.partition.keys, self.desk.partition.wire
        dedups = [key async for key in self._keys(f"{keys.tag}:dedup:*")]
        await wire.call("DEL", *keys.lanes, keys.index, keys.delayed, keys.payload, *dedups)

    async def _keys(self, pattern: str) -> AsyncIterator[bytes]:
        for key in await self.desk.partition.wire.call("KEYS", pattern):
            yield key


@pytest.fixture
def clock() -> Clock:
    """The time, which stands still at noon."""
    return Clock()


@pytest.fixture
async def office(redis_url: str, queue_name: str, clock: Clock) -> AsyncIterator[Office]:
    """An office on an empty server."""
    stop = asyncio.Event()
    async with desks(Settings(redis_url=redis_url), stop, now_ms=clock) as bureau:
        office = Office(bureau, queue_name, clock, stop)
        yield office
        await office.finish_all()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, Any]]]:
    """Return the fields and the text of each event of a name so far."""
    caplog.set_level(logging.INFO, "streamq")

    def events(name: str) -> list[dict[str, Any]]:
        return [
            {"text": vars(record).get("text", ""), "level": record.levelname} | vars(record).get("fields", {})
            for record in caplog.records
            if record.getMessage() == name
        ]

    return events
