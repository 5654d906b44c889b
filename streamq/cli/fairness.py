"""`streamq fairness`: who is slow, how the slots are shared, who waits at gates, and whose turn it is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options
from streamq.cli.output import as_text

if TYPE_CHECKING:
    from streamq.broker.crowd import Crowd, GateSeen
    from streamq.broker.inspection import Costs, Counts
    from streamq.cli.output import Output
    from streamq.settings import Settings

__all__ = ["fairness"]

_COLUMNS = ["queue", "handler", "user", "mean_ms", "last_run_at"]
_GATE_COLUMNS = ["queue", "gate", "handler", "user", "limit", "running", "parked", "longest_s", "opens_in_s"]
_TURN_COLUMNS = ["queue", "user", "parked", "virtual_ms", "weight"]
_TOLD = 5
"""So many gates and turns are told in lines; the tables have more."""
_TABLES = {"slowest": (_COLUMNS, "user"), "gates": (_GATE_COLUMNS, "gate"), "turns": (_TURN_COLUMNS, "user")}


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The most rows of a table and queue."
)
@click.option(
    "--show",
    "table",
    type=click.Choice(sorted(_TABLES)),
    default="slowest",
    show_default=True,
    help="Which table: the slowest users; gates, those first where most jobs wait; turns of a fair queue.",
)
@click.option("--seed", "seeding", is_flag=True, help="First learn from the history in MongoDB what jobs took.")
@setting_options("app", "queues", "slow_limit_ms", "slow_share", "mongodb_database", short=False)
@output_options
def fairness(settings: Settings, limit: int, table: str, out: Output, *, seeding: bool) -> None:
    """Show from which run time on jobs are slow, how lanes share the slots, and who waits at gates or for a turn.

    What is true of a queue is told on standard error, and then its first gates and turns if jobs wait there; the table on
    standard output lists the slowest users, or what --show names. --json has all of it.
    """
    queues = asyncio.run(_told(settings, limit, seeding=seeding))
    if out.as_json:
        out.document({"items": queues})
        return
    for queue in queues:
        out.note(_sentence(queue))
        for line in _waits(queue):
            out.note(f"  {line}")
    columns, id_of = _TABLES[table]
    out.rows([row for queue in queues for row in queue[table]], columns, id_of=id_of)


async def _told(settings: Settings, limit: int, *, seeding: bool) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        if seeding:
            await _seed(server.settings)
        return [
            _described(queue.name, await queue.view.costs(limit), await queue.view.counts(), server.settings)
            | _crowded(queue.name, await queue.view.crowd(), limit)
            for queue in server.queues
        ]


async def _seed(settings: Settings) -> None:
    from streamq.broker.server import Broker
    from streamq.mongo import Mongo, Statuses
    from streamq.seeding import remembered, seed

    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        for queue in settings.partition_names:
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
    from streamq.keys import queue_of
    from streamq.lanes import RIGHT_OF_SHARE

    is_on = settings.lanes and queue_of(queue) not in settings.fifo_queues
    limit_ms = settings.slow_limit_ms or costs.limit_ms
    slow = [counts.lanes[lane] for lane in counts.lanes if lane.endswith(".slow")]
    fast = [counts.lanes[lane] for lane in counts.lanes if not lane.endswith(".slow")]
    return {
        "queue": queue,
        "lanes": is_on,
        "limit_ms": limit_ms if is_on else None,
        "limit_from": _limit_from(settings, costs) if is_on else None,
        "slow_share": settings.slow_share,
        "slow_right": settings.slow_share / RIGHT_OF_SHARE,
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


def _crowded(queue: str, crowd: Crowd, limit: int) -> dict[str, Any]:
    """Write down who has places at gates, who waits there, and who waits for a turn; of each the first ones."""
    return {
        "parked": crowd.parked,
        "gates": [{"queue": queue, **_gate_told(gate)} for gate in crowd.gates[:limit]],
        "turns": [{"queue": queue, **_turn_told(turn)} for turn in crowd.turns[:limit]],
        "keys_waiting": crowd.keys,
        "virtual_ms": crowd.virtual_ms,
        "mean_ms": crowd.mean_ms,
        "is_whole": crowd.is_whole,
    }


def _gate_told(gate: GateSeen) -> dict[str, Any]:
    """Write down a gate."""
    opens_in_ms = gate.opens_in_ms
    return {
        "gate": gate.name.kind,
        "handler": gate.name.handler,
        "user": gate.name.key,
        "limit": gate.limit,
        "interval_ms": gate.interval_ms,
        "running": gate.running,
        "parked": gate.parked,
        "longest_s": round(gate.longest_ms / 1000, 1),
        "opens_in_s": None if opens_in_ms is None else round(opens_in_ms / 1000, 3),
    }


def _turn_told(turn: GateSeen) -> dict[str, Any]:
    """Write down a key of a fair queue whose jobs wait."""
    return {
        "user": turn.name.key,
        "parked": turn.parked,
        "longest_s": round(turn.longest_ms / 1000, 1),
        "virtual_ms": turn.virtual_ms,
        "weight": turn.weight,
    }


def _waits(queue: dict[str, Any]) -> list[str]:
    """Say in lines where jobs wait that may not start yet, if any do."""
    if not queue["parked"]:
        return []
    lines = [f"{queue['parked']} jobs wait at gates" + ("" if queue["is_whole"] else "; not every gate was looked at")]
    for gate in [gate for gate in queue["gates"] if gate["parked"]][:_TOLD]:
        whose = f"{gate['gate']} of {gate['handler']}" + (f" for {gate['user']}" if gate["user"] is not None else "")
        told = f"{_state_of(gate)}; {gate['parked']} wait, the first for {gate['longest_s']:.1f} s"
        lines.append(as_text(f"{whose}: {told}"))
    if queue["turns"]:
        first = ", ".join(f"{turn['user'] or '(no key)'} {turn['parked']}" for turn in queue["turns"][:_TOLD])
        lines.append(as_text(f"{queue['keys_waiting']} keys wait for their turn, most jobs first: {first}"))
    return lines


def _state_of(gate: dict[str, Any]) -> str:
    if gate["running"] is not None:
        return f"{gate['running']} of {gate['limit']} places are taken"
    opens = gate["opens_in_s"]
    return f"one in {gate['interval_ms']:g} ms" + (f", the next in {opens:g} s" if opens is not None else "")


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
        f"{queue['slow_running']} slow jobs run, {queue['fast_waiting']} and {queue['slow_waiting']} wait; while there are "
        f"fast ones, slow jobs hold at most {queue['slow_share']:.0%} of a worker's slots and are sure of "
        f"{queue['slow_right'] * 100:.3g}%, of one at least"
    )
