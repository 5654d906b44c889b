"""The commands that stay: each runs one role of streamq until it is told to stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import directory_option, setting_options
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from streamq.settings import Settings

__all__ = ["api", "cron", "dev", "recorder", "up", "worker"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_LOGS = ("log_level", "log_format")
_CARE = ("max_jobs", "max_memory_mb", "health_host", "health_port", "heartbeat_file")
"""How workers are looked after."""
_API = ("api_host", "api_port", "api_token", "api_behind_proxy", "api_tls_certificate", "api_tls_key")


@click.command()
@setting_options(
    "APP",
    "worker_concurrency",
    "worker_instances",
    "warm_spares",
    "queues",
    "grace_ms",
    "allow_eviction",
    *_CARE,
    *_LOGS,
)
@click.option("--name", help="Name of this worker in logs and lists; its host and process unless given.")
@click.option("--no-parent", is_flag=True, help="Run one worker in this very process.")
@directory_option
def worker(settings: Settings, name: str | None, directory: Path, *, no_parent: bool) -> int:
    """Run jobs, in as many worker processes as --instances says.

    APP is module:attribute of the application, or the module alone if it holds just one.

    Signals: TERM or INT drains, a second one forces; TSTP takes no new jobs, CONT goes on; USR1 logs what runs;
    to the parent, HUP restarts one worker after another, TTIN and TTOU start one more and one fewer.

    With --health-port a worker answers /livez, /readyz and /healthz; worker.2 of a parent does so on the next port.
    """
    return _one_worker(settings, name) if no_parent else _workers(settings, name, directory)


def _one_worker(settings: Settings, name: str | None) -> int:
    from msgspec import structs

    from streamq import worker as role
    from streamq.loading import load_with_settings
    from streamq.parentlink import wait_for_place

    app, settings = load_with_settings(settings)
    _configure_logs(settings)
    if (place := wait_for_place()) is not None:
        name = name.replace("{name}", place.name) if name else place.name
        numbers = {variable.removeprefix("STREAMQ_").lower(): number for variable, number in place.numbers.items()}
        app.settings = settings = structs.replace(settings, **numbers)
    return role.main(settings, app, name=name)


def _configure_logs(settings: Settings) -> None:
    from streamq.logs import configure

    configure(settings.log_level, settings.log_format)


def _workers(settings: Settings, name: str | None, directory: Path) -> int:
    from streamq import parent
    from streamq.loading import load_with_settings

    # The parent beats for its workers, so it must know their Redis and their queues as they do.
    _, settings = load_with_settings(settings)
    # Of two --name the last one counts; {name} is the one that the parent gives, such as worker.1.
    arguments = ["--name", f"{name}.{{name}}"] if name else []
    return parent.main(settings, settings.app, arguments=arguments, directory=directory)


@click.command()
@setting_options(
    "APP", "queues", "mongodb_database", "outbox_max", "recorder_host", "recorder_port", "heartbeat_file", *_LOGS
)
def recorder(settings: Settings) -> int:
    """Bring the status of jobs from Redis to MongoDB.

    With APP it works on all queues of the application, else on those of --queue.
    """
    from streamq import recorder as role

    settings = _with_app(settings)
    if not settings.history:
        source = settings.sources["history"]
        raise ConfigurationError(f"history is off ({source}): there is nothing to record", hint="start no recorder")
    _configure_logs(settings)
    return role.main(settings)


def _with_app(settings: Settings) -> Settings:
    """Ask the application, where one is named, what it says about settings and queues."""
    if not settings.app:
        return settings
    from streamq.loading import load_with_settings

    return load_with_settings(settings)[1]


@click.command()
@setting_options("APP", "mongodb_database", "history", "cron_host", "cron_port", "heartbeat_file", *_LOGS)
@click.option(
    "--now", is_flag=True, help="Fire the current occurrence of each schedule, and end. A repeat adds nothing."
)
@click.option("--dry-run", is_flag=True, help="Count the users that --now would enqueue, and write nothing.")
@click.option("--once", is_flag=True, help="Do what is due and what was missed, and end.")
@click.option("--list", "is_list", is_flag=True, help="Print when each schedule fires next, and end.")
@click.option(
    "--next", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="With --list: how often."
)
@click.option("--schedule", metavar="NAME", help="Only this schedule.")
def cron(settings: Settings, schedule: str | None, count: int, *, is_list: bool, **chosen: bool) -> int:
    """Fire schedules: each time, one job for every user.

    Any number may run; an occurrence is fired once. Exit 75 if --now was stopped before the end: run it again to go on.
    """
    from streamq import cron as role
    from streamq.loading import load_with_settings

    if [is_list, *chosen.values()].count(True) > 1:
        raise click.UsageError("--now, --dry-run, --once and --list exclude each other")
    app, settings = load_with_settings(settings)
    _configure_logs(settings)
    return role.main(settings, app, schedule=schedule, list_next=count if is_list else 0, **chosen)


@click.command()
@setting_options("APP", "queues", "mongodb_database", "history", *_API, *_LOGS)
@click.option("--record", is_flag=True, help="Run the recorder in this process as well.")
def api(settings: Settings, *, record: bool) -> int:
    """Answer questions about jobs over HTTP, and take orders.

    With APP it knows all queues of the application, its handlers and its schedules, else the queues of --queue.
    """
    from streamq import api as role

    app = None
    if settings.app:
        from streamq.loading import load_with_settings

        app, settings = load_with_settings(settings)
    _configure_logs(settings)
    if not record:
        return role.main(settings, app)
    from streamq.recorder import beside

    with beside(settings):
        return role.main(settings, app)


@click.command()
@setting_options(
    "APP", "worker_concurrency", "worker_instances", "warm_spares", "queues", "grace_ms", *_CARE, *_API, *_LOGS
)
@directory_option
def up(settings: Settings, directory: Path) -> int:
    """Run workers, cron, recorder and API under one parent.

    The servers are those of the settings. streamq ps, scale, logs, restart and down speak to the parent.
    """
    from streamq import parent
    from streamq.loading import load_with_settings

    _, settings = load_with_settings(settings)
    environment = parent.child_environment(settings)

    def role(name: str, *, overlap: bool = True) -> parent.Role:
        return parent.Role(
            name, [sys.executable, "-m", "streamq", name, settings.app], env=environment, overlap=overlap
        )

    roles = [parent.worker_role(settings, settings.app), role("cron"), role("api", overlap=False)]
    if settings.history:
        roles.append(role("recorder"))
    return parent.supervise(roles, settings, directory=directory)


@click.command()
@setting_options("worker_concurrency", "worker_instances", "queues", "api_host", "api_port", "api_token", *_LOGS)
@click.argument("app", required=False)
@click.option("--demo", is_flag=True, help="Run the example application, on users that are made up first.")
@click.option("--users", type=click.IntRange(min=0), metavar="N", help="How many users the demo has.  [default: 1000]")
@click.option("--users-from", type=_FILE, metavar="FILE", help="Their ids instead: CSV or NDJSON.")
@click.option(
    "--once", is_flag=True, help="Fire the schedule now, print the figures when every job has ended, and end."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON document.")
@directory_option
def dev(settings: Settings, app: str | None, **chosen: Any) -> int:
    """Run an application with everything it needs, on this machine.

    Starts Redis and MongoDB unless their addresses are set, workers, cron, recorder and API. Ctrl-C stops all of it.
    """
    from streamq import dev as stage

    return stage.main(settings, app, **chosen)
