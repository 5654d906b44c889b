"""`streamq schedule`: the schedules of an application, in code and stored; when they fire, and orders to them."""

from __future__ import annotations

import asyncio
import getpass
import json
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options
from streamq.errors import BadInput, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from streamq.cli.output import Output
    from streamq.schedules import Book, Listed
    from streamq.settings import Settings

__all__ = ["schedule"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_COLUMNS = ["schedule", "expression", "timezone", "handler", "next_at", "state"]


@click.group()
def schedule() -> None:
    """See and change the schedules of an application, and fire one now."""


@schedule.command("ls")
@setting_options("app", "mongodb_database", "history", short=False)
@output_options
def list_schedules(settings: Settings, out: Output) -> None:
    """List the schedules, in code and stored, and when each fires next.

    While MongoDB is away, only those in code, and a warning says so.
    """
    from streamq.loading import load_with_settings
    from streamq.schedules.book import every_schedule

    app, settings = load_with_settings(settings)
    items = [_described(each) for each in asyncio.run(every_schedule(app, settings, tell=_warned(out)))]
    out.rows(items, _COLUMNS, id_of="schedule")


def _warned(out: Output) -> Callable[[str], None]:
    return lambda text: out.note(f"warning: {text}")


def _described(listed: Listed) -> dict[str, Any]:
    told: dict[str, Any] = {"schedule": listed.name, "source": listed.source, "state": _state(listed)}
    if listed.schedule is None:
        return told | dict.fromkeys(["expression", "words", "timezone", "handler", "next_at"])
    entry, timing = listed.schedule.entry, listed.schedule.timing
    return told | {
        "expression": timing.text,
        "words": timing.words,
        "timezone": timing.timezone,
        "handler": entry.handler.name,
        "next_at": next(timing.after(datetime.now(UTC)), None),
    }


def _state(listed: Listed) -> str:
    if listed.error:
        return f"cannot be used: {listed.error}"
    return f"paused by {listed.pause.by}: {listed.pause.reason}" if listed.pause else "on"


@schedule.command()
@click.argument("name")
@click.option(
    "--next", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many fire times."
)
@setting_options("app", "mongodb_database", "history", short=False)
@output_options
def show(settings: Settings, name: str, count: int, out: Output) -> None:
    """Show a schedule in words, and its next fire times in UTC and in its zone."""
    from streamq.loading import load_with_settings
    from streamq.schedules.book import every_schedule

    app, settings = load_with_settings(settings)
    found = [each for each in asyncio.run(every_schedule(app, settings, tell=_warned(out))) if each.name == name]
    if not found:
        raise ConfigurationError(f"no schedule is named {name!r}", hint="streamq schedule ls lists them")
    told = _described(found[0])
    schedule = found[0].schedule
    fires = [] if schedule is None else list(islice(schedule.timing.after(datetime.now(UTC)), count))
    zone = None if schedule is None else schedule.timing.zone
    times = [
        {"utc": f"{fire:%a %Y-%m-%d %H:%M:%S}", "local": f"{fire.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}"}
        for fire in fires
    ]
    if out.as_json:
        out.document({**told, "next": [{"utc": fire, "local": fire.astimezone(zone).isoformat()} for fire in fires]})
    else:
        out.one(told, id_of="schedule")
        out.rows(times, ["utc", "local"], id_of="utc")


@schedule.command("set")
@click.argument("name")
@click.option("--cron", "expression", metavar="EXPRESSION", help="Five crontab fields, weekdays by name.")
@click.option("--every", metavar="TIME", help="An interval instead: 90s, 15m, 2h, 1d.")
@click.option("--handler", help="What runs for each user.")
@click.option("--pages", metavar="NAME", help="Its users: those of this page function of the application.")
@click.option("--collection", metavar="NAME", help="Its users instead: a document each in this collection.")
@click.option("--database", metavar="NAME", help="The database of --collection; streamq's own unless given.")
@click.option("--field", help="The field of --collection with the user's id; _id unless given. It needs an index.")
@click.option("--query", metavar="JSON", help="Which documents of --collection count.")
@click.option("--cost", metavar="FIELD", help="A number in --collection that rises with how long a user's job runs.")
@click.option("--user", "ids", multiple=True, metavar="ID", help="Its users instead: this one. Repeat for more.")
@click.option("--timezone", help="Of --cron; UTC unless given.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="misfire=all, overlap=skip, jitter_s=60, ..."
)
@click.option("--from", "file", type=click.File(), metavar="FILE|-", help="All of it as a JSON object instead.")
@setting_options("app", "mongodb_database", short=False)
@output_options
def put(settings: Settings, name: str, out: Output, **given: Any) -> None:
    """Store a schedule, new or instead of the one of that name. Cron processes notice within two seconds.

    For example: streamq schedule set nightly --cron "0 2 * * *" --handler refresh --collection users
    """
    from streamq.schedules import definition_of

    definition = definition_of(_from_file(given["file"]) if given["file"] else _from_options(given))

    async def store(book: Book) -> None:
        is_new = await book.put(name, definition)
        out.note(f"{name}: {'stored' if is_new else 'changed'}")

    _with_book(settings, store)


def _from_file(file: Any) -> dict[str, Any]:
    try:
        value: Any = json.load(file)
    except ValueError as error:
        raise BadInput(f"{file.name}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file.name}: not a JSON object")
    return value


def _from_options(given: dict[str, Any]) -> dict[str, Any]:
    if bool(given["expression"]) == bool(given["every"]):
        raise click.UsageError("say when, with --cron or with --every")
    if not given["handler"]:
        raise click.UsageError("say what runs, with --handler")
    users = {key: given[key] for key in ("pages", "collection", "database", "field", "cost") if given[key]}
    if given["query"]:
        users["query"] = _json(given["query"], "--query")
    if given["ids"]:
        users["ids"] = list(given["ids"])
    told = {"expression": given["expression"] or f"every {given['every']}", "handler": given["handler"], "users": users}
    told |= {"timezone": given["timezone"]} if given["timezone"] else {}
    return told | dict(_option(text) for text in given["options"])


def _option(text: str) -> tuple[str, str]:
    name, is_given, value = text.partition("=")
    if not is_given:
        raise BadInput(f"{text!r} is not an option", hint="write NAME=VALUE, as in misfire=all")
    return name, value


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInput(f"{what} is not JSON: {error}") from error


@schedule.command("rm")
@click.argument("name")
@setting_options("app", "mongodb_database", short=False)
@output_options
def remove(settings: Settings, name: str, out: Output) -> None:
    """Remove a stored schedule. The jobs that it has made go on."""

    async def forget(book: Book) -> None:
        await book.remove(name)
        out.note(f"{name}: removed")

    _with_book(settings, forget)


@schedule.command()
@click.argument("name")
@click.option("--reason", required=True, help="For whoever wonders why nothing is refreshed.")
@setting_options("app", "mongodb_database", short=False)
@output_options
def pause(settings: Settings, name: str, reason: str, out: Output) -> None:
    """Let a schedule fire no more, until it is resumed. Fire times that pass meanwhile are not made up for."""

    async def stop(book: Book) -> None:
        await book.pause(name, reason=reason, by=getpass.getuser())
        out.note(f"{name}: paused")

    _with_book(settings, stop)


@schedule.command()
@click.argument("name")
@setting_options("app", "mongodb_database", short=False)
@output_options
def resume(settings: Settings, name: str, out: Output) -> None:
    """Let a paused schedule fire again, from its next fire time on."""

    async def go_on(book: Book) -> None:
        out.note(f"{name}: {'resumed' if await book.resume(name) else 'was not paused'}")

    _with_book(settings, go_on)


def _with_book(settings: Settings, work: Callable[[Book], Awaitable[None]]) -> None:
    from streamq.loading import load_with_settings
    from streamq.schedules import book

    app, settings = load_with_settings(settings)

    async def opened() -> None:
        async with book(app, settings) as opened:
            await work(opened)

    asyncio.run(opened())


@schedule.command()
@click.argument("name")
@setting_options("app", "mongodb_database", short=False)
@output_options
def run(settings: Settings, name: str, out: Output) -> int:
    """Fire the current occurrence of a schedule now. A repeat adds nothing, or goes on where the last one stopped.

    Exit 1 if users were refused.
    """
    from streamq.loading import load_with_settings
    from streamq.schedules import fire_now

    app, settings = load_with_settings(settings)
    (fired,) = asyncio.run(fire_now(settings, app, schedule=name))
    state = fired.state
    if out.as_json:
        out.document(
            {
                "schedule": name,
                "occurrence": str(fired.occurrence),
                "was_finished": fired.was_finished,
                "users": state.users,
                "added": state.added,
                "duplicates": state.duplicates,
                "present": state.present,
                "refused": state.refused,
            }
        )
    else:
        out.note(str(fired))
    return 1 if state.refused else 0


@schedule.command()
@click.argument("name")
@click.option("--user", "users", multiple=True, metavar="ID", help="This user. Repeat for more.")
@click.option("--users-from", "file", type=_FILE, metavar="FILE", help="Those of a file, CSV or NDJSON.")
@click.option("--all", "is_all", is_flag=True, help="All users of the schedule, as its fire time does.")
@setting_options("app", "mongodb_database", short=False)
@output_options
def enqueue(
    settings: Settings, name: str, out: Output, *, users: tuple[str, ...], file: Path | None, is_all: bool
) -> None:
    """Enqueue by hand, as jobs of the hour that runs: who has a job of it that waits or runs gets none.

    Exit 65 if an id or a line is not good; then nothing was enqueued.
    """
    from streamq.loading import load_with_settings
    from streamq.schedules import manual_enqueue

    if [bool(users), file is not None, is_all].count(True) != 1:
        raise click.UsageError("say whom, with one of --user, --users-from and --all")
    app, settings = load_with_settings(settings)
    named = list(users) if users else None
    done = asyncio.run(manual_enqueue(settings, app, name, users=named, file=file))
    counts = {"added": done.added, "duplicates": done.duplicates, "present": done.present}
    if out.as_json:
        out.document({"schedule": name, "occurrence": str(done.occurrence), **counts})
    else:
        out.note(str(done))
