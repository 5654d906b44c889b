"""Which processes `streamq dev` keeps alive, and what they are told."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from streamq.parent import Role, child_environment, worker_role

if TYPE_CHECKING:
    from streamq.app import StreamQ
    from streamq.dev.ground import Servers
    from streamq.dev.plan import Plan
    from streamq.settings import Settings

__all__ = ["roles"]


def roles(plan: Plan, app: StreamQ, servers: Servers) -> list[Role]:
    """Return the roles of a plan: workers, API, recorder if there is a history, and cron if there is a schedule.

    With `once` there is no cron: the round fires the schedule itself, and the full hour coming in the middle of it would
    only confuse its figures.
    """
    settings = app.settings
    program = [sys.executable, "-m", "streamq"]
    wanted = [worker_role(settings, plan.app_path), Role("api", [*program, "api", plan.app_path], overlap=False)]
    if settings.history:
        wanted.append(Role("recorder", [*program, "recorder"]))
    if app.cron_entries and not plan.once:
        wanted.append(Role("cron", [*program, "cron", plan.app_path]))
    environment = child_environment(settings) | _found(settings, servers)
    return [dataclasses.replace(role, env=environment) for role in wanted]


def _found(settings: Settings, servers: Servers) -> dict[str, str]:
    """Return what the processes cannot read for themselves. In the environment, which other users cannot read."""
    found = {
        "STREAMQ_API_PORT": str(settings.api_port),
        "STREAMQ_API_TOKEN": settings.api_token,
        "STREAMQ_QUEUES": ",".join(settings.queues),
        "STREAMQ_PARTITIONS": ",".join(settings.partitions),
    }
    if "redis" in servers.embedded:
        found["STREAMQ_REDIS_URL"] = settings.redis_url
    if "mongodb" in servers.embedded:
        found["STREAMQ_MONGODB_URL"] = settings.mongodb_url
    return found
