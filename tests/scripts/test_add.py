"""add: one call of a producer puts any number of jobs into a partition."""

from __future__ import annotations

import asyncio

import pytest
import redis.exceptions

from streamq.broker.partition import BATCH, CallRepeated, NewJob, Report
from streamq.broker.server import Broker
from streamq.broker.wire import Fault, ServerRefused
from streamq.errors import QueueFull
from streamq.keys import LANES

# ---- new jobs


@pytest.mark.parametrize("lane", LANES)
async def test_a_job_goes_into_the_lane_that_it_names(board, lane):
    """Priority and cost are decided by the producer."""
    await board.add("a", lane=lane)
    assert await board.lane(lane) == ["a"]
    (entry,) = await board.redis.xrange(board.keys.lanes[LANES.index(lane)])
    assert await board.token("a") == f"{LANES.index(lane) + 1}{entry[0]}"
    assert entry[1] == {"j": "a", "d": "<a>"}


async def test_new_jobs_need_no_results(board):
    """Nearly every call: its reply is three short words."""
    added = await board.add("a", "b", "c")
    assert added.results == "nnn"
    assert abs(added.server_ms - await board.now_ms()) < 5_000


async def test_a_call_without_jobs_only_moves_the_number(board):
    """So a fan-out stores that a page held nobody."""
    await board.partition.add("p", 1, [], cursor="page 2")
    with pytest.raises(CallRepeated) as repeated:
        await board.partition.add("p", 1, [])
    assert (repeated.value.last, repeated.value.cursor, repeated.value.results) == (1, "page 2", "")


async def test_a_call_may_have_a_full_batch_and_no_more(board):
    """The bound keeps one call from holding up the server."""
    await board.add(*(f"j{number}" for number in range(BATCH)))
    assert await board.redis.hlen(board.keys.index) == BATCH
    before = await board.snapshot()
    with pytest.raises(ServerRefused, match="add: 266 arguments are not 129 jobs of 128 at most"):
        await board.add(*(f"k{number}" for number in range(BATCH + 1)))
    assert await board.snapshot() == before


async def test_arguments_that_are_no_whole_jobs_are_refused_before_anything_is_written(board):
    """Redis rolls nothing back."""
    keys = [*board.keys.lanes, board.keys.delayed, board.keys.payload, board.keys.index, board.keys.producers, "c"]
    with pytest.raises(redis.exceptions.ResponseError, match="add: 10 arguments are not 2 jobs"):
        await board.run("add", keys, "p", 1, 1000, "", 0, "0", 2, "2", "id", "{}")
    assert await board.snapshot() == {}


# ---- known jobs and dedup keys


async def test_a_living_job_is_present(board):
    """The same id is one job."""
    await board.add("a")
    added = await board.add("a", "b")
    assert added.results == ["p", "n"]
    assert await board.lane() == ["a", "b"]


async def test_the_same_id_twice_in_one_call_is_one_job(board):
    """Nobody looks at a page of users for repeats."""
    added = await board.add("a", "a")
    assert added.results == ["n", "p"]
    assert await board.lane() == ["a"]


async def test_while_a_job_lives_its_dedup_key_leads_to_it(board):
    """Enqueueing again returns the job that there is."""
    await board.add("a", dedup="user:7")
    added = await board.add("b", dedup="user:7")
    assert added.results == ["da"]
    assert await board.token("b") is None
    assert await board.redis.get(board.keys.dedup("user:7")) == "a"


async def test_a_dedup_key_counts_within_one_call_too(board):
    """Both would look free if only the server's state were asked."""
    added = await board.add("a", "b", dedup="user:7")
    assert added.results == ["n", "da"]
    assert await board.lane() == ["a"]


async def test_a_delayed_job_holds_its_dedup_key(board):
    """It lives, though no worker has seen it."""
    await board.add("a", dedup="k", delay_ms=60_000)
    assert (await board.add("b", dedup="k")).results == ["da"]


async def test_the_key_of_a_job_that_no_longer_lives_is_taken_over(board):
    """A holder that vanished must not block its key for ever."""
    await board.redis.set(board.keys.dedup("k"), "ghost")
    assert (await board.add("a", dedup="k")).results == "n"
    assert await board.redis.get(board.keys.dedup("k")) == "a"
    assert await board.redis.hgetall(board.keys.counts) == {"dedup_taken_over": "1", "enqueued": "1"}


async def test_within_its_window_a_dedup_key_is_held_by_a_job_that_has_ended(board):
    """That is what a window is."""
    await board.join("w1")
    await board.add("a", dedup="k")
    (delivery,) = await board.read("w1")
    await board.settle("w1", delivery, dedups=[(b"a", "k", 60_000)])
    assert (await board.add("b", dedup="k")).results == ["da"]
    await board.redis.delete(board.keys.dedup("k"))
    assert (await board.add("b", dedup="k")).results == "n"


async def test_plain_jobs_with_free_dedup_keys_take_them_together(board):
    """One command asks for all of them; nothing is taken when one is held."""
    await board.partition.add("p", 1, [])
    jobs = [NewJob(name, 2, b"{}", dedup=name) for name in ("a", "b", "c")]
    assert (await board.partition.add("p", 2, jobs[:2])).results == "nn"
    again = [NewJob("d", 2, b"{}", dedup="d"), NewJob("e", 2, b"{}", dedup="a"), NewJob("f", 2, b"{}", dedup="d")]
    assert (await board.partition.add("p", 3, [*again, jobs[2]])).results == ["n", "da", "dd", "n"]
    assert await board.lane() == ["a", "b", "d", "c"]
    holders = {key: await board.redis.get(board.keys.dedup(key)) for key in "abcd"}
    assert holders == {"a": "a", "b": "b", "c": "c", "d": "d"}
    assert await board.redis.hget(board.keys.counts, "enqueued") == "4"


async def test_jobs_that_go_different_ways_share_a_call(board):
    """Each says its own way then."""
    await board.partition.add("p", 1, [])
    jobs = [
        NewJob("a", 1, b"a"), NewJob("b", 3, b"b", dedup="k"), NewJob("c", 2, b"c", 60_000), NewJob("d", 2, b"d", dedup="l"),
        NewJob("e", 2, b"e", dedup="k"), NewJob("f", 2, b"f", dedup="l", scope="s"),
    ]  # fmt: skip
    assert (await board.partition.add("p", 2, jobs)).results == ["n", "n", "n", "n", "db", "dd"]
    assert [await board.lane(lane) for lane in LANES[:3]] == [["a"], ["d"], ["b"]]
    assert await board.token("c") == "z"


async def test_the_same_id_twice_among_plain_jobs_is_one_job(board):
    """Also where a call takes the short way."""
    await board.partition.add("p", 1, [])
    jobs = [NewJob("a", 2, b"{}"), NewJob("b", 2, b"{}"), NewJob("a", 2, b"{}")]
    assert (await board.partition.add("p", 2, jobs)).results == ["n", "n", "p"]
    assert await board.lane() == ["a", "b"]


@pytest.mark.parametrize("first_call", [1, 2])
async def test_the_index_of_a_small_queue_is_a_table_and_holds_jobs_alone(board, first_call):
    """As a list, which small hashes are, it would be searched from end to end for each job; its length is the depth."""
    jobs = [NewJob(f"j{number}", 2, b"{}") for number in range(16)]
    if first_call > 1:
        await board.partition.add("p", 1, [])
    await board.partition.add("p", first_call, jobs)
    assert await board.redis.object("encoding", board.keys.index) == "hashtable"
    assert sorted(await board.redis.hkeys(board.keys.index)) == sorted(job.id for job in jobs)


async def test_a_job_that_is_already_there_does_not_take_a_dedup_key(board):
    """Nothing would free it."""
    await board.add("a")
    assert (await board.add("a", dedup="k")).results == ["p"]
    assert await board.redis.exists(board.keys.dedup("k")) == 0


@pytest.mark.parametrize("key", ["", "lane:normal", "index", "a:b", "a\nb", "{x}", "ключ", "delayed"])
async def test_a_dedup_key_may_be_any_text(board, key):
    """It stands behind a word of its own, so it can hit no structure."""
    await board.add("a", dedup=key)
    assert (await board.add("b", dedup=key)).results == ["da"]
    assert await board.lane() == ["a"]


# ---- delayed jobs


async def test_a_delayed_job_waits_beside_the_lanes(board):
    """No worker may see it before it is due."""
    before_ms = await board.now_ms()
    await board.add("a", lane="low", delay_ms=60_000)
    due_ms = await board.redis.zscore(board.keys.delayed, "a")
    assert before_ms + 60_000 <= due_ms <= await board.now_ms() + 60_001
    digit, enqueued_ms, envelope = (await board.redis.hget(board.keys.payload, "a")).split("|")
    assert (digit, envelope) == ("3", "<a>")
    assert due_ms - 60_001 <= int(enqueued_ms) <= due_ms - 60_000
    assert await board.token("a") == "z"
    assert await board.lane("low") == []


async def test_a_delay_is_never_shorter_than_asked_for_not_even_by_a_part_of_a_millisecond(board):
    """Counted from a time without its microseconds it would be, nearly each time."""
    for number in range(30):
        before_us = await board.now_us()
        await board.add(f"j{number}", delay_ms=1_000)
        due_us = 1_000 * await board.redis.zscore(board.keys.delayed, f"j{number}")
        assert before_us + 1_000_000 <= due_us <= await board.now_us() + 1_001_000


async def test_an_earlier_due_time_wakes_a_blocked_reader(board):
    """It sleeps until the due time that it knows."""
    await board.add("a", delay_ms=60_000)
    assert await board.markers() == 1
    await board.add("b", delay_ms=90_000)
    assert await board.markers() == 1
    await board.add("c", delay_ms=30_000)
    assert await board.markers() == 2


async def test_a_delay_far_beyond_any_calendar_is_kept(board):
    """timedelta.max is a legal delay."""
    await board.join("w1")
    await board.add("a", delay_ms=86_399_999_999_999_999_999)
    assert await board.redis.zscore(board.keys.delayed, "a") == pytest.approx(8.64e19)
    assert (await board.cycle("w1", 5)).deliveries == []
    assert await board.token("a") == "z"


# ---- numbered calls


async def test_a_call_that_is_repeated_adds_nothing_and_returns_its_results(board):
    """The reply to the first one was lost; the caller cannot know that it was accepted."""
    await board.add("held", dedup="k")
    jobs = [NewJob("a", 2, b"{}", 0, "k"), NewJob("b", 2, b"{}")]
    await board.partition.add("p", 7, jobs, cursor="next|page")
    before = await board.snapshot()
    with pytest.raises(CallRepeated, match="call 7 was accepted already") as repeated:
        await board.partition.add("p", 7, jobs)
    assert (repeated.value.last, repeated.value.cursor, repeated.value.results) == (7, "next|page", "dheld\nn")
    assert await board.snapshot() == before


async def test_a_repeated_call_adds_nothing_even_when_its_jobs_have_ended_meanwhile(board):
    """No trace of an ended job is left; the number alone tells."""
    await board.join("w1")
    jobs = [NewJob("a", 2, b"{}")]
    await board.partition.add("p", 1, jobs)
    (delivery,) = await board.read("w1")
    await board.settle("w1", delivery)
    assert await board.redis.hlen(board.keys.index) == 0
    with pytest.raises(CallRepeated):
        await board.partition.add("p", 1, jobs)
    assert await board.lane() == []


async def test_an_older_call_than_the_last_adds_nothing(board):
    """It comes from a connection that was thought to be dead."""
    await board.partition.add("p", 5, [])
    with pytest.raises(CallRepeated) as repeated:
        await board.partition.add("p", 4, [NewJob("a", 2, b"{}")])
    assert repeated.value.last == 5
    assert await board.token("a") is None


async def test_numbers_of_one_producer_say_nothing_about_another(board):
    """Each counts for itself."""
    await board.partition.add("p", 5, [])
    await board.partition.add("q", 1, [NewJob("a", 2, b"{}")])
    assert await board.token("a")


async def test_numbers_may_leap_unless_they_must_follow(board):
    """A producer whose call was refused for good goes on with the next number."""
    await board.partition.add("p", 3, [])
    await board.partition.add("p", 9, [])
    before = await board.snapshot()
    with pytest.raises(ServerRefused, match="does not follow its last one, 9") as refusal:
        await board.partition.add("p", 11, [NewJob("a", 2, b"{}")], in_order=True)
    assert refusal.value.fault is Fault.EXIT
    assert await board.snapshot() == before
    await board.partition.add("p", 10, [], in_order=True)


async def test_a_producer_that_nobody_has_seen_for_long_is_forgotten(board):
    """Else the table of producers would grow with every process that ever enqueued."""
    for number in range(6):
        await board.partition.add(f"old{number}", 1, [], keep_ms=0)
    await asyncio.sleep(0.005)
    await board.partition.add("new1", 1, [])
    assert await board.redis.hkeys(board.keys.producers) == ["new1"]


async def test_a_producer_that_is_remembered_still_is_kept(board):
    """Forgetting it would let its last call be repeated."""
    for number in range(6):
        await board.partition.add(f"p{number}", 1, [], keep_ms=60_000)
    assert await board.redis.hlen(board.keys.producers) == 6


# ---- limits


async def test_a_queue_that_would_hold_more_than_it_may_is_full(board):
    """All or nothing: the caller knows what to repeat."""
    await board.add("a", "b")
    before = await board.snapshot()
    with pytest.raises(QueueFull, match=r"holds 2 jobs and may hold 3") as refusal:
        await board.partition.add("p", 1, [NewJob("c", 2, b"{}"), NewJob("d", 2, b"{}")], max_depth=3)
    assert refusal.value.hint == "add workers, or raise max_depth"
    assert await board.snapshot() == before
    await board.partition.add("p", 1, [NewJob("c", 2, b"{}")], max_depth=3)


async def test_when_memory_is_full_a_producer_is_refused_and_workers_go_on(redis_server):
    """Else a full queue could never be worked off."""
    broker = Broker(redis_server.url)
    partition = broker.partition("full")
    try:
        await partition.register("w1")
        await partition.add("p", 1, [NewJob("a", 2, b"{}"), NewJob("b", 2, b"{}"), NewJob("c", 2, b"{}")])
        await partition.wire.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(QueueFull, match="out of memory") as refusal:
            await partition.add("p", 2, [NewJob("d", 2, b"{}")])
        assert refusal.value.hint == "raise maxmemory"

        async def cycle(report, want):
            return await partition.cycle(
                "w1", report, want=want, reads=[(2, 10, 0)], dead_after_ms=5000, control_cursor=b"0-0", limits=(10, 10),
                now=0.0,
            )  # fmt: skip

        a, b, c = (await cycle(Report(), 3)).deliveries
        ended, again = [a.token, a.id, b"{}"], [b.token, b.id, 1000, 2, b.enqueued_ms, b"{}", b"{}"]
        assert (await cycle(Report(settled=ended, requeued=again), 0)).refused == []
        assert await partition.sweep(2, lease_ms=60_000, cursor=b"0-0") == (b"0-0", 0, 0)
        assert await partition.release("w1", [c]) == 1
        assert await partition.beat(["w1"]) == []
        assert await partition.strays("w1", []) == 0
        assert await partition.renew("w1") == 0
        await partition.leave("w1")
        assert await partition.wire.call("HGETALL", partition.keys.index) == [b"b", b"z", b"c", c.token]
    finally:
        await partition.wire.close()
        await broker.close()


# ---- lanes by cost


async def test_the_job_of_a_slow_key_goes_into_the_slow_lane_and_says_why(board):
    """Whoever is not known as slow is fast."""
    await board.redis.hset(board.keys.cost, mapping={"h|ada": "812|1", "g|bob": "900|1"})
    jobs = [NewJob("a", 2, b"a", whose="-h|ada"), NewJob("b", 2, b"b", whose="-h|bob"), NewJob("c", 1, b"c")]
    await board.partition.add("p", 1, jobs)
    assert [await board.lane(lane) for lane in ("normal.slow", "normal", "high")] == [["a"], ["b"], ["c"]]
    ((entry, fields),) = await board.redis.xrange(board.keys.lanes[4])
    assert fields == {"j": "a", "d": "a", "c": "learned 812"}
    assert await board.token("a") == f"5{entry}"


async def test_the_slow_jobs_of_a_call_go_in_longest_first(board):
    """The last to start should be short: it is what everybody waits for."""
    means = {"a": 300, "b": 9000, "c": 800, "d": 9000}
    await board.redis.hset(board.keys.cost, mapping={f"h|{key}": f"{mean}|1" for key, mean in means.items()})
    await board.partition.add("p", 1, [NewJob(key, 2, b"x", whose=f"-h|{key}") for key in means])
    assert await board.lane("normal.slow") == ["b", "d", "c", "a"]


async def test_a_delayed_job_of_a_slow_key_waits_for_the_slow_lane(board):
    await board.redis.hset(board.keys.cost, "h|ada", "812|1")
    await board.partition.add("p", 1, [NewJob("a", 2, b"a", 60_000, whose="-h|ada")])
    assert (await board.redis.hget(board.keys.payload, "a")).startswith("5|")
    assert await board.token("a") == "z"


async def test_a_hint_decides_as_the_producer_says_until_there_is_a_measured_cut(board):
    """A producer has nothing but its own hints to compare; workers know what they meant."""
    sign = chr(ord("0") + 26)
    await board.partition.add(
        "p", 1, [NewJob("a", 5, b"a", whose=sign + "h|a"), NewJob("b", 2, b"b", whose=sign + "h|b")]
    )
    await board.redis.hset(board.keys.times, "cut", "27")
    await board.partition.add("p", 2, [NewJob("c", 5, b"c", whose=sign + "h|c")])
    await board.redis.hset(board.keys.times, "cut", "26")
    await board.partition.add("p", 3, [NewJob("d", 2, b"d", whose=sign)])
    assert (await board.lane("normal.slow"), await board.lane()) == (["a", "d"], ["b", "c"])
    entries = await board.redis.xrange(board.keys.lanes[4])
    assert [fields["c"] for _, fields in entries] == ["hint", "hint"]


async def test_what_was_measured_of_a_key_overrules_its_hint(board):
    await board.redis.hset(board.keys.cost, "h|ada", "812|1")
    await board.redis.hset(board.keys.times, "cut", "27")
    await board.partition.add("p", 1, [NewJob("a", 2, b"a", whose="0h|ada")])
    assert await board.lane("normal.slow") == ["a"]
