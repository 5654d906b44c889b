"""`streamq import`: jobs of another system, taken over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options
from streamq.errors import BadInput

if TYPE_CHECKING:
    from streamq.cli.output import Output
    from streamq.importing import Imported, Source
    from streamq.settings import Settings

__all__ = ["import_"]

_STATES = ["waiting", "prioritized", "delayed", "failed"]
_COLUMNS = ["state", "found", "imported", "present", "duplicates", "refused"]


@click.group("import")
def import_() -> None:
    """Take over the jobs of another system."""


@import_.command()
@click.argument("queue")
@click.option("--from", "url", metavar="URL", help="The Redis of BullMQ; streamq's own unless given.")
@click.option("--prefix", default="bull", show_default=True, help="What the keys of BullMQ begin with.")
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES), help="Only these. Repeat for more.")
@click.option("--handler", "handlers", multiple=True, metavar="NAME=HANDLER", help="What runs the jobs of a name.")
@click.option(
    "--argument", "arguments", multiple=True, metavar="FIELD=ARGUMENT", help="What a field of the data becomes."
)
@click.option("--dry-run", "is_dry", is_flag=True, help="Read and check every job, and write nothing.")
@setting_options("app", "mongodb_database", "history", short=False)
@output_options
def bullmq(settings: Settings, queue: str, out: Output, *, is_dry: bool, **given: Any) -> int:
    """Import what waits, is prioritized, delayed or failed in a QUEUE of BullMQ 4 to 6.

    The source is only read. Stop its workers first, or they run the same jobs. A repeat adds nothing. Without --handler
    and --argument, processUserData becomes process_user_data, and userId user_id.

    Exit 1 if jobs were refused: nothing of them was written, the report says why.
    """
    from streamq.importing import STATES, Source
    from streamq.loading import load_with_settings

    app, settings = load_with_settings(settings)
    source = Source(
        queue,
        given["url"] or settings.redis_url,
        given["prefix"],
        given["states"] or STATES,
        dict(map(_pair, given["handlers"])),
        dict(map(_pair, given["arguments"])),
    )
    report = asyncio.run(_imported(settings, app, source, is_dry=is_dry))
    items = [
        {"state": state, "found": found, **{name: getattr(report, name)[state] for name in _COLUMNS[2:]}}
        for state, found in report.found.items()
    ]
    if out.as_json:
        out.document({"queue": queue, "dry_run": is_dry, "states": items, "faults": report.faults})
    else:
        out.rows(items, _COLUMNS, id_of="state")
        for fault in report.faults:
            out.note(f"refused: {fault}")
        out.note("dry run: nothing was written" if is_dry else "the source was left as it is")
    return 1 if report.refused.total() else 0


def _pair(text: str) -> tuple[str, str]:
    old, is_given, new = text.partition("=")
    if not is_given or not new:
        raise BadInput(f"{text!r} does not say what becomes of what", hint="write OLD=NEW")
    return old, new


async def _imported(settings: Settings, app: Any, source: Source, *, is_dry: bool) -> Imported:
    from streamq.importing import import_bullmq

    try:
        return await import_bullmq(settings, app, source, is_dry=is_dry)
    finally:
        await app.close()
