"""Commands that are imported when they are run, and listed without being imported."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Lazy", "LazyGroup"]


class Lazy(NamedTuple):
    """A command that is not imported yet."""

    target: str
    """`module:function`."""
    help: str
    """The first line of its help, for the list; it must not need the import."""


class LazyGroup(click.Group):
    """A group whose commands stand in a table, by sections of the help."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Lazy]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._table = {name: lazy for section in sections.values() for name, lazy in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command; None if there is none of that name."""
        lazy = self._table.get(cmd_name)
        if lazy is None:
            return None
        module, _, function = lazy.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names, or say which was meant."""
        name = args[0]
        if name in self._table or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, self._table, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"There is no command {name!r}{meant}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table, section by section, all of them equally wide."""
        width = max(map(len, self._table))
        for section, commands in self._sections.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), lazy.help) for name, lazy in commands.items()])
