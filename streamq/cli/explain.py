"""`streamq explain`: why a call with a dedup key made a new job, or did not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options

if TYPE_CHECKING:
    from streamq.broker.inspection import Explanation
    from streamq.cli.output import Output
    from streamq.settings import Settings

__all__ = ["explain"]

_COLUMNS = ["queue", "state", "holder", "handler", "since", "left_s", "why"]


@click.command()
@click.argument("key")
@setting_options("app", "queues", short=False)
@output_options
def explain(settings: Settings, key: str, out: Output) -> None:
    """Say who holds a dedup key, so why a job was or was not enqueued.

    And since when, for how long, and what a call with it comes to. The key of a handler with dedup="user_id" is its
    name and the value: streamq explain refresh:u42
    """
    out.rows([_described(found) for found in asyncio.run(_explained(settings, key))], _COLUMNS, id_of="holder")


async def _explained(settings: Settings, key: str) -> list[Explanation]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return [await queue.view.explain(key) for queue in server.queues]


def _described(found: Explanation) -> dict[str, Any]:
    from streamq.clock import from_ms

    return {
        "queue": found.queue,
        "key": found.key,
        "state": found.state,
        "holder": found.holder,
        "handler": found.handler,
        "since": from_ms(found.enqueued_ms) if found.enqueued_ms else None,
        "due_at": from_ms(found.due_ms) if found.due_ms else None,
        "worker": found.worker or None,
        "kept_behind": found.kept_behind,
        "left_s": found.left_ms / 1000 if found.left_ms is not None else None,
        "why": found.why,
        "taken_over": found.taken_over,
    }
