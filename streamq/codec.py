"""Between Python values and the bytes on the wire.

What goes in comes out, or is refused: no NaN that turns into null, no date that turns into text behind one's back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from streamq.errors import BadArguments
from streamq.job import Envelope

__all__ = ["GATED", "decode_envelope", "encode_envelope", "encode_json", "envelope_bytes", "gates_first"]

_STRICT = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_DECODER = msgspec.json.Decoder(Envelope)
GATED = b'{"gt":"'
"""How the envelope of a job begins that has gates to pass."""

_ENCODER = msgspec.json.Encoder()


def encode_json(value: Any) -> bytes:
    """Encode a value that is JSON already.

    Raises:
        ValueError: It is not; the message says what and, where it can, why.
    """
    try:
        encoded = orjson.dumps(value, option=_STRICT)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    # orjson writes NaN and infinity as null, without a word.
    if b"null" in encoded and _has_no_number(value):
        raise ValueError("NaN and infinity are not JSON")
    return encoded


def _has_no_number(value: Any) -> bool:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, Mapping):
            todo.extend(item.values())
        elif isinstance(item, Sequence) and not isinstance(item, str):
            todo.extend(item)
    return False


def envelope_bytes(
    head: bytes, args: Sequence[Any], kwargs: Mapping[str, Any], rest: Mapping[str, Any] | None, gates: str = ""
) -> bytes:
    """Encode the envelope of a new job.

    Args:
        head: The constant part, `{"v":1,"h":"name"`, made once per handler.
        args: Positional arguments.
        kwargs: Keyword arguments.
        rest: Further fields by their short names, or None.
        gates: What the job has to pass, see `Gates`.

    Raises:
        BadArguments: An argument is not JSON.
    """
    try:
        if args and not (kwargs or rest or gates):
            return b'%b,"a":%b}' % (head, encode_json(args))
        encoded = head if not gates else gates_first(gates, head)
        if args:
            encoded += b',"a":' + encode_json(args)
        if kwargs:
            encoded += b',"k":' + encode_json(kwargs)
    except ValueError as error:
        raise BadArguments(f"the arguments are not JSON: {error}") from None
    if rest:
        return encoded + b"," + orjson.dumps(rest)[1:]
    return encoded + b"}"


def decode_envelope(raw: bytes) -> Envelope:
    """Decode an envelope.

    Raises:
        ValueError: It is not one.
    """
    try:
        return _DECODER.decode(raw)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def encode_envelope(envelope: Envelope) -> bytes:
    """Encode an envelope that was decoded and changed."""
    if not envelope.gates:
        return _ENCODER.encode(envelope)
    return gates_first(envelope.gates, _ENCODER.encode(msgspec.structs.replace(envelope, gates="")))


def gates_first(gates: str, encoded: bytes) -> bytes:
    """Put the gates where scripts see them without decoding the rest; no character of theirs needs an escape."""
    return GATED + gates.encode() + b'",' + encoded[1:]
