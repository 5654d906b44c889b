"""`streamq status` and `streamq doctor`: is all well, and if not, what to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from streamq.cli.options import output_options, setting_options
from streamq.cli.queues import described_queue
from streamq.errors import ConfigurationError, StreamQError, Unavailable

if TYPE_CHECKING:
    from streamq.cli.output import Output
    from streamq.cli.servers import Redis
    from streamq.settings import Settings

__all__ = ["doctor", "status"]

LATE_S = 60.0
"""A job that has waited this long without a worker being free is worth a word."""
SKEW_LIMIT_MS = 2_000

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
        out.note("healthy" if told["healthy"] else "degraded")
    return 0 if told["healthy"] else 1


async def _status(settings: Settings) -> dict[str, Any]:
    from streamq.cli.servers import redis
    from streamq.logs import masked

    async with redis(settings) as found:
        queues = [described_queue(each.name, await each.view.counts(), settings) for each in found.queues]
        version, settings = f"{found.server.product} {found.server.version}", found.settings
    for queue in queues:
        queue["verdict"] = _verdict(queue)
    mongodb = await _mongodb(settings) if settings.history else None
    is_healthy = all(queue["verdict"] == "ok" for queue in queues) and not (mongodb and mongodb["error"])
    address = {"where": masked(settings.redis_url), "version": version}
    return {"healthy": is_healthy, "redis": address, "mongodb": mongodb, "queues": queues}


def _verdict(queue: dict[str, Any]) -> str:
    """Say what keeps a queue from being worked off, if anything does."""
    if queue["state"] == "paused":
        return "paused" + (f": {queue['pause_reason']}" if queue["pause_reason"] else "")
    if queue["workers"] == 0:
        return "no workers"
    return "falling behind" if queue["oldest_wait_s"] > LATE_S else "ok"


async def _mongodb(settings: Settings) -> dict[str, Any]:
    from streamq.logs import masked
    from streamq.mongo import Mongo

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
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
@setting_options("app", "queues", "dead_after_ms", "history", "mongodb_database", "outbox_max", short=False)
@output_options
def doctor(settings: Settings, out: Output) -> int:
    """Check the servers and what runs on them, and say what to do.

    Exit 1 if anything is a FAIL.
    """
    findings = asyncio.run(_examined(settings))
    items = [finding._asdict() for finding in findings]
    out.rows(items, ["verdict", "check", "found", "remedy"], id_of="check")
    return 1 if any(finding.verdict == "FAIL" for finding in findings) else 0


async def _examined(settings: Settings) -> list[_Finding]:
    findings = [_Finding("WARN", "settings", warning, "correct or remove it") for warning in settings.warnings]
    examined, settings = await _examined_redis(settings)
    findings += examined
    if not settings.history:
        return findings
    mongodb = await _mongodb(settings)
    verdict: Literal["OK", "FAIL"] = "FAIL" if mongodb["error"] else "OK"
    return [*findings, _Finding(verdict, "mongodb", mongodb["error"] or mongodb["where"], mongodb["hint"])]


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
        verdict = _verdict(described_queue(queue.name, counts, settings))
        remedy = {"no workers": "start one: streamq worker"}.get(verdict, "streamq queues ls shows more")
        level: Literal["OK", "WARN"] = "OK" if verdict == "ok" else "WARN"
        findings.append(_Finding(level, f"queue {queue.name}", verdict, "" if level == "OK" else remedy))
        if settings.history and counts.outbox > settings.outbox_max // 2:
            findings.append(
                _Finding("WARN", f"outbox {queue.name}", f"{counts.outbox} entries wait", "start one: streamq recorder")
            )
    return findings


def _skew(skew_ms: int) -> _Finding:
    """Judge the difference of the clocks: nothing is decided by ours, but times would read oddly."""
    if abs(skew_ms) <= SKEW_LIMIT_MS:
        return _Finding("OK", "clock", f"{abs(skew_ms)} ms from the server's")
    return _Finding("WARN", "clock", f"{abs(skew_ms) / 1000:.1f} s from the server's", "set the clocks by NTP")
