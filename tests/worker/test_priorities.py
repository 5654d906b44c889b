"""Priorities: the urgent first, and nobody starves."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from streamq.keys import LANES
from streamq.worker.slots import Slots


async def test_of_eight_reads_each_priority_comes_first_at_least_once(app):
    """And the high lane comes first in most."""
    slots = Slots(app.settings, app.registry, None)  # type: ignore[arg-type]  # nothing is run
    first = Counter(LANES[slots.reads(cycle)[0][0] - 1].partition(".")[0] for cycle in range(80))
    assert first == {"high": 60, "normal": 10, "low": 10}
    for cycle in range(8):
        assert {digit for digit, *_ in slots.reads(cycle)} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("starved", ["normal", "low"])
async def test_a_job_runs_though_more_urgent_ones_never_end(app, work, eventually, starved):
    """Each urgent job makes the next one, so their lanes are never empty."""
    others = [priority for priority in ("high", "normal", "low") if priority != starved]
    runs: Counter[str] = Counter()
    over = asyncio.Event()

    @app.handler
    async def chain(priority: str) -> None:
        runs[priority] += 1
        if not over.is_set() and priority != starved:
            await chain.options(priority=priority).enqueue(priority)

    for priority in others:
        await chain.options(priority=priority).enqueue_many([priority] * 50)
    await work()
    try:
        await eventually(lambda: all(runs[priority] for priority in others), "the others run")
        await chain.options(priority=starved).enqueue(starved)
        await eventually(lambda: runs[starved], f"the {starved} job runs")
    finally:
        over.set()
