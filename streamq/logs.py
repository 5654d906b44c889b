"""What streamq says while it runs: fixed event names with fields, under the one logger `streamq`.

A library must not decide how a program logs: nothing here touches the root logger, and nothing is printed until a
program of ours calls `configure`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HumanFormatter", "JsonFormatter", "LogFormat", "LogLevel",
    "configure", "event", "is_colourful", "masked", "worker_started",
]  # fmt: skip

LogFormat = Literal["auto", "human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_ROOT = logging.getLogger("streamq")
_ROOT.addHandler(logging.NullHandler())

_EVENT_NAME = re.compile(r"[a-z_]+(\.[a-z_]+)+")
# A password may hold a slash that nobody escaped; what looks like a port and a path is left alone.
_PASSWORD = re.compile(r"(://[^\s:/?#@]*:)(?!\d{1,5}[/?#])\S*@")
_SECRET_QUERY = re.compile(r"([?&][^=&\s]*(?:password|secret|token)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f]+")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "fields", "text"}
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}


def masked(text: str) -> str:
    """Hide what no log and no screen may show: passwords in URLs, and query values that name a secret."""
    return _SECRET_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def event(logger: logging.Logger, level: int, name: str, /, text: str = "", **fields: Any) -> None:
    """Log that something happened, under a fixed, dotted name such as `job.retrying`: people search for it.

    The text is what a person reads in place of the name and the fields; the JSON format has all three. Fields that
    are points in time or durations carry their unit in their names.
    """
    logger.log(level, name, extra={"fields": fields, "text": text}, stacklevel=2)


def worker_started(logger: logging.Logger, worker: str, concurrency: int) -> None:
    """Log the first line of a worker, in the words that the programs around it look for."""
    text = f"[Worker:{worker}] Worker started with concurrency: {concurrency}"
    event(logger, logging.INFO, "worker.started", text, worker=worker, concurrency=concurrency)


def configure(level: str = "info", fmt: str = "auto", *, stream: TextIO | None = None) -> None:
    """Print the lines of streamq, and of streamq only. The last call holds; a repeat adds no second copy.

    The format `auto` is human on a terminal, else JSON: what reads a pipe is a program. The lines go to standard error
    unless told otherwise, so that data stays alone on standard output.
    """
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    human = fmt == "human" or (fmt == "auto" and out.isatty())
    handler.setFormatter(HumanFormatter(colour=is_colourful(out)) if human else JsonFormatter())
    for old in list(_ROOT.handlers):
        _ROOT.removeHandler(old)
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level.upper())
    _ROOT.propagate = False


def is_colourful(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether colour belongs on this stream: see https://no-color.org and FORCE_COLOR."""
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or stream.isatty()


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `event` is the fixed name, or `log` for free text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line = {"ts": _timestamp(record), "level": record.levelname.lower(), "logger": record.name}
        line |= _named(record) | _fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return masked(json.dumps(line, ensure_ascii=False, default=str))


class HumanFormatter(logging.Formatter):
    """`03:04:05.678 WARNING job.retrying queue=users attempt=2`, in local time."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line for a person, and the traceback below it."""
        text = getattr(record, "text", "")
        told = text or " ".join([record.getMessage(), *_pairs(_fields(record))])
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        line = f"{clock} {self._level(record.levelname)} {told}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return masked(line)

    def _level(self, name: str) -> str:
        colour = _COLOURS.get(name) if self._colour else None
        return f"\x1b[{colour}m{name:<7}\x1b[0m" if colour else f"{name:<7}"


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _named(record: logging.LogRecord) -> dict[str, Any]:
    """Tell a fixed name from free text, and keep the text that a person would have read."""
    message, text = record.getMessage(), getattr(record, "text", "")
    if not _EVENT_NAME.fullmatch(message):
        return {"event": "log", "message": message}
    return {"event": message, "message": text} if text else {"event": message}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Collect what came with the record, whether by `event` or by the standard `extra=`."""
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return extra | getattr(record, "fields", {})


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    """Write fields as key=value. A value that could forge a line or a second field is quoted."""
    shown = {key: str(value) for key, value in fields.items()}
    return [
        f"{key}={value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)}"
        for key, value in shown.items()
    ]
