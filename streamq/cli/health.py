"""`streamq health`: probes for containers, which have no port to ask. It starts often, so it imports next to nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from streamq.errors import ConfigurationError
from streamq.process import HEARTBEAT_LIMIT_S, READY, file_age_s

__all__ = ["health"]

_VARIABLE = "STREAMQ_HEARTBEAT_FILE"


@click.command()
@click.argument("what", type=click.Choice(["live", "ready"]))
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help=f"The heartbeat file.  [env: {_VARIABLE}]"
)
def health(what: str, file: Path | None) -> int:
    """Say whether the worker, cron, recorder or parent here lives, or is ready.

    Reads the heartbeat file that it writes, and asks nobody: an outage of Redis makes it unready, never dead.
    Exit 0 yes, 1 no, 78 no file was named.
    """
    path = file or _configured()
    problem = _problem(path, is_readiness=what == "ready")
    sys.stdout.write(f"{problem or 'ok'}\n")
    return 1 if problem else 0


def _configured() -> Path:
    """Find the file where the worker finds it; the environment alone needs no import of the settings."""
    named = os.environ.get(_VARIABLE)
    if not named:
        from streamq.settings import load

        named = load({}).heartbeat_file
    if not named:
        raise ConfigurationError(
            "no heartbeat file is named",
            hint=f"set {_VARIABLE} for what is asked about and for this command, or use --file",
        )
    return Path(named)


def _problem(path: Path, *, is_readiness: bool) -> str:
    try:
        age_s = file_age_s(path)
        words = path.read_text().strip() if age_s is not None else ""
    except OSError as error:
        return f"the heartbeat file {path} cannot be read: {error.strerror}"
    if age_s is None:
        return f"there is no heartbeat file {path}"
    if age_s > HEARTBEAT_LIMIT_S:
        return f"the last heartbeat was {age_s:.0f} s ago: stuck, or gone"
    return words if is_readiness and words != READY else ""
