"""The outbox: every entry reaches a recorder, also when the one that read it dies."""

from __future__ import annotations

import asyncio

import pytest

from streamq.broker.outbox import Outbox, recorder_name, version_of
from streamq.broker.wire import ServerRefused


async def test_an_entry_is_read_once_and_is_gone_after_its_acknowledgement(hand, outbox):
    entry_id = await hand.finish(("a", hand.record()), ("b", hand.record()))

    [entry] = await outbox.read(limit=10)

    assert (entry.id, entry.worker) == (entry_id, "w1")
    assert [job for job, _ in entry.records] == ["a", "b"]
    assert await outbox.read(limit=10) == []
    await outbox.ack([entry.id])
    assert await hand.wire.call("XLEN", hand.keys.outbox) == 0
    assert (await hand.wire.call("XPENDING", hand.keys.outbox, "rec"))[0] == 0


async def test_acknowledging_twice_or_nothing_does_no_harm(hand, outbox):
    await hand.finish(("a", hand.record()))
    [entry] = await outbox.read(limit=1)
    await outbox.ack([entry.id])
    await outbox.ack([entry.id])
    await outbox.ack([])


async def test_a_job_called_w_is_not_taken_for_the_worker(hand, outbox):
    await hand.finish(("w", b"{}"), worker="w7")
    [entry] = await outbox.read(limit=1)
    assert (entry.worker, entry.records) == ("w7", [("w", b"{}")])


async def test_entries_from_before_the_group_existed_are_read(hand):
    """A group that began at the end would pass over what was finished before the first recorder."""
    outbox = Outbox(hand.wire, hand.keys)
    await hand.finish(("early", hand.record()))
    assert await outbox.read(limit=10) == [], "makes the group"
    [entry] = await outbox.read(limit=10)
    assert entry.records[0][0] == "early"


async def test_the_group_is_made_again_after_the_database_was_emptied(hand, outbox):
    await outbox.read(limit=1)
    await hand.wire.call("FLUSHDB")
    assert await outbox.read(limit=1) == []
    await hand.finish(("again", hand.record()))
    assert len(await outbox.read(limit=1)) == 1
    assert await outbox.take_over(idle_ms=0, limit=10) != []


async def test_what_a_dead_recorder_left_is_taken_over_to_the_last_entry(hand, outbox):
    dead = Outbox(hand.wire, hand.keys)
    for number in range(25):
        await hand.finish((f"job{number}", hand.record()))
    assert len(await dead.read(limit=100)) == 25

    taken = []
    for _ in range(20):
        entries = await outbox.take_over(idle_ms=0, limit=3)
        await outbox.ack([entry.id for entry in entries])
        taken += [entry.records[0][0] for entry in entries]

    assert sorted(taken) == sorted(f"job{number}" for number in range(25))
    assert await outbox.lag() == (await Outbox(hand.wire, hand.keys).lag())
    assert (await outbox.lag()).entries == 0


async def test_an_entry_trimmed_away_while_it_was_pending_is_dropped_quietly(hand, outbox):
    await outbox.read(limit=1)
    await hand.finish(("gone", hand.record()))
    await hand.finish(("kept", hand.record()))
    reader = Outbox(hand.wire, hand.keys, outbox.consumer)
    assert len(await reader.read(limit=10)) == 2
    await hand.wire.call("XTRIM", hand.keys.outbox, "MAXLEN", 1)
    outbox._reply_lost = True

    [entry] = await outbox.read(limit=10)

    assert entry.records[0][0] == "kept"
    assert (await hand.wire.call("XPENDING", hand.keys.outbox, "rec"))[0] == 1


async def test_entries_whose_reply_was_lost_are_read_again_by_the_same_recorder(hand, outbox):
    """The library's own answer to a lost reply is to ask for newer entries: these would never be seen."""
    await outbox.read(limit=1)
    await hand.finish(("lost", hand.record()))
    reading = asyncio.create_task(outbox.read(limit=10))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await outbox._wire.close()
    # Whether or not the server saw the command, the entry comes exactly once.
    again = await outbox.read(limit=10) or await outbox.read(limit=10)
    assert [entry.records[0][0] for entry in again] == ["lost"]


async def test_lag_tells_the_age_of_the_oldest_entry(hand, outbox):
    assert (await outbox.lag()).oldest_ms == 0
    seconds, _ = await hand.wire.call("TIME")
    await hand.finish(("a", hand.record()), at=f"{int(seconds) * 1000 - 60_000}-1")
    lag = await outbox.lag()
    assert lag.entries == 1
    assert 60_000 <= lag.oldest_ms < 70_000


async def test_of_several_recorders_one_leads(hand, outbox):
    other = Outbox(hand.wire, hand.keys)
    for one in (outbox, other):
        await one.read(limit=1)
        await one.leads()  # Before Redis 7.2 the others know of a recorder that read nothing from here on only.
    assert sorted([await outbox.leads(), await other.leads()]) == [False, True]


async def test_a_recorder_that_leaves_takes_its_name_along_unless_it_holds_entries(hand, outbox):
    async def names():
        rows = await hand.wire.call("XINFO", "CONSUMERS", hand.keys.outbox, "rec")
        return {row[1].decode() for row in rows}

    await outbox.read(limit=1)
    await hand.finish(("a", hand.record()))
    [entry] = await outbox.read(limit=1)
    await outbox.leave()
    assert outbox.consumer in await names()
    await outbox.ack([entry.id])
    await outbox.tidy()
    assert outbox.consumer in await names(), "it was here a moment ago"
    await outbox.leave()
    assert await names() == set()


async def test_an_error_that_is_not_about_the_group_is_raised(hand, outbox):
    await hand.wire.call("SET", hand.keys.outbox, "x", "PX", 60_000)
    with pytest.raises(ServerRefused, match=r"WRONGTYPE|wrong kind"):
        await outbox.read(limit=1)
    with pytest.raises(ServerRefused, match=r"WRONGTYPE|wrong kind"):
        await outbox.take_over(idle_ms=0, limit=1)
    await hand.wire.call("DEL", hand.keys.outbox)


def test_versions_rise_as_entry_ids_do():
    ids = [b"1-0", b"1-1", b"1-1048575", b"2-0", b"1750000000000-0", b"1750000000000-3"]
    versions = [version_of(entry_id) for entry_id in ids]
    assert versions == sorted(set(versions))
    assert version_of("5-3") == (5 << 20) | 3
    assert version_of("5") == 5 << 20
    assert version_of(b"5-99999999") < version_of(b"6-0")


def test_recorder_names_are_never_used_twice():
    assert len({recorder_name() for _ in range(100)}) == 100
