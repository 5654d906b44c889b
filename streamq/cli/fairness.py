"""`streamq fairness`: who is slow, from when on, and how the slots are shared."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options

if TYPE_CHECKING:
    from streamq.broker.inspection import Costs, Counts
    from streamq.cli.output import Output
    from streamq.settings import Settings

__all__ = ["fairness"]

_COLUMNS = ["queue", "handler", "user", "mean_ms", "last_run_at"]


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The slowest of each queue.")
@click.option("--seed", "seeding", is_flag=True, help="First learn from the history in MongoDB what jobs took.")
@setting_options("app", "queues", "slow_limit_ms", "slow_share", "mongodb_database", short=False)
@output_options
def fairness(settings: Settings, limit: int, out: Output, *, seeding: bool) -> None:
    """Show from which run time on jobs are slow, how lanes share the slots, and the slowest users.

    The table on standard output lists users; what is true of a queue is told before it. --json has both.
    """
    queues = asyncio.run(_told(settings, limit, seeding=seeding))
    if out.as_json:
        out.document({"items": queues})
        return
    for queue in queues:
        out.note(_sentence(queue))
    out.rows([user for queue in queues for user in queue["slowest"]], _COLUMNS, id_of="user")


async def _told(settings: Settings, limit: int, *, seeding: bool) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        if seeding:
            await _seed(server.settings)
        return [
            _described(queue.name, await queue.view.costs(limit), await queue.view.counts(), server.settings)
            for queue in server.queues
        ]


async def _seed(settings: Settings) -> None:
    from streamq.broker.server import Broker
    from streamq.mongo import Mongo, Statuses
    from streamq.seeding import remembered, seed

    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        for queue in settings.queues:
            partition = broker.partition(queue)
            try:
                await seed(partition, await remembered(Statuses(mongo), queue))
            finally:
                await partition.wire.close()
    finally:
        await mongo.close()
        await broker.close()


def _described(queue: str, costs: Costs, counts: Counts, settings: Settings) -> dict[str, Any]:
    from streamq.clock import from_ms

    is_on = settings.lanes and queue not in settings.fifo_queues
    limit_ms = settings.slow_limit_ms or costs.limit_ms
    slow = [counts.lanes[lane] for lane in counts.lanes if lane.endswith(".slow")]
    fast = [counts.lanes[lane] for lane in counts.lanes if not lane.endswith(".slow")]
    return {
        "queue": queue,
        "lanes": is_on,
        "limit_ms": limit_ms if is_on else None,
        "limit_from": _limit_from(settings, costs) if is_on else None,
        "slow_share": settings.slow_share,
        "slow_keys": costs.slow_keys,
        "runs": costs.runs,
        "slow_runs": costs.slow_runs,
        "hint_limit": costs.hint_limit,
        "fast_waiting": sum(lane.waiting for lane in fast),
        "fast_running": sum(lane.in_flight for lane in fast),
        "slow_waiting": sum(lane.waiting for lane in slow),
        "slow_running": sum(lane.in_flight for lane in slow),
        "slowest": [
            {
                "queue": queue,
                "handler": each.handler,
                "user": each.key,
                "mean_ms": each.mean_ms,
                "last_run_at": from_ms(each.seen_ms),
            }
            for each in costs.slowest
        ],
    }


def _limit_from(settings: Settings, costs: Costs) -> str:
    if settings.slow_limit_ms:
        return "slow_limit_ms"
    return "the run times" if costs.limit_ms is not None else "nothing: the run times do not fall into two groups"


def _sentence(queue: dict[str, Any]) -> str:
    if not queue["lanes"]:
        return f"{queue['queue']}: no lanes by cost; jobs run in their order"
    limit_ms = queue["limit_ms"]
    said = f"slow from {limit_ms:g} ms on, by {queue['limit_from']}" if limit_ms else "nobody is slow yet"
    return (
        f"{queue['queue']}: {said}; {queue['slow_keys']} slow users; {queue['fast_running']} fast and "
        f"{queue['slow_running']} slow jobs run, {queue['fast_waiting']} and {queue['slow_waiting']} wait; slow jobs get "
        f"{queue['slow_share']:.0%} of the slots while there are fast ones"
    )
