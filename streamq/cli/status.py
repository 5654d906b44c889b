"""`streamq status` and `streamq doctor`: is all well, and if not, what to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click
import msgspec

from streamq.cli.options import output_options, setting_options
from streamq.cli.queues import described_queue
from streamq.errors import ConfigurationError, StreamQError, Unavailable

if TYPE_CHECKING:
    from streamq.cli.output import Output
    from streamq.cli.servers import Queue, Redis
    from streamq.recorder import Finding
    from streamq.schedules.condition import Condition
    from streamq.settings import Settings

__all__ = ["doctor", "status"]

LATE_S = 60.0
"""A job that has waited this long without a worker being free is worth a word."""
SKEW_LIMIT_MS = 2_000
PATIENCE_S = 1.2
"""Who asks whether all is well has an answer within two seconds, also when MongoDB gives none."""
DOCTOR_PATIENCE_S = 10.0
"""Who asks what is wrong would rather wait for a server that is busy than hear that it is away."""
PARKED_ALARM_S = 900.0
"""A job that has waited this long at a gate is worth a word: a limit is too narrow, or a place was never freed."""
EVICTION_ALARM_S = 86_400
"""So long after the last dead letter was dropped unseen it is still told."""
OUTBOX_ALARM, OUTBOX_WARNING = 0.8, 0.5
"""Shares of `outbox_max`; what does not fit any more is dropped, oldest first."""

_COLUMNS = ["queue", "waiting", "running", "scheduled", "dead", "oldest_wait_s", "workers", "verdict"]


@click.command()
@setting_options("app", "queues", "dead_after_ms", "history", "mongodb_database", "allow_eviction", short=False)
@output_options
def status(settings: Settings, out: Output) -> int:
    """Say on one screen whether all is well.

    Exit 0 if it is, 1 if not, 69 if Redis cannot be reached.
    """
    told = asyncio.run(_status(settings))
    if out.as_json:
        out.document(told)
    else:
        out.note(f"redis    {told['redis']['where']}  {told['redis']['version']}")
        if told["mongodb"]:
            out.note(f"mongodb  {told['mongodb']['where']}  {told['mongodb']['error'] or 'ok'}")
        out.rows(told["queues"], _COLUMNS, id_of="queue")
        for schedule in told["schedules"]:
            out.note(_in_a_line(schedule))
        out.note("healthy" if told["healthy"] else "degraded")
    return 0 if told["healthy"] else 1


async def _status(settings: Settings) -> dict[str, Any]:
    from streamq.cli.servers import redis
    from streamq.logs import masked

    async with redis(settings) as found:
        queues = [await _look(each, settings) for each in found.queues]
        version, settings = f"{found.server.product} {found.server.version}", found.settings
    for queue in queues:
        queue["verdict"] = _verdict(queue)
    mongodb = await _mongodb(settings, patience_s=PATIENCE_S) if settings.history else None
    has_mongodb = bool(mongodb and not mongodb["error"])
    schedules = await _schedules(settings, has_mongodb=has_mongodb) if settings.app else []
    is_healthy = (
        all(queue["verdict"] == "ok" for queue in queues)
        and not (mongodb and mongodb["error"])
        and not any(schedule["alarms"] for schedule in schedules)
    )
    address = {"where": masked(settings.redis_url), "version": version}
    return {"healthy": is_healthy, "redis": address, "mongodb": mongodb, "queues": queues, "schedules": schedules}


async def _look(queue: Queue, settings: Settings) -> dict[str, Any]:
    """Describe a queue, with the gate where a job has waited longest if any wait."""
    told = described_queue(queue.name, await queue.view.counts(), settings)
    longest = (await queue.view.crowd()).longest() if told["parked"] else None
    if longest is not None:
        told |= {
            "parked_at": str(longest.name),
            "parked_there": longest.parked,
            "parked_s": round(longest.longest_ms / 1000, 1),
        }
    return told


async def _schedules(settings: Settings, *, has_mongodb: bool) -> list[dict[str, Any]]:
    """Say of each schedule of the application how far it is, also when no cron process is left to say so."""
    from streamq.broker.fanout import FanOuts
    from streamq.broker.server import Broker
    from streamq.keys import partition_names
    from streamq.loading import load_with_settings
    from streamq.schedules.book import every_schedule
    from streamq.schedules.condition import look

    try:
        app, settings = load_with_settings(settings)
    except StreamQError:
        return []  # that its queues are not known was told
    broker = Broker(settings.redis_url, allow_eviction=True)
    told: list[dict[str, Any]] = []
    for listed in await every_schedule(app, msgspec.structs.replace(settings, history=has_mongodb)):
        if listed.schedule is None:
            told.append({"schedule": listed.name, "verdict": listed.error, "alarms": [listed.error]})
            continue
        queue = listed.schedule.entry.handler.queue
        names = partition_names(queue, settings.partitions_of(queue))
        partitions = [broker.partition(name) for name in names]
        try:
            condition = await look(listed, FanOuts(partitions[0], partitions[1:]))
        finally:
            for partition in partitions:
                await partition.wire.close()
        if condition is not None:
            told.append(_described_condition(condition))
    await broker.close()
    return told


def _in_a_line(schedule: dict[str, Any]) -> str:
    next_at, progress = schedule.get("next_at"), schedule.get("progress")
    far = f"  {schedule['users']:,} users, {progress:.0%}" if progress is not None else ""
    when = f"  next {next_at:%Y-%m-%d %H:%M} UTC" if next_at else ""
    return f"schedule {schedule['schedule']}{when}{far}  {schedule['verdict']}"


def _described_condition(condition: Condition) -> dict[str, Any]:
    from streamq.clock import from_ms

    verdict = "; ".join(alarm.text for alarm in condition.alarms) or condition.state
    if not condition.is_watched and condition.state == "waiting":
        verdict = "no cron process has looked after it yet"
    return {
        "schedule": condition.schedule,
        "next_at": from_ms(condition.next_ms) if condition.next_ms is not None else None,
        "fired_at": from_ms(condition.fired_ms) if condition.fired_ms is not None else None,
        "users": condition.users,
        "progress": condition.progress,
        "verdict": verdict,
        "alarms": [alarm.kind for alarm in condition.alarms],
    }


def _verdict(queue: dict[str, Any]) -> str:
    """Say what keeps a queue from being worked off, if anything does."""
    if queue["state"] == "paused":
        return "paused" + (f": {queue['pause_reason']}" if queue["pause_reason"] else "")
    if queue["workers"] == 0:
        return "no workers"
    if queue.get("outbox_share", 0) > OUTBOX_ALARM:
        return "outbox nearly full: the history will have gaps"
    if queue["oldest_wait_s"] > LATE_S:
        return "falling behind"
    return _held_up(queue) or "ok"


_REMEDIES = {
    "paused": "streamq queues resume ends it",
    "no workers": "start one: streamq worker",
    "no worker knows": "deploy workers that have it; the jobs wait",
    "parked": "streamq fairness --show gates shows the gates",
    "blocked": "streamq blocks shows why; streamq unblock ends it",
    "": "streamq queues ls shows more",
}


def _held_up(queue: dict[str, Any]) -> str:
    """Say what keeps some of its jobs, or has lost sight of some."""
    if queue.get("unknown_s", 0) > LATE_S:
        return f"no worker knows {', '.join(queue['unknown'])}, for {queue['unknown_s']:.0f} s"
    if queue.get("parked_s", 0) > PARKED_ALARM_S:
        return f"parked: {queue['parked_there']} jobs at {queue['parked_at']}, for {queue['parked_s']:.0f} s"
    if (queue.get("evicted_age_s") or EVICTION_ALARM_S) < EVICTION_ALARM_S:
        return f"{queue['evicted']} dead letters were dropped: there were too many"
    return f"blocked: {', '.join(queue['blocks'])}" if queue.get("blocks") else ""


async def _mongodb(settings: Settings, *, patience_s: float) -> dict[str, Any]:
    from streamq.logs import masked
    from streamq.mongo import Mongo

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        with mongo.patience(patience_s):
            await mongo.check()
    except (Unavailable, ConfigurationError) as error:
        return {"where": masked(settings.mongodb_url), "error": str(error), "hint": error.hint}
    finally:
        await mongo.close()
    return {"where": masked(settings.mongodb_url), "error": None, "hint": ""}


class _Finding(NamedTuple):
    """One line of the doctor's."""

    verdict: Literal["OK", "WARN", "FAIL"]
    check: str
    found: str
    remedy: str = ""


@click.command()
@setting_options("app", "queues", "dead_after_ms", "lease_ms", "history", "mongodb_database", "outbox_max", short=False)
@click.option("--repair", is_flag=True, help="Put right what can be: see docs/status.md for each repair.")
@output_options
def doctor(settings: Settings, out: Output, *, repair: bool) -> int:
    """Check the servers and what runs on them, and say what to do.

    Compares MongoDB with Redis: jobs that are lost, stuck or nowhere, dedup keys and names of workers that belong to nobody.
    Exit 1 if anything is a FAIL.
    """
    findings = asyncio.run(_examined(settings, repair=repair))
    items = [finding._asdict() for finding in findings]
    out.rows(items, ["verdict", "check", "found", "remedy"], id_of="check")
    return 1 if any(finding.verdict == "FAIL" for finding in findings) else 0


async def _examined(settings: Settings, *, repair: bool) -> list[_Finding]:
    findings = [_Finding("WARN", "settings", warning, "correct or remove it") for warning in settings.warnings]
    examined, settings = await _examined_redis(settings)
    findings += examined
    if not settings.history:
        return findings
    mongodb = await _mongodb(settings, patience_s=DOCTOR_PATIENCE_S)
    verdict: Literal["OK", "FAIL"] = "FAIL" if mongodb["error"] else "OK"
    findings.append(_Finding(verdict, "mongodb", mongodb["error"] or mongodb["where"], mongodb["hint"]))
    if any(finding.verdict == "FAIL" for finding in findings):
        return findings
    return findings + await _compared(settings, repair=repair)


async def _compared(settings: Settings, *, repair: bool) -> list[_Finding]:
    """Compare both servers, when both are there."""
    from streamq.cli.reconcile import reconciled, schema_changes

    findings: list[_Finding] = []
    if changes := await schema_changes(settings):
        findings.append(_Finding("WARN", "schema", f"{changes} changes are to do", "streamq migrate shows them"))
    for queue in settings.partition_names:
        try:
            found = await reconciled(settings, queue, repair=repair)
        except StreamQError as error:
            return [*findings, _Finding("FAIL", f"jobs {queue}", str(error).replace("\n", "; "), error.hint)]
        findings += [_of_reconciler(queue, each) for each in found]
        if not found:
            findings.append(_Finding("OK", f"jobs {queue}", "MongoDB and Redis agree"))
    return findings


def _of_reconciler(queue: str, found: Finding) -> _Finding:
    from streamq.recorder import KINDS

    examples = ", ".join(found.names[:3]) + (", ..." if len(found.names) > 3 else "")
    told = f"{len(found.names)} {KINDS[found.kind]}: {examples}"
    if found.repaired:
        return _Finding("OK", f"{found.kind} {queue}", f"repaired: {told}")
    remedy = "start or restart workers" if found.kind == "overdue" else "streamq doctor --repair"
    return _Finding("WARN", f"{found.kind} {queue}", told, remedy)


async def _examined_redis(settings: Settings) -> tuple[list[_Finding], Settings]:
    """Examine Redis. Returns with the findings the settings that hold, as far as that is known."""
    from streamq.cli.servers import redis

    try:
        async with redis(settings) as found:
            server = found.server
            findings = [_Finding("OK", "redis", f"{server.product} {server.version}")]
            findings += [_Finding("WARN", "redis", warning, "see CONFIG SET") for warning in server.warnings]
            return findings + await _examined_queues(found, found.settings), found.settings
    except StreamQError as error:
        return [_Finding("FAIL", "redis", str(error).replace("\n", "; "), error.hint.replace("\n", "; "))], settings


async def _examined_queues(found: Redis, settings: Settings) -> list[_Finding]:
    from streamq.clock import now_ms

    findings: list[_Finding] = []
    for queue in found.queues:
        before_ms = now_ms()
        counts = await queue.view.counts()
        skew_ms = counts.now_ms - (before_ms + now_ms()) // 2
        if not findings:
            findings.append(_skew(skew_ms))
        verdict = _verdict(await _look(queue, settings))
        remedy = next((remedy for start, remedy in _REMEDIES.items() if verdict.startswith(start)), "")
        level: Literal["OK", "WARN", "FAIL"] = "OK" if verdict == "ok" else "WARN"
        findings.append(_Finding(level, f"queue {queue.name}", verdict, "" if level == "OK" else remedy))
        share = counts.outbox / settings.outbox_max
        if settings.history and share > OUTBOX_WARNING:
            level = "FAIL" if share > OUTBOX_ALARM else "WARN"
            told = f"{counts.outbox} of at most {settings.outbox_max} entries wait"
            findings.append(_Finding(level, f"outbox {queue.name}", told, "start one: streamq recorder"))
    return findings


def _skew(skew_ms: int) -> _Finding:
    """Judge the difference of the clocks: nothing is decided by ours, but times would read oddly."""
    if abs(skew_ms) <= SKEW_LIMIT_MS:
        return _Finding("OK", "clock", f"{abs(skew_ms)} ms from the server's")
    return _Finding("WARN", "clock", f"{abs(skew_ms) / 1000:.1f} s from the server's", "set the clocks by NTP")
