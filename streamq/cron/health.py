"""What cron tells of itself: whether the hour is in order, and figures for Prometheus."""

from __future__ import annotations

import hashlib
import hmac
from functools import partial
from typing import TYPE_CHECKING

from streamq import probes
from streamq.probes import Answer, Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from streamq.cron.watch import Watch
    from streamq.settings import Settings

__all__ = ["checks", "serving"]

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def serving(settings: Settings, watch: Watch) -> AbstractAsyncContextManager[None]:
    """Serve the probes and, with the API's token, `/metrics`.

    Raises:
        ConfigurationError: The host is no address of this machine, or the port may not be used.
    """
    pages = {"/metrics": partial(_metrics_page, watch, settings.api_token)}
    return probes.serving("cron", (settings.cron_host, settings.cron_port), partial(checks, watch), pages=pages)


def checks(watch: Watch) -> list[Check]:
    """Tell whether schedules fire, as far as it is known. Asks nobody."""
    return [
        Check("redis", "Redis has not answered for a while" if watch.is_blind else ""),
        Check("schedules", "an alarm of a schedule is raised" if watch.alarms else ""),
    ]


def _metrics_page(watch: Watch, token: str, headers: Mapping[str, str]) -> Answer:
    given = headers.get("authorization", "")
    told = hashlib.sha256(given.removeprefix("Bearer ").encode()).digest()
    known = hashlib.sha256(token.encode()).digest()
    if not token or not given.startswith("Bearer ") or not hmac.compare_digest(told, known):
        return Answer(401, "the API's token is needed\n")
    return Answer(200, "".join(_metrics(watch)), _PROMETHEUS)


def _metrics(watch: Watch) -> Iterator[str]:
    """See https://prometheus.io/docs/instrumenting/exposition_formats/."""
    conditions = watch.conditions.values()
    yield from _family(
        "streamq_schedule_alarm", "Whether an alarm of a schedule is raised.",
        [
            (f'schedule="{each.schedule}",kind="{kind}"', float(any(alarm.kind == kind for alarm in each.alarms)))
            for each in conditions
            for kind in ("not_fired", "unfinished", "stale_users")
        ],
    )  # fmt: skip
    yield from _family(
        "streamq_schedule_next_timestamp_seconds", "When a schedule fires next.",
        [(f'schedule="{each.schedule}"', each.next_ms / 1000) for each in conditions if each.next_ms is not None],
    )  # fmt: skip
    yield from _family(
        "streamq_schedule_fired_timestamp_seconds", "The newest fire time that was begun.",
        [(f'schedule="{each.schedule}"', each.fired_ms / 1000) for each in conditions if each.fired_ms is not None],
    )  # fmt: skip
    yield from _family(
        "streamq_fanout_users", "Users that the newest fan-out has handled.",
        [(f'schedule="{each.schedule}"', float(each.users)) for each in conditions],
    )  # fmt: skip
    yield from _family(
        "streamq_fanout_progress", "How much of the newest fan-out is done, by the size of the one before.",
        [(f'schedule="{each.schedule}"', each.progress) for each in conditions if each.progress is not None],
    )  # fmt: skip


def _family(name: str, about: str, samples: list[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {about}\n# TYPE {name} gauge\n"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value:.15g}\n"
