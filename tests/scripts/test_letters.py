"""The dead letters of a partition: browse, replay at a set rate, edit and replay, delete."""

from __future__ import annotations

import time

import orjson
import pytest

from streamq.broker import letters as module
from streamq.broker.inspection import Inspection
from streamq.broker.letters import EVERY, Edits, Letters, Wanted
from streamq.broker.orders import Orders
from streamq.codec import decode_envelope, encode_envelope
from streamq.errors import BadInput, JobNotFound
from streamq.job import Envelope


@pytest.fixture
def letters(board):
    """The letters of the partition."""
    return Letters(board.partition.wire, Orders(board.partition.wire, board.keys))


async def write(board, number: int, **changes) -> None:
    """Write the letter of a job that died at that millisecond."""
    handler, key = changes.get("handler", "greet"), changes.get("key")
    envelope = changes.get("envelope") or Envelope(
        handler, args=[number], key=key, attempt=5, starts=3, dedup=changes.get("dedup")
    )
    error = {"t": changes.get("error", "ValueError"), "m": "no", "tb": "here", "fp": f"fp-{changes.get('error')}"}
    record = {"s": "dead", "h": handler, "u": key, "n": 5, "l": changes.get("lane", "normal"), "e": 7, "x": error}
    raw = envelope if isinstance(envelope, bytes) else encode_envelope(envelope)
    await board.redis.xadd(board.keys.dead, {"j": f"j{number}", "d": raw, "r": orjson.dumps(record)}, id=f"{number}-0")


async def ids(letters, wanted=EVERY, **options) -> list[str]:
    """Return the jobs of a page."""
    return [letter.job_id for letter in (await letters.page(wanted, **options)).letters]


async def some(board) -> None:
    """Letters of two handlers, three users, and two kinds of error."""
    await write(board, 1000, handler="greet", key="u1", error="KeyError")
    await write(board, 2000, handler="greet", key="u2")
    await write(board, 3000, handler="mail", key="u2", error="KeyError")
    await write(board, 4000, handler="mail", key="u3")


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (EVERY, [4000, 3000, 2000, 1000]),
        (Wanted(handler="greet"), [2000, 1000]),
        (Wanted(key="u2"), [3000, 2000]),
        (Wanted(error="KeyError"), [3000, 1000]),
        (Wanted(error="fp-KeyError"), [3000, 1000]),
        (Wanted(since_ms=2000, until_ms=3000), [3000, 2000]),
        (Wanted(frozenset({"j4000", "j1000"})), [4000, 1000]),
        (Wanted(handler="mail", error="KeyError", key="u2"), [3000]),
        (Wanted(handler="nobody"), []),
    ],
    ids=["all", "handler", "key", "type", "fingerprint", "age", "ids", "several", "none"],
)
async def test_letters_that_fit_everything_said_are_meant(board, letters, wanted, numbers):
    """By handler, error, key and age, for looking, replaying and deleting alike."""
    await some(board)
    assert await ids(letters, wanted) == [f"j{number}" for number in numbers]
    left = sorted({1000, 2000, 3000, 4000} - set(numbers), reverse=True)
    progress = await letters.replay(wanted)
    assert (progress.became["replayed"], progress.matched) == (len(numbers), len(numbers))
    assert await board.lane() == [f"j{number}" for number in sorted(numbers)]
    assert await ids(letters) == [f"j{number}" for number in left]
    deleted = await letters.delete(EVERY)
    assert deleted.became == ({"deleted": len(left)} if left else {})
    assert await board.redis.xlen(board.keys.dead) == 0


async def test_pages_follow_each_other_without_gap_or_repeat(board, letters):
    """Also when the last letter of one was deleted meanwhile."""
    for number in range(1, 251):
        await write(board, number, key="even" if number % 2 == 0 else "odd")
    seen, cursor = [], None
    while True:
        page = await letters.page(Wanted(key="even"), limit=17, cursor=cursor)
        seen += [letter.job_id for letter in page.letters]
        cursor = page.cursor
        if cursor is None:
            break
        await board.redis.xdel(board.keys.dead, cursor)
    assert seen == [f"j{number}" for number in range(250, 0, -2)]


async def test_a_page_looks_at_so_many_letters_and_says_where_to_go_on(board, letters, monkeypatch):
    """One question is bounded, whatever lies there."""
    monkeypatch.setattr(module, "MOST_LOOKED_AT", 100)
    await write(board, 1, key="rare")
    for number in range(2, 203):
        await write(board, number)
    first = await letters.page(Wanted(key="rare"))
    assert (first.letters, first.cursor) == ([], "103-0")
    second = await letters.page(Wanted(key="rare"), cursor=first.cursor)
    third = await letters.page(Wanted(key="rare"), cursor=second.cursor)
    assert [[letter.job_id for letter in page.letters] for page in (second, third)] == [[], ["j1"]]
    assert (await letters.find("j1")).key == "rare"


async def test_a_letter_tells_all_that_is_known_of_its_end(board, letters):
    """What somebody needs who looks for the cause."""
    await write(board, 5, key="u1", error="KeyError", lane="low")
    letter = await letters.find("j5")
    assert letter[:9] == ("5-0", "j5", "greet", "u1", "low", 5, 0, 7, 5)
    assert (letter.error_type, letter.error, letter.traceback, letter.fingerprint) == (
        "KeyError",
        "no",
        "here",
        "fp-KeyError",
    )
    with pytest.raises(JobNotFound, match="no dead letter of job 'nobody' lies in queue"):
        await letters.find("nobody")


async def test_a_letter_that_cannot_be_read_is_shown_and_stays(board, letters):
    """And does not keep the others from being replayed."""
    await board.redis.xadd(board.keys.dead, {"j": "broken", "d": "{", "r": "?"}, id="1-0")
    await write(board, 2, envelope=b"neither")
    await write(board, 3)
    told: dict[str, str] = {}
    progress = await letters.replay(on_each=lambda letter, became, _: told.update({letter.job_id: became}))
    assert told == {"broken": "unreadable", "j2": "unreadable", "j3": "replayed"}
    assert progress.became == {"unreadable": 2, "replayed": 1}
    with pytest.raises(BadInput, match="'broken' cannot be replayed, since its letter cannot be read"):
        await letters.replay_one(await letters.find("broken"))
    assert await ids(letters) == ["j2", "broken"]


async def test_letters_that_come_while_it_runs_are_left_alone(board, letters, monkeypatch):
    """Else a job that dies again at once would be replayed for ever."""
    monkeypatch.setattr(module, "_CHUNK", 2)
    for number in range(1, 4):
        await write(board, number)
    later = iter(range(10, 100))

    async def dies_again() -> None:
        await write(board, next(later))

    for_later = []

    def note(*_) -> None:
        for_later.append(1)

    await dies_again()
    newest_seen = await letters.page(limit=1)
    assert newest_seen.letters[0].job_id == "j10"
    original = letters._orders.replay

    async def replay_and_die(*args):
        verdict = await original(*args)
        await dies_again()
        return verdict

    letters._orders.replay = replay_and_die
    progress = await letters.replay(rate=1000, on_each=note)
    assert (progress.became["replayed"], len(for_later)) == (4, 4)
    assert len(await ids(letters)) == 4


async def test_a_rate_is_kept(board, letters):
    """So that what they all died of does not die of them."""
    for number in range(1, 6):
        await write(board, number)
    began = time.monotonic()
    assert (await letters.replay(rate=50)).became["replayed"] == 5
    assert time.monotonic() - began >= 4 / 50


@pytest.mark.parametrize("rate", [None, 1000])
async def test_a_replay_can_be_stopped_and_begun_again(board, letters, rate):
    """What was replayed stays so, and nothing is done twice."""
    for number in range(1, 101):
        await write(board, number)
    seen = []
    stopped = await letters.replay(rate=rate, on_each=lambda *_: seen.append(1), should_stop=lambda: len(seen) >= 10)
    assert stopped.is_stopped
    assert 10 <= stopped.became["replayed"] < 100
    assert stopped.total == 100
    again = await letters.replay()
    assert again.became["replayed"] == 100 - stopped.became["replayed"]
    assert await board.lane() == [f"j{number}" for number in range(1, 101)]


async def test_a_stop_is_heard_while_waiting_for_the_next_turn(board, letters):
    """At a rate of one in a thousand seconds as well."""
    await write(board, 1)
    await write(board, 2)
    asked = []
    progress = await letters.replay(rate=0.001, should_stop=lambda: asked.append(1) or len(asked) > 3)
    assert (progress.is_stopped, progress.became["replayed"]) == (True, 1)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
async def test_a_rate_that_makes_no_sense_is_refused(letters, rate):
    """Before anything is replayed."""
    with pytest.raises(BadInput, match="a rate is more than 0 in a second"):
        await letters.replay(rate=rate)


async def test_progress_is_told_on_the_way(board, letters):
    """For a bar."""
    for number in range(1, 251):
        await write(board, number, key="even" if number % 2 == 0 else None)
    told = []
    await letters.delete(
        Wanted(key="even"), on_progress=lambda progress: told.append((progress.looked_at, progress.matched))
    )
    assert told[-1] == (250, 125)
    assert told == sorted(told)
    assert len(told) > 3


async def test_held_and_living_jobs_keep_their_letters(board, letters):
    """The one who holds the key is named."""
    await write(board, 1, dedup="k")
    await write(board, 2)
    await board.add("holder", dedup="k")
    await board.add("j2")
    told = {}
    await letters.replay(on_each=lambda letter, became, holder: told.update({letter.job_id: (became, holder)}))
    assert told == {"j1": ("held", "holder"), "j2": ("alive", "")}
    assert await ids(letters) == ["j2", "j1"]


async def test_a_letter_is_edited_and_replayed(board, letters):
    """Under its old id, with all attempts; other arguments make another job, so its dedup key goes."""
    await board.join("w1")
    await write(board, 1, key="u1", dedup="k")
    await board.add("holder", dedup="k")
    edits = Edits(args=[2, "b"], kwargs={"c": None}, key="u2", max_attempts=9)
    assert await letters.replay_one(await letters.find("j1"), edits) == ("replayed", "")
    delivery = next(delivery for delivery in await board.read("w1") if delivery.id == b"j1")
    assert decode_envelope(delivery.raw) == Envelope(
        "greet", args=[2, "b"], kwargs={"c": None}, key="u2", max_attempts=9, starts=4
    )


async def test_an_edit_of_the_attempts_alone_keeps_the_dedup_key(board, letters):
    """It is the same job."""
    await write(board, 1, dedup="k")
    await letters.replay_one(await letters.find("j1"), Edits(max_attempts=9))
    assert await board.redis.get(board.keys.dedup("k")) == "j1"


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (Edits(), "nothing was said to change"),
        (Edits(max_attempts=0), "max_attempts counts from 1, and 0 came"),
        (Edits(args=[float("nan")]), "the new values are not JSON: NaN"),
        (Edits(kwargs={1: 2}), "the new values are not JSON"),
    ],
)
async def test_an_edit_that_makes_no_sense_is_refused_and_the_letter_stays(board, letters, edits, words):
    """Nothing is lost."""
    await write(board, 1)
    with pytest.raises(BadInput, match=words):
        await letters.replay_one(await letters.find("j1"), edits)
    assert await ids(letters) == ["j1"]


async def test_letters_that_their_bound_drops_are_counted(board):
    """Nothing goes unseen: the counter and when it last rose are shown."""
    await board.join("w1")
    view = Inspection(board.partition.wire, board.keys)
    assert ((await view.counts()).evicted, (await view.counts()).evicted_ms) == (0, 0)
    for round_ in range(2):
        taken = []
        await board.add(*(f"{round_}.{number}" for number in range(128)))
        taken = await board.read("w1")
        rows = [value for delivery in taken for value in (delivery.id, b"{}", b"{}")]
        await board.settle("w1", *taken, letters=rows, limits=(1000, 10))
    counts = await view.counts()
    assert counts.evicted > 0
    assert counts.evicted + counts.dead == 256
    assert 0 < counts.evicted_ms <= counts.now_ms


async def test_a_replayed_job_has_a_new_result(board, letters):
    """Who asks is not told how its last life ended."""
    await write(board, 1)
    await board.redis.rpush(board.keys.result("j1"), "{}")
    await letters.replay()
    assert await board.redis.exists(board.keys.result("j1")) == 0
