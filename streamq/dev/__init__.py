"""`streamq dev`: everything that an application needs, on this machine, with one command.

Servers out of wheels unless the settings name others, and one parent with workers, cron, recorder and API. What it has
started it stops; what was running stays.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from streamq.dev.plan import Plan, chosen_app, demo_users
from streamq.dev.stage import run

if TYPE_CHECKING:
    from streamq.settings import Settings

__all__ = ["main"]


def main(  # noqa: PLR0913 - the options of the command, one by one
    settings: Settings,
    app_path: str | None = None,
    *,
    demo: bool = False,
    users: int | None = None,
    users_from: Path | None = None,
    once: bool = False,
    as_json: bool = False,
    port: int | None = None,
    directory: Path | None = None,
) -> int:
    """Run an application, or the demo, until Ctrl-C; with `once` until one round of its schedule is done.

    Args:
        settings: Where they name no server, an embedded one is started.
        app_path: `module:attribute` of the application; the setting `app` unless given.
        demo: Run the demo instead, on data that is made up first.
        users: How many users the demo has; 1,000 unless given.
        users_from: A file with the ids of the demo's users, CSV or NDJSON; nothing is created unless every line is good.
        once: Fire the schedule now, wait until every user's job has ended, print the figures, and end.
        as_json: Print the figures as one JSON document, and all else to standard error.
        port: Of the API; the setting `api_port` unless given, and 0 takes any that is free.
        directory: For data, token and control socket; `.streamq` in the current folder unless given.

    Returns:
        0 after a clean stop, and with `once` if every job has completed. 1 if one failed or was lost, or the round was
        interrupted. 130 when forced by a second Ctrl-C. A child's own code if a role could not be started.

    Raises:
        BadInput: The users cannot be used; nothing was started.
        ConfigurationError: Arguments contradict each other, or a server is not what streamq needs;
            what was started is stopped again.
        Unavailable: The port is in use, or a server that the settings name cannot be reached.
    """
    ids = demo_users(users, users_from, demo=demo)
    path = chosen_app(settings, app_path, demo=demo)
    plan = Plan(settings, path, directory or Path(".streamq"), ids, port, once, as_json)
    return asyncio.run(run(plan))
