"""`streamq enqueue`: a job from the command line, with its arguments read as the handler's signature says."""

from __future__ import annotations

import asyncio
import json
import sys
import typing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import msgspec

from streamq.cli.options import output_options, seconds, setting_options
from streamq.errors import BadInput
from streamq.logs import masked

if TYPE_CHECKING:
    from streamq.cli.output import Output
    from streamq.queue import Job
    from streamq.registry import HandlerSpec
    from streamq.settings import Settings

__all__ = ["enqueue"]

SILENT_S = 2.0
"""So long nobody wonders what is going on."""


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text} is not a time, as 2026-12-01T08:00Z is") from error
    if moment.tzinfo is None:
        raise click.BadParameter(f"{text} has no time zone: write {text}Z for UTC")
    return moment


def _duration(text: str) -> timedelta:
    return timedelta(milliseconds=seconds(text))


@click.command()
@click.argument("handler")
@click.argument("arguments", nargs=-1, metavar="[NAME=TEXT | NAME:=JSON]...")
@click.option("--arguments", "document", metavar="JSON|-", help="All arguments as one JSON object; - reads it.")
@click.option("--delay", type=_duration, metavar="SECONDS", help="Due that much later.")
@click.option("--at", type=_moment, metavar="TIME", help="Due then: ISO 8601 with a zone, as in 2026-12-01T08:00Z.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="Other than the handler's.")
@click.option("--key", help="The user or tenant that the job belongs to.")
@click.option("--dedup", help="While a job with this key lives, that one is returned.")
@click.option("--max-attempts", type=click.IntRange(min=1), help="Other than the handler's.")
@click.option("--id", help="The job's id; the same id is one job.")
@setting_options("app", short=False)
@output_options
def enqueue(
    settings: Settings, handler: str, arguments: tuple[str, ...], document: str | None, out: Output, **options: Any
) -> None:
    """Enqueue a job of HANDLER.

    For example: streamq enqueue refresh user_id=u42 limit:=10
    """
    from streamq.loading import load_with_settings

    app, settings = load_with_settings(settings)
    spec = app.registry.get(handler)
    given = {**_from_document(document), **dict(_argument(spec, text) for text in arguments)}
    chosen = {name: value for name, value in options.items() if value is not None}

    async def send() -> Job:
        sending = asyncio.ensure_future(app.handler_named(handler).options(**chosen).enqueue(**given))
        try:
            await asyncio.wait([sending], timeout=SILENT_S)
            if not sending.done():
                out.note(f"{masked(settings.redis_url)} has not answered yet; trying for half a minute")
            return await sending
        finally:
            await app.close()

    job = asyncio.run(send())
    out.one({"id": job.id, "handler": job.handler, "queue": job.queue, "status": job.status}, id_of="id")


def _from_document(document: str | None) -> dict[str, Any]:
    if document is None:
        return {}
    try:
        value = json.loads(sys.stdin.read() if document == "-" else document)
    except ValueError as error:
        raise BadInput(f"--arguments is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"--arguments is not a JSON object but {json.dumps(value)[:60]}")
    return typing.cast("dict[str, Any]", value)


def _argument(spec: HandlerSpec, text: str) -> tuple[str, Any]:
    """Read `name=text` or `name:=json`. Text becomes a number or a truth value where the handler asks for one.

    Raises:
        BadInput: It is neither, or does not fit.
    """
    name, is_given, value = text.partition("=")
    if not is_given or not name.rstrip(":"):
        raise BadInput(f"{text!r} is not an argument", hint="write NAME=TEXT, or NAME:=JSON")
    if name.endswith(":"):
        try:
            return name[:-1], json.loads(value)
        except ValueError as error:
            raise BadInput(
                f"the value of {name[:-1]!r} is not JSON: {error}", hint=f"text needs no JSON: {name[:-1]}={value}"
            ) from error
    return name, _as_asked(spec, name, value)


def _as_asked(spec: HandlerSpec, name: str, text: str) -> Any:
    asked = _annotations(spec).get(name, str)
    if asked not in (int, float, bool):
        return text
    try:
        return msgspec.convert(text, asked, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(f"{name}={text}: {spec.name} expects {asked.__name__} for {name!r}") from error


def _annotations(spec: HandlerSpec) -> dict[str, Any]:
    try:
        return typing.get_type_hints(spec.function)
    except Exception:  # noqa: BLE001  hints may name what is not there at run time; they are only hints
        return {}
