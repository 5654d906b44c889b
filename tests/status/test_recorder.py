"""The recorder, against real servers that are killed: what happened to a job gets into MongoDB, once and in order."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from streamq.broker.outbox import Lag, Outbox
from streamq.errors import ConfigurationError
from streamq.mongo import Mongo, Statuses
from streamq.recorder import Recorder, beside, main, run
from streamq.settings import Settings


async def states(statuses):
    """Return the state of every job."""
    return {document["_id"]: document["state"] for document in await statuses.find({})}


async def outbox_length(hand):
    """Return how many entries are still to be recorded."""
    return await hand.wire.call("XLEN", hand.keys.outbox)


async def test_what_workers_report_is_soon_in_mongodb_and_gone_from_the_outbox(hand, statuses, recording, eventually):
    """Promise G13, for final states; how soon is what `benchmarks.status` measures."""
    async with recording(hand, statuses) as recorder:
        await eventually(lambda: hand.wire.call("EXISTS", hand.keys.outbox))
        for number in range(50):
            await hand.finish(
                (f"a{number}", hand.record()), (f"b{number}", hand.record("dead", x={"t": "E", "m": "no"}))
            )
        await eventually(lambda: _is(statuses.count({}, limit_s=5), 100), "all are there")
        await eventually(lambda: _is(outbox_length(hand), 0))
        assert set((await states(statuses)).values()) == {"completed", "dead"}
        await eventually(lambda: _recorded(recorder, 100))


async def _is(value, expected):
    return await value == expected


async def test_attempts_of_a_job_are_gathered_over_many_entries(hand, statuses, recording, eventually):
    """The story of a job is what an operator asks for."""
    async with recording(hand, statuses):
        for number in (1, 2):
            await hand.finish(("job", hand.record("retrying", n=number, x={"t": "ValueError", "m": f"no {number}"})))
            await eventually(lambda: _is(outbox_length(hand), 0))
        await hand.finish(("job", hand.record(n=3)), worker="w2")
        await eventually(lambda: statuses.find({"state": "completed"}))
    [document] = await statuses.find({})
    assert [(a["number"], a["state"], a["worker"]) for a in document["attempts"]] == [
        (1, "retrying", "w1"), (2, "retrying", "w1"), (3, "completed", "w2"),
    ]  # fmt: skip
    assert "error" not in document, "it healed"
    assert document["wait_ms"] == 50


async def test_hostile_records_hold_up_no_other(hand, statuses, mongo, recording, eventually):
    """One bad record must not stop the history of all jobs."""
    async with recording(hand, statuses):
        await hand.finish(
            ("good1", hand.record()),
            ("junk", b"\x00\xff"),
            ("operator", hand.record(r={"$gt": 1})),
            ("deep", hand.record(r=json.loads("[" * 200 + "]" * 200))),
            ("large", b'{"s":"completed","r":%d}' % 2**63),
            ("nul", hand.record(r={"a\0b": 1})),
            ("\0odd id $", hand.record()),
            (b"\xff\xfe", hand.record()),
            ("attempt", hand.record(n=2**64 - 1)),
            ("good2", hand.record()),
        )
        await eventually(lambda: _is(outbox_length(hand), 0))
    found = await states(statuses)
    assert {"good1", "good2", "operator", "deep", "large", "nul", "\0odd id $"} <= set(found)
    assert set(found.values()) == {"completed"}
    assert "junk" not in found
    quarantined = {document["job"] for document in await mongo.collection("quarantine").find().to_list()}
    assert "junk" in quarantined


async def test_jobs_that_wait_run_and_are_due_later_are_seen(hand, statuses, recording, eventually):
    """The workers report none of this."""
    await hand.enqueue("runs", u="u1")
    await hand.take("w1")
    await hand.enqueue("waits", lane="low")
    await hand.delay("later", 4_000_000_000_000)
    expected = {"runs": "running", "waits": "queued", "later": "scheduled"}
    async with recording(hand, statuses):
        await eventually(lambda: _is(states(statuses), expected), "all three are seen")
        [document] = await statuses.find({"_id": "runs"})
        assert (document["worker"], document["user"]) == ("w1", "u1")
        await hand.finish(("runs", hand.record()))
        await eventually(lambda: _is(states(statuses), {**expected, "runs": "completed"}))


async def test_a_job_that_moves_to_another_worker_is_seen_there(hand, statuses, recording, eventually):
    """After a crash an operator must not be sent to the wrong machine."""
    entry = await hand.enqueue("job")
    await hand.take("w1")

    async def runs_on(worker):
        return await statuses.find({"state": "running", "worker": worker})

    async with recording(hand, statuses):
        await eventually(lambda: runs_on("w1"))
        await hand.wire.call("XCLAIM", hand.keys.lanes[1], "g", "w2", 0, entry)
        await eventually(lambda: runs_on("w2"))


async def test_several_recorders_share_an_outbox_and_write_each_status_once(hand, statuses, recording, eventually):
    """They may run anywhere, also by accident."""
    async with recording(hand, statuses) as one, recording(hand, statuses) as two:
        for number in range(300):
            await hand.finish(
                (f"job{number % 100}", hand.record("retrying" if number < 200 else "completed", n=number // 100 + 1))
            )
        await eventually(lambda: _is(outbox_length(hand), 0))
        assert one.recorded + two.recorded >= 100
    documents = await statuses.find({})
    assert {document["state"] for document in documents} == {"completed"}
    assert all([attempt["number"] for attempt in document["attempts"]] == [1, 2, 3] for document in documents)


async def test_what_a_killed_recorder_had_read_is_written_by_the_next(
    hand, statuses, recording, eventually, monkeypatch
):
    """Read is not written: the entry stays until MongoDB has it."""
    monkeypatch.setattr("streamq.recorder.role.TAKE_OVER_IDLE_MS", 0)
    await hand.finish(("job", hand.record()))
    dead = Outbox(hand.wire, hand.keys)
    await dead.read(limit=1)
    assert len(await dead.read(limit=10)) == 1
    async with recording(hand, statuses):
        await eventually(lambda: states(statuses))


async def test_mongodb_killed_at_random_loses_nothing_and_holds_up_nobody(
    hand, mongo_server, recording, eventually, absent_server
):
    """Jobs go on; the history catches up by itself."""
    mongo = Mongo(mongo_server.url)
    statuses = Statuses(mongo)
    await statuses.prepare()
    draw = random.Random(7)
    async with recording(hand, statuses):
        for number in range(300):
            await hand.finish((f"job{number}", hand.record("retrying", n=1)))
            await hand.finish((f"job{number}", hand.record("completed", n=2)))
            if number in (60, 140, 220):
                mongo_server.kill9()
                await asyncio.sleep(draw.random() / 5)
                await asyncio.to_thread(mongo_server.restart)
        await eventually(lambda: _is(outbox_length(hand), 0), timeout=50)
        documents = await statuses.find({})
    assert len(documents) == 300
    assert {document["state"] for document in documents} == {"completed"}
    assert {tuple(attempt["number"] for attempt in document["attempts"]) for document in documents} == {(1, 2)}
    await mongo.close()


async def test_redis_killed_and_restarted_is_waited_for(
    redis_server, statuses, recording, eventually, hand_at, absent_server
):
    """The recorder has nothing to do without Redis, and must not need a restart of its own."""
    hand = hand_at(redis_server.url)
    async with recording(hand, statuses) as recorder:
        await hand.finish(("before", hand.record()))
        await eventually(lambda: states(statuses))
        await asyncio.to_thread(redis_server.kill9)
        await asyncio.to_thread(redis_server.restart)
        await eventually(lambda: _answers(hand))
        await hand.finish(("after", hand.record()))
        await eventually(lambda: _is(states(statuses), {"before": "completed", "after": "completed"}), timeout=50)
        await eventually(lambda: _recorded(recorder, 2))


async def _recorded(recorder, jobs):
    """MongoDB shows a document before the recorder has heard that it wrote it."""
    return recorder.recorded == jobs


async def _answers(hand):
    try:
        return await hand.wire.call("PING")
    except Exception:  # noqa: BLE001 - whatever it is, the server is not back yet
        return None


async def test_an_outbox_that_fills_up_is_an_alarm_and_a_late_history_a_warning(hand, statuses, caplog):
    """The alarm comes before anything is dropped."""
    recorder = Recorder(hand.broker, statuses, hand.keys, Settings(outbox_max=4))
    for number in range(4):
        await hand.finish((f"j{number}", hand.record()), at=f"{number + 1}-0")
    await recorder._look(asyncio.Event())
    assert "outbox.nearly_full" in caplog.text
    recorder._outbox_max = 100
    await recorder._look(asyncio.Event())
    assert "history.late" in caplog.text
    assert recorder.lag.entries == 4
    await recorder.close()


async def test_it_waits_at_the_start_for_a_server_that_is_not_there_yet(
    hand, mongo_server, queue_name, redis_url, eventually, absent_server
):
    """All parts of a system are started at once, in no order."""
    await asyncio.to_thread(mongo_server.stop)
    settings = Settings(redis_url=redis_url, mongodb_url=mongo_server.url, queues=(queue_name,))
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run(settings, stop, on_ready=ready.set))
    await hand.finish(("job", hand.record()))
    await asyncio.sleep(0)
    assert not ready.is_set()
    await asyncio.to_thread(mongo_server.start)
    await asyncio.wait_for(ready.wait(), 50)
    await eventually(lambda: _is(outbox_length(hand), 0))
    stop.set()
    await task


async def test_a_server_that_refuses_us_ends_it_with_a_clear_error(redis_url, mongodb_url, queue_name):
    """Waiting would not cure it."""
    wrong = mongodb_url.replace("mongodb://", "mongodb://nobody:wrong@")
    settings = Settings(redis_url=redis_url, mongodb_url=wrong, queues=(queue_name,))
    with pytest.raises(ConfigurationError, match="refused the user"):
        await run(settings, asyncio.Event())


@pytest.mark.parametrize(
    ("took_s", "waited_s", "entries", "rests_s"),
    [(0.01, 0.0, 0, 0), (0.01, 0.005, 0, 0.04), (0.01, 0.0001, 0, 0), (10.0, 5.0, 0, 0.25), (0.01, 0.005, 26, 0)],
)
async def test_it_leaves_the_machine_to_the_jobs_that_need_it_unless_the_outbox_fills(
    hand, statuses, took_s, waited_s, entries, rests_s
):
    """Being nice is not enough: it has MongoDB work, which is not."""
    recorder = Recorder(hand.broker, statuses, hand.keys, Settings(outbox_max=100))
    recorder.lag = Lag(entries, 0)
    assert recorder._politeness_s(took_s, waited_s) == pytest.approx(rests_s)
    await recorder.close()


async def test_it_may_run_on_a_thread_of_a_process_that_does_something_else(hand, statuses, settings, eventually):
    """As in the API's process; that thread alone is nice."""
    with beside(settings):
        await hand.finish(("job", hand.record()))
        await eventually(lambda: states(statuses))
        [thread] = [each for each in threading.enumerate() if each.name == "streamq-recorder"]
        assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == os.getpriority(os.PRIO_PROCESS, 0) + 10
    assert not thread.is_alive()


def test_a_thread_that_a_server_refuses_says_so_and_ends(redis_url, mongodb_url, queue_name, caplog, eventually_sync):
    """The API serves on."""
    wrong = mongodb_url.replace("mongodb://", "mongodb://nobody:wrong@")
    with beside(Settings(redis_url=redis_url, mongodb_url=wrong, queues=(queue_name,))):
        eventually_sync(lambda: "recorder.refused" in caplog.text, "it says so")


def test_without_history_there_is_nothing_to_run():
    """Exit 78: a supervisor should not try again."""
    with pytest.raises(ConfigurationError, match=r"^history is off: there is nothing to record$") as caught:
        main(Settings(history=False))
    assert caught.value.exit_code == 78
    with pytest.raises(ConfigurationError, match=r"^history is off"), beside(Settings(history=False)):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_with_0_when_it_is_told_to(
    redis_url, mongodb_url, mongo_database, queue_name, number, eventually_sync
):
    """A supervisor counts anything else as a failure."""
    code = (
        "import sys; from streamq import logs; from streamq.settings import Settings; from streamq.recorder import main;"
        "logs.configure(); "
        f"sys.exit(main(Settings(redis_url={redis_url!r}, mongodb_url={mongodb_url!r}, "
        f"mongodb_database={mongo_database!r}, queues=({queue_name!r},))))"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        try:
            assert any(b"recorder.started" in line for line in process.stderr or ())
            process.send_signal(number)
            assert process.wait(50) == 0
        finally:
            process.kill()
