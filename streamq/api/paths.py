"""Paths that end in text which is not ours: user ids and job ids may hold slashes, line ends, anything."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor

__all__ = ["ANYTHING"]

ANYTHING = "anything"
"""Name of the convertor for the rest of a path, as in `{user_id:anything}`."""


class _Anything(Convertor[str]):
    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor(ANYTHING, _Anything())
