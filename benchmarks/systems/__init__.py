"""The systems that streamq is measured against: one small file each, in an environment of its own.

A file is imported by the system's own interpreter and knows nothing but that system and the standard library. It offers

* `open(url)`, the producing side: a value, or a coroutine or an asynchronous context manager that gives one;
* `one(side, job, argument)`, an enqueue as a user writes it; a coroutine function where the system is asynchronous;
* `many(side, job, arguments)`, its own way to enqueue in bulk, if it has one;
* `later(side, job, argument, delay_s)`, if it has delays;
* `work(url, concurrency, setting)`, a worker that runs until it is killed; `setting` is `default` or `fast` (recovery).

The bodies of the jobs come from `benchmarks.systems.bodies`, the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SYSTEMS", "System", "is_limit"]


@dataclass(frozen=True)
class System:
    """What is known of a system before it runs."""

    name: str
    requirements: tuple[str, ...] = ()
    """Pinned; from PyPI, or from npm for a system written for Node. Empty: what streamq itself needs."""
    module: str = ""
    """The file in this folder, if it is not named as the system."""
    ack: str = ""
    """When a job counts as done for the system itself: what a crash costs follows from it."""
    result: str = ""
    left: str = ""
    """What a finished job leaves in Redis."""
    is_node: bool = False
    is_python: bool = True
    """Whether the queue itself is written in Python; else its core is in Rust or JavaScript."""
    expected: int = 1_000
    """No-op jobs a second, roughly: how large a drain that lasts a second or two is."""
    concurrency: int = 32
    """How many jobs at once one process runs, where the scenario does not say."""
    is_serial: bool = False
    """Whether a worker runs one job at a time, whatever it is told."""
    needs_redis: tuple[int, int] = (0, 0)
    """The oldest Redis that it runs on, where that is newer than what streamq supports."""
    settings: dict[str, str] = field(default_factory=dict)
    """What the setting `fast` changes, in words."""

    @property
    def is_limit(self) -> bool:
        """Whether it is redis-py by hand: it promises nothing, and is nobody's rival."""
        return is_limit(self.name)

    @property
    def is_ours(self) -> bool:
        """Whether it is streamq in one of its settings."""
        return self.name.startswith("streamq")


def is_limit(name: str) -> bool:
    """Whether a system of this name is redis-py by hand."""
    return name.startswith("raw")


_FASTER = ("hiredis==3.5.0", "uvloop==0.23.0")

_ALL = (
    System("raw", ack="after the body, in batches", result="no", left="nothing", expected=60_000, concurrency=100),
    System("raw-sync", ack="after the body, in batches", result="no", left="nothing", expected=60_000, concurrency=100),
    System(
        "streamq", ack="after the run", result="on request", left="nothing but capped streams", expected=50_000,
        concurrency=100, settings={"fast": "dead_after_ms 2,000, beat_ms 500"},
    ),
    System(
        "streamq-default", module="streamq", ack="after the run", result="on request", left="nothing but capped streams",
        expected=40_000, concurrency=3,
    ),
    System(
        "streamq-results", module="streamq_results", ack="after the run", result="5 min", left="result",
        expected=20_000, concurrency=100,
    ),
    System(
        "streaq", ("streaq==7.2.0", *_FASTER), ack="after the run", result="5 min", left="result", expected=900,
        settings={"fast": "idle_timeout 5 s"},
    ),
    System(
        "arq", ("arq==0.28.0", *_FASTER), ack="after the run", result="1 h", left="result", expected=1_400,
        settings={"fast": "job_timeout 25 s, poll_delay 0.1 s"},
    ),
    System(
        "saq", ("saq[redis]==0.26.4", "typing_extensions==4.16.0", *_FASTER), ack="after the run; a job whose worker died is aborted by default",
        result="10 min", left="job", expected=1_800,
        settings={"fast": "retries 3, timeout 25 s, sweep each second"},
    ),
    System(
        "taskiq", ("taskiq-redis==1.2.4", *_FASTER), ack="after the result is kept", result="for ever",
        left="result, and the entry in the stream", expected=1_700, settings={"fast": "idle_timeout 25 s"},
    ),
    System(
        "docket", ("pydocket==0.27.0", *_FASTER), ack="after the run", result="only what is not None", left="a record, 15 min",
        expected=600, settings={"fast": "redelivery_timeout 5 s"},
    ),
    System(
        "dramatiq", ("dramatiq[redis]==2.2.1", *_FASTER), ack="after the run", result="no", left="nothing", expected=3_000,
        settings={"fast": "heartbeat_timeout 5 s"},
    ),
    System(
        "rq", ("rq==3.0.0", *_FASTER), ack="taken before the run; a registry remembers it", result="500 s",
        left="job and result", expected=300, is_serial=True, settings={"fast": "retry 3, job_timeout 25 s, maintenance each 5 s"},
    ),
    System(
        "huey", ("huey==3.5.4", "redis==8.1.0", *_FASTER), ack="before the run: at most once", result="if not None", left="nothing",
        expected=1_700,
    ),
    System(
        "celery", ("celery[redis]==5.7.0", *_FASTER), ack="before the run, by default", result="1 day", left="result",
        expected=550, settings={"fast": "acks_late, visibility_timeout 25 s"},
    ),
    System(
        "bullmq-python", ("bullmq==3.4.4", *_FASTER), module="bullmq_python", ack="after the run", result="for ever",
        left="job", expected=1_600, settings={"fast": "lockDuration and stalledInterval 5 s"},
    ),
    System(
        "bullmq-node", ("bullmq@6.7.0", "ioredis@5.8.2"), module="bullmq_node.mjs", ack="after the run", result="for ever", left="job",
        is_node=True, is_python=False, expected=12_000, settings={"fast": "lockDuration and stalledInterval 5 s"},
    ),
    System(
        "ardiq", ("ardiq==1.2.0", "uvloop==0.23.0"), ack="after the run", result="5 min", left="result", is_python=False,
        expected=8_000, settings={"fast": "idle_timeout 5 s"},
    ),
    System(
        "chasquimq", ("chasquimq==1.3.0", "uvloop==0.23.0"), ack="after the run, in batches; no heartbeat: what runs for 30 s is run again",
        result="on request; here no", left="nothing", is_python=False, expected=20_000, concurrency=100, needs_redis=(8, 6),
        settings={"fast": "claim_min_idle 5 s"},
    ),
)  # fmt: skip

SYSTEMS = {system.name: system for system in _ALL}
"""Every system by its name, streamq and the bare loop included."""
