"""Bad input: refused with a clear error before Redis is touched, or carried through as it came."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from streamq import StreamQ, current_job
from streamq.errors import BadArguments, ConfigurationError

KEPT = timedelta(seconds=60)


def nested(depth: int) -> list:
    """Return lists within lists."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


LOOP: list = []
LOOP.append(LOOP)


@pytest.fixture
def nowhere():
    """An application whose Redis does not exist: what reaches it takes long to fail."""
    app = StreamQ(redis_url="redis://127.0.0.1:1")

    @app.handler
    async def echo(value: object, key: object = None) -> object: ...

    return echo


# ---- arguments


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "NaN and infinity are not JSON"),
        ({"deep": [1, {"x": float("-inf")}]}, "NaN and infinity are not JSON"),
        ("\ud800", "surrogates not allowed"),
        ({"\udfff": 1}, "surrogates not allowed"),
        (2**64, "Integer exceeds 64-bit range"),
        (-(2**63) - 1, "Integer exceeds 64-bit range"),
        ({1: "one"}, "Dict key must be str"),
        ({"a": {None: 1}}, "Dict key must be str"),
        (nested(100_000), "Recursion limit reached"),
        (LOOP, "Recursion limit reached"),
        (datetime(2026, 1, 1), "Type is not JSON serializable: datetime.datetime"),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=UTC), "Type is not JSON serializable: datetime.datetime"),
        (date(2026, 1, 1), "Type is not JSON serializable: datetime.date"),
        (Decimal("1.5"), "Type is not JSON serializable: decimal.Decimal"),
        (b"bytes", "Type is not JSON serializable: bytes"),
        ({1, 2}, "Type is not JSON serializable: set"),
    ],
)
async def test_an_argument_that_is_not_json_is_refused(nowhere, value, words):
    """What a worker would get must be what was given."""
    with pytest.raises(BadArguments, match="the arguments are not JSON: .*") as refusal:
        await nowhere.enqueue(value)
    assert words in str(refusal.value)
    (job,) = await nowhere.enqueue_many([(value,)])
    assert job.status == "refused"
    assert words in str(job.error)


@pytest.mark.parametrize(
    "value",
    [
        2**64 - 1, -(2**63), 2**53 + 1, 1e308, -0.0, 0.1, "", "a\nb:c\x00\u2028é😀", {"a:b\n": [None, True]},
        {"v": 2, "h": "other", "index": 1}, nested(200), "NaN", [],
    ],
)  # fmt: skip
async def test_an_argument_that_is_json_comes_back_as_it_was(app, work, value):
    """To the last bit and character."""

    @app.handler
    async def echo(value: object) -> object:
        return {"back": value}

    job = await echo.enqueue(value, keep_result=KEPT)
    await work()
    assert repr(await job.result()) == repr({"back": value})


# ---- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": timedelta(seconds=-1)}, "delay cannot be negative, and -1 day, 23:59:59 came"),
        ({"delay": 5}, "delay is a timedelta, and 5 came"),
        ({"at": datetime(2026, 1, 1)}, "at: 2026-01-01T00:00:00 has no time zone: pass an aware datetime"),  # noqa: DTZ001
        ({"at": "tomorrow"}, "at is an aware datetime, and 'tomorrow' came"),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC), "delay": timedelta(1)}, "delay= and at= both say when; pass one of them"),
        ({"deadline": datetime(2026, 1, 1)}, "deadline: 2026-01-01T00:00:00 has no time zone"),  # noqa: DTZ001
        ({"deadline": 5}, "deadline is an aware datetime, and 5 came"),
        ({"priority": "urgent"}, "priority is high, normal or low, and 'urgent' came"),
        ({"priority": "high.slow"}, "priority is high, normal or low, and 'high.slow' came"),
        ({"max_attempts": 0}, "max_attempts of 'echo' is a whole number from 1 to 1,000,000, and 0 came"),
        ({"max_attempts": True}, "max_attempts of 'echo' is a whole number"),
        ({"max_attempts": 2.0}, "max_attempts of 'echo' is a whole number from 1 to 1,000,000, and 2.0 came"),
        ({"replicas": -1}, "replicas is a whole number from 0 to 100, and -1 came"),
        ({"keep_result": timedelta(0)}, "keep_result cannot be shorter than 1 ms, and 0:00:00 came"),
        ({"keep_result": 60}, "keep_result is a timedelta, and 60 came"),
        ({"dedup": ""}, "dedup must have 1 to 512 characters, and 0 came"),
        ({"dedup": "x" * 513}, "dedup must have 1 to 512 characters, and 513 came"),
        ({"dedup": 7}, "dedup must be text, and 7 came"),
        ({"dedup": "\ud800"}, r"dedup '\\ud800' is not text: surrogates not allowed"),
        ({"id": "a\nb"}, r"id 'a\\nb' holds a character that cannot be printed, such as a newline"),
        ({"id": 5}, "id must be text, and 5 came"),
        ({"occurrence": "\udc00"}, r"occurrence '\\udc00' is not text"),
        ({"headers": ["a"]}, r"headers are a dict of text by text, and \['a'\] came"),
        ({"headers": {"a": 1}}, "headers are text by text, and 'a': 1 came"),
        ({"headers": {1: "a"}}, "headers are text by text, and 1: 'a' came"),
        ({"headers": {"a": "\ud800"}}, "headers are not text: .*surrogates not allowed"),
    ],
)  # fmt: skip
async def test_an_option_that_makes_no_sense_is_refused(nowhere, options, words):
    """It says which option, and what came."""
    with pytest.raises(BadArguments, match=words):
        await nowhere.options(**options).enqueue(1)


@pytest.mark.parametrize("key", ["", "x" * 513, 7, "\ud800"])
async def test_a_user_key_that_cannot_be_one_is_refused(nowhere, key):
    """Whatever is wrong with it, the message begins with what it is."""
    with pytest.raises(BadArguments, match="^key "):
        await nowhere.options(key=key).enqueue(1)


@pytest.mark.parametrize("text", ["a\nb", "lane:normal", "index", "{x}:dedup:y", "*", "d", "р\u2028"])
async def test_any_text_may_be_a_user_key_and_a_dedup_key(app, work, text):
    """A key named like a structural one hits no structure; a newline parts no list."""

    @app.handler
    async def who() -> str | None:
        return current_job().key

    options = who.options(key=text, dedup=text, keep_result=KEPT)
    first = await options.enqueue()
    jobs = await options.enqueue_many([(), ()])
    assert [(job.status, job.id) for job in jobs] == [("duplicate", first.id)] * 2
    await work()
    assert await first.result() == text


def test_an_option_that_does_not_exist_is_refused(nowhere):
    """With the list of those that do."""
    with pytest.raises(TypeError, match="'dely' is not an option of a job .known: at, .*deadline, dedup"):
        nowhere.options(dely=1)


# ---- handlers


@pytest.mark.parametrize("name", ["a\nb", "a:b", "a b", "", "1", "a..b", "\ud800"])
def test_a_handler_cannot_have_a_name_that_is_none(name):
    """It is printed in logs and compared across processes."""
    with pytest.raises(ConfigurationError, match="a name is letters, digits and '_', with '.' or '-' between"):
        StreamQ(redis_url="redis://127.0.0.1:1").handler(name=name)(lambda: None)


def test_a_handler_names_each_of_its_arguments():
    """Else a wrong call would be seen only when it runs."""
    app = StreamQ(redis_url="redis://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"handler 'takes' takes \*args: name each argument"):

        @app.handler
        def takes(*args: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"takes \*options: name each argument"):

        @app.handler
        def also_takes(**options: int) -> None: ...


@pytest.mark.parametrize("queue", ["a:b", "a\nb", "", "x" * 65, "{x}", "ü"])
def test_a_queue_cannot_have_a_name_that_is_none(queue):
    """It becomes part of every key."""
    with pytest.raises(ConfigurationError, match="cannot be the name of a queue: use 1 to 64 letters"):
        StreamQ(redis_url="redis://127.0.0.1:1").handler(name="x", queue=queue)(lambda: None)
