"""What `streamq dev` was asked to do, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamq.errors import BadInput, ConfigurationError
from streamq.loading import check_app_path

if TYPE_CHECKING:
    from pathlib import Path

    from streamq.settings import Settings

__all__ = ["DEMO_APP", "DEMO_USERS", "Plan", "chosen_app", "demo_users"]

DEMO_APP = "streamq.demo:app"
DEMO_USERS = 1_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A run of `streamq dev`."""

    settings: Settings
    app_path: str
    directory: Path
    users: tuple[str, ...] | None = None
    """Ids of the demo's users; None for another application."""
    port: int | None = None
    once: bool = False
    as_json: bool = False

    @property
    def fires(self) -> bool:
        """Whether the schedule fires at once. The demo is there to be seen at work, not at the next full hour."""
        return self.once or self.users is not None


def chosen_app(settings: Settings, app_path: str | None, *, demo: bool) -> str:
    """Return the name of the application to run.

    Raises:
        ConfigurationError: None was named, or one beside the demo, or it is none that can be.
    """
    if demo and app_path and app_path != DEMO_APP:
        raise ConfigurationError(
            f"--demo runs an application of its own, and {app_path} was named too", hint="leave out one of the two"
        )
    path = DEMO_APP if demo else app_path or settings.app
    if not path:
        raise ConfigurationError(
            "no application is named",
            hint="name yours, as in streamq dev shop.tasks:app, or see one: streamq dev --demo",
        )
    check_app_path(path)
    return path


def demo_users(count: int | None, path: Path | None, *, demo: bool) -> tuple[str, ...] | None:
    """Return the ids of the demo's users, made up or out of a file; None without the demo.

    Raises:
        BadInput: They cannot be used, or there is no demo that they could be for.
    """
    if not demo:
        if count is not None or path is not None:
            raise BadInput("--users and --users-from are for the demo", hint="add --demo")
        return None
    if count is not None and path is not None:
        raise BadInput("--users and --users-from both say who the users are", hint="leave out one of the two")
    from streamq.demo.users import made_up, read_ids  # the demo is not for those who run their own

    return tuple(read_ids(path) if path is not None else made_up(DEMO_USERS if count is None else count))
