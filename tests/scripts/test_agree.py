"""agree: all who touch a queue go by the same number of partitions."""

from __future__ import annotations

import pytest

from streamq.errors import ConfigurationError


async def test_whoever_comes_first_says_how_many_there_are(board):
    """All others are held to it, and told what to do."""
    await board.partition.agree(3)
    await board.partition.agree(3)
    assert await board.partition.divided() == 3
    name = board.keys.queue
    with pytest.raises(
        ConfigurationError, match=f"queue '{name}' has 3 partitions, and the settings say 1 partition"
    ) as e:
        await board.partition.agree(1)
    assert e.value.hint == f"set STREAMQ_PARTITIONS={name}=3, or when it is empty: streamq queues divide {name} 1"


async def test_for_one_partition_nothing_is_stored(board):
    """It is what everybody has who never heard of partitions."""
    await board.partition.agree(1)
    assert await board.snapshot() == {}


async def test_a_queue_that_has_been_used_has_one_partition(board):
    """Its jobs and dedup keys lie in the first one, wherever they would belong now."""
    await board.add("a")
    with pytest.raises(ConfigurationError, match=r"has 1 partition, and the settings say 2 partitions"):
        await board.partition.agree(2)
    assert await board.partition.divided() == 1


async def test_a_queue_with_workers_has_one_partition_though_it_never_had_a_job(board):
    """They would hear of no other."""
    await board.join("w1")
    with pytest.raises(ConfigurationError, match=r"has 1 partition"):
        await board.partition.agree(2)


async def test_who_only_looks_stores_nothing(board):
    """A wrong setting at a prompt must not decide for the whole fleet."""
    await board.partition.agree(4, looks=True)
    assert await board.snapshot() == {}


async def test_what_is_stored_by_hand_is_what_counts(board):
    """Even on a queue that was used."""
    await board.add("a")
    await board.partition.divide(2)
    await board.partition.agree(2)
