"""The Lua scripts: one file is one transition of a job. Each states its keys, arguments and returns on top."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Script", "load"]


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest under which Redis caches it."""

    name: str
    source: str
    sha: str


@cache
def load(name: str) -> Script:
    """Read a script of this package by its name, without `.lua`."""
    source = files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
