"""Settings are read here: each from the place that wins, all of them checked, everything wrong told at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import inspect

from streamq.errors import ConfigurationError
from streamq.settings.addresses import fault_of_mongodb_url, fault_of_redis_url, redis_url, with_credentials
from streamq.settings.places import Environment, Flags, Given, Place, Pyproject, Refused, read_dot_env, read_pyproject
from streamq.settings.table import REDIS_PARTS, SETTINGS, Settings, Spec, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["load"]

_T = TypeVar("_T")

_FAULT_OF = {"redis_url": fault_of_redis_url, "mongodb_url": fault_of_mongodb_url}

_CREDENTIALS = ("redis_username", "redis_password")

_RISING = (
    ("beat_ms", "dead_after_ms", "a worker would be given up between two of its beats"),
    ("dead_after_ms", "lease_ms", "a delivery would be taken from a worker that is not given up"),
)
"""Pairs of settings of which the first must be the smaller, and what would happen otherwise."""


def load(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    in_code: bool = False,
) -> Settings:
    """Read the settings: flags, then environment, `.env`, `pyproject.toml [tool.streamq]`, default.

    Args:
        flags: Setting to value, for what the caller was told directly; None as a value means not told.
        environ: The process's own environment unless given; never changed.
        directory: Where `.env` and `pyproject.toml` are looked for; the current one unless given.
        in_code: Whether the flags are arguments in a program, not options of a command line; messages name them so.

    Raises:
        ConfigurationError: At least one value cannot be used; the message lists all of them.
        TypeError: A flag is not a setting.
    """
    told = Flags(flags or {}, in_code=in_code)
    reading = _Reading(told, os.environ if environ is None else environ, directory or Path.cwd())
    values = {name: reading.value(known) for name, known in SETTINGS.items()}
    values["redis_url"] = reading.redis_url(values["redis_url"])
    reading.check_order(values)
    if reading.problems:
        raise _configuration_error(reading.problems)
    warnings = tuple(warning for place in reading.places for warning in place.unused())
    return Settings(**values, sources=reading.sources, warnings=warnings)


def _configuration_error(problems: list[str]) -> ConfigurationError:
    hint = "correct it where it was set, then run: streamq config check"
    if len(problems) > 1:
        problems = [f"{len(problems)} settings cannot be used", *problems]
    return ConfigurationError("\n".join(problems), hint=hint)


class _Reading:
    """One reading of all settings: what was found, and what is wrong with it."""

    def __init__(self, flags: Flags, environ: Mapping[str, str], directory: Path) -> None:
        """Open the places, the one that wins first. A file that cannot be read is a problem, and an empty place."""
        self.sources: dict[str, str] = {}
        self.problems: list[str] = []
        self._ranks: dict[str, int] = {}
        self.places: list[Place] = [
            flags,
            Environment(environ),
            self._try(lambda: read_dot_env(directory / ".env", environ), Environment({})),
            self._try(lambda: read_pyproject(directory / "pyproject.toml"), Pyproject({})),
        ]

    def value(self, known: Spec) -> Any:
        """Return a setting's checked value, and note where it came from; the default where it cannot be used."""
        self.sources[known.name], self._ranks[known.name] = "default", len(self.places)
        return self._try(lambda: self._found(known), known.default)

    def _found(self, known: Spec) -> Any:
        for rank, place in enumerate(self.places):
            if given := place.find(known):
                self.sources[known.name], self._ranks[known.name] = given.source, rank
                return _converted(known, given)
        return known.default

    def redis_url(self, given: str) -> str:
        """Return the address of Redis, made of `REDIS_HOST` and its like where these win over the URL.

        Credentials complete an address without any, unless it was given in a place that wins over theirs: a password
        must not go to a server that it was not meant for.
        """
        parts = {name: self.value(known) for name, known in REDIS_PARTS.items()}
        told = {name: source for name in parts if (source := self.sources.pop(name)) != "default"}
        rank = self._ranks["redis_url"]
        if any(self._ranks[name] < rank for name in told if name not in _CREDENTIALS):
            self.sources["redis_url"] = ", ".join(told.values())
            address = redis_url(parts["redis_host"], parts["redis_port"], parts["redis_db"])
            return with_credentials(address, parts["redis_username"], parts["redis_password"])
        told = {name: told[name] for name in _CREDENTIALS if name in told and self._ranks[name] <= rank}
        completed = with_credentials(given, *(parts[name] if name in told else "" for name in _CREDENTIALS))
        if completed != given:
            sources = [self.sources["redis_url"], *told.values()]
            self.sources["redis_url"] = ", ".join(source for source in sources if source != "default")
        return completed

    def check_order(self, values: Mapping[str, Any]) -> None:
        """Note the settings that contradict each other."""
        for smaller, larger, otherwise in _RISING:
            if values[smaller] >= values[larger]:
                low, high = (f"{name} ({values[name]}, {self.sources[name]})" for name in (smaller, larger))
                self.problems.append(f"{low} must be less than {high}: {otherwise}")

    def _try(self, read: Callable[[], _T], otherwise: _T) -> _T:
        """Return what was read; where that is refused, note why and go on to the next."""
        try:
            return read()
        except Refused as refusal:
            self.problems.append(str(refusal))
            return otherwise


def _converted(known: Spec, given: Given) -> Any:
    """Turn what was given into the setting's type.

    Raises:
        Refused: It does not fit; the text says what was expected.
    """
    try:
        value = msgspec.convert(_prepared(known, given.value), known.annotated, strict=False)
    except msgspec.ValidationError as error:
        raise _refusal(known, given, known.expected) from error
    fault_of = _FAULT_OF.get(known.name)
    if fault_of and (expected := fault_of(value)):
        raise _refusal(known, given, expected)
    return value


def _prepared(known: Spec, value: object) -> object:
    """Undo what people do to values when they write them as text."""
    if not isinstance(value, str):
        return value
    if isinstance(known.kind, inspect.VarTupleType):
        return [item for part in value.split(",") if (item := part.strip())]
    return value.strip().lower() if isinstance(known.kind, inspect.LiteralType) else value.strip()


def _refusal(known: Spec, given: Given, expected: str) -> Refused:
    example = "" if known.name in _FAULT_OF else _example(known, given.key)
    return Refused(f"{given.source} is {shown(known, given.value)!r}: expected {expected}{example}")


def _example(known: Spec, key: str) -> str:
    """Show how it could have been written, where the default tells more than nothing."""
    if not known.default or key.endswith("_FILE"):
        return ""
    return f", for example {key}{' ' if key.startswith('--') else '='}{shown(known, known.default)}"
