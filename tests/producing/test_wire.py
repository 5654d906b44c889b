"""One connection: what becomes of calls that get no reply in time."""

from __future__ import annotations

import asyncio

import pytest

from streamq.broker.server import Broker
from streamq.broker.wire import Vigil
from streamq.errors import BrokerUnavailable


@pytest.fixture
async def wire(redis_url):
    """A connection on which a reply may take a second; to open it may take longer."""
    broker = Broker(redis_url, timeout_s=60.0)
    wire = broker.wire()
    await wire.call("PING")
    wire._timeout_s = 1.0
    yield wire
    await wire.close()
    await broker.close()


async def test_a_call_without_a_reply_in_time_fails_and_the_next_one_has_a_new_connection(wire):
    """Nobody may wait for ever for a server that is frozen."""
    with pytest.raises(BrokerUnavailable, match=r"no reply within 1\.1 s"):
        await wire.call("BLPOP", "nothing-is-here", 30, extra_s=0.1)
    assert await wire.call("PING") == b"PONG"


async def test_a_short_call_behind_a_long_one_fails_when_its_own_time_is_up(wire):
    """All calls of a connection share one alarm; it rings for the first of them whose time is up."""
    long, short = await asyncio.gather(
        wire.call("BLPOP", "nothing-is-here", 30, extra_s=60), wire.call("PING"), return_exceptions=True
    )
    assert isinstance(short, BrokerUnavailable)
    assert "no reply within 1 s" in str(short)
    assert isinstance(long, BrokerUnavailable)
    assert "closed" in str(long)


async def test_the_alarm_of_a_call_that_was_answered_disturbs_nobody(wire):
    """It rings while the next one still has time."""
    assert await wire.call("PING") == b"PONG"
    assert await wire.call("BLPOP", "nothing-is-here", 1.5, extra_s=30) is None


async def test_several_commands_without_replies_in_time_fail_together(wire):
    """Which of them ran is unknown."""
    with pytest.raises(BrokerUnavailable, match=r"no reply within 1 s"):
        await wire.pipeline([("PING",), ("BLPOP", "nothing-is-here", 30)])


async def test_a_server_is_reached_through_its_unix_socket(redis_server):
    """As the settings and the messages say; a socket of that kind has no keep-alive."""
    broker = Broker(redis_server.unix_url)
    assert (await broker.check()).version
    await broker.close()


async def test_commands_of_any_size_go_out_whole_and_in_order(wire):
    """A socket takes what it has room for; the rest follows, before what was asked later."""
    texts = [letter * size for letter, size in (("a", 1), ("b", 20_000_000), ("c", 2), ("d", 5_000_000), ("e", 3))]
    replies = await asyncio.gather(*[wire.call("ECHO", text, extra_s=200) for text in texts])
    assert [(reply[:1], len(reply)) for reply in replies] == [(text[:1].encode(), len(text)) for text in texts]


async def test_a_vigil_ends_with_the_reply(eventually):
    """While it is kept the loop does not sleep; afterwards it does."""
    awaited = ["reply"]
    vigil = Vigil(asyncio.get_running_loop(), awaited, longest_s=60)
    vigil.keep()
    for _ in range(10):  # turns of the loop
        await asyncio.sleep(0)
    assert vigil.is_kept
    awaited.clear()
    await eventually(lambda: not vigil.is_kept)
    vigil.keep()
    assert vigil.is_kept


async def test_a_vigil_in_vain_ends_by_itself_and_the_next_ones_are_left_out(eventually):
    """A server that is far away answers later than it is worth looking for."""
    vigil = Vigil(asyncio.get_running_loop(), ["reply"], longest_s=0)
    left_out = []
    for _ in range(10):
        left_out.append(0)
        vigil.keep()
        while not vigil.is_kept:
            left_out[-1] += 1
            vigil.keep()
        await eventually(lambda: not vigil.is_kept)
    assert left_out == [0, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]
