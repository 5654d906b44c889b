"""The command line: arguments in, exit codes out.

Starting fast is part of the interface: this module and `frame` import click and the standard library alone. What a
command needs is imported when that command is run.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from streamq import __version__
from streamq.cli.failures import report
from streamq.cli.frame import Lazy, LazyGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main", "run"]

COMMANDS = {
    "Run": {
        "dev": Lazy("streamq.cli.roles:dev", "Run an application with everything it needs, on this machine."),
        "up": Lazy("streamq.cli.roles:up", "Run workers, cron, recorder and API under one parent."),
        "worker": Lazy("streamq.cli.roles:worker", "Run jobs, in as many worker processes as --instances says."),
        "cron": Lazy("streamq.cli.roles:cron", "Fire schedules: each time, one job for every user."),
        "recorder": Lazy("streamq.cli.roles:recorder", "Bring the status of jobs from Redis to MongoDB."),
        "api": Lazy("streamq.cli.roles:api", "Answer questions about jobs over HTTP, and take orders."),
    },
    "Work": {
        "enqueue": Lazy("streamq.cli.enqueue:enqueue", "Enqueue a job of HANDLER."),
        "schedule": Lazy(
            "streamq.cli.schedules:schedule", "See and change the schedules of an application, and fire one now."
        ),
    },
    "Move from another system": {
        "import": Lazy("streamq.cli.importing:import_", "Take over the jobs of another system."),
        "rollout": Lazy("streamq.cli.rollout:rollout", "Say how far the move from the old system is."),
        "rollback": Lazy(
            "streamq.cli.rollout:rollback", "Give back to the old system, and export what is left as NDJSON."
        ),
    },
    "Look and tell": {
        "status": Lazy("streamq.cli.status:status", "Say on one screen whether all is well."),
        "queues": Lazy("streamq.cli.queues:queues", "See, pause, resume, purge and divide queues."),
        "block": Lazy(
            "streamq.cli.blocks:block", "Hold back the jobs of HANDLER, or of one user, in all queues; others go on."
        ),
        "unblock": Lazy("streamq.cli.blocks:unblock", "Let the jobs of HANDLER, or of one user, go again."),
        "blocks": Lazy("streamq.cli.blocks:blocks", "List what is blocked, until when, why and by whom."),
        "workers": Lazy("streamq.cli.queues:workers", "See the workers of all machines, and tell them what to do."),
        "fairness": Lazy(
            "streamq.cli.fairness:fairness",
            "Show from which run time on jobs are slow, how lanes share the slots, and who waits at gates or for a turn.",
        ),
        "jobs": Lazy("streamq.cli.jobs:jobs", "See and cancel single jobs."),
        "explain": Lazy(
            "streamq.cli.explain:explain", "Say who holds a dedup key, so why a job was or was not enqueued."
        ),
        "dead": Lazy(
            "streamq.cli.dead:dead", "See the jobs that will not be tried again; try them again, or delete them."
        ),
    },
    "This machine": {
        "ps": Lazy("streamq.cli.machine:ps", "List the processes that the parent here runs."),
        "scale": Lazy("streamq.cli.machine:scale", "Run so many processes of a role."),
        "logs": Lazy("streamq.cli.machine:logs", "Show what the processes have printed."),
        "restart": Lazy("streamq.cli.machine:restart", "Restart the processes of a role."),
        "health": Lazy(
            "streamq.cli.health:health", "Say whether the worker, cron, recorder or parent here lives, or is ready."
        ),
        "down": Lazy("streamq.cli.machine:down", "Stop the parent and everything that it runs."),
    },
    "Set up": {
        "token": Lazy("streamq.cli.tokens:token", "Make, list and revoke the tokens of the API."),
        "config": Lazy("streamq.cli.config:config", "Show and check the settings."),
        "migrate": Lazy(
            "streamq.cli.migrate:migrate",
            "Show what has to change in MongoDB for this version, and change it with --apply.",
        ),
        "plan": Lazy("streamq.cli.plan:plan", "Say how many workers and how much Redis a number of users takes."),
        "doctor": Lazy("streamq.cli.status:doctor", "Check the servers and what runs on them, and say what to do."),
    },
}
"""Section of the help to command to what it is. A new command is a line here and a function there."""

_EPILOG = """\b
Exit codes:
  0    done; also after a clean stop on SIGTERM or Ctrl-C
  1    the answer is no: unhealthy, failed, not found
  2    wrong command line
  65   bad input: a file, an argument, a job that cannot be enqueued
  69   Redis or MongoDB cannot be reached, or a port is in use
  70   an error inside streamq
  75   not now: the queue is full, or not confirmed; try again
  78   bad configuration
  130  stopped by a second Ctrl-C
"""


@click.group(
    cls=LazyGroup,
    sections=COMMANDS,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="streamq %(version)s")
def streamq() -> None:
    """Run jobs from Redis Streams, with their status in MongoDB.

    Settings come from options, the environment, .env, and pyproject.toml [tool.streamq], in this order:
    streamq config show.
    """


def main() -> None:
    """Run the command line of this process, and end it with the exit code."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit code. Whatever went wrong has been told: on standard error, or with `--json` on standard output.
    """
    try:
        code = streamq.main(args=list(arguments), prog_name="streamq", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001  the outermost frame: whatever happened gets its words and code
        return report(error, as_json="--json" in arguments)
    return code if isinstance(code, int) else 0
