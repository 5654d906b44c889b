"""`streamq migrate`: what this version wants otherwise in MongoDB than it is, and doing it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from streamq.cli.options import output_options, setting_options

if TYPE_CHECKING:
    from streamq.cli.output import Output
    from streamq.mongo.schema import Change
    from streamq.settings import Settings

__all__ = ["migrate"]


@click.command()
@setting_options("mongodb_database", short=False)
@click.option("--apply", "is_applied", is_flag=True, help="Do it.")
@output_options
def migrate(settings: Settings, out: Output, *, is_applied: bool) -> int:
    """Show what has to change in MongoDB for this version, and change it with --apply.

    What is missing is also made by the recorder at its start; an index or a validator that differs is only changed here.
    Where a later version of streamq has done that, it stays as it is. Exit 1 if there is something to do and --apply was
    not given; 69 if another migration is under way.
    """
    changes, newer = asyncio.run(_changes(settings, is_applied=is_applied))
    items = [{"change": change.what, "done": is_applied} for change in changes]
    out.rows(items, ["change"], id_of="change")
    done = "done" if is_applied else "to do: streamq migrate --apply"
    out.note(f"{len(changes)} {done}" if changes else "MongoDB is as this version wants it")
    if newer:
        out.note(f"a later version of streamq has been here (layout {newer}): what it has changed is left alone")
    return 1 if changes and not is_applied else 0


async def _changes(settings: Settings, *, is_applied: bool) -> tuple[list[Change], int]:
    from streamq.mongo import Mongo, Schema

    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        await mongo.check()
        schema = Schema(mongo)
        changes = await (schema.migrate() if is_applied else schema.changes())
        return changes, await schema.newer()
    finally:
        await mongo.close()
