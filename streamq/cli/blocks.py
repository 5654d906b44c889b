"""`streamq block`, `unblock` and `blocks`: hold back the jobs of a handler or of a user, and let them go again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, seconds, setting_options

if TYPE_CHECKING:
    from streamq.broker.inspection import Block
    from streamq.cli.output import Output
    from streamq.cli.servers import Queue
    from streamq.settings import Settings

__all__ = ["block", "blocks", "unblock"]

_COLUMNS = ["queue", "kind", "name", "until", "reason", "by"]


def _check_choice(handler: str | None, key: str | None) -> str:
    if (handler is None) is (key is None):
        raise click.UsageError("name a HANDLER, or a user by --key; one of the two")
    return f"handler {handler}" if handler is not None else f"user {key}"


@click.command()
@click.argument("handler", required=False)
@click.option("--key", metavar="KEY", help="Jobs of this user key, whatever their handler.")
@click.option("--reason", default="", help="Why; everybody who looks reads it.")
@click.option("--for", "for_ms", type=seconds, metavar="TIME", default="0", help="End by itself: 90, 15m, 2h, 7d.")
@setting_options("app", "queues", short=False)
@output_options
def block(settings: Settings, handler: str | None, key: str | None, reason: str, for_ms: int, out: Output) -> None:
    """Hold back the jobs of HANDLER, or of one user, in all queues; others go on.

    What runs is finished. Held back jobs use no attempt; they come back in their order when the block ends.
    """
    what = _check_choice(handler, key)
    asyncio.run(_block(settings, handler, key, (reason, for_ms)))
    _tell(out, {"blocked": what}, f"{what}: blocked; streamq unblock ends it")


async def _block(settings: Settings, handler: str | None, key: str | None, said: tuple[str, int]) -> None:
    from streamq.cli.servers import redis
    from streamq.operator import user_name

    reason, for_ms = said

    async def order(queue: Queue) -> None:
        until_ms = await queue.orders.until_ms(for_ms)
        await queue.orders.block(handler=handler, key=key, reason=reason, by=user_name(), until_ms=until_ms)

    async with redis(settings) as server:
        await server.in_each(order)


@click.command()
@click.argument("handler", required=False)
@click.option("--key", metavar="KEY", help="Jobs of this user key.")
@setting_options("app", "queues", short=False)
@output_options
def unblock(settings: Settings, handler: str | None, key: str | None, out: Output) -> int:
    """Let the jobs of HANDLER, or of one user, go again.

    Exit 1 if they were not blocked.
    """
    what = _check_choice(handler, key)
    was_blocked = asyncio.run(_unblock(settings, handler, key))
    _tell(out, {"unblocked": what if was_blocked else None}, f"{what}: {'un' if was_blocked else 'was not '}blocked")
    return 0 if was_blocked else 1


async def _unblock(settings: Settings, handler: str | None, key: str | None) -> bool:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return any(await server.in_each(lambda queue: queue.orders.unblock(handler=handler, key=key)))


@click.command()
@setting_options("app", "queues", short=False)
@output_options
def blocks(settings: Settings, out: Output) -> None:
    """List what is blocked, until when, why and by whom."""
    out.rows(asyncio.run(_listed(settings)), _COLUMNS, id_of="name")


async def _listed(settings: Settings) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return [_described(queue.name, each) for queue in server.queues for each in (await queue.view.counts()).blocks]


def _described(queue: str, each: Block) -> dict[str, Any]:
    from streamq.clock import from_ms

    until = from_ms(each.until_ms) if each.until_ms else None
    return {"queue": queue, "kind": each.kind, "name": each.name, "until": until, "reason": each.reason, "by": each.by}


def _tell(out: Output, document: dict[str, Any], text: str) -> None:
    if out.as_json:
        out.document(document)
    else:
        out.note(text)
