"""What a person, or a program, is told when a command fails, and the exit code that goes with it."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import NamedTuple

import click

from streamq.errors import StreamQError

__all__ = ["report"]

FORCED = 130
INTERNAL = 70


class _Failure(NamedTuple):
    type: str
    message: str
    hint: str
    exit_code: int


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell what went wrong, and return the exit code.

    Raises:
        BaseException: The error itself, if it is none that ends a command, such as SystemExit.
    """
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return FORCED
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    if isinstance(error, click.ClickException) and not as_json:
        error.show()
        return error.exit_code
    if not isinstance(error, Exception):
        raise error
    if os.environ.get("STREAMQ_DEBUG"):
        traceback.print_exception(error)
    failure = _failure(error)
    _tell_program(failure) if as_json else _tell_person(failure)
    return failure.exit_code


def _failure(error: Exception) -> _Failure:
    name = type(error).__name__
    match error:
        case StreamQError():
            return _Failure(name, str(error), error.hint, error.exit_code)
        case click.ClickException():
            return _Failure(name, error.format_message(), "", error.exit_code)
        case _:
            message = f"streamq met something unexpected: {name}: {error}\n{_place(error)}"
            return _Failure(name, message, "STREAMQ_DEBUG=1 in the environment shows the whole traceback", INTERNAL)


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}: {frame.line}"


def _tell_program(failure: _Failure) -> None:
    sys.stdout.write(json.dumps({"error": failure._asdict()}, ensure_ascii=False) + "\n")


def _tell_person(failure: _Failure) -> None:
    lines = _block("error: ", failure.message) + _block("  try: ", failure.hint)
    sys.stderr.write("\n".join([*lines, f"exit {failure.exit_code}"]) + "\n")


def _block(label: str, text: str) -> list[str]:
    """Put a label before the first line, and the others under it."""
    if not text:
        return []
    first, *rest = text.splitlines()
    return [label + first, *(" " * len(label) + line for line in rest)]
