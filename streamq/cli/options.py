"""Options that commands share. What the table of settings knows about a setting becomes its option.

Imported by the modules of the commands, never by the frame: it costs the import of the settings.
"""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args
from urllib.parse import unquote, urlsplit

import click
from msgspec import inspect

from streamq.cli.output import Output
from streamq.errors import BrokerUnavailable, HistoryUnavailable, Unavailable
from streamq.settings import Spec, load, spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamq.settings import Settings

__all__ = ["directory_option", "output_options", "seconds", "setting_options"]

_R = TypeVar("_R")

_SHORT = {"worker_concurrency": "-c", "worker_instances": "-n", "queues": "-q"}
_SERVERS = ("redis_url", "mongodb_url")


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str) -> int:
    """Read seconds from the command line, also as 15m, 2h or 7d, as whole milliseconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        ms = float(number) * 1000 * _UNITS[unit]
        if 0 <= ms < math.inf:
            return int(ms)
    except ValueError:
        pass
    raise click.BadParameter(f"{text!r} is not a number of seconds, 0 or more; or as in 15m, 2h, 7d")


_TYPES = {"grace_ms": seconds}
"""Settings that are written otherwise on the command line than elsewhere."""


def setting_options(
    *names: str, servers: bool = True, short: bool = True
) -> Callable[[Callable[..., _R]], Callable[..., _R]]:
    """Give a command the options of these settings, and the loaded `Settings` as its first argument.

    The name `APP` makes of the setting `app` the optional first argument, instead of an option. What was given and not
    used is told on standard error.

    Args:
        names: Settings.
        servers: Whether to add the addresses of the servers.
        short: Whether options get their one letter; not where `-q` is taken.
    """
    chosen = [*names, *_SERVERS] if servers else list(names)

    def decorate(command: Callable[..., _R]) -> Callable[..., _R]:
        @functools.wraps(command)
        def with_settings(**given: Any) -> _R:
            flags = {name.lower(): given.pop(name.lower()) for name in chosen}
            settings = _loaded({name: value for name, value in flags.items() if value not in (None, ())})
            try:
                return command(settings, **given)
            except Unavailable as error:
                raise _with_source(error, settings) from error

        decorated: Callable[..., _R] = with_settings
        for name in reversed(chosen):
            decorated = _parameter(name, short=short)(decorated)
        return decorated

    return decorate


def _loaded(flags: dict[str, Any]) -> Settings:
    settings = load(flags)
    for warning in settings.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return settings


def _with_source(error: Unavailable, settings: Settings) -> Unavailable:
    """Add where the address came from: it is what has to be corrected if it is wrong."""
    if not isinstance(error, BrokerUnavailable | HistoryUnavailable):
        return error
    setting = "redis_url" if isinstance(error, BrokerUnavailable) else "mongodb_url"
    host = urlsplit(str(getattr(settings, setting))).netloc.rpartition("@")[2]
    if unquote(host) not in str(error):
        return error  # the application has an address of its own
    source = settings.sources[setting]
    told = (
        f"no address was given: set {_variable(spec(setting))}" if source == "default" else f"the address is {source}"
    )
    return type(error)(f"{error}\n{told}", hint=error.hint)


def _parameter(name: str, *, short: bool) -> Callable[[Any], Any]:
    if name == "APP":
        return click.argument("app", required=False)
    known = spec(name)
    help_text = f"{known.description[0].upper()}{known.description[1:]}.  [env: {_variable(known)}]"
    flag = "--app" if name == "app" else known.flag
    if isinstance(known.kind, inspect.BoolType):
        return click.option(f"{flag}/{flag.replace('--', '--no-', 1)}", name, default=None, help=help_text)
    flags = [_SHORT[name], flag] if short and name in _SHORT else [flag]
    many = isinstance(known.kind, inspect.VarTupleType)
    if many:
        help_text = help_text.replace("comma separated", "repeat for several")
    return click.option(*flags, name, type=_click_type(known), multiple=many, help=help_text)


def _variable(known: Spec) -> str:
    """The name that the original set-up used, where there is one: it is the one that people know."""
    return known.variables[min(1, len(known.variables) - 1)]


def _click_type(known: Spec) -> Any:
    match known.kind:
        case _ if known.name in _TYPES:
            return _TYPES[known.name]
        case inspect.IntType(ge=low, le=high):
            return click.IntRange(low, high)
        case inspect.FloatType(ge=low, le=high):
            return click.FloatRange(low, high)
        case inspect.LiteralType():
            return click.Choice(get_args(known.annotated.__origin__), case_sensitive=False)  # in the order of the table
        case _:
            return None


_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def output_options(command: Callable[..., _R]) -> Callable[..., _R]:
    """Give a command `--json` and `-q`, and the resulting `Output` as the argument `out`."""

    @functools.wraps(command)
    def with_output(*args: Any, as_json: bool, quiet: bool, **given: Any) -> _R:
        return command(*args, out=Output(as_json=as_json, quiet=quiet), **given)

    quiet = click.option("--quiet", "-q", is_flag=True, help="Print the names only, one a line.")
    return cast("Callable[..., _R]", _json_option(quiet(with_output)))


directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".streamq"),
    show_default=True,
    help="Where a parent and the commands that speak to it meet.",
)
