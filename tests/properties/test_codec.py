"""There and back: what is enqueued comes out as it went in, or is refused."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from hypothesis import given, strategies as st

from streamq.codec import decode_envelope, encode_envelope, encode_json, envelope_bytes
from streamq.errors import BadArguments
from streamq.gates import Gates, Rate
from streamq.job import Envelope

text = st.text(st.characters(exclude_categories=["Cs"]))
whole = st.integers(-(1 << 63), (1 << 64) - 1)
scalars = st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | text
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)
GATES = Gates("h", 1, Rate.parse("1/s", ""), 2, Rate.parse("3/m", ""))
positive = st.integers(0, 1 << 53)
envelopes = st.builds(
    Envelope,
    handler=text,
    version=positive,
    args=st.lists(json_values, max_size=4),
    kwargs=st.dictionaries(text, json_values, max_size=4),
    key=st.none() | text,
    attempt=positive,
    max_attempts=positive,
    deadline_ms=positive,
    occurrence=st.none() | text,
    dedup=st.none() | text,
    dedup_window_ms=positive,
    dedup_scope=text,
    headers=st.dictionaries(text, text, max_size=3),
    starts=positive,
    keep_result_ms=positive,
    ttl_ms=positive,
    retry_until_ms=positive,
    cost=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    crashes=positive,
    gates=st.just("") | text.map(lambda key: GATES.of_job(key)),
    weight=positive,
)


def test_the_strategy_knows_every_field():
    """A new field joins the test of there and back."""
    example = Envelope("h")
    assert set(example.__struct_fields__) == {
        "handler", "version", "args", "kwargs", "key", "attempt", "max_attempts", "deadline_ms", "occurrence", "dedup",
        "dedup_window_ms", "dedup_scope", "headers", "starts", "keep_result_ms", "ttl_ms", "retry_until_ms",
        "cost", "crashes", "gates", "weight",
    }  # fmt: skip


@given(envelopes)
def test_an_envelope_comes_back_as_it_went(envelope):
    """Each retry sends it once more."""
    assert decode_envelope(encode_envelope(envelope)) == envelope


@given(
    args=st.lists(json_values, max_size=4), kwargs=st.dictionaries(text, json_values, max_size=4), key=st.none() | text
)
def test_what_a_producer_writes_is_what_a_worker_reads(args, kwargs, key):
    """The two sides encode by different means."""
    rest = {"u": key} if key is not None else None
    envelope = decode_envelope(envelope_bytes(b'{"v":1,"h":"greet"', args, kwargs, rest))
    assert (envelope.handler, envelope.key) == ("greet", key)
    assert (envelope.args, envelope.kwargs) == (args, kwargs)


@given(json_values)
def test_a_value_is_encoded_as_json_that_any_reader_reads(value):
    """NaN and the like never get so far."""
    assert msgspec.json.decode(encode_json(value)) == value


@given(
    bad=st.sampled_from(
        [math.nan, math.inf, -math.inf, 1 << 64, -(1 << 63) - 1, "\ud800", {1: 2}, {1}, object(), b"x"]
    ),
    around=st.sampled_from(["bare", "list", "dict", "deep"]),
)
def test_what_is_no_json_is_refused_and_says_so(bad, around):
    """However deep it lies; nothing turns into null behind one's back."""
    wrapped = {"bare": bad, "list": [1, bad], "dict": {"a": bad}, "deep": [{"a": [None, {"b": [bad]}]}]}[around]
    with pytest.raises(BadArguments, match="the arguments are not JSON: "):
        envelope_bytes(b'{"v":1,"h":"greet"', [wrapped], {}, None)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_envelope_are_refused_and_nothing_worse(raw):
    """A foreign producer may write anything."""
    try:
        decoded = decode_envelope(raw)
    except ValueError:
        return
    assert isinstance(decoded, Envelope)


@given(text)
def test_scripts_see_the_gates_at_the_front_whatever_the_key_is(key):
    """They match, and decode nothing."""
    gates = GATES.of_job(key)
    for raw in (
        encode_envelope(Envelope("h", key=key, gates=gates)),
        envelope_bytes(b'{"v":1,"h":"h"', (1,), {}, None, gates),
    ):
        found = re.match(rb'\{"gt":"([^"]*)",', raw)
        assert found is not None
        assert found[1].decode() == gates
        assert decode_envelope(raw).gates == gates
    assert re.fullmatch(r"[!-~]+( [!-~]+){3}", gates)
