"""`streamq schedule`: when the schedules of an application fire, and one fired by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options

if TYPE_CHECKING:
    from streamq.app import StreamQ
    from streamq.cli.output import Output
    from streamq.settings import Settings

__all__ = ["schedule"]


@click.group()
def schedule() -> None:
    """See the schedules of an application, and fire one now."""


@schedule.command("ls")
@setting_options("app", servers=False, short=False)
@output_options
def list_schedules(settings: Settings, out: Output) -> None:
    """List the schedules and when each fires next."""
    from streamq.loading import load_with_settings

    app, _ = load_with_settings(settings)
    out.rows(_described(app), ["schedule", "expression", "timezone", "handler", "next_at"], id_of="schedule")


def _described(app: StreamQ) -> list[dict[str, Any]]:
    from streamq.cron import next_times

    now = datetime.now(UTC)
    return [
        {
            "schedule": name,
            "expression": entry.expression,
            "timezone": entry.timezone,
            "handler": entry.handler.name,
            "next_at": next_times(entry.expression, entry.timezone, 1, now)[0],
        }
        for name, entry in app.cron_entries.items()
    ]


@schedule.command()
@click.argument("name")
@setting_options("app", short=False)
@output_options
def run(settings: Settings, name: str, out: Output) -> int:
    """Fire the current occurrence of a schedule now. A repeat adds nothing, or goes on where the last one stopped.

    Exit 1 if users were refused.
    """
    from streamq.cron import fire_now
    from streamq.loading import load_with_settings

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
