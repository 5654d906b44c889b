"""What Prometheus reads. Only what is true of a queue as a whole; each worker counts its own runs.

See https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamq import __version__
from streamq.errors import StreamQError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streamq.api.stores import Stores, Tally
    from streamq.broker.inspection import Counts

__all__ = ["CONTENT_TYPE", "metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]


async def metrics(stores: Stores) -> str:
    """Ask both servers, and write what they say; what is not known is left out."""
    try:
        counts: Mapping[str, Counts] = await stores.counts()
    except StreamQError:
        counts = {}
    tally = await stores.tally() if stores.mongodb.is_up else None
    families = [
        _family("streamq_build_info", "Version of streamq.", [({"version": __version__}, 1)]),
        _family("streamq_redis_up", "Whether Redis answered.", [({}, int(stores.redis.is_up))]),
        _family("streamq_mongodb_up", "Whether MongoDB answered.", [({}, int(stores.mongodb.is_up))]),
        _family("streamq_queue_jobs", "Jobs by state.", [*_live(counts), *_ended(tally)]),
    ]
    for name, about, value in _OF_A_QUEUE:
        samples = [({"queue": queue}, value(count, stores)) for queue, count in counts.items()]
        families.append(_family(name, about, samples))
    return "".join(families)


_OF_A_QUEUE: tuple[tuple[str, str, Callable[[Counts, Stores], float]], ...] = (
    (
        "streamq_queue_oldest_wait_seconds",
        "How long the job that waits longest has been waiting.",
        lambda counts, _: counts.oldest_wait_ms / 1000,
    ),
    ("streamq_queue_paused", "Whether the queue is paused.", lambda counts, _: int(counts.pause is not None)),
    (
        "streamq_workers",
        "Workers that are alive.",
        lambda counts, stores: counts.workers_alive(stores.dead_after_ms),
    ),
    ("streamq_blocks", "Handlers and user keys that are blocked.", lambda counts, _: len(counts.blocks)),
    (
        "streamq_unknown_jobs_seconds",
        "For how long jobs have been waiting for a worker that knows their handler or version; 0: none do.",
        lambda counts, _: counts.unknown_for_ms() / 1000,
    ),
    ("streamq_dead_letters", "Dead letters that are kept.", lambda counts, _: counts.dead),
    (
        "streamq_dead_letters_evicted",
        "Dead letters that were dropped because there were too many, ever.",
        lambda counts, _: counts.evicted,
    ),
    ("streamq_outbox_entries", "Entries that are not in the history yet.", lambda counts, _: counts.outbox),
    (
        "streamq_status_write_lag_seconds",
        "Age of the oldest entry that is not in the history yet.",
        lambda counts, _: counts.outbox_age_ms / 1000,
    ),
)


def _live(counts: Mapping[str, Counts]) -> Iterable[Sample]:
    for queue, count in counts.items():
        states = {
            "waiting": count.waiting,
            "running": count.in_flight,
            "scheduled": count.delayed,
            "blocked": count.blocked,
        }
        for state, number in states.items():
            yield {"queue": queue, "state": state}, number


def _ended(tally: Tally | None) -> Iterable[Sample]:
    for queue, states in (tally.counts if tally else {}).items():
        for state in ("completed", "dead", "cancelled", "expired"):
            yield {"queue": queue, "state": state}, states.get(state, 0)


def _family(name: str, about: str, samples: Iterable[Sample]) -> str:
    lines = [f"{name}{_labels(labels)} {value:g}\n" for labels, value in samples]
    return f"# HELP {name} {about}\n# TYPE {name} gauge\n{''.join(lines)}" if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
