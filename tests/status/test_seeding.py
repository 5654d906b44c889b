"""What the lanes start with, from the history."""

from __future__ import annotations

import asyncio

import pytest

from streamq.recorder import role
from streamq.seeding import remembered, seed


@pytest.fixture
async def partition(hand):
    partition = hand.broker.partition(hand.keys.queue)
    yield partition
    await partition.wire.close()


async def test_a_user_is_remembered_with_the_mean_of_its_runs(hand, statuses, store):
    """Of completed jobs only: one that failed says nothing of how long it takes."""
    begun = hand.record()["b"]
    await store(
        statuses,
        ("j1", hand.record(u="ada", f=begun + 100)),
        ("j2", hand.record(u="ada", f=begun + 400)),
        ("j3", hand.record("dead", u="bob", f=begun + 9000)),
        ("j4", hand.record(u="eve", f=begun)),
        ("j5", {key: value for key, value in hand.record().items() if key != "u"}),
    )
    found = await remembered(statuses, hand.keys.queue)
    assert {field: round(ms) for field, ms in found.items()} == {"refresh|ada": 200, "refresh|eve": 1}


async def test_what_is_seeded_makes_the_slow_users_known(partition):
    costs = {f"h|u{number}": 2.0 for number in range(80)} | {f"h|s{number}": 200.0 for number in range(150)}
    limit_ms, slow = await seed(partition, costs)
    assert (round(limit_ms, 1), slow) == (22.6, 150)
    assert await partition.wire.call("HLEN", partition.keys.cost) == 150


async def test_a_recorder_seeds_queues_that_know_nothing(hand, statuses, store, settings, partition, eventually):
    """So the first hour after an upgrade is a learned one. What is known already stays."""
    begun = hand.record()["b"]
    records = [(f"f{number}", hand.record(u=f"u{number}", f=begun + 2)) for number in range(60)]
    await store(
        statuses, *records, *((f"s{number}", hand.record(u=f"s{number}", f=begun + 900)) for number in range(9))
    )

    async def recorded_once() -> dict[str, str]:
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(role.run(settings, stop, on_ready=ready.set))

        async def is_known() -> bool:
            return bool(await partition.learn())

        await eventually(is_known)
        stop.set()
        await task
        return await partition.learn()

    first = await recorded_once()
    assert (first["t4"], await partition.wire.call("HLEN", partition.keys.cost)) == ("60", 9)
    assert await recorded_once() == first
