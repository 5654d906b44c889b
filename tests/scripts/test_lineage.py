"""lineage: which server has written here last, and since when."""

from __future__ import annotations

import pytest

from streamq.scripts import load


@pytest.fixture
def meet(board):
    """Return what the script answers to who has seen the server of an id."""

    async def meet(here: str) -> int:
        return await board.partition.wire.script(load("lineage"), [board.keys.lineage], [here])

    return meet


async def test_the_first_server_has_forgotten_nothing(board, meet):
    """There was none before it, as far as anybody knows."""
    assert [await meet("a1"), await meet("a1")] == [0, 0]
    assert await board.redis.get(board.keys.lineage) == "a1|0"


async def test_another_server_may_have_forgotten_what_was_before_it_was_noticed(board, meet):
    """Whoever comes later is told the same moment; a third server makes it a later one."""
    await meet("a1")
    before = await board.now_ms()
    since = await meet("b2")
    assert before < since <= await board.now_ms() + 1
    assert await meet("b2") == since
    assert await meet("c3") >= since


async def test_what_is_written_there_and_cannot_be_read_is_taken_for_nothing(board, meet):
    """No worker must fail over it."""
    await board.redis.set(board.keys.lineage, "?")
    assert await meet("a1") == 0
    assert await board.redis.get(board.keys.lineage) == "a1|0"


async def test_it_is_written_when_memory_is_full(board, meet):
    """A worker that comes back to a full server has jobs to end."""
    await meet("a1")
    await board.redis.config_set("maxmemory", 1)
    try:
        assert await meet("b2") > 0
    finally:
        await board.redis.config_set("maxmemory", 0)
