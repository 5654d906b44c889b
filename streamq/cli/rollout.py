"""`streamq rollout` and `streamq rollback`: moving the users from an old system to streamq, and back."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from streamq.cli.options import output_options, seconds, setting_options
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from streamq.broker.inspection import Inspection
    from streamq.cli.output import Output
    from streamq.cli.servers import Redis
    from streamq.mongo import FlagStore, Mongo
    from streamq.schedules.phase import Phase
    from streamq.settings import Settings

__all__ = ["rollback", "rollout"]

OFF_REASON = "background_jobs.enabled is false"
_SWITCHES = ("background_jobs_enabled", "shadow", "rollout", "jobs_daily_updates")
_PAGE = 500
_LOOK_EVERY_S = 0.2
_UNFINISHED = 75
_LAST_MS = 253_402_300_800_000  # blocked jobs lie behind all dates


@click.group()
def rollout() -> None:
    """Say how far the move from the old system is. Each step is undone by the one before it."""


@rollout.command("status")
@setting_options("app", "mongodb_database", short=False)
@output_options
def show(settings: Settings, out: Output) -> int:
    """Show the phase, and what does not fit together.

    Exit 1 if two systems refresh the same users, or some are refreshed by none. Without a word of any other system, in
    what is stored or in the settings, there is none: exit 0.
    """
    from streamq.schedules.phase import Phase

    async def stored() -> dict[str, Any]:
        async with _flags(settings) as (flags, _):
            return await flags.get()

    flags = asyncio.run(stored())
    phase = Phase.of(settings, flags)
    is_moving = bool(flags) or any(settings.sources.get(name, "default") != "default" for name in _SWITCHES)
    warnings = list(_warnings(settings, phase, is_stored=bool(flags))) if is_moving else []
    told = {
        "moving": is_moving,
        "phase": phase.words,
        "background_jobs.enabled": phase.is_enabled,
        "shadow": phase.is_shadow,
        "share": phase.share,
        "jobs.daily_updates": phase.daily_updates,
    }
    out.one(told | ({"warnings": warnings} if out.as_json else {}), id_of="phase")
    for warning in warnings if not out.as_json else ():
        out.note(f"warning: {warning}")
    if not is_moving:
        out.note("no move from another system is under way: nothing is stored, and no setting speaks of one")
    return 1 if warnings else 0


def _warnings(settings: Settings, phase: Phase, *, is_stored: bool) -> Iterator[str]:
    works = phase.is_enabled and not phase.is_shadow and phase.share > 0
    if not settings.background_jobs_enabled and is_stored:
        yield f"background_jobs.enabled is false ({settings.sources.get('background_jobs_enabled')}), whatever is stored"
    if works and phase.share >= 1 and phase.daily_updates:
        yield "both systems refresh all users: streamq rollout old-batch off"
    if (not works or phase.share < 1) and not phase.daily_updates:
        yield "the old batch is off, and not all users are streamq's: streamq rollout old-batch on"


@rollout.command()
@setting_options("app", "queues", "mongodb_database", short=False)
@output_options
def off(settings: Settings, out: Output) -> None:
    """Let nothing run: no schedule fires, and no job starts. What is enqueued waits."""

    async def work() -> None:
        async with _flags(settings) as (flags, _):
            await flags.set(enabled=False)
        async with _redis(settings) as found:
            await _pause(found)

    asyncio.run(work())
    out.note("off: nothing fires, no job starts; jobs that run go on")


@rollout.command()
@click.option("--collection", default="jobstatuses", show_default=True, help="Where the old system reports its jobs.")
@click.option("--database", default="", help="The database of it; streamq's own unless given.")
@click.option("--user-field", default="userId", show_default=True, help="Its field with the user's id.")
@click.option(
    "--time-field", default="createdAt", show_default=True, help="Its field with the time of the enqueue, a date."
)
@setting_options("app", "queues", "mongodb_database", short=False)
@output_options
def shadow(settings: Settings, out: Output, **legacy: str) -> None:
    """Fire schedules as dry runs, and compare their users and times with what the old system reports."""
    asyncio.run(_on(settings, enabled=True, shadow=True, legacy=legacy))
    out.note("shadow: occurrences are read, compared and not enqueued; streamq rollout report shows how they differ")


@rollout.command()
@click.argument("share", metavar="PERCENT|all")
@setting_options("app", "queues", "mongodb_database", short=False)
@output_options
def users(settings: Settings, share: str, out: Output) -> None:
    """Make jobs for a share of the users, as in 10%, or for all. Who belongs to 10% belongs to 20% as well.

    A user belongs to it if the first four bytes of the SHA-256 of the id, as a number, are under that share of 2^32.
    """
    from streamq.schedules.phase import Phase, share_of

    part = share_of(share)
    asyncio.run(_on(settings, enabled=True, shadow=False, share=part))
    out.note(Phase(share=part).words)


@rollout.command("old-batch")
@click.argument("state", type=click.Choice(["on", "off"]))
@setting_options("app", "mongodb_database", short=False)
@output_options
def old_batch(settings: Settings, state: str, out: Output) -> None:
    """Set jobs.daily_updates, which the old system reads: whether its own batch runs."""

    async def work() -> None:
        async with _flags(settings) as (flags, _):
            await flags.set(daily_updates=state == "on")

    asyncio.run(work())
    out.note(f"jobs.daily_updates is {'true' if state == 'on' else 'false'}")


@rollout.command()
@click.option("--schedule", "name", metavar="NAME", help="Only of this schedule.")
@click.option("--limit", type=click.IntRange(1, 1000), default=24, show_default=True, help="How many occurrences.")
@setting_options("app", "mongodb_database", short=False)
@output_options
def report(settings: Settings, name: str | None, limit: int, out: Output) -> int:
    """Show what the shadow would have done, and how that differs from the old system, newest first.

    Exit 1 if an occurrence that was compared differs.
    """

    async def read() -> list[dict[str, Any]]:
        from streamq.mongo import ShadowStore

        async with _flags(settings) as (_, mongo):
            return await ShadowStore(mongo).reports(name, limit=limit)

    items = [_reported(each) for each in asyncio.run(read())]
    columns = ["occurrence", "users", "took_s", "old_users", "old_took_s", "only_here", "only_there", "agrees"]
    out.rows(items, columns, id_of="occurrence")
    return 1 if any(each["agrees"] is False for each in items) else 0


def _reported(document: dict[str, Any]) -> dict[str, Any]:
    legacy = document.get("legacy") or {}
    plain = {key: value for key, value in document.items() if key not in ("_id", "legacy")}
    old = {f"old_{key}": value for key, value in legacy.items()}
    return {"occurrence": document["_id"], "agrees": None, "only_here": None, "only_there": None, **old, **plain}


@click.command()
@click.option(
    "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Where to write; else standard output."
)
@click.option(
    "--drain-timeout", "drain_ms", type=seconds, default="60", show_default=True, help="Seconds for what runs."
)
@click.option(
    "--remove", is_flag=True, help="Cancel each job once it is written, so that it can never run here as well."
)
@setting_options("app", "queues", "mongodb_database", short=False)
@output_options
def rollback(settings: Settings, file: Path | None, drain_ms: int, out: Output, *, remove: bool) -> int:
    """Give back to the old system, and export what is left as NDJSON.

    Nothing fires or starts any more, and what runs is waited for.
    jobs.daily_updates is true again, so the old batch resumes. streamq rollout users undoes all of it, but for --remove.
    Exit 75 if jobs still ran after the drain: they are written with the state running; run it again.
    """
    count, running = asyncio.run(_rolled_back(settings, file, drain_ms / 1000, remove=remove))
    out.note(f"{count} jobs written, {running} still run" + (", those that waited are cancelled" if remove else ""))
    return _UNFINISHED if running else 0


async def _rolled_back(settings: Settings, file: Path | None, drain_s: float, *, remove: bool) -> tuple[int, int]:
    async with _flags(settings) as (flags, _):
        await flags.set(enabled=False, daily_updates=True)
    async with _redis(settings) as found:
        await _pause(found)
        running = await _drained(found, drain_s)
        count = 0
        with file.open("w") if file is not None else contextlib.nullcontext(sys.stdout) as target:
            for queue in found.queues:
                count += await _exported(queue.name, queue.view, target)
                target.flush()
        if remove:
            await _remove(found)
        return count, running


async def _drained(found: Redis, drain_s: float) -> int:
    """Wait for what runs to end. Returns how many still run."""
    until = time.monotonic() + drain_s
    while True:
        counts = [await queue.view.counts() for queue in found.queues]
        running = sum(each.in_flight for each in counts)
        if not running or time.monotonic() > until:
            return running
        await asyncio.sleep(_LOOK_EVERY_S)


async def _exported(queue: str, view: Inspection, target: TextIO) -> int:
    count = 0
    async for job in _left(queue, view):
        target.write(json.dumps(job, ensure_ascii=False) + "\n")
        count += 1
    return count


async def _left(queue: str, view: Inspection) -> AsyncGenerator[dict[str, Any]]:
    """Yield what waits, runs or is delayed, as the old system may read it."""
    from streamq.keys import LANES

    for lane in LANES:
        after = b"0-0"
        while entries := await view.tail(lane, after, limit=_PAGE):
            places = await view.locate_many([entry.job_id for entry in entries])
            for entry in entries:
                if (place := places.get(entry.job_id)) is not None:
                    yield _told(queue, entry.job_id, place.state, lane, entry.envelope, entry.enqueued_ms, due_ms=None)
            after = entries[-1].id
    offset = 0
    while rows := await view.delayed(limit=_PAGE, offset=offset):
        for row in rows:
            is_blocked = row.due_ms > _LAST_MS
            due_ms, state = (None, "blocked") if is_blocked else (row.due_ms, "delayed")
            yield _told(queue, row.job_id, state, row.lane, row.envelope, row.enqueued_ms, due_ms=due_ms)
        offset += len(rows)


def _told(  # noqa: PLR0913 - what is known of a job
    queue: str, job_id: str, state: str, lane: str, raw: bytes, enqueued_ms: int, *, due_ms: int | None
) -> dict[str, Any]:
    from streamq.codec import decode_envelope

    envelope = decode_envelope(raw)
    return {
        "id": job_id, "queue": queue, "state": state, "handler": envelope.handler, "user": envelope.key,
        "args": envelope.args, "kwargs": envelope.kwargs, "priority": lane.partition(".")[0],
        "attempt": envelope.attempt, "max_attempts": envelope.max_attempts, "occurrence": envelope.occurrence,
        "enqueued_ms": enqueued_ms, "due_ms": due_ms,
    }  # fmt: skip


async def _remove(found: Redis) -> None:
    from streamq.errors import JobNotFound

    for queue in found.queues:
        jobs = [job async for job in _left(queue.name, queue.view) if job["state"] != "running"]
        for job in jobs:
            with contextlib.suppress(JobNotFound):
                await queue.orders.cancel(job["id"], reason="given back to the old system")


async def _on(settings: Settings, **flags: Any) -> None:
    async with _flags(settings) as (store, _):
        await store.set(**flags)
    async with _redis(settings) as found:
        for queue in found.queues:
            pause = (await queue.view.counts()).pause
            if pause is not None and pause.reason == OFF_REASON:
                await queue.orders.resume()


async def _pause(found: Redis) -> None:
    for queue in found.queues:
        await queue.orders.pause(reason=OFF_REASON, by=getpass.getuser())


@contextlib.asynccontextmanager
async def _redis(settings: Settings) -> AsyncGenerator[Redis]:
    from streamq.cli.servers import redis

    async with redis(settings) as found:
        yield found


@contextlib.asynccontextmanager
async def _flags(settings: Settings) -> AsyncGenerator[tuple[FlagStore, Mongo]]:
    from streamq.mongo import FlagStore, Mongo

    if not settings.history:
        raise ConfigurationError("the phase of a rollout is kept in MongoDB, and history is off")
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        await mongo.check()
        yield FlagStore(mongo), mongo
    finally:
        await mongo.close()
