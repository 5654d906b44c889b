"""`streamq jobs`: single jobs, alive in Redis and afterwards in MongoDB."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options
from streamq.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streamq.broker.inspection import Delayed, Inspection, Located
    from streamq.broker.orders import Cancelled
    from streamq.cli.output import Output
    from streamq.cli.servers import Redis
    from streamq.settings import Settings

__all__ = ["jobs"]

HISTORY_LIMIT_S = 2.0

_STATES = ("queued", "running", "scheduled", "retrying", "parked", "blocked")
_PLACES_PAGE = 1_000
_COLUMNS = ["id", "queue", "handler", "user", "state", "attempt", "enqueued_at"]


@click.group()
def jobs() -> None:
    """See and cancel single jobs."""


@jobs.command()
@click.argument("job_id")
@setting_options("app", "queues", "mongodb_database", "history", short=False)
@output_options
def show(settings: Settings, job_id: str, out: Output) -> None:
    """Show a job, alive or ended. Exit 1 if nobody knows it."""
    out.one(asyncio.run(_found(settings, job_id)), id_of="id")


async def _found(settings: Settings, job_id: str) -> Mapping[str, Any]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        names, settings = ", ".join(queue.name for queue in server.queues), server.settings
        for queue in server.queues:
            if place := await queue.view.locate(job_id):
                return _described(queue.name, place, server) | _told(await queue.view.notes(job_id))
    if settings.history and (document := await _remembered(settings, job_id)):
        if "max_attempts" in document:
            document["max_attempts"] = _max_attempts(server, document["handler"], document["max_attempts"])
        return {"id": document.pop("_id")} | {name: document[name] for name in document if name != "version"}
    raise JobNotFound(
        f"no job {job_id!r} is known, in {names}" + (" or in the history" if settings.history else ""),
        hint="--queue names another queue; the status of an ended job is forgotten after some days",
    )


async def _remembered(settings: Settings, job_id: str) -> dict[str, Any] | None:
    from streamq.mongo import Mongo, Statuses

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        return next(iter(await Statuses(mongo).find({"_id": job_id}, limit=1, limit_s=HISTORY_LIMIT_S)), None)
    finally:
        await mongo.close()


@jobs.command()
@click.argument("job_id")
@click.option("--reason", default="", help="Why; it becomes part of the status.")
@setting_options("app", "queues", "history", "outbox_max", short=False)
@output_options
def cancel(settings: Settings, job_id: str, reason: str, out: Output) -> None:
    """Cancel a job that has not ended. One that runs is interrupted, and ends once its handler lets go."""
    became = asyncio.run(_cancelled(settings, job_id, reason))
    if out.as_json:
        out.document({"id": job_id, "became": became})
    else:
        out.note(f"{job_id}: {'cancelled' if became == 'cancelled' else 'it runs; its worker was told'}")


async def _cancelled(settings: Settings, job_id: str, reason: str) -> Cancelled:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        for queue in server.queues:
            with contextlib.suppress(JobNotFound):
                return await queue.orders.cancel(job_id, reason=reason)
        names = ", ".join(queue.name for queue in server.queues)
    raise JobNotFound(f"no job {job_id!r} waits or runs in {names}", hint="--queue names another queue")


@jobs.command("ls")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="The most to list.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these; give it once for each.")
@setting_options("app", "queues", short=False)
@output_options
def list_jobs(settings: Settings, limit: int, states: tuple[str, ...], out: Output) -> None:
    """List jobs that have not ended, newest first.

    A parked one waits at a limit of its handler or for its turn, a blocked one for the end of a block. Where there are many, of
    those that wait in lanes the newest are looked at, of scheduled ones those that are due first, of running and parked ones some.
    """
    out.rows(asyncio.run(_newest(settings, limit, states or _STATES)), _COLUMNS, id_of="id")


async def _newest(settings: Settings, limit: int, states: Collection[str]) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    found: list[dict[str, Any]] = []
    async with redis(settings) as server:
        for queue in server.queues:
            places = await queue.view.locate_many(await _living(queue.view, limit))
            found += [_described(queue.name, place, server) for place in places.values()]
    wanted = [job for job in found if job["state"] in states]
    return sorted(wanted, key=lambda job: job["enqueued_at"], reverse=True)[:limit]


async def _living(view: Inspection, limit: int) -> list[str]:
    """List the ids of jobs of each state, of each as many as are to be listed."""
    _, flights = await view.flights(limit=limit)
    in_lanes = [*await view.newest(limit), *(entry for entry in await view.entries(flights) if entry is not None)]
    put_by = [*await view.delayed(limit=limit), *await _parked(view, limit)]
    known = [*(entry.job_id for entry in in_lanes), *(job.job_id for job in put_by), *await view.blocked(limit)]
    return list(dict.fromkeys(known))


async def _parked(view: Inspection, limit: int) -> list[Delayed]:
    found, after = await view.parked(limit=_PLACES_PAGE)
    while after and len(found) < limit:
        more, after = await view.parked(limit=_PLACES_PAGE, after=after)
        found += more
    return found[:limit]


def _max_attempts(server: Redis, handler: str, given: int) -> int | str:
    """Return the job's own number, or its handler's; in words where the application is not known."""
    return given or server.max_attempts.get(handler, "the handler's own")


def _described(queue: str, place: Located, server: Redis) -> dict[str, Any]:
    """Write down what Redis knows of a job that has not ended."""
    from streamq.clock import from_ms
    from streamq.codec import decode_envelope
    from streamq.lanes import reason_of

    envelope = decode_envelope(place.envelope)
    return {
        "id": place.job_id,
        "queue": queue,
        "handler": envelope.handler,
        "user": envelope.key,
        "state": _state(place, envelope.attempt),
        "attempt": envelope.attempt,
        "max_attempts": _max_attempts(server, envelope.handler, envelope.max_attempts),
        "lane": place.lane,
        "lane_reason": reason_of(place.why) or None,
        **_waiting(place),
        "enqueued_at": from_ms(place.enqueued_ms),
        "due_at": from_ms(place.due_ms) if place.due_ms else None,
        "worker": place.worker or None,
        "args": envelope.args,
        "kwargs": envelope.kwargs,
    }


def _state(place: Located, attempt: int) -> str:
    if place.gate is not None:
        return "parked"
    return "blocked" if place.state == "scheduled" and not place.due_ms else place.state_at(attempt)


def _waiting(place: Located) -> dict[str, Any]:
    """Say of a job that waits at a gate at which, since when, and how many come before it."""
    from streamq.clock import from_ms

    if place.gate is None:
        return {}
    return {"parked_at": str(place.gate), "parked_since": from_ms(place.parked_ms), "before_it": place.before}


def _told(notes: dict[str, Any]) -> dict[str, Any]:
    from streamq.history import notes_told

    return notes_told(notes.get("p"), notes.get("lg", ()), notes.get("ln", 0))


@jobs.command("logs")
@click.argument("job_id")
@setting_options("app", "queues", "mongodb_database", "history", short=False)
@output_options
def show_log(settings: Settings, job_id: str, out: Output) -> None:
    """Print the lines that a job's handler has logged, the last hundred, oldest first."""
    out.rows(list(asyncio.run(_found(settings, job_id)).get("log", ())), ["at", "line"], id_of="line")
