"""`streamq config`: what is set, to what, and where that came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamq.cli.options import output_options, setting_options
from streamq.settings import describe
from streamq.settings.table import SETTINGS

if TYPE_CHECKING:
    from streamq.cli.output import Output
    from streamq.settings import Settings


@click.group()
def config() -> None:
    """Show and check the settings."""


@config.command()
@setting_options(servers=False)
@output_options
def show(settings: Settings, out: Output) -> None:
    """Show every setting, its value, and where that came from. Secrets are hidden."""
    rows = [row._asdict() for row in describe(settings)]
    if out.as_json:
        out.document({"items": rows, "warnings": settings.warnings})
    else:
        out.rows(rows, ["name", "value", "source"], id_of="name")


@config.command()
@setting_options(servers=False)
@output_options
def check(settings: Settings, out: Output) -> None:
    """Check every setting, and say what is wrong. Reaches for no server."""
    told = [row for row in describe(settings) if row.source != "default"]
    if out.as_json:
        out.document({"ok": True, "warnings": settings.warnings})
    else:
        out.note(f"ok: {len(SETTINGS)} settings can be used, {len(told)} of them not the default")
