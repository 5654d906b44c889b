"""From the users of a page to jobs, fast: what `queue.draft` would give for each, without what is the same for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from streamq.broker.partition import NewJob
from streamq.codec import gates_first
from streamq.dedup import Dedup, dedup_key
from streamq.keys import lane_digit, slow_digit
from streamq.lanes import NO_HINT, HintJudge, whose
from streamq.schedules.occurrence import Occurrence, Schedule, user_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.schedules.pages import User

__all__ = ["JobMaker"]

_LONGEST_KEY = 512
_USER = object()
"""Stands for the user among the parts of a dedup key."""


class JobMaker:
    """Makes the jobs of one occurrence."""

    def __init__(
        self,
        schedule: Schedule,
        occurrence: Occurrence,
        begun_ms: int,
        *,
        max_payload_bytes: int,
        spread: bool = True,
        lanes: bool = True,
    ) -> None:
        """Work out what all its jobs have in common.

        Args:
            schedule: Whose handler runs.
            occurrence: Whose jobs they are.
            begun_ms: When the fan-out was begun.
            max_payload_bytes: The largest envelope.
            spread: Whether the schedule's `scatter` counts.
            lanes: Whether costs count.
        """
        spec = schedule.entry.handler
        self._schedule = schedule
        self._is_spread = spread and schedule.scatter_ms > 0
        self._base_ms = schedule.base_ms(occurrence, begun_ms)
        self._prefix = f"{occurrence.name}:"
        self._digit = lane_digit(spec.priority)
        self._head = spec.head + b',"a":['
        self._owner = whose(spec.name, "", None)
        self._gates = spec.gates
        self._judge = HintJudge() if lanes else None
        deadline_ms = schedule.deadline_ms(occurrence, begun_ms)
        self._tail = b',"x":%d,"o":"%s"}' % (deadline_ms, occurrence.name.encode())
        self._max_payload_bytes = max_payload_bytes
        self._handler = spec.name
        self._rule = spec.dedup
        parameters = spec.signature.parameters
        # The user is the first argument; the others have the defaults that go into the dedup key.
        first = next(iter(parameters), None)
        self._parts = [_USER if name == first else parameters[name].default for name in (spec.dedup or Dedup()).by]

    def make(self, users: Sequence[User], now_ms: int) -> tuple[list[NewJob], list[str]]:
        """Return a job for each user, and why some cannot have one."""
        jobs: list[NewJob] = []
        refused: list[str] = []
        for user in users:
            if isinstance(user, dict):
                refused.append(user["refused"])
                continue
            cost = None
            if isinstance(user, list):
                user, cost = user
            text = user if isinstance(user, str) else str(user)
            job = self._job(user, text, cost)
            reason = self._objection(text, job)
            if reason:
                refused.append(reason)
                continue
            if self._is_spread:
                job.delay_ms = max(0, self._base_ms + self._schedule.spread_ms(text) - now_ms)
            jobs.append(job)
        self._heed_hints(jobs)
        return jobs, refused

    def _heed_hints(self, jobs: Sequence[NewJob]) -> None:
        """Put jobs into the slow lane whose cost stands out; what was measured overrules it where it is known."""
        if self._judge is not None and any(job.whose[0] != NO_HINT for job in jobs):
            for job, is_slow in zip(jobs, self._judge.judge([job.whose for job in jobs]), strict=True):
                if is_slow:
                    job.digit = slow_digit(job.digit)

    def _job(self, user: str | int, text: str, cost: float | None) -> NewJob:
        word = text if text.isascii() and text.isalnum() else user_word(text)
        dumped = orjson.dumps(user)
        key = dumped if user is text else b'"%s"' % dumped
        head = self._head if self._gates is None else gates_first(self._gates.of_job(text), self._head)
        envelope = head + dumped + b'],"u":' + key
        owner = self._owner + text
        if cost is not None:
            envelope += b',"c":' + orjson.dumps(cost)
            if self._judge is not None:
                owner = whose(self._handler, text, cost)
        rule = self._rule
        if rule is None:
            return NewJob(self._prefix + word, self._digit, envelope + self._tail, whose=owner)
        dedup = rule.key
        if dedup is None:
            dedup = dedup_key(self._handler, [text if part is _USER else part for part in self._parts])
        envelope += b',"g":' + orjson.dumps(dedup)
        if rule.letter:
            envelope += b',"gs":"%s"' % rule.letter.encode()
        if rule.window_ms:
            envelope += b',"gw":%d' % rule.window_ms
        return NewJob(
            self._prefix + word, self._digit, envelope + self._tail, rule.wait_ms, dedup, rule.word,
            whose=owner,
        )  # fmt: skip

    def _objection(self, text: str, job: NewJob) -> str:
        """Say what is wrong with a job, if something is; the limits are those of any other job."""
        if not text or len(text) > _LONGEST_KEY:
            return f"a user id has 1 to {_LONGEST_KEY} characters, and one has {len(text)}"
        if job.dedup is not None and len(job.dedup) > _LONGEST_KEY:
            return f"the dedup key of user {text[:60]!r} has {len(job.dedup)} characters; at most {_LONGEST_KEY} are allowed"
        if len(job.envelope) > self._max_payload_bytes:
            return f"the job of user {text[:60]!r} is {len(job.envelope):,} bytes; at most {self._max_payload_bytes:,} are allowed"
        return ""
