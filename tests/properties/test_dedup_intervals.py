"""Dedup: jobs of one key live one after the other, whatever producers, workers and operators do in between.

A job takes its key when it is accepted, and frees it when it has ended, or with a window when that is over. The real scripts
on a real server decide; what is kept here is when each job had its key, by the number of the step.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from streamq.broker.orders import Orders
from streamq.broker.partition import NewJob, Partition, Report
from streamq.broker.server import Broker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamq.job import Delivery

WINDOW_MS = 3_600_000
FREE = 1 << 50
"""The end of a job that has its key still."""

keys = st.sampled_from("ab")
drafts = st.tuples(keys, st.booleans())
"""A key, and whether the job is delayed."""
steps = st.one_of(
    st.tuples(st.just("add"), st.lists(drafts, min_size=1, max_size=4)),
    st.tuples(st.just("add"), st.lists(st.tuples(keys, st.just(False)), min_size=1, max_size=2, unique=True)),
    st.tuples(st.sampled_from(["run", "complete", "retry", "release", "make due", "repeat", "leave"]), st.just(None)),
    st.tuples(st.sampled_from(["cancel", "end of the window"]), keys),
)
names = count()


@dataclass
class Term:
    """For which steps a job had its key."""

    job_id: str
    begin: int
    end: int = FREE


@dataclass
class Ground:
    """A partition, one worker, and who had which key when."""

    partition: Partition
    orders: Orders
    window_ms: int
    terms: dict[str, list[Term]] = field(default_factory=lambda: {"a": [], "b": []})
    running: list[Delivery] = field(default_factory=list)
    worker: str = ""
    step: int = 0
    number: int = 0
    last: list[NewJob] = field(default_factory=list)

    async def join(self) -> None:
        self.worker = f"w{next(names)}"
        await self.partition.register(self.worker)

    async def do(self, what: str, how: Any) -> None:
        """Take a step."""
        self.step += 1
        await getattr(self, what.replace(" ", "_"))(how)

    def holder(self, key: str) -> Term | None:
        """Return the job that has a key now."""
        return next((term for term in self.terms[key] if term.end == FREE), None)

    def free(self, key: str, job_id: str) -> None:
        holder = self.holder(key)
        assert holder is not None
        assert holder.job_id == job_id
        holder.end = self.step

    async def add(self, wanted: list[tuple[str, bool]]) -> None:
        envelope = b'{"h":"h","g":"%s"' + (b',"gw":%d}' % self.window_ms if self.window_ms else b"}")
        self.last = [
            NewJob(f"j{next(names)}", 2, envelope.replace(b"%s", key.encode()), WINDOW_MS if late else 0, key)
            for key, late in wanted
        ]
        self.number += 1
        results = (await self.partition.add("p", self.number, self.last)).results
        for job, result in zip(self.last, results, strict=True):
            holder = self.holder(job.dedup or "")
            if result == "n":
                self.terms[job.dedup or ""].append(Term(job.id, self.step))
                assert holder is None, f"{job.id} took the key of {holder}"
            else:
                assert holder is not None, f"{job.id} was refused a free key"
                assert result == f"d{holder.job_id}"

    async def repeat(self, _: None) -> None:
        """Send the last jobs again, as somebody does who got no reply and knows no number."""
        if self.last:
            self.number += 1
            results = (await self.partition.add("p", self.number, self.last)).results
            for job, result in zip(self.last, results, strict=True):
                if result == "n":
                    assert self.holder(job.dedup or "") is None
                    self.terms[job.dedup or ""].append(Term(job.id, self.step))

    async def cycle(self, want: int = 0, **report: list[Any]) -> None:
        reply = await self.partition.cycle(
            self.worker, Report(**report), want=want, reads=[(2, 128, 0)], dead_after_ms=1 << 50, control_cursor=b"0-0",
            limits=(0, 1), now=0.0,
        )  # fmt: skip
        assert reply.refused == []
        self.running += reply.deliveries

    async def run(self, _: None) -> None:
        await self.cycle(2)

    async def complete(self, _: None) -> None:
        if self.running:
            job = self.running.pop(0)
            key = self.key_of(job)
            await self.cycle(settled=[job.token, job.id, b"{}"], dedups=[(job.id, key, self.window_ms)])
            if not self.window_ms:
                self.free(key, job.id.decode())

    async def retry(self, _: None) -> None:
        if self.running:
            job = self.running.pop(0)
            await self.cycle(requeued=[job.token, job.id, WINDOW_MS, job.digit, job.enqueued_ms, job.raw, b""])

    async def release(self, _: None) -> None:
        if self.running:
            assert await self.partition.release(self.worker, [self.running.pop(0)]) == 1

    async def leave(self, _: None) -> None:
        """A worker goes, and another one comes; what it had goes back."""
        await self.partition.leave(self.worker)
        self.running.clear()
        await self.join()

    async def make_due(self, _: None) -> None:
        """Wind time for all delayed jobs."""
        delayed = await self.partition.wire.call("ZRANGE", self.partition.keys.delayed, 0, -1)
        for job_id in delayed:
            await self.partition.wire.call("ZADD", self.partition.keys.delayed, "XX", 1, job_id)

    async def cancel(self, key: str) -> None:
        """Cancel the job that has a key, if it waits. There is no window after a job that did nothing."""
        holder = self.holder(key)
        waits = holder is not None and holder.job_id not in {job.id.decode() for job in self.running}
        if holder is not None and waits and await self.lives(holder.job_id):
            assert await self.orders.cancel(holder.job_id) == "cancelled"
            self.free(key, holder.job_id)

    async def end_of_the_window(self, key: str) -> None:
        """Wind time for the key of a job that has ended."""
        name = self.partition.keys.dedup(key)
        if await self.partition.wire.call("PTTL", name) > 0:
            await self.partition.wire.call("DEL", name)
            holder = self.holder(key)
            assert holder is not None
            assert not await self.lives(holder.job_id)
            holder.end = self.step

    async def lives(self, job_id: str) -> bool:
        return bool(await self.partition.wire.call("HEXISTS", self.partition.keys.index, job_id))

    def key_of(self, job: Delivery) -> str:
        return next(key for key, terms in self.terms.items() if any(term.job_id == job.id.decode() for term in terms))

    async def clear(self) -> None:
        """What lies there belongs to jobs that live, or to windows: both are right."""
        await self.partition.wire.call("DEL", *(self.partition.keys.dedup(key) for key in self.terms))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(steps, min_size=5, max_size=40), window_ms=st.sampled_from([0, WINDOW_MS]))
def test_the_intervals_in_which_jobs_have_one_key_never_overlap(redis_url, loop, plan, window_ms):
    """And in between nobody is refused: each call finds the one who has the key, or gets it."""

    async def run() -> Ground:
        broker = Broker(redis_url)
        partition = broker.partition(f"q{next(names)}")
        ground = Ground(partition, Orders(partition.wire, partition.keys, outbox_max=0), window_ms)
        try:
            await ground.join()
            for what, how in plan:
                await ground.do(what, how)
            return ground
        finally:
            await ground.clear()
            await partition.wire.close()
            await broker.close()

    for terms in loop.run(run()).terms.values():
        assert all(before.end <= after.begin for before, after in pairwise(terms))
