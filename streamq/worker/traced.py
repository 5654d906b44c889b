"""A span around each run and its figures, where the application has set up OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamq import tracing
from streamq.job import Cancel, Dead, Retrying, Snooze
from streamq.worker.run import Decided

if TYPE_CHECKING:
    from streamq.worker.run import Caller, RunningJob

__all__ = ["traced"]


def traced(call: Caller, queue: str) -> Caller:
    """Return the call of a handler inside a span, or the call itself when nobody asks for spans or metrics."""
    return _inside_span(call, queue) if tracing.is_asked_for() else call


def _inside_span(call: Caller, queue: str) -> Caller:
    async def run(job: RunningJob) -> Any:
        delivery, envelope = job.delivery, job.envelope
        waited_s = max(0, job.begun_ms - delivery.enqueued_ms) / 1000
        about = {
            "messaging.message.body.size": len(delivery.raw),
            "streamq.handler.name": envelope.handler,
            "streamq.job.attempt": envelope.attempt,
            "streamq.job.max_attempts": job.max_attempts,
            "streamq.job.redelivered": delivery.delivery > 1,
            "streamq.job.scheduled": envelope.occurrence is not None,
            "streamq.queue.wait_s": waited_s,
        }
        is_linked = envelope.occurrence is not None or waited_s > tracing.LINKED_AFTER_S
        job_id = delivery.id.decode("utf-8", "replace")
        with tracing.processing(queue, job_id, envelope.headers, is_linked=is_linked, about=about) as span:
            try:
                return await call(job)
            except (Cancel, Snooze):
                raise  # what the handler asked for is no failure
            except Decided as decided:
                if isinstance(decided.outcome, Retrying | Dead):
                    failure = decided.outcome.failure
                    span.fail_as(failure.type, failure.message, failure.traceback)
                raise
            except BaseException as error:
                span.fail(error)
                raise

    return run
