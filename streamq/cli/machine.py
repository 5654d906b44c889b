"""The commands that speak to the parent on this machine: what `pm2 status`, `scale` and `logs` are elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import directory_option, output_options
from streamq.cli.output import as_text

if TYPE_CHECKING:
    from pathlib import Path

    from streamq.cli.output import Output

__all__ = ["down", "logs", "ps", "restart", "scale"]

_COLUMNS = ["name", "state", "pid", "uptime", "busy", "memory", "restarts", "last_death", "problem"]


@click.command()
@directory_option
@output_options
def ps(directory: Path, out: Output) -> None:
    """List the processes that the parent here runs."""
    from streamq.parent import request

    answer = request(directory, {"command": "ps"})
    if out.as_json:
        answer.pop("ok")
        out.document(answer)
    else:
        out.rows([_shown(child) for child in answer["children"]], _COLUMNS, id_of="name")
        out.note(f"parent: pid {answer['parent']['pid']}, {answer['parent']['state']}")


def _shown(child: dict[str, Any]) -> dict[str, Any]:
    """Write the figures of a child as a person reads them."""
    memory = child["rss_bytes"]
    return child | {
        "uptime": "" if child["uptime_s"] is None else _duration(child["uptime_s"]),
        "busy": f"{child['busy']}/{child['slots']}" if child["slots"] else "",
        "memory": "" if memory is None else f"{memory / 1_000_000:.0f} MB",
    }


def _duration(seconds: float) -> str:
    """Write a duration in its two largest units."""
    minutes, left_s = divmod(int(seconds), 60)
    hours, left_min = divmod(minutes, 60)
    days, left_h = divmod(hours, 24)
    if days:
        return f"{days} d {left_h} h"
    if hours:
        return f"{hours} h {left_min} min"
    return f"{minutes} min {left_s} s" if minutes else f"{left_s} s"


@click.command()
@click.argument("role")
@click.argument("count", type=click.IntRange(min=0))
@directory_option
@output_options
def scale(role: str, count: int, directory: Path, out: Output) -> None:
    """Run so many processes of a role. Those too many finish their jobs first.

    For example: streamq scale worker 5
    """
    from streamq.parent import request

    answer = request(directory, {"command": "scale", "role": role, "n": count})
    change = {"role": role, "before": answer["before"], "after": answer["after"]}
    if out.as_json:
        out.document(change)
    else:
        out.note(f"{role}: {change['before']} → {change['after']}")


@click.command()
@click.argument("name", required=False, default="")
@click.option("--follow", "-f", "is_followed", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(0, 10_000), default=100, show_default=True, help="How many old ones."
)
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def logs(name: str, lines: int, directory: Path, *, is_followed: bool, as_json: bool) -> None:
    """Show what the processes have printed.

    NAME is a role such as worker, or one process such as worker.2; everything unless given.
    """
    from streamq.parent import follow

    message = {"command": "logs", "role": name, "lines": lines, "follow": is_followed}
    for line in follow(directory, message):
        shown = json.dumps(line, ensure_ascii=False) if as_json else f"{line['child']:<10} | {as_text(line['line'])}"
        sys.stdout.write(shown + "\n")
        sys.stdout.flush()


@click.command()
@click.argument("role")
@click.option(
    "--rolling/--at-once",
    default=True,
    show_default=True,
    help="One after another, the new one ready before the old one stops; or all together.",
)
@directory_option
@output_options
def restart(role: str, directory: Path, out: Output, *, rolling: bool) -> None:
    """Restart the processes of a role. Jobs that run are finished first."""
    from streamq.parent import request

    request(directory, {"command": "restart", "role": role, "rolling": rolling})
    if out.as_json:
        out.document({"role": role, "rolling": rolling})
    else:
        out.note(f"{role}: restarting {'one after another' if rolling else 'all together'}; streamq ps shows how far")


@click.command()
@directory_option
@output_options
def down(directory: Path, out: Output) -> None:
    """Stop the parent and everything that it runs. Jobs that run are finished first; returns when all is over."""
    from streamq.errors import Unavailable
    from streamq.parent import follow, request

    answer = request(directory, {"command": "stop"})
    with contextlib.suppress(Unavailable):  # it is over already
        for _ in follow(directory, {"command": "logs", "lines": 0, "follow": True}):
            pass  # the lines end when the parent does
    if out.as_json:
        out.document({"pid": answer["pid"]})
    else:
        out.note(f"stopped: pid {answer['pid']}")
