"""Each script says on top what it takes; what the Python side sends is held against that."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from streamq.broker.fanout import FanOuts
from streamq.broker.inspection import Inspection
from streamq.broker.orders import Orders
from streamq.broker.partition import NewJob, Partition, Report
from streamq.broker.repairs import Repairs
from streamq.job import Delivery
from streamq.keys import LANES, Keys
from streamq.scripts import load

SCRIPTS = sorted(
    path.name.removesuffix(".lua") for path in files("streamq.scripts").iterdir() if path.name[-4:] == ".lua"
)

ENVELOPE = b'{"v":1,"h":"h","g":"k"}'
DELIVERY = Delivery(2, b"21-1", b"a", b"{}", 0, 0.0)
REPORT = Report(
    settled=[b"21-1", b"a", b"{}"],
    dedups=[(b"a", "k", 0)],
    results=[(b"a", 1000, b"{}")],
    letters=[b"a", b"{}", b"{}"],
    requeued=[b"21-2", b"b", 0, 2, 0, b"{}", b""],
    renewed=[b"21-3", b"c"],
    markers=[1, b"1-1"],
)

CALLS = {
    "agree": lambda p: p.agree(3),
    "add": lambda p: p.add("me", 1, [NewJob("a", 2, b"{}", 0, "k"), NewJob("b", 2, b"{}", 0, "l")]),
    "append": lambda p: p.append("me", 1, 2, "|5|0|", NewJob("a", 2, b"{}", whose="-h|ada")),
    "beat": lambda p: p.beat(["w1", "w2"]),
    "block": lambda p: Orders(p.wire, p.keys).block(handler="h", reason="", by="me"),
    "bury": lambda p: p.bury(["w1", "w2"]),
    "cancel": lambda p: Orders(p.wire, p.keys).cancel("a"),
    "crowd": lambda p: Inspection(p.wire, p.keys).crowd(),
    "cycle": lambda p: p.cycle(
        "w1", REPORT, want=3, reads=[(1, 3, 0)], dead_after_ms=1, control_cursor=b"0-0", limits=(1, 1), now=0.0
    ),
    "flights": lambda p: Inspection(p.wire, p.keys).flights(limit=1),
    "lead": lambda p: FanOuts(p).lead("hourly", "me", 1000),
    "learn": lambda p: p.learn(20.0, 3, counts=["t1", 1], runs=["h|k", 30]),
    "gates": lambda p: Repairs(p, "me").gates(repair=True),
    "leave": lambda p: p.leave("w1"),
    "lineage": lambda p: p.forgot_before(),
    "locate": lambda p: Inspection(p.wire, p.keys).locate_many(["a", "b"]),
    "mend": lambda p: Repairs(p, "me").mend([b"a", b"b"], repair=True),
    "register": lambda p: p.register("w1"),
    "release": lambda p: p.release("w1", [DELIVERY, DELIVERY]),
    "renew": lambda p: p.renew("w1"),
    "replay": lambda p: Orders(p.wire, p.keys).replay("1-1", "a", ENVELOPE, "normal"),
    "strays": lambda p: p.strays("w1", [b"21-1", b"21-2"]),
    "sweep": lambda p: p.sweep(2, lease_ms=1, cursor=b"0-0"),
    "tidy": lambda p: Repairs(p, "me").tidy(idle_ms=1, repair=True),
    "view": lambda p: Inspection(p.wire, p.keys).counts(),
}
"""Each script, and a call of the method that runs it."""

WORDS = {"lane": "lane:", "dedup": "dedup:", "result": "result:", "lock": "lead:"}
"""What a key is called in a contract, and how it begins behind the tag; other keys are called as they begin."""


ELSEWHERE = {"flights", "lead", "locate", "view"}
"""Scripts whose tests stand with what uses them: the status API, the recorder, schedules."""


class Caught(Exception):
    """Carries what would have been sent."""


class DeafWire:
    """Sends nothing, and shows what it was given."""

    async def call(self, *command):
        """Answer what a script's caller asks first: here is a delayed job."""
        if command[0] == "TIME":
            return [b"1", b"0"]
        if command[0] == "INFO":
            return b"role:master\r\nmaster_replid:8c5f\r\n"
        if command[0] == "SCAN":
            return [b"0", ["{sq:q:0}:dedup:k"]]
        return b"z" if command[1].endswith(":index") else b"2|0|" + ENVELOPE

    async def pipeline(self, commands):
        """Answer each."""
        return [await self.call(*command) for command in commands]

    async def script(self, script, keys, args, **_):
        """Raise what would have been sent."""
        raise Caught(script.name, list(keys), list(args))


async def caught(name: str) -> tuple[list[str], list]:
    """Return keys and arguments that the method behind a script sends."""
    partition = Partition(Keys("q"), DeafWire())  # type: ignore[arg-type]
    with pytest.raises(Caught) as sent:
        await CALLS[name](partition)
    assert sent.value.args[0] == name
    return sent.value.args[1:]


def contract(name: str, part: str) -> str:
    """Return the lines of a contract that belong to KEYS, ARGV or Returns, as one."""
    head = load(name).source.split("\nlocal ")[0].split("\nif ")[0]
    found = re.search(
        rf"^-- {part}(.*?)^(?:-- (?:KEYS|ARGV|Returns)|--$|(?!--))", head + "\n\n", re.MULTILINE | re.DOTALL
    )
    assert found, f"{name}.lua has no {part}"
    return " ".join(line.removeprefix("--").strip() for line in found[1].splitlines())


def numbered(text: str) -> list[tuple[int, int, str]]:
    """Return first place, last place (0: open) and words of each numbered item of a contract."""
    items = re.findall(r"(?:^|[,(] ?|\s)(\d+)(?:-(\d+)|(\.\.))? ([^,:(]+)", re.sub(r"'[^']*'|\([^)]*\)", "", text))
    return [(int(first), 0 if dots else int(last or first), words.strip()) for first, last, dots, words in items]


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_gets_the_keys_that_its_contract_names(name):
    """A key in the wrong place writes into another structure."""
    keys, _ = await caught(name)
    places = numbered(contract(name, "KEYS"))
    lanes = [f"{{sq:q:0}}:lane:{lane}" for lane in LANES]
    for first, last, words in places:
        here = keys[first - 1 :] if not last else keys[first - 1 : last]
        assert here, f"place {first} of {name} is not sent"
        if words == "lanes":
            assert here == lanes
            continue
        kinds = [WORDS.get(word, WORDS.get(word.rstrip("s"), word)) for word in words.split()]
        assert all(any(key.startswith(f"{{sq:q:0}}:{kind}") for kind in kinds) for key in here), (here, words)
    last = places[-1][1]
    assert not last or len(keys) == last


@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_gets_the_arguments_that_its_contract_counts(name):
    """A missing one would be read as nil, deep in the script."""
    _, args = await caught(name)
    text = contract(name, "ARGV")
    places = numbered(text)
    fixed = max((last or first for first, last, _ in places), default=0)
    assert [first for first, _, _ in places] == sorted({first for first, _, _ in places})
    is_open = any(not last for _, last, _ in places) or " then " in text or not places
    assert len(args) >= fixed
    assert is_open or len(args) == fixed


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_states_its_contract_on_top(name):
    """It is all that most readers need."""
    source = load(name).source
    flags, title, *_ = source.splitlines()
    assert re.fullmatch(r"#!lua( flags=[a-z,-]+)?", flags)
    assert title.startswith(f"-- {name}: ")
    assert contract(name, "Returns")


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_scripts_that_make_something_new_are_refused_when_memory_is_full(name):
    """A worker must be able to settle and leave; a producer must be told."""
    flags = load(name).source.splitlines()[0]
    assert ("allow-oom" in flags) == (name not in {"add", "append", "lead", "learn", "replay"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_has_tests_of_its_own(name):
    """A transition that nobody checks is one that nobody knows."""
    assert name in CALLS, f"say in CALLS which method runs {name}.lua"
    assert name in ELSEWHERE or Path(__file__).with_name(f"test_{name}.py").exists()
