"""Taking over the jobs of a BullMQ queue: each becomes a job of streamq, and nothing of the source changes.

The id of a job is made from the old one, so that a second import adds nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from streamq.broker.bullmq import BullQueue, BullState
from streamq.broker.server import Broker
from streamq.clock import now_ms
from streamq.codec import decode_envelope, encode_envelope
from streamq.errors import BadInput, JobRejected
from streamq.mongo import Mongo, Statuses
from streamq.options import Options
from streamq.queue import draft

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamq.app import StreamQ
    from streamq.broker.bullmq import BullJob
    from streamq.queue import Draft
    from streamq.registry import HandlerSpec
    from streamq.settings import Settings

__all__ = ["STATES", "Imported", "Source", "import_bullmq"]

STATES: tuple[BullState, ...] = get_args(BullState)

_BATCH = 128
_MOST_FAULTS = 20
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the jobs are, and what becomes of their names."""

    queue: str
    url: str
    prefix: str = "bull"
    states: Sequence[BullState] = STATES
    handlers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old job name to handler; a name that is not here becomes one with underscores."""
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old field of the data to argument; a field that is not here becomes one with underscores."""


@dataclass(slots=True)
class Imported:
    """The report."""

    found: dict[str, int] = field(default_factory=dict[str, int])
    """Jobs in the source by state, also of states that are not imported."""
    imported: Counter[str] = field(default_factory=Counter[str])
    """By state; in a dry run those that would be."""
    present: Counter[str] = field(default_factory=Counter[str])
    """By state: those that an earlier import has taken over."""
    duplicates: Counter[str] = field(default_factory=Counter[str])
    """By state: those for which a living job with their dedup key stands in."""
    refused: Counter[str] = field(default_factory=Counter[str])
    """By state: those that cannot be jobs here."""
    faults: list[str] = field(default_factory=list[str])
    """Why, of the first twenty."""


async def import_bullmq(settings: Settings, app: StreamQ, source: Source, *, is_dry: bool = False) -> Imported:
    """Import what waits, is delayed, prioritized or failed in a queue of BullMQ.

    Waiting, delayed and prioritized jobs keep their order, their due time and their attempts; prioritized ones get the low
    priority, since BullMQ starts them after the others. A failed job gets one attempt more.

    Args:
        settings: Where streamq's Redis is.
        app: Its handlers are those that run the jobs.
        source: What to import.
        is_dry: Read and check everything, and write nothing.

    Raises:
        BadInput: There is no such queue.
        BrokerUnavailable: One of the two servers does not answer. Import again: what is there is not added twice.
        QueueFull: The queue holds as many jobs as it may. Import again later.
    """
    report = Imported()
    broker = Broker(source.url, allow_eviction=True)
    wire = broker.wire()
    try:
        bull = BullQueue(wire, source.queue, prefix=source.prefix)
        report.found = await bull.counts()
        if not any(report.found.values()):
            raise BadInput(
                f"BullMQ has no queue {source.queue!r} under the prefix {source.prefix!r} there",
                hint="redis-cli --scan --pattern '*:meta' lists its queues",
            )
        for state in source.states:
            batch: list[Draft] = []
            async for job in bull.jobs(state):
                if (item := _drafted(app, settings, source, job, report)) is not None:
                    batch.append(item)
                if len(batch) == _BATCH:
                    await _send(settings, app, batch, state, report, is_dry=is_dry)
                    batch = []
            await _send(settings, app, batch, state, report, is_dry=is_dry)
    finally:
        await wire.close()
        await broker.close()
    return report


def _drafted(app: StreamQ, settings: Settings, source: Source, job: BullJob, report: Imported) -> Draft | None:
    """Make a job of ours, or note why that is not possible."""
    try:
        spec = _handler(app, source, job)
        args, kwargs = _arguments(spec, source, job.data)
        options = Options(
            id=f"bullmq:{source.queue}:{job.id}",
            delay=timedelta(milliseconds=job.due_ms - now_ms()) if job.due_ms > now_ms() else None,
            priority="low" if job.priority else None,
            max_attempts=max(1, int(job.options.get("attempts") or 1), job.attempts_made + (job.state == "failed")),
        )
        item = draft(
            spec, args, kwargs, options, max_payload_bytes=settings.max_payload_bytes,
            partitions=settings.partitions_of(spec.queue),
        )  # fmt: skip
    except (JobRejected, BadInput) as error:
        report.refused[job.state] += 1
        if len(report.faults) < _MOST_FAULTS:
            report.faults.append(f"{job.state} job {job.id} ({job.name}): {error}")
        return None
    if job.attempts_made:
        envelope = msgspec.structs.replace(decode_envelope(item.envelope), attempt=job.attempts_made + 1)
        item.envelope = encode_envelope(envelope)
    return item


def _handler(app: StreamQ, source: Source, job: BullJob) -> HandlerSpec:
    if job.fault:
        raise BadInput(job.fault)
    return app.registry.get(source.handlers.get(job.name) or _snake(job.name))


def _arguments(spec: HandlerSpec, source: Source, data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(data, dict):
        return (data,), {}
    named: dict[str, Any] = {}
    for key, value in data.items():
        name = source.arguments.get(key) or (key if key in spec.signature.parameters else _snake(key))
        named[name] = value
    return (), named


def _snake(name: str) -> str:
    return _CAPITAL.sub("_", name).replace("-", "_").lower()


async def _send(
    settings: Settings, app: StreamQ, batch: list[Draft], state: str, report: Imported, *, is_dry: bool
) -> None:
    if not batch:
        return
    ended = await _ended(settings, [item.id for item in batch])
    report.present[state] += len(ended)
    fresh = [item for item in batch if item.id not in ended]
    if is_dry:
        report.imported[state] += len(fresh)
        return
    for job in await app.client.send_many(fresh):
        counter = {"new": report.imported, "present": report.present, "duplicate": report.duplicates}[job.status]
        counter[state] += 1


async def _ended(settings: Settings, job_ids: list[str]) -> set[str]:
    """Return which of these jobs the history knows: an earlier import has taken them over, and they may have ended."""
    if not settings.history:
        return set()
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        return await Statuses(mongo).known(job_ids)
    finally:
        await mongo.close()
