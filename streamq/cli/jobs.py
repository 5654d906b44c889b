"""`streamq jobs` and `streamq dead`: single jobs, alive in Redis and afterwards in MongoDB."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options
from streamq.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streamq.broker.inspection import DeadLetter, Located
    from streamq.broker.orders import Cancelled
    from streamq.cli.output import Output
    from streamq.settings import Settings

__all__ = ["dead", "jobs"]

MOST_LETTERS = 10_000
"""As many as a queue keeps, and more."""

_COLUMNS = ["id", "queue", "handler", "user", "state", "attempt", "enqueued_at"]
_DEAD_COLUMNS = ["id", "queue", "handler", "user", "attempt", "finished_at", "error"]


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
                return _described(queue.name, place)
    if settings.history and (document := await _remembered(settings, job_id)):
        return {"id": document.pop("_id")} | {name: document[name] for name in document if name != "version"}
    raise JobNotFound(
        f"no job {job_id!r} is known, in {names}" + (" or in the history" if settings.history else ""),
        hint="--queue names another queue; the status of an ended job is forgotten after some days",
    )


async def _remembered(settings: Settings, job_id: str) -> dict[str, Any] | None:
    from streamq.mongo import Mongo, Statuses

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        return next(iter(await Statuses(mongo).find({"_id": job_id}, limit=1)), None)
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
@setting_options("app", "queues", short=False)
@output_options
def list_jobs(settings: Settings, limit: int, out: Output) -> None:
    """List the newest jobs that wait or run, newest first."""
    out.rows(asyncio.run(_newest(settings, limit)), _COLUMNS, id_of="id")


async def _newest(settings: Settings, limit: int) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    found: list[dict[str, Any]] = []
    async with redis(settings) as server:
        for queue in server.queues:
            newest = await queue.view.newest(limit)
            places = await queue.view.locate_many([entry.job_id for entry in newest])
            found += [_described(queue.name, place) for place in places.values()]
    return sorted(found, key=lambda job: job["enqueued_at"], reverse=True)[:limit]


def _described(queue: str, place: Located) -> dict[str, Any]:
    """Write down what Redis knows of a job that has not ended."""
    from streamq.clock import from_ms
    from streamq.codec import decode_envelope

    envelope = decode_envelope(place.envelope)
    return {
        "id": place.job_id,
        "queue": queue,
        "handler": envelope.handler,
        "user": envelope.key,
        "state": place.state,
        "attempt": envelope.attempt,
        "lane": place.lane,
        "enqueued_at": from_ms(place.enqueued_ms),
        "due_at": from_ms(place.due_ms) if place.due_ms else None,
        "worker": place.worker or None,
        "args": envelope.args,
        "kwargs": envelope.kwargs,
    }


@click.group()
def dead() -> None:
    """See the jobs that will not be tried again, and try them again."""


@dead.command("ls")
@click.option(
    "--limit", type=click.IntRange(1, MOST_LETTERS), default=50, show_default=True, help="The most of each queue."
)
@click.option("--by-error", is_flag=True, help="One line for each kind of error, with how many there are.")
@setting_options("app", "queues", short=False)
@output_options
def list_dead(settings: Settings, limit: int, out: Output, *, by_error: bool) -> None:
    """List dead letters, newest first."""
    letters = asyncio.run(_letters(settings, limit))
    if by_error:
        out.rows(_grouped(letters), ["jobs", "queue", "handler", "error", "newest"], id_of="fingerprint")
    else:
        out.rows(letters, _DEAD_COLUMNS, id_of="id")


async def _letters(settings: Settings, limit: int) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return [_letter(queue.name, letter) for queue in server.queues for letter in await queue.view.dead(limit)]


@dead.command()
@click.argument("job_ids", nargs=-1, metavar="[JOB_ID]...")
@click.option("--all", "all_of_them", is_flag=True, help="Every dead letter of these queues.")
@click.option("--error", "fingerprint", help="Every one with this error: what dead ls --by-error -q prints.")
@setting_options("app", "queues", short=False)
@output_options
def retry(
    settings: Settings, job_ids: tuple[str, ...], fingerprint: str | None, out: Output, *, all_of_them: bool
) -> int:
    """Make jobs of dead letters again, with all their attempts.

    They run with the code that the workers have now. Exit 1 if one of them could not be.
    """
    if [bool(job_ids), all_of_them, fingerprint is not None].count(True) != 1:
        raise click.UsageError("name jobs, or an --error, or say --all")

    def is_wanted(letter: dict[str, Any]) -> bool:
        return all_of_them or letter["id"] in job_ids or letter["fingerprint"] == fingerprint

    results = asyncio.run(_retried(settings, is_wanted))
    missing = sorted(set(job_ids) - {result["id"] for result in results})
    results += [{"id": job_id, "queue": None, "became": "gone", "held_by": None} for job_id in missing]
    out.rows(results, ["id", "queue", "became", "held_by"], id_of="id")
    return 0 if all(result["became"] == "replayed" for result in results) else 1


async def _retried(settings: Settings, is_wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    results: list[dict[str, Any]] = []
    async with redis(settings) as server:
        for queue in server.queues:
            for letter in await queue.view.dead(MOST_LETTERS):
                told = _letter(queue.name, letter)
                if is_wanted(told):
                    lane = told["lane"]
                    became, holder = await queue.orders.replay(letter.id.decode(), letter.job_id, letter.envelope, lane)
                    results.append(
                        {"id": letter.job_id, "queue": queue.name, "became": became, "held_by": holder or None}
                    )
    return results


def _letter(queue: str, letter: DeadLetter) -> dict[str, Any]:
    import msgspec

    from streamq.clock import from_ms
    from streamq.keys import LANES
    from streamq.recorder.documents import Record

    record = msgspec.json.decode(letter.record, type=Record)
    error = record.error
    return {
        "id": letter.job_id,
        "queue": queue,
        "handler": record.handler,
        "user": record.user,
        "lane": record.lane if record.lane in LANES else "normal",
        "attempt": record.attempt,
        "finished_at": from_ms(record.finished_ms),
        "error": f"{error.type}: {error.message}" if error else None,
        "fingerprint": error.fingerprint if error else None,
    }


def _grouped(letters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the letters of each kind of error; each kind shows its newest one."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for letter in letters:
        kind = (letter["queue"], letter["handler"], letter["fingerprint"] or letter["error"] or "")
        group = groups.setdefault(kind, {**letter, "fingerprint": kind[2], "jobs": 0, "newest": letter["finished_at"]})
        group["jobs"] += 1
    return sorted(groups.values(), key=lambda group: group["jobs"], reverse=True)
