"""The places that settings are read from, each telling what it was given and where, in the user's own words."""

from __future__ import annotations

import difflib
import io
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables

from streamq.settings.table import PREFIX, REDIS_PARTS, SETTINGS, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Environment", "Flags", "Given", "Place", "Pyproject", "Refused", "read_dot_env", "read_pyproject"]

_NOT_SETTINGS = ("STREAMQ_TEST_", "STREAMQ_BENCH_", "STREAMQ_MONGOD", "STREAMQ_DEBUG", "STREAMQ_PARENT_")
"""Starts of the names that the tests, the embedded servers, the programs and their children use for themselves."""


class Refused(Exception):
    """A value cannot be used; the text is one sentence of the final error."""


class Given(NamedTuple):
    """A value as somebody gave it, before anything is checked."""

    value: object
    source: str
    key: str
    """The name to set it by, as it stood there."""


class Place(Protocol):
    """One of the places that settings are read from."""

    def find(self, known: Spec) -> Given | None:
        """Give what stands here for a setting; None if nothing does."""
        ...

    def unused(self) -> Iterator[str]:
        """Tell what stands here and means nothing, a sentence each."""
        ...


class Flags:
    """What the caller was told directly; None counts as not told."""

    def __init__(self, values: Mapping[str, object], *, in_code: bool = False) -> None:
        for name in values:
            if name not in SETTINGS:
                raise TypeError(f"{name!r} is not a setting{_nearest(name, SETTINGS)}")
        self._values = values
        self._in_code = in_code

    def find(self, known: Spec) -> Given | None:
        """Give the flag's value."""
        value = self._values.get(known.name)
        if value is None:
            return None
        if self._in_code:
            return Given(value, f"{known.name} in the program", known.name)
        return Given(value, known.flag, known.flag)

    def unused(self) -> Iterator[str]:
        """Tell nothing: an unknown flag was refused above."""
        yield from ()


class Environment:
    """Variables by name. An empty one counts as not set, since Compose files pass many such on."""

    def __init__(self, values: Mapping[str, str], where: str = "the environment", unread: Iterable[int] = ()) -> None:
        self._values = values
        self._where = where
        self._unread = unread

    def find(self, known: Spec) -> Given | None:
        """Give the first of the setting's variables that is set, or what the file named by `<variable>_FILE` holds.

        Raises:
            Refused: That file cannot be read, or is empty.
        """
        for name in known.variables:
            if value := self._values.get(name, "").strip():
                return Given(value, f"{name} from {self._where}", name)
            if known.secret and (path := self._values.get(name + "_FILE", "").strip()):
                source = f"{name}_FILE from {self._where}"
                return Given(_content(path, source), source, name + "_FILE")
        return None

    def unused(self) -> Iterator[str]:
        """Tell the lines that could not be read, and the variables that start as ours do and are none of ours."""
        for line in self._unread:
            yield f"line {line} of {self._where} is not NAME=value and was left out"
        known = _variables()
        for name in self._values:
            if name.startswith(PREFIX) and name not in known and not name.startswith(_NOT_SETTINGS):
                yield f"{name} from {self._where} is not a setting{_nearest(name, known)}"


class Pyproject:
    """The table `[tool.streamq]`, its keys written as the settings are, with `_` or with `-`."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._values = {key.replace("-", "_"): value for key, value in table.items()}

    def find(self, known: Spec) -> Given | None:
        """Give the value of the setting's key."""
        if known.name not in self._values:
            return None
        return Given(self._values[known.name], f"{known.name} from pyproject.toml", known.name)

    def unused(self) -> Iterator[str]:
        """Tell the keys that are no setting."""
        known = [*SETTINGS, *REDIS_PARTS]
        for name in self._values:
            if name not in known:
                yield f"{name} from pyproject.toml is not a setting{_nearest(name, known)}"


def read_dot_env(path: Path, environ: Mapping[str, str]) -> Environment:
    """Read a `.env` file; one that is not there holds nothing.

    `${NAME}` stands for a variable of the environment, else for one of the lines above.

    Raises:
        Refused: There is one, and it cannot be read.
    """
    values: dict[str, str] = {}
    unread: list[int] = []
    for line in parse_stream(_lines(path)):
        if line.error:
            unread.append(line.original.line)
        elif line.key and line.value is not None:
            known = {**values, **environ}
            values[line.key] = "".join(part.resolve(known) for part in parse_variables(line.value))
    return Environment(values, path.name, unread)


def read_pyproject(path: Path) -> Pyproject:
    """Read our table of a `pyproject.toml`; a file or a table that is not there holds nothing.

    Raises:
        Refused: It cannot be read, or our table is not a table.
    """
    try:
        table = tomllib.loads(_lines(path).read())
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path.name} is not TOML: {error}") from error
    for name in ("tool", "streamq"):
        inner: object = table.get(name, {})
        if not isinstance(inner, dict):
            raise Refused(f"{name} in {path.name} is not a table: settings stand under [tool.streamq]")
        table = cast("dict[str, Any]", inner)
    return Pyproject(table)


def _lines(path: Path) -> io.StringIO:
    """Read a text file as a whole, nothing if it is not there."""
    try:
        return io.StringIO(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return io.StringIO()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path.name} cannot be read: {_reason(error)}") from error


def _content(path: str, source: str) -> str:
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{source} names {path}, which cannot be read: {_reason(error)}") from error
    if not content:
        raise Refused(f"{source} names {path}, which is empty")
    return content


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"


def _variables() -> set[str]:
    """Every name that a variable of ours may have."""
    known = [*SETTINGS.values(), *REDIS_PARTS.values()]
    return {
        variable + ending
        for each in known
        for variable in each.variables
        for ending in ("", "_FILE")[: 1 + each.secret]
    }


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f": did you mean {near[0]}?" if near else ""
