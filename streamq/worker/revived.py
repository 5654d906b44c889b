"""Jobs that have completed and are back: Redis forgot it, in a failover or with the last second of its log.

Their end is in MongoDB when the recorder was quick enough, and then they are not run again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from streamq.clock import from_ms, to_ms
from streamq.logs import event
from streamq.worker.settle import Encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from streamq.history import History, JobStatus
    from streamq.job import Delivery
    from streamq.mongo import Mongo
    from streamq.settings import Settings
    from streamq.worker.run import Caller, RunningJob

__all__ = ["Revived"]

FIRST_REST_S, LONGEST_REST_S = 5.0, 60.0
"""Nobody asks for so long after a question that was not answered; each time twice as long. Then one job asks, and the
others run meanwhile."""
MOST_ASKED = 1_024

log = logging.getLogger("streamq.worker")


class Revived:
    """Asks MongoDB about jobs that may have completed before. It connects with the first question.

    One question is under way at a time; jobs that come meanwhile are asked about together, in the next one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mongo: Mongo | None = None
        self._turn = asyncio.Lock()
        self._questions: set[asyncio.Task[Mapping[str, JobStatus]]] = set()
        self._next: asyncio.Task[Mapping[str, JobStatus]] | None = None
        """The question that has not begun."""
        self._next_ids: list[str] = []
        self._asked: dict[str, asyncio.Task[Mapping[str, JobStatus]]] = {}
        """The questions about jobs that have not started, newest last."""
        self._silent_until = 0.0
        self._failed_at = 0.0
        self._rest_s = 0.0
        """How long it rested last; 0: the last question was answered."""

    def will_start(self, deliveries: Iterable[Delivery]) -> None:
        """Ask about jobs that were read together before the first of them starts."""
        if not self._settings.history or self._rest_s:
            return
        for delivery in deliveries:
            job_id = delivery.id.decode()
            self._asked.pop(job_id, None)
            self._asked[job_id] = self._ask(job_id)
        while len(self._asked) > MOST_ASKED:  # those that went back unrun
            del self._asked[next(iter(self._asked))]

    def guarded(self, call: Caller) -> Caller:
        """Call a handler only if the job has not completed; else its result and its times are what they were."""

        async def guarded(job: RunningJob) -> Any:
            ended = await self._ended(job)
            if ended is None:
                return await call(job)
            event(
                log, logging.WARNING, "job.revived", job_id=ended.id, handler=job.spec.name,
                reason="it has completed, and Redis did not know; it is not run again",
            )  # fmt: skip
            if ended.started_at is not None:
                job.begun_ms = to_ms(ended.started_at)
                job.begun_at = asyncio.get_running_loop().time() - (ended.run_ms or 0) / 1000
            return Encoded(b"", ended.result_error) if ended.result_error else ended.result

        return guarded

    async def _ended(self, job: RunningJob) -> JobStatus | None:
        """Return the status of the job if it has completed; None also if nobody can tell."""
        now, job_id = asyncio.get_running_loop().time(), job.delivery.id.decode()
        question = self._asked.pop(job_id, None)
        if not self._settings.history or now < self._silent_until:
            return None
        if self._rest_s:
            self._silent_until = now + self._rest_s
        question = question or self._ask(job_id)
        await asyncio.wait({question})  # the end of this job must not end the question, which is not for it alone
        known = question.result().get(job_id)
        # One that was enqueued at another time was another job.
        is_same = known is not None and known.enqueued_at == from_ms(job.delivery.enqueued_ms)
        return known if is_same else None

    def _ask(self, job_id: str) -> asyncio.Task[Mapping[str, JobStatus]]:
        if self._next is None:
            self._next_ids = []
            self._next = asyncio.get_running_loop().create_task(self._answer(self._next_ids))
            self._questions.add(self._next)
            self._next.add_done_callback(self._questions.discard)
        self._next_ids.append(job_id)
        return self._next

    async def _answer(self, job_ids: list[str]) -> Mapping[str, JobStatus]:
        """Return which of these jobs have completed; none if that cannot be told."""
        asked_at = asyncio.get_running_loop().time()
        async with self._turn:
            self._next = None
            if self._failed_at >= asked_at:
                return {}
            try:
                known = await self._history().completed(job_ids)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with MongoDB must not fail a job
                self._rest(str(error))
                return {}
            self._silent_until = self._rest_s = 0.0
            return known

    def _rest(self, why: str) -> None:
        self._failed_at = asyncio.get_running_loop().time()
        self._rest_s = min(LONGEST_REST_S, max(FIRST_REST_S, 2 * self._rest_s))
        self._silent_until = self._failed_at + self._rest_s
        event(log, logging.WARNING, "mongodb.silent", f"whether jobs have completed before cannot be told: {why}")

    def _history(self) -> History:
        # Here, for a worker imports no client of MongoDB before it needs one.
        from streamq.history import History
        from streamq.mongo import Mongo, Statuses

        if self._mongo is None:
            self._mongo = Mongo(self._settings.mongodb_url, self._settings.mongodb_database)
        return History(Statuses(self._mongo))

    async def close(self) -> None:
        """Close the connections, if there are any."""
        for question in self._questions:
            question.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)
        if self._mongo is not None:
            await self._mongo.close()
