"""From the status documents of a run to the figures of its summary. Pure: no I/O, no clock."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamq.job import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ENDED", "Ended", "Report", "first_of_each", "percentiles"]

ENDED = tuple(state.value for state in State if state.is_terminal)
_PERCENTS = (50, 95, 99)
_MOST_REASONS = 5


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended, as MongoDB has it."""

    job_id: str
    user: str
    state: str
    attempt: int
    """The last one."""
    crashes: int
    """How many workers died while they ran it."""
    wait_ms: int | None
    """From the enqueue to the first start."""
    run_ms: int | None
    """Of the last attempt."""
    reasons: tuple[str, ...] = ()
    """Why attempts failed, a line each."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Ended:
        """Read a document of `job_status`."""
        failures = [attempt["error"] for attempt in document.get("attempts", ()) if "error" in attempt]
        return cls(
            job_id=document["_id"],
            user=document.get("user", ""),
            state=document["state"],
            attempt=document.get("attempt", 1),
            crashes=document.get("crashes", 0),
            wait_ms=document.get("wait_ms"),
            run_ms=document.get("run_ms"),
            reasons=tuple(f"{failure.get('type')}: {failure.get('message')}" for failure in failures),
        )


def first_of_each(users: Mapping[str, str], ended: Iterable[Ended]) -> dict[str, Ended]:
    """Choose for each of the users the job that ended first; a later one was made by somebody else."""
    chosen: dict[str, Ended] = {}
    for job in ended:
        if job.user in users:
            chosen.setdefault(job.user, job)
    return chosen


def percentiles(values_ms: Sequence[int]) -> dict[str, float | None]:
    """Return p50, p95 and p99 in seconds, each a value that did occur (nearest rank); None without any."""
    ranked = sorted(values_ms)
    return {f"p{percent}": _ranked(ranked, percent) for percent in _PERCENTS}


def _ranked(ranked: Sequence[int], percent: int) -> float | None:
    return ranked[math.ceil(len(ranked) * percent / 100) - 1] / 1000 if ranked else None


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a run."""

    users: Mapping[str, str]
    """Every user of the run, to the group whose times are told together."""
    jobs: Mapping[str, Ended]
    """User to the job that has ended; who is not in it has lost theirs."""
    duplicates_refused: int
    clicks: int
    """How many users asked again while their job waited."""
    took_s: float

    @property
    def is_good(self) -> bool:
        """Whether every user's job has completed."""
        return len(self._of(State.COMPLETED)) == len(self.users)

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        completed = len(self._of(State.COMPLETED))
        return {
            "completed": completed,
            "failed": len(self.jobs) - completed,
            "lost": len(self.users) - len(self.jobs),
            "retried": sum(job.attempt > 1 for job in self.jobs.values()),
            "duplicates_refused": self.duplicates_refused,
            "wait_s": self._by_group({user: job.wait_ms for user, job in self.jobs.items()}),
            "run_s": self._by_group({user: job.run_ms for user, job in self.jobs.items()}),
        }

    def groups(self) -> dict[str, int]:
        """Return the groups, and how many users each has."""
        return dict(sorted(Counter(self.users.values()).items()))

    def survived(self) -> int:
        """Count the jobs that outlived the death of a worker that ran them."""
        return sum(job.crashes > 0 for job in self.jobs.values())

    def reasons(self) -> list[tuple[str, int]]:
        """Return why attempts failed, the commonest first, and how many did. What differs by user counts as one."""
        counted: Counter[str] = Counter()
        for user, job in self.jobs.items():
            counted.update(reason.replace(user, "…") for reason in job.reasons)
        return counted.most_common(_MOST_REASONS)

    def unfinished(self, most: int = 10) -> list[str]:
        """Name the first users whose job has not completed, and how it ended."""
        bad = {user: self.jobs[user].state if user in self.jobs else "lost" for user in self.users}
        return [f"{user} {state}" for user, state in bad.items() if state != State.COMPLETED][:most]

    def _of(self, state: State) -> list[str]:
        return [user for user, job in self.jobs.items() if job.state == state]

    def _by_group(self, values_ms: Mapping[str, int | None]) -> dict[str, dict[str, float | None]]:
        grouped: defaultdict[str, list[int]] = defaultdict(list)
        for user, value in values_ms.items():
            if value is not None:
                grouped[self.users[user]].append(value)
        return {group: percentiles(grouped[group]) for group in self.groups()}
