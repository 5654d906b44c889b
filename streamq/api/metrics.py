"""What Prometheus reads: both servers are asked once, and each figure is of a queue as a whole.

What workers count they add up in Redis (`streamq.meters`), so that one scrape has all of it, also of workers that are
gone. Labels are queues, handlers, outcomes, schedules and worker processes; never a job or a user.

See https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from streamq import __version__
from streamq.errors import StreamQError
from streamq.meters import BOUNDS_S, metered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streamq.api.stores import Stores, Tally
    from streamq.broker.inspection import Counts
    from streamq.broker.server import Memory
    from streamq.history import Round
    from streamq.meters import Histogram, Metered

__all__ = ["CONTENT_TYPE", "metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Sample(NamedTuple):
    """One line."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


async def metrics(stores: Stores) -> str:
    """Ask both servers, and write what they say; what is not known is left out."""
    try:
        counts: Mapping[str, Counts] = await stores.counts()
    except StreamQError:
        counts = {}
    tally = await stores.tally() if stores.mongodb.is_up else None
    families = [
        _family("streamq_build_info", "Version of streamq.", [Sample({"version": __version__}, 1)]),
        _family("streamq_redis_up", "Whether Redis answered.", [Sample({}, int(stores.redis.is_up))]),
        _family("streamq_mongodb_up", "Whether MongoDB answered.", [Sample({}, int(stores.mongodb.is_up))]),
        _family("streamq_queue_jobs", "Jobs by state.", [*_live(counts), *_ended(tally)]),
        *_of_memory(await stores.memory() if counts else None),
        *_of_queues(counts, stores),
        *_of_workers({queue: metered(count.counted) for queue, count in counts.items()}),
        *_of_reconciler(await _rounds(stores)),
    ]
    return "".join([*families, *await _fairness(stores, counts), *await _gates(stores, counts)])


async def _fairness(stores: Stores, counts: Mapping[str, Counts]) -> list[str]:
    """Tell of each lane what it holds, and of each queue who is slow."""
    costs = await stores.costs() if counts else {}
    lanes = [
        Sample({"queue": queue, "lane": lane, "state": state}, number)
        for queue, count in counts.items()
        for lane, held in count.lanes.items()
        for state, number in (("waiting", held.waiting), ("running", held.in_flight))
    ]
    limits = [
        Sample({"queue": queue}, cost.limit_ms / 1000) for queue, cost in costs.items() if cost.limit_ms is not None
    ]
    users = [Sample({"queue": queue}, cost.slow_keys) for queue, cost in costs.items()]
    return [
        _family("streamq_lane_jobs", "Jobs by lane.", lanes),
        _family("streamq_slow_limit_seconds", "Run time from which a job is slow, as the run times tell.", limits),
        _family("streamq_slow_keys", "Users that are known as slow.", users),
    ]


async def _gates(stores: Stores, counts: Mapping[str, Counts]) -> list[str]:
    """Tell of the limits of handlers one by one, and of those of user keys what is so of all of them."""
    try:
        crowds = await stores.crowds(list(counts))
    except StreamQError:
        crowds = {}
    jobs, limits, longest, keys = list[Sample](), list[Sample](), list[Sample](), list[Sample]()
    for queue, crowd in crowds.items():
        for gate in crowd.gates:
            if gate.name.key is None:
                labels = {"queue": queue, "handler": gate.name.handler or "", "gate": gate.name.kind}
                jobs.append(Sample({**labels, "state": "parked"}, gate.parked))
                if gate.running is not None:
                    jobs.append(Sample({**labels, "state": "running"}, gate.running))
                    limits.append(Sample(labels, gate.limit or 0))
        first = crowd.longest()
        longest.append(Sample({"queue": queue}, first.longest_ms / 1000 if first is not None else 0))
        keys.append(Sample({"queue": queue}, crowd.keys))
    parked = [Sample({"queue": queue}, count.parked) for queue, count in counts.items()]
    return [
        _family("streamq_parked_jobs", "Jobs that wait at gates, those of user keys included.", parked),
        _family("streamq_gate_jobs", "Jobs at the limits of handlers, by what they do there.", jobs),
        _family("streamq_gate_limit", "How many of a handler's jobs may run at once.", limits),
        _family(
            "streamq_gate_longest_seconds", "How long a job has been waiting at limits, of those looked at.", longest
        ),
        _family("streamq_fair_keys", "User keys that wait for their turn.", keys),
    ]


# What is so at this moment.


def _of_memory(memory: Memory | None) -> Iterator[str]:
    """Tell how full Redis is; nothing when it did not say."""
    told = [] if memory is None else [(memory.used_bytes, memory.limit_bytes, int(memory.evicts))]
    for place, (name, about) in enumerate(_OF_MEMORY):
        yield _family(name, about, [Sample({}, figures[place]) for figures in told])


_OF_MEMORY = (
    ("streamq_redis_memory_bytes", "Memory that Redis uses."),
    ("streamq_redis_memory_limit_bytes", "The most that it may use; 0: as much as there is."),
    ("streamq_redis_evicts", "Whether Redis drops keys when its memory is full, and jobs with them."),
)

_OF_A_QUEUE: tuple[tuple[str, str, Callable[[Counts, Stores], float]], ...] = (
    (
        "streamq_queue_oldest_wait_seconds",
        "How long the job that waits longest has been waiting.",
        lambda counts, _: counts.oldest_wait_ms / 1000,
    ),
    (
        "streamq_queue_overdue_seconds",
        "How long ago the first delayed job was due that no worker has brought into its lane; 0: none is.",
        lambda counts, _: counts.overdue_ms() / 1000,
    ),
    ("streamq_queue_paused", "Whether the queue is paused.", lambda counts, _: int(counts.pause is not None)),
    (
        "streamq_pending_max_idle_seconds",
        "Longest time since a delivery was renewed, of the oldest of each lane.",
        lambda counts, _: counts.most_idle_ms / 1000,
    ),
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


def _of_queues(counts: Mapping[str, Counts], stores: Stores) -> Iterator[str]:
    for name, about, value in _OF_A_QUEUE:
        yield _family(name, about, [Sample({"queue": queue}, value(count, stores)) for queue, count in counts.items()])
    yield _family(
        "streamq_worker_heartbeat_timestamp_seconds",
        "When a worker last gave a sign of life, by the clock of Redis.",
        [
            Sample({"queue": queue, "worker": worker.name}, (count.now_ms - worker.beat_age_ms) / 1000)
            for queue, count in counts.items()
            for worker in count.workers
            if not worker.given_up
        ],
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
            yield Sample({"queue": queue, "state": state}, number)


def _ended(tally: Tally | None) -> Iterable[Sample]:
    for queue, states in (tally.counts if tally else {}).items():
        for state in ("completed", "dead", "cancelled", "expired"):
            yield Sample({"queue": queue, "state": state}, states.get(state, 0))


# What was counted.

_PLAIN = (
    ("streamq_jobs_reclaimed_total", "Deliveries taken from workers that died or did not renew them.", "reclaimed"),
    ("streamq_stale_completions_total", "Outcomes that came too late and were refused.", "late_outcomes"),
    (
        "streamq_stuck_jobs_total",
        "Jobs that did not let go when they were told to stop, so that their worker had to be replaced.",
        "stuck",
    ),
    (
        "streamq_leases_run_out_total",
        "Jobs stopped because Redis was away for as long as their lease.",
        "leases_run_out",
    ),
    ("streamq_redis_disruptions_total", "How often a worker lost Redis.", "redis_lost"),
    ("streamq_jobs_enqueued_total", "Jobs that were accepted.", "enqueued"),
)
_OUTCOMES = ("completed", "dead", "cancelled", "expired")


def _of_workers(all_of: Mapping[str, Metered]) -> Iterator[str]:
    for name, about, word in _PLAIN:
        samples = [Sample({"queue": queue}, one.plain.get(word, 0)) for queue, one in all_of.items()]
        yield _family(name, about, samples, "counter")
    yield _family(
        "streamq_jobs_finished_total", "Jobs that have ended, by outcome.",
        [
            Sample({"queue": queue, "handler": handler, "outcome": outcome}, one.ended.get((handler, outcome), 0))
            for queue, one in all_of.items()
            for handler in sorted({*one.runs, *(handler for handler, _ in one.ended)})
            for outcome in _OUTCOMES  # also those that there were none of: a rate begins at 0
        ],
        "counter",
    )  # fmt: skip
    yield _family(
        "streamq_job_retries_total", "Runs that failed and are tried again.",
        [
            Sample({"queue": queue, "handler": handler}, number)
            for queue, one in all_of.items()
            for (handler, outcome), number in sorted(one.ended.items())
            if outcome == "retrying"
        ],
        "counter",
    )  # fmt: skip
    runs = [
        sample
        for queue, one in all_of.items()
        for handler, histogram in sorted(one.runs.items())
        for sample in _histogram({"queue": queue, "handler": handler}, histogram)
    ]
    yield _family("streamq_job_duration_seconds", "How long runs took.", runs, "histogram")
    waits = [sample for queue, one in all_of.items() for sample in _histogram({"queue": queue}, one.waits)]
    yield _family("streamq_job_wait_seconds", "How long jobs that were due waited to start.", waits, "histogram")
    yield from _of_schedules(all_of)


def _of_schedules(all_of: Mapping[str, Metered]) -> Iterator[str]:
    fired = {queue: one.fired for queue, one in all_of.items()}
    missed = {queue: one.missed for queue, one in all_of.items()}
    name = "streamq_cron_last_{}_timestamp_seconds"
    yield _family(name.format("fire"), "Last fire time whose jobs were all enqueued.", _moments(fired))
    yield _family(name.format("missed"), "Last fire time that was missed.", _moments(missed))


def _moments(of_queues: Mapping[str, Mapping[str, int]]) -> Iterator[Sample]:
    for queue, entries in of_queues.items():
        for entry, moment_ms in sorted(entries.items()):
            yield Sample({"queue": queue, "entry": entry}, moment_ms / 1000)


def _histogram(labels: Mapping[str, str], histogram: Histogram) -> Iterator[Sample]:
    ends = [*(f"{end:g}" for end in BOUNDS_S), "+Inf"]
    totals = list(accumulate(histogram.buckets))
    for end, total in zip(ends, totals, strict=True):
        yield Sample({**labels, "le": end}, total, "_bucket")
    yield Sample(labels, histogram.sum_s, "_sum")
    yield Sample(labels, totals[-1], "_count")


# What the reconciler found.


async def _rounds(stores: Stores) -> Sequence[Round]:
    try:
        return await stores.ask_history(lambda history: history.rounds())
    except StreamQError:
        return ()


def _of_reconciler(rounds: Sequence[Round]) -> Iterator[str]:
    yield _family(
        "streamq_reconciler_findings", "What the last comparison of MongoDB with Redis found, by kind.",
        [
            Sample({"queue": each.queue, "kind": kind}, number)
            for each in rounds
            for kind, number in sorted(each.findings.items())
        ],
    )  # fmt: skip
    yield _family(
        "streamq_outbox_limit_entries", "The most entries that the outbox may hold; then the oldest are dropped.",
        [Sample({"queue": each.queue}, each.outbox_max) for each in rounds],
    )  # fmt: skip
    yield _family(
        "streamq_reconciler_last_round_timestamp_seconds", "When MongoDB and Redis were last compared.",
        [Sample({"queue": each.queue}, each.at.timestamp()) for each in rounds],
    )  # fmt: skip


# How it is written.


def _family(name: str, about: str, samples: Iterable[Sample], kind: str = "gauge") -> str:
    lines = [f"{name}{sample.suffix}{_labels(sample.labels)} {_number(sample.value)}\n" for sample in samples]
    return f"# HELP {name} {about}\n# TYPE {name} {kind}\n{''.join(lines)}" if lines else ""


def _number(value: float) -> str:
    """Write a number with all its digits: a time in seconds has ten of them before the point."""
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
