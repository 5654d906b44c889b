"""The commands that stay: each runs one role of streamq until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamq.cli.options import directory_option, setting_options
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from streamq.settings import Settings

__all__ = ["recorder", "worker"]

_LOGS = ("log_level", "log_format")


@click.command()
@setting_options("APP", "worker_concurrency", "worker_instances", "queues", "grace_ms", "allow_eviction", *_LOGS)
@click.option("--name", help="Name of this worker in logs and lists; its host and process unless given.")
@click.option("--no-parent", is_flag=True, help="Run one worker in this very process.")
@directory_option
def worker(settings: Settings, name: str | None, directory: Path, *, no_parent: bool) -> int:
    """Run jobs, in as many worker processes as --instances says.

    APP is module:attribute of the application, or the module alone if it holds just one.

    Signals: TERM or INT drains, a second one forces; TSTP takes no new jobs, CONT goes on; USR1 logs what runs;
    to the parent, HUP restarts one worker after another, TTIN and TTOU start one more and one fewer.
    """
    from streamq.loading import check_app_path

    check_app_path(settings.app)
    return _one_worker(settings, name) if no_parent else _workers(settings, name, directory)


def _one_worker(settings: Settings, name: str | None) -> int:
    from streamq import worker as role
    from streamq.loading import load_app
    from streamq.logs import configure

    configure(settings.log_level, settings.log_format)
    return role.main(settings, load_app(settings.app), name=name)


def _workers(settings: Settings, name: str | None, directory: Path) -> int:
    from streamq import parent

    # Of two --name the last one counts; {name} is the one that the parent gives, such as worker.1.
    arguments = ["--name", f"{name}.{{name}}"] if name else []
    return parent.main(settings, settings.app, arguments=arguments, directory=directory)


@click.command()
@setting_options("queues", *_LOGS)
def recorder(settings: Settings) -> int:
    """Bring the status of jobs from Redis to MongoDB."""
    from streamq import recorder as role
    from streamq.logs import configure

    if not settings.history:
        source = settings.sources["history"]
        raise ConfigurationError(f"history is off ({source}): there is nothing to record", hint="start no recorder")
    configure(settings.log_level, settings.log_format)
    return role.main(settings)
