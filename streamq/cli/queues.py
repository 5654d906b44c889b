"""`streamq queues` and `streamq workers`: what there is, and orders to it."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, seconds, setting_options
from streamq.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Collection

    from streamq.broker.inspection import Counts, WorkerSeen
    from streamq.cli.output import Output
    from streamq.cli.servers import Queue
    from streamq.settings import Settings

__all__ = ["described_queue", "described_worker", "queues", "workers"]

_UNIQUE = re.compile(r"\.[0-9a-f]{8}(~\d+)?$")

_QUEUE_COLUMNS = [
    "queue",
    "waiting",
    "running",
    "scheduled",
    "dead",
    "oldest_wait_s",
    "workers",
    "state",
    "pause_reason",
]
_WORKER_COLUMNS = ["worker", "queue", "running", "beat_age_s", "state"]


@click.group()
def queues() -> None:
    """See, pause, resume, purge and divide queues."""


@queues.command("ls")
@setting_options("app", "queues", "dead_after_ms", short=False)
@output_options
def list_queues(settings: Settings, out: Output) -> None:
    """List the queues and what they hold."""
    items = asyncio.run(_described(settings))
    out.rows(items, _QUEUE_COLUMNS, id_of="queue")


async def _described(settings: Settings) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return [described_queue(queue.name, await queue.view.counts(), settings) for queue in server.queues]


def described_queue(name: str, counts: Counts, settings: Settings) -> dict[str, Any]:
    """Write down what a queue holds; scheduled are the delayed and the retrying ones."""
    pause = counts.pause
    return {
        "queue": name,
        "waiting": counts.waiting,
        "running": counts.in_flight,
        "scheduled": counts.delayed,
        "dead": counts.dead,
        "oldest_wait_s": round(counts.oldest_wait_ms / 1000, 1),
        "workers": counts.workers_alive(settings.dead_after_ms),
        "unrecorded": counts.outbox,
        "outbox_share": round(counts.outbox / settings.outbox_max, 3),
        "history_lag_s": round(counts.outbox_age_ms / 1000, 1),
        "state": "paused" if pause else "running",
        "pause_reason": pause.reason if pause else None,
        "paused_by": pause.by if pause else None,
        "blocked": counts.blocked,
        "blocks": [f"{block.kind} {block.name}" for block in counts.blocks or ()],
        "unknown": [one.what for one in counts.unknown or ()],
        "unknown_s": round(counts.unknown_for_ms() / 1000, 1),
        "parked": counts.parked,
        "evicted": counts.evicted,
        "evicted_age_s": (counts.now_ms - counts.evicted_ms) / 1000 if counts.evicted_ms else None,
    }


@queues.command()
@click.argument("queue")
@click.option("--reason", default="", help="Why; everybody who looks at the queue reads it.")
@click.option("--for", "for_ms", type=seconds, metavar="TIME", default="0", help="Resume by itself: 90, 15m, 2h.")
@setting_options("app", short=False)
@output_options
def pause(settings: Settings, queue: str, reason: str, for_ms: int, out: Output) -> None:
    """Give out no jobs of a queue. Jobs that run are finished, and new ones are accepted.

    Nothing that is enqueued from now on is started before the queue is resumed.
    """

    async def order(each: Queue, known: Collection[str]) -> bool:
        from streamq.operator import user_name

        counts = await each.view.counts()
        await each.orders.pause(reason=reason, by=user_name(), until_ms=counts.now_ms + for_ms if for_ms else 0)
        return bool(each.name in known or counts.jobs or counts.workers)

    if not any(asyncio.run(_order(settings, queue, order))):
        out.note(f"warning: nothing is known of a queue {queue}: no jobs, no workers; is that its name?")
    _tell(out, {"queue": queue, "state": "paused"}, f"{queue}: paused; streamq queues resume {queue} ends it")


@queues.command()
@click.argument("queue")
@setting_options("app", short=False)
@output_options
def resume(settings: Settings, queue: str, out: Output) -> None:
    """Give out the jobs of a queue again."""

    async def order(each: Queue, _: Collection[str]) -> bool:
        return await each.orders.resume()

    was_paused = any(asyncio.run(_order(settings, queue, order)))
    _tell(out, {"queue": queue, "state": "running"}, f"{queue}: {'resumed' if was_paused else 'was not paused'}")


@queues.command()
@click.argument("queue")
@click.option("--reason", default="purged", show_default=True, help="Why; it becomes part of the jobs' status.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Say what would be cancelled, and change nothing.")
@setting_options("app", "history", "outbox_max", short=False)
@output_options
def purge(settings: Settings, queue: str, reason: str, out: Output, *, yes: bool, is_dry: bool) -> None:
    """Cancel every job of a queue that has not started: those that wait, are due later or are blocked.

    Jobs that run go on, dead letters stay, and so does what is enqueued meanwhile. The cancelled ones cannot be brought
    back; their status says cancelled, with the reason. Pause the queue first if none of them may start meanwhile.
    """
    held = asyncio.run(_order(settings, queue, lambda each, _: each.view.counts()))
    doomed = {
        "waiting": sum(each.waiting for each in held),
        "scheduled": sum(each.delayed for each in held),
        "blocked": sum(each.blocked for each in held),
    }
    stay = {"running": sum(each.in_flight for each in held), "dead": sum(each.dead for each in held)}
    words = ", ".join(f"{number:,} {state}" for state, number in doomed.items())
    out.note(f"{queue}: {words} to cancel; {stay['running']:,} running and {stay['dead']:,} dead stay")
    total = sum(doomed.values())
    if is_dry or not total:
        _tell(out, {"queue": queue, **doomed, "stay": stay, "dry_run": is_dry, "purged": 0}, "nothing was changed")
        return
    if not yes and not (sys.stdin.isatty() and click.confirm(f"Cancel these {total:,} jobs?", err=True)):
        raise click.UsageError("purging is for good: say --yes")

    async def order(each: Queue, _: Collection[str]) -> int:
        return await each.orders.purge(reason=reason)

    purged = sum(asyncio.run(_order(settings, queue, order)))
    _tell(
        out,
        {"queue": queue, **doomed, "stay": stay, "dry_run": False, "purged": purged},
        f"{queue}: {purged:,} cancelled",
    )


@queues.command()
@click.argument("queue")
@click.argument("count", type=click.IntRange(1, 128))
@setting_options("app", "dead_after_ms", "history", short=False)
@output_options
def divide(settings: Settings, queue: str, count: int, out: Output) -> None:
    """Divide an empty QUEUE into COUNT partitions.

    Stop its producers and workers first, and start them again with STREAMQ_PARTITIONS=COUNT, or QUEUE=COUNT in it.
    """
    asyncio.run(_divide(settings, queue, count))
    _tell(out, {"queue": queue, "partitions": count}, f"{queue}: {count} partitions; set STREAMQ_PARTITIONS to match")


async def _divide(settings: Settings, queue: str, count: int) -> None:
    from streamq.broker.inspection import Inspection
    from streamq.broker.server import Broker
    from streamq.keys import partition_names

    broker = Broker(settings.redis_url, allow_eviction=settings.allow_eviction)
    home = broker.partition(queue)
    try:
        for name in partition_names(queue, await home.divided()):
            partition = broker.partition(name)
            try:
                _check_empty(name, await Inspection(partition.wire, partition.keys).counts(), settings)
            finally:
                await partition.wire.close()
        await home.divide(count)
    finally:
        await home.wire.close()
        await broker.close()


def _check_empty(name: str, counts: Counts, settings: Settings) -> None:
    """Refuse to divide what would be left where nobody looks any more."""
    held = {
        "jobs": counts.jobs,
        "dead letters": counts.dead,
        "entries that the recorder has not written": counts.outbox if settings.history else 0,
        "workers": counts.workers_alive(settings.dead_after_ms),
    }
    left = ", ".join(f"{number} {what}" for what, number in held.items() if number)
    if left:
        raise BadInput(
            f"{name} is not empty: {left}",
            hint="stop producers, let the workers finish, retry or delete dead letters, stop the workers; then again",
        )


async def _order(settings: Settings, name: str, order: Any) -> list[Any]:
    """Carry out an order to each partition of a queue, and return what came of each.

    The order is told the partitions that the settings name; this queue need not be among them.

    Raises:
        PartlyDone: Some partitions have done it, and some could not be reached.
    """
    from streamq.cli.servers import redis

    async with redis(settings, queue=name) as server:
        known = server.settings.partition_names
        return await server.in_each(lambda each: order(each, known))


def _tell(out: Output, document: dict[str, Any], text: str) -> None:
    if out.as_json:
        out.document(document)
    else:
        out.note(text)


@click.group()
def workers() -> None:
    """See the workers of all machines, and tell them what to do."""


@workers.command("ls")
@setting_options("app", "queues", "dead_after_ms", short=False)
@output_options
def list_workers(settings: Settings, out: Output) -> None:
    """List the workers of all machines."""
    out.rows(asyncio.run(_workers(settings)), _WORKER_COLUMNS, id_of="worker")


async def _workers(settings: Settings) -> list[dict[str, Any]]:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return [
            described_worker(queue.name, worker, settings)
            for queue in server.queues
            for worker in (await queue.view.counts()).workers
        ]


def described_worker(queue: str, worker: WorkerSeen, settings: Settings) -> dict[str, Any]:
    """Write down what Redis knows of a worker; its name without the part that makes it unique."""
    is_lost = worker.beat_age_ms > settings.dead_after_ms
    return {
        "worker": _name_of(worker.name),
        "consumer": worker.name,
        "queue": queue,
        "running": worker.held,
        "beat_age_s": None if worker.given_up else round(worker.beat_age_ms / 1000, 1),
        "state": "given up" if worker.given_up else "lost" if is_lost else "alive",
    }


def _name_of(consumer: str) -> str:
    """Cut off what makes a consumer's name unique for ever."""
    return _UNIQUE.sub("", consumer)


_HELP_OF_ORDER = {
    "quiet": "Have workers take no new jobs, and stay.",
    "resume": "Have quiet workers take jobs again.",
    "stop": "Have workers finish what they run, and end.",
    "dump": "Have workers log what they run, with the stacks.",
}


def _add_order(name: str, help_text: str) -> None:
    @workers.command(name, help=help_text)
    @click.argument("worker", required=False)
    @click.option("--all", "to_all", is_flag=True, help="Every worker of these queues.")
    @setting_options("app", "queues", short=False)
    @output_options
    def order(settings: Settings, worker: str | None, out: Output, *, to_all: bool) -> None:
        if (worker is None) is not to_all:
            raise click.UsageError("name one worker, or say --all")
        asyncio.run(_order_workers(settings, name, worker))
        _tell(out, {"order": name, "worker": worker}, f"{worker or 'all workers'}: told to {name}")


async def _order_workers(settings: Settings, order: str, worker: str | None) -> None:
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        names = {queue: await _names(queue) for queue in server.queues}
        known = sorted(set[str]().union(*names.values()))
        if worker is not None and worker not in known:
            raise BadInput(f"no worker is named {worker!r}", hint=f"known: {', '.join(known) or 'none, none runs'}")
        for queue in server.queues:
            if worker is None:
                await queue.orders.tell(order)
            elif worker in names[queue]:
                await queue.orders.tell(order, to=worker)
                return  # a worker of several queues reads the orders of each


async def _names(queue: Queue) -> set[str]:
    return {_name_of(worker.name) for worker in (await queue.view.counts()).workers if not worker.given_up}


for _name, _help in _HELP_OF_ORDER.items():
    _add_order(_name, _help)
