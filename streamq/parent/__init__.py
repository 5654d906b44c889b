"""Start and supervise the roles of one machine.

`main` is `streamq worker -n 4`: copies of one worker. `supervise` runs any set of roles, for `streamq up` and
`streamq dev`. `request` and `follow` are how `streamq ps`, `scale`, `logs`, `restart` and `down` reach a running parent.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from streamq.logs import configure, is_colourful
from streamq.parent.client import follow, request, socket_path
from streamq.parent.output import Output
from streamq.parent.roles import Guardian, Hooks, Pace, Role
from streamq.parent.supervisor import Parent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.settings import Settings

__all__ = [
    "Guardian", "Hooks", "Output", "Pace", "Parent", "Role",
    "child_environment", "follow", "main", "request", "socket_path", "supervise", "worker_role",
]  # fmt: skip


def main(
    settings: Settings,
    app_path: str,
    *,
    arguments: Sequence[str] = (),
    directory: Path | None = None,
    once: bool = False,
) -> int:
    """Run `worker_instances` workers until told to stop.

    Args:
        settings: Those of the workers, too; what came from flags is handed on.
        app_path: `module:attribute` of the application.
        arguments: More words for each worker's command line, of options that are not settings.
        directory: Where the control socket goes; `.streamq` in the current directory unless given.
        once: Whether a worker that ends with exit 0 has done its work, as with `--burst`.

    Returns:
        The exit code: see `Parent.run`.
    """
    return supervise([worker_role(settings, app_path, arguments, once=once)], settings, directory=directory)


def worker_role(settings: Settings, app_path: str, arguments: Sequence[str] = (), *, once: bool = False) -> Role:
    """Return the role of the workers, for a parent of several roles."""
    return Role(
        "worker",
        [sys.executable, "-m", "streamq", "worker", app_path, "--no-parent", "--name", "{name}", *arguments],
        instances=settings.worker_instances,
        grace_ms=settings.grace_ms,
        env=child_environment(settings),
        numbered={"STREAMQ_HEALTH_PORT": settings.health_port} if settings.health_port else {},
        hang_limit_ms=settings.hang_limit_ms,
        spares=settings.warm_spares,
        once=once,
    )


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that hand the parent's settings on to a child.

    A child reads the environment and the files for itself, so these are the settings that came from flags, and the log
    format, which a child cannot know: its output is a pipe, ours may be a terminal.
    """
    flags = {name: getattr(settings, name) for name, source in settings.sources.items() if source.startswith("--")}
    handed_on = {f"STREAMQ_{name.upper()}": _written(value) for name, value in flags.items() if name != "app"}
    if settings.log_format == "auto" and sys.stderr.isatty():
        handed_on["STREAMQ_LOG_FORMAT"] = "human"
    if is_colourful(sys.stderr):
        handed_on["FORCE_COLOR"] = "1"
    return handed_on


def supervise(roles: Sequence[Role], settings: Settings, *, directory: Path | None = None) -> int:
    """Run these roles until told to stop.

    Returns:
        The exit code: see `Parent.run`.
    """
    return asyncio.run(_supervise(roles, settings, directory or Path(".streamq")))


async def _supervise(roles: Sequence[Role], settings: Settings, directory: Path) -> int:
    output = Output()
    configure(settings.log_level, settings.log_format, stream=output.stream_of("parent"))
    hooks = Hooks(guardian=_guardian(settings))
    pace = Pace(beat_ms=settings.beat_ms, renew_after_ms=settings.lease_ms // 3)
    heartbeat = Path(settings.heartbeat_file) if settings.heartbeat_file else None
    try:
        return await Parent(
            roles, directory=directory, hooks=hooks, pace=pace, output=output, heartbeat_file=heartbeat
        ).run()
    finally:
        configure(settings.log_level, settings.log_format)


def _guardian(settings: Settings) -> Guardian:
    """Return what beats and buries for the children: the one place here that knows Redis."""
    from streamq import leases  # heavy, and `streamq ps` does not need it

    return leases.guardian(settings)


def _written(value: object) -> str:
    """Write a setting as a variable holds it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(item) for item in cast("tuple[object, ...]", value))
    return str(value)
