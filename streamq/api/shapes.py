"""What answers look like: the types behind the schemas of the OpenAPI document.

Answers are made as plain JSON; these types say what is in them. A test holds every answer against its type.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

__all__ = [
    "Accepted", "AcceptedMany", "Attempt", "Attempts", "AuditEntries", "AuditEntry", "Block", "Enqueued", "ErrorGroup", "ErrorGroups", "Gate", "Gates",
    "HandlerInfo", "Handlers", "IssuedToken", "Job", "JobPage", "LaneHolds", "LegacyJob", "LegacyList", "LegacyQueue", "LegacyStats",
    "LegacyUser", "Log", "LogLine", "Operation", "Ordered", "Parked", "Pause", "Problem", "Queue", "Queues", "Schedule",
    "Schedules", "Series", "SeriesPoint", "Session", "Stacks", "Token", "Tokens", "Turn", "Unknown", "Worker", "Workers",
]  # fmt: skip

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
State = Literal["scheduled", "queued", "running", "retrying", "completed", "dead", "cancelled", "expired"]


class Problem(msgspec.Struct):
    """An error, as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    errors: list[dict[str, Any]] = []


class Attempt(msgspec.Struct):
    """One attempt of a job."""

    number: int
    state: str
    worker: str = ""
    started_at: Moment | None = None
    finished_at: Moment | None = None
    error: dict[str, Any] | None = None


class Progress(msgspec.Struct):
    """How far a job has come, as its handler says."""

    fraction: float
    note: str


class LogLine(msgspec.Struct):
    """A line of a job's own log."""

    at: Moment
    line: str


class Log(msgspec.Struct):
    """What a handler wrote about its job, oldest first."""

    items: list[LogLine]
    """The last ones, as many as are kept."""
    lines: int
    """How many were written."""
    stale: bool


class Parked(msgspec.Struct):
    """Where a job waits that may not start yet."""

    gate: str
    """In words: `concurrency_per_key of refresh for ada`, `rate of refresh`, `the turn of ada`."""
    since: Moment
    before: int
    """How many others of the gate come first."""


class Job(msgspec.Struct):
    """A job. What is not known is null; lists leave the result out."""

    id: str
    state: State
    queue: str
    handler: str
    user: str | None
    attempt: int
    max_attempts: int | None
    """As said when it was enqueued; null: the handler's number holds."""
    lane: str
    lane_reason: str | None
    """Why it is in that lane."""
    parked: Parked | None
    """The gate where it waits, if it does."""
    crashes: int
    enqueued_at: Moment | None
    due_at: Moment | None
    started_at: Moment | None
    finished_at: Moment | None
    wait_ms: int | None
    run_ms: int | None
    worker: str
    error: dict[str, Any] | None
    result: Any
    result_error: str | None
    occurrence: str | None
    schedule: str | None
    attempts: list[Attempt]
    progress: Progress | None
    log: list[LogLine]
    """What the handler of the last attempt has logged, oldest first: the last 100 lines. Lists leave them out."""
    log_lines: int
    """How many there were in all."""
    version: int
    stale: bool = False


class JobPage(msgspec.Struct):
    """A part of a list of jobs."""

    items: list[Job]
    next: str | None
    """`cursor` of the next page; null on the last one."""
    stale: bool


class Attempts(msgspec.Struct):
    """The attempts of a job, oldest first."""

    items: list[Attempt]
    stale: bool


class ErrorGroup(msgspec.Struct):
    """Jobs that died of the same."""

    handler: str
    queue: str
    type: str
    message: str
    """Of the newest of them."""
    fingerprint: str
    jobs: int
    users: int
    first_at: Moment | None
    last_at: Moment | None
    last_job: str


class ErrorGroups(msgspec.Struct):
    """What jobs died of, the most frequent first."""

    items: list[ErrorGroup]
    counted: int
    """How many dead jobs were looked at: the newest ones."""
    is_complete: bool
    """Whether these were all that the filter leaves."""
    stale: bool


class Pause(msgspec.Struct):
    """Why a queue gives out no jobs."""

    until_ms: int
    reason: str
    by: str


class Block(msgspec.Struct):
    """Jobs of a queue that are not given out, while others are."""

    kind: Literal["handler", "key"]
    name: str
    until_ms: int
    reason: str
    by: str


class Unknown(msgspec.Struct):
    """Jobs that no worker knows how to run."""

    what: str
    since_ms: int


class LaneHolds(msgspec.Struct):
    """What a lane holds."""

    waiting: int
    in_flight: int


class Gate(msgspec.Struct):
    """A limit, of a handler or of a user key, where jobs have places or wait."""

    kind: Literal["concurrency_per_key", "rate_per_key", "concurrency", "rate"]
    handler: str
    user: str | None
    limit: int | None
    """How many may run at once; of a rate, how many may start together."""
    interval_ms: float | None
    """Of a rate: after so long one more may start."""
    running: int | None
    """Jobs that have a place; null for a rate."""
    parked: int
    """Jobs that wait."""
    longest_ms: int
    """How long one of those that come first has waited."""
    opens_in_ms: int | None
    """When a rate lets the next one in."""


class Turn(msgspec.Struct):
    """A user key of a fair queue whose jobs wait."""

    user: str | None
    parked: int
    longest_ms: int
    virtual_ms: float | None
    """What its jobs ran, by its weight; the least is next."""
    weight: int | None


class Gates(msgspec.Struct):
    """Where jobs wait that may not start yet, at one moment; the gates first where most wait."""

    parked: int
    """Jobs that wait at any gate."""
    gates: list[Gate]
    turns: list[Turn]
    keys_waiting: int
    """Keys that wait for their turn; `turns` lists those with most work among those that were looked at."""
    virtual_ms: float
    mean_ms: float
    """What a key pays when a job of it starts; the rest when it has ended."""
    is_whole: bool
    """Whether all gates were looked at."""


class Partition(msgspec.Struct):
    """What a part of a queue holds, at one moment."""

    name: str
    waiting: int
    running: int
    scheduled: int
    dead: int
    oldest_wait_ms: int
    next_due_ms: int | None
    workers: int
    lanes: dict[str, LaneHolds]
    outbox: int
    outbox_age_ms: int
    parked: int
    """Jobs that wait at gates; they count as waiting. `/gates` of the queue says at which."""
    paused: Pause | None
    blocked: int
    """Jobs that wait for a block; not counted as scheduled."""
    blocks: list[Block]
    unknown: list[Unknown]


class Queue(Partition):
    """What a queue holds, at one moment. `paused` is null unless all of it is."""

    partitions: list[Partition]
    """Of a queue that is divided; jobs name the one that they are in."""


class Queues(msgspec.Struct):
    """All queues that this API knows."""

    items: list[Queue]


class Worker(msgspec.Struct):
    """A worker of one queue."""

    name: str
    queue: str
    state: Literal["alive", "lost", "given_up"]
    held: int
    beat_age_ms: int | None


class Workers(msgspec.Struct):
    """The workers of all machines."""

    items: list[Worker]


class Stacks(msgspec.Struct):
    """Where everything in a worker stood."""

    worker: str
    at: Moment
    """By the clock of the worker's machine."""
    running: int
    """Jobs that ran."""
    stacks: str
    """As Python writes them: of each job that runs, then of each thread."""


class Ordered(msgspec.Struct):
    """What became of an order."""

    id: str
    became: str
    """Of a job: `cancelled`, `asked` (it runs, and ends once its handler lets go) or `replayed`; of a worker: `told`."""


class Accepted(msgspec.Struct):
    """An accepted job, or the one that stands in its place."""

    id: str
    handler: str
    queue: str
    status: Literal["new", "duplicate", "replaced", "present"]
    """`duplicate`: the job `id` holds the dedup key and stands in; `replaced`: it waits, and has these arguments now."""


class Enqueued(msgspec.Struct):
    """What became of one of many jobs."""

    id: str | None
    """Null if it was refused."""
    handler: str
    queue: str | None
    status: Literal["new", "duplicate", "replaced", "present", "refused", "unknown"]
    """As in `Accepted`; `unknown`: no server said whether it was enqueued."""
    error: dict[str, Any] | None
    """Why it was refused: `type`, `status` and `detail` as if it had been alone."""


class AcceptedMany(msgspec.Struct):
    """What became of many jobs, in their order."""

    items: list[Enqueued]
    accepted: int
    refused: int
    unknown: int


class HandlerInfo(msgspec.Struct):
    """A handler of the application."""

    name: str
    queue: str
    max_attempts: int
    timeout_s: float | None
    priority: str
    key: str | None
    dedup: list[str]
    description: str
    arguments: dict[str, Any]
    """JSON schema of its arguments, by name."""


class Handlers(msgspec.Struct):
    """The handlers of the application."""

    items: list[HandlerInfo]


class SchedulePause(msgspec.Struct):
    """Why a schedule does not fire."""

    reason: str
    by: str
    at: Moment | None


class Schedule(msgspec.Struct):
    """A schedule of the application, in code or stored."""

    name: str
    source: Literal["code", "stored"]
    error: str | None
    """Why it cannot be used; nothing below is known then."""
    paused: SchedulePause | None
    expression: str
    words: str
    timezone: str
    handler: str
    queue: str
    misfire: str
    next_at: list[Moment]
    definition: dict[str, Any] | None
    """What is stored of a stored one, as it was put."""


class Schedules(msgspec.Struct):
    """The schedules of the application."""

    items: list[Schedule]
    stale: bool
    """Whether only those in code are known now."""


class SeriesPoint(msgspec.Struct):
    """Jobs that were enqueued within one step, by what has become of them."""

    at: Moment
    jobs: dict[str, int]


class Series(msgspec.Struct):
    """Jobs over time."""

    step_s: int
    points: list[SeriesPoint]


class Operation(msgspec.Struct):
    """An order to many jobs, and how far it is."""

    id: str
    action: Literal["retry", "cancel", "delete", "run", "purge"]
    filter: dict[str, Any]
    state: Literal["running", "done", "stopped", "failed", "lost"]
    """`lost`: the process that did it is gone; order it again, for what is done is not done twice."""
    total: int | None
    """Null until it is known."""
    done: int
    refused: int
    """Those that had ended, moved or been replayed meanwhile."""
    by: str
    started_at: Moment
    updated_at: Moment
    finished_at: Moment | None
    error: str | None


class AuditEntry(msgspec.Struct):
    """Something that somebody changed."""

    id: str
    at: Moment
    who: str
    token_id: str
    action: str
    target: str
    count: int
    filter: dict[str, Any] | None
    before: Any
    after: Any
    address: str


class AuditEntries(msgspec.Struct):
    """Who changed what, the newest first."""

    items: list[AuditEntry]
    next: str | None


class Session(msgspec.Struct):
    """Who asks."""

    name: str
    scopes: list[str]


class Token(msgspec.Struct):
    """A token as it may be shown: nobody can ask anything with it."""

    id: str
    name: str
    state: Literal["active", "expired", "revoked"]
    scopes: list[str]
    created_at: Moment
    created_by: str
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None


class Tokens(msgspec.Struct):
    """All tokens, the newest first."""

    items: list[Token]


class IssuedToken(msgspec.Struct):
    """A token that was just made; it is shown this once."""

    id: str
    token: str


class LegacyJob(msgspec.Struct, rename="camel"):
    """A job in the words of the original."""

    job_id: str
    user_id: str | None
    job_name: str
    queue: str
    status: str
    state: str
    attempts: int
    max_attempts: int | None
    enqueued_at: Moment | None
    scheduled_for: Moment | None
    started_at: Moment | None
    completed_at: Moment | None
    wait_ms: int | None
    duration_ms: int | None
    worker: str | None
    error: str | None
    error_type: str | None
    result: Any
    result_error: str | None
    occurrence: str | None
    attempt_log: list[dict[str, Any]]


class LegacyUser(LegacyJob, rename="camel", kw_only=True):
    """The latest job of a user, and those before it."""

    history: list[LegacyJob]
    stale: bool


class LegacyList(msgspec.Struct):
    """Jobs, newest first."""

    jobs: list[LegacyJob]
    limit: int
    stale: bool


class LegacyQueue(msgspec.Struct, rename="camel"):
    """The jobs of a queue."""

    waiting: int
    active: int
    delayed: int
    completed: int | None
    failed: int | None
    paused: int
    is_paused: bool


class LegacyStats(msgspec.Struct, rename="camel"):
    """The jobs of all queues, and of each."""

    waiting: int | None
    active: int | None
    delayed: int | None
    completed: int | None
    failed: int | None
    paused: int | None
    queues: dict[str, LegacyQueue]
    counted_at: Moment | None
    stale: bool
