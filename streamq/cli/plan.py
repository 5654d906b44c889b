"""`streamq plan`: what a number of users takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options

if TYPE_CHECKING:
    from streamq.cli.output import Output

__all__ = ["plan"]


@click.command()
@click.option("--users", type=click.IntRange(min=1), required=True, help="How many users there are, one job each.")
@click.option(
    "--run-s", type=click.FloatRange(min=0.0), default=1.0, show_default=True, help="How long a job runs, on average."
)
@click.option(
    "--cpu-share",
    type=click.FloatRange(0.0, 1.0),
    default=0.1,
    show_default=True,
    help="Which part of that it computes.",
)
@click.option(
    "--period-s",
    type=click.FloatRange(min=0.001),
    default=3600.0,
    show_default=True,
    help="All have to be done within this time.",
)
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Jobs at once in one worker process.",
)
@click.option(
    "--payload-bytes",
    type=click.IntRange(min=0),
    default=120,
    show_default=True,
    help="How large the arguments of a job are.",
)
@click.option(
    "--partitions",
    type=click.IntRange(1, 128),
    default=1,
    show_default=True,
    help="Into how many the queue is divided; they may lie on as many masters of a Redis Cluster.",
)
@output_options
def plan(out: Output, **load: Any) -> None:
    """Say how many workers and how much Redis a number of users takes.

    The figures behind it come from `python -m benchmarks.scale`; docs/scaling.md says how good they are.
    """
    from streamq.sizing import Load, needs_of

    needs = asdict(needs_of(Load(**load)))
    rounded = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in needs.items()}
    out.one(rounded, id_of="processes")
    if not out.as_json:
        command = f"streamq worker APP --instances {needs['processes']} --concurrency {load['concurrency']}"
        out.note(needs["limit"] or f"on one machine: {command}")
