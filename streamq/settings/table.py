"""The table of settings: for each its type, its bounds, its default, its names, and whether it holds a secret.

Whatever else is said about a setting (help texts, error messages, the list of `streamq config show`) is made from here.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, cast, get_args

import msgspec
from msgspec import Meta, inspect

from streamq.keys import partition_names
from streamq.logs import LogFormat, LogLevel, masked

__all__ = ["PREFIX", "REDIS_PARTS", "SETTINGS", "Row", "Settings", "Spec", "describe", "shown", "spec"]

PREFIX = "STREAMQ_"

_QUEUE_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_PARTITIONS = r"^([A-Za-z0-9_.-]{1,64}=)?([1-9]|[1-9][0-9]|1[01][0-9]|12[0-8])$"
_UNDIVIDED = ("1",)
_DATABASE_NAME = r'^[^/\\. "$\x00]{1,63}$'
_ORIGIN = r"^https?://[^/\s*,]+$"
_HOST_ALONE = r"^([^\s/@:]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$"


def _about(
    description: str, *names: str, flag: str = "", secret: bool = False, expected: str = "", **bounds: Any
) -> Meta:
    """Say about a setting what its type does not: its original names, its flag, whether nobody may see it."""
    extra = {"names": names, "flag": flag, "secret": secret, "expected": expected}
    return Meta(description=description, extra=extra, **bounds)


def _one_of(words: Any) -> str:
    return "one of " + ", ".join(get_args(words))


_QueueName = Annotated[str, Meta(pattern=_QUEUE_NAME)]
_Origin = Annotated[str, Meta(pattern=_ORIGIN)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. Durations are whole milliseconds.

    Made by `load`, which checks it. Neither `repr` nor `describe` shows a secret.
    """

    app: Annotated[str, _about("module:attribute of the StreamQ application", flag="APP")] = ""
    redis_url: Annotated[str, _about("where Redis is", "REDIS_URL", secret=True)] = "redis://127.0.0.1:6379/0"
    mongodb_url: Annotated[str, _about("where MongoDB is", "MONGODB_URL", "MONGODB_URI", secret=True)] = (
        "mongodb://127.0.0.1:27017"
    )
    mongodb_database: Annotated[
        str,
        _about(
            "database of the history",
            pattern=_DATABASE_NAME,
            expected="1 to 63 characters, none of them / \\ . $ a quote or a space",
        ),
    ] = "streamq"
    history: Annotated[bool, _about("keep the status of jobs in MongoDB")] = True
    worker_concurrency: Annotated[
        int, _about("jobs at once in one worker process", "WORKER_CONCURRENCY", flag="--concurrency", ge=1, le=10_000)
    ] = 3
    worker_instances: Annotated[
        int, _about("worker processes under one parent", "WORKER_INSTANCES", flag="--instances", ge=1, le=1_000)
    ] = 2
    warm_spares: Annotated[
        int,
        _about(
            "processes under a parent that have imported the application and wait for a worker to die",
            flag="--warm-spare",
            ge=0,
            le=100,
        ),
    ] = 0
    queues: Annotated[
        tuple[_QueueName, ...],
        _about(
            "queues to work on, comma separated",
            flag="--queue",
            min_length=1,
            expected="names separated by commas, each of 1 to 64 letters, digits, '_', '.' or '-'",
        ),
    ] = ("default",)
    partitions: Annotated[
        tuple[Annotated[str, Meta(pattern=_PARTITIONS)], ...],
        _about(
            "over how many partitions queues are spread; of one queue as NAME=4",
            expected="numbers from 1 to 128 separated by commas, each for all queues or for one: 1, or 2,users=4",
        ),
    ] = _UNDIVIDED
    lease_ms: Annotated[int, _about("how long a delivery stays its worker's without being renewed", ge=1)] = 60_000
    dead_after_ms: Annotated[int, _about("silence after which a worker is given up", ge=1)] = 5_000
    beat_ms: Annotated[int, _about("time between two signs of life of a worker", ge=1)] = 1_000
    grace_ms: Annotated[int, _about("time that running jobs get after SIGTERM", flag="--drain-timeout", ge=0)] = 25_000
    hang_limit_ms: Annotated[int, _about("silence after which a parent replaces its child", ge=1)] = 120_000
    max_jobs: Annotated[
        int, _about("about so many jobs, and a worker ends for a fresh one; 0 is any number", flag="--max-jobs", ge=0)
    ] = 0
    max_memory_mb: Annotated[
        int, _about("memory in MB above which a worker ends for a fresh one; 0 is any", flag="--max-memory", ge=0)
    ] = 0
    health_host: Annotated[str, _about("address that the probes of a worker listen on", min_length=1)] = "127.0.0.1"
    health_port: Annotated[
        int,
        _about(
            "port of the probes of a worker; the second one under a parent has the next; 0 is none", ge=0, le=64_535
        ),
    ] = 0
    heartbeat_file: Annotated[
        str, _about("file that a live worker, cron, recorder or parent writes each 5 s, for streamq health")
    ] = ""
    max_payload_bytes: Annotated[int, _about("largest job that may be enqueued", ge=1)] = 262_144
    max_depth: Annotated[int, _about("most jobs that a queue may hold; 0 is no limit", ge=0)] = 0
    slow_share: Annotated[
        float,
        _about("share of the slots that slow jobs may hold while fast ones wait; a quarter of it by right", ge=0, le=1),
    ] = 0.5
    lanes: Annotated[bool, _about("learn who is slow, and keep slow jobs from holding up fast ones")] = True
    fifo_queues: Annotated[
        tuple[_QueueName, ...],
        _about(
            "queues without lanes by cost, comma separated",
            flag="--fifo-queue",
            expected="names separated by commas, each of 1 to 64 letters, digits, '_', '.' or '-'",
        ),
    ] = ()
    slow_limit_ms: Annotated[int, _about("run time from which a job is slow; 0: as the run times tell", ge=0)] = 0
    burst_slots: Annotated[
        int, _about("more jobs at once while jobs that nobody knew to be slow hold slots", ge=0, le=10_000)
    ] = 0
    outbox_max: Annotated[int, _about("most entries of the outbox", ge=1)] = 200_000
    keep_completed_ms: Annotated[int, _about("how long MongoDB keeps the status of a completed job", ge=600_000)] = (
        86_400_000
    )
    keep_cancelled_ms: Annotated[int, _about("the same of a cancelled or expired job", ge=600_000)] = 7 * 86_400_000
    keep_dead_ms: Annotated[int, _about("the same of a dead job", ge=600_000)] = 30 * 86_400_000
    allow_eviction: Annotated[bool, _about("start although Redis may evict keys")] = False
    api_host: Annotated[str, _about("address that the API listens on", flag="--host", min_length=1)] = "127.0.0.1"
    api_port: Annotated[int, _about("port that the API listens on", flag="--port", ge=0, le=65_535)] = 8080
    api_token: Annotated[str, _about("bearer token of the API", flag="--token", secret=True)] = ""
    api_rate_limit: Annotated[int, _about("most requests of one token in a minute; 0 is no limit", ge=0)] = 12_000
    api_cors_origins: Annotated[
        tuple[_Origin, ...],
        _about(
            "sites whose pages may ask the API, comma separated", expected="origins such as https://ops.example.com"
        ),
    ] = ()
    api_behind_proxy: Annotated[
        bool, _about("a proxy before the API does TLS, so it may listen where others reach it", flag="--behind-proxy")
    ] = False
    api_tls_certificate: Annotated[str, _about("file of the certificate that the API shows")] = ""
    api_tls_key: Annotated[str, _about("file of the key of that certificate")] = ""
    cron_host: Annotated[str, _about("address of cron's probes and metrics", min_length=1)] = "127.0.0.1"
    cron_port: Annotated[int, _about("port of cron's probes and metrics; 0 is none", ge=0, le=65_535)] = 0
    recorder_host: Annotated[str, _about("address of the recorder's probes", min_length=1)] = "127.0.0.1"
    recorder_port: Annotated[int, _about("port of the recorder's probes; 0 is none", ge=0, le=65_535)] = 0
    alarm_webhook: Annotated[
        str,
        _about(
            "URL that alarms of schedules are posted to",
            secret=True,
            pattern=r"^(https?://.*)?$",
            expected="an address that begins with http:// or https://",
        ),
    ] = ""
    background_jobs_enabled: Annotated[
        bool, _about("run jobs and fire schedules at all", "BACKGROUND_JOBS_ENABLED")
    ] = True
    jobs_daily_updates: Annotated[
        bool, _about("whether the old system's daily batch is still on", "JOBS_DAILY_UPDATES")
    ] = True
    rollout: Annotated[
        str,
        _about(
            "share of the users whose jobs schedules make",
            pattern=r"^(all|(100|\d{1,2}(\.\d{1,4})?)%)$",
            expected="0% to 100%, or all",
        ),
    ] = "all"
    shadow: Annotated[bool, _about("fire schedules as dry runs, to compare with the old system")] = False
    log_level: Annotated[
        LogLevel, _about("least level of the log lines that are printed", expected=_one_of(LogLevel))
    ] = "info"
    log_format: Annotated[LogFormat, _about("auto is human on a terminal, else JSON", expected=_one_of(LogFormat))] = (
        "auto"
    )

    sources: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Setting to where its value came from, in the user's own words; empty for a value made without `load`."""
    warnings: tuple[str, ...] = ()
    """What was given and not used, a sentence each."""

    def partitions_of(self, queue: str) -> int:
        """Return how many partitions a queue has: as said of it, else as said of all queues."""
        if self.partitions == _UNDIVIDED:
            return 1
        said = {name: number for name, _, number in (each.rpartition("=") for each in self.partitions)}
        return int(said.get(queue) or said.get("") or 1)

    @property
    def partition_names(self) -> tuple[str, ...]:
        """The partitions of all queues; the only one of a queue is named as the queue."""
        return tuple(name for queue in self.queues for name in partition_names(queue, self.partitions_of(queue)))

    def __repr__(self) -> str:
        told = (f"{row.name}={row.value!r}" for row in describe(self) if row.source != "default")
        return f"Settings({', '.join(told)})"


class _RedisParts(msgspec.Struct):
    """The address of Redis in pieces, as the original set-up gave it."""

    redis_host: Annotated[
        str,
        _about(
            "", "REDIS_HOST", pattern=_HOST_ALONE, expected="the name of a host alone; a whole address is a REDIS_URL"
        ),
    ] = "127.0.0.1"
    redis_port: Annotated[int, _about("", "REDIS_PORT", ge=1, le=65_535)] = 6379
    redis_db: Annotated[int, _about("", "REDIS_DB", ge=0)] = 0
    redis_username: Annotated[str, _about("", "REDIS_USERNAME", secret=True)] = ""
    redis_password: Annotated[str, _about("", "REDIS_PASSWORD", secret=True)] = ""


class Spec(NamedTuple):
    """What the table says about one setting."""

    name: str
    description: str
    variables: tuple[str, ...]
    """Its names in the environment; the first one that is set counts."""
    flag: str
    secret: bool
    """Its value may be read from a file, and is never shown."""
    annotated: Any
    kind: inspect.Type
    expected: str
    default: object


def spec(name: str) -> Spec:
    """Return what the table says about a setting."""
    return SETTINGS[name]


def _specs(table: type[msgspec.Struct]) -> dict[str, Spec]:
    """Read a table; fields without a description are not settings."""
    fields = cast("inspect.StructType", inspect.type_info(table)).fields
    annotated = {field.name: field.type for field in msgspec.structs.fields(table)}
    return {
        field.name: _spec(field, field.type, annotated[field.name])
        for field in fields
        if isinstance(field.type, inspect.Metadata)
    }


def _spec(field: inspect.Field, meta: inspect.Metadata, annotated: Any) -> Spec:
    extra = cast("dict[str, Any]", meta.extra)  # msgspec leaves it bare
    schema = cast("dict[str, str]", meta.extra_json_schema)
    return Spec(
        name=field.name,
        description=schema["description"],
        variables=(PREFIX + field.name.upper(), *extra["names"]),
        flag=extra["flag"] or "--" + field.name.replace("_", "-"),
        secret=extra["secret"],
        annotated=annotated,
        kind=meta.type,
        expected=extra["expected"] or _expected(meta.type),
        default=field.default,
    )


def _expected(kind: inspect.Type) -> str:
    """Say in words what a value of this kind looks like."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return f"{noun}, {kind.ge} or more" if kind.le is None else f"{noun} from {kind.ge:g} to {kind.le:g}"
        case _:
            return "text"


SETTINGS = _specs(Settings)
REDIS_PARTS = _specs(_RedisParts)


class Row(NamedTuple):
    """A setting as it may be shown."""

    name: str
    value: str
    source: str


def describe(settings: Settings) -> list[Row]:
    """List every setting in the order of the table, with secrets hidden."""
    return [_row(settings, known) for known in SETTINGS.values()]


def _row(settings: Settings, known: Spec) -> Row:
    value = getattr(settings, known.name)
    unsourced = "default" if value == known.default else "the program"
    return Row(known.name, shown(known, value), settings.sources.get(known.name, unsourced))


def shown(known: Spec, value: object) -> str:
    """Write a value as it may be seen: an address without its password, any other secret not at all."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(str(item) for item in cast("tuple[object, ...]", value))
    if known.secret and not known.name.endswith("_url"):
        return "***" if value else ""
    return masked(str(value))
