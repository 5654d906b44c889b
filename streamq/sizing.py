"""How many workers, how much Redis, how much memory a number of users takes: a model with measured figures.

`python -m benchmarks.scale` measures the same things at 1,000 to 1,000,000 users and says how far off the model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FIGURES", "Figures", "Load", "Needs", "needs_of"]

FULL = 0.8
"""Plan so that slots, processors and Redis are busy for this share of the time; the rest is for bad moments."""


@dataclass(frozen=True)
class Figures:
    """What one job costs, as `benchmarks.scale` measured it on two cores of an AMD EPYC with Redis 7.0, and a little to spare."""

    worker_us: float = 10.5
    """Processor time of a worker around a handler."""
    enqueue_us: float = 7.5
    """Processor time of the producer, in a fan-out."""
    redis_us: float = 16.5
    """Processor time of Redis from enqueue to settled, with dedup keys and outbox."""
    divided_worker_us: float = 2.5
    """Processor time of a worker that a job of a divided queue takes more."""
    divided_redis_us: float = 2.5
    """Processor time of Redis that it takes more, over all masters."""
    recorder_us: float = 55.0
    """Processor time of the recorder for the document of a job."""
    job_bytes: float = 360.0
    """Memory in Redis for a waiting job with its dedup key, without its arguments."""
    document_bytes: float = 700.0
    """A document in MongoDB, with its share of the indexes."""


FIGURES = Figures()


@dataclass(frozen=True)
class Load:
    """What has to be done in each period."""

    users: int
    """One job each."""
    run_s: float = 1.0
    """How long a job runs, on average."""
    cpu_share: float = 0.1
    """Which part of that it computes; the rest it waits for something else."""
    period_s: float = 3600.0
    """All have to be done within this time."""
    concurrency: int = 3
    """Jobs at once in one worker process."""
    payload_bytes: int = 120
    """Arguments of a job."""
    partitions: int = 1
    """Into how many the queue is divided."""


@dataclass(frozen=True)
class Needs:
    """What that takes."""

    slots: int
    """Jobs at once, over all workers."""
    processes: int
    """Worker processes."""
    worker_cores: float
    """Processors that the workers keep busy."""
    redis_core_share: float
    """Of one processor, all masters together: a Redis has one thread for commands."""
    masters: int
    """Servers that share this; more than one are the masters of a Redis Cluster."""
    redis_mb: float
    """For all jobs waiting at once, as at the full hour."""
    enqueue_s: float
    """How long one cron process takes to enqueue everybody, at the least."""
    recorder_core_share: float
    """Of one processor."""
    mongodb_mb_per_period: float
    """New documents, before their time to live ends."""
    limit: str
    """What gives out first, or nothing."""


def needs_of(load: Load, figures: Figures = FIGURES) -> Needs:
    """Say what a load takes, with a fifth to spare for slots and processes."""
    slots = math.ceil(load.users * load.run_s / load.period_s / FULL)
    is_divided = load.partitions > 1
    worker_us = figures.worker_us + is_divided * figures.divided_worker_us
    cores = load.users * (load.run_s * load.cpu_share + worker_us / 1e6) / load.period_s
    undivided = load.users * figures.redis_us / 1e6 / load.period_s
    divided = undivided + load.users * figures.divided_redis_us / 1e6 / load.period_s
    redis = divided if is_divided else undivided
    masters = math.ceil(divided / FULL) if redis > FULL else 1
    processes = max(math.ceil(slots / load.concurrency), math.ceil(cores / FULL), 1)
    return Needs(
        slots=max(slots, 1),
        processes=processes,
        worker_cores=cores,
        redis_core_share=redis,
        masters=masters,
        redis_mb=load.users * (figures.job_bytes + load.payload_bytes) / 1e6,
        enqueue_s=load.users * figures.enqueue_us / 1e6,
        recorder_core_share=load.users * figures.recorder_us / 1e6 / load.period_s,
        mongodb_mb_per_period=load.users * (figures.document_bytes + load.payload_bytes) / 1e6,
        limit=_limit(masters, load.partitions, load.users * figures.recorder_us / 1e6 / load.period_s),
    )


def _limit(masters: int, partitions: int, recorder_core_share: float) -> str:
    if masters > partitions:
        on = "one server" if partitions == 1 else f"{partitions} masters"
        return (
            f"Redis: {on} cannot do this many; divide the queue over {masters} masters or more, or use several queues"
        )
    if recorder_core_share > FULL:
        return "the recorder: run several, they share the work"
    return ""
