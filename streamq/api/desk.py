"""What operations have in common: the parts of the application behind a request, and answers made of our values."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from streamq.api.answers import Problem, iso
from streamq.errors import (
    BadInput,
    BrokerUnavailable,
    Conflict,
    DividedOtherwise,
    JobNotFound,
    JobRejected,
    PartlyDone,
    QueueFull,
    StreamQError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from starlette.requests import Request

    from streamq.api.auditor import Auditor
    from streamq.api.stores import Stores
    from streamq.app import StreamQ
    from streamq.history import JobStatus

__all__ = [
    "application_of", "auditor_of", "divided_otherwise", "job_json", "known_queue", "or_503", "stores_of", "told",
]  # fmt: skip

T = TypeVar("T")


def stores_of(request: Request) -> Stores:
    """Return the servers."""
    stores: Stores = request.app.state.stores
    return stores


def auditor_of(request: Request) -> Auditor:
    """Return who writes down changes."""
    auditor: Auditor = request.app.state.auditor
    return auditor


def application_of(request: Request) -> StreamQ:
    """Return the application whose handlers and schedules are served.

    Raises:
        Problem: 404; the API was started without one.
    """
    app: StreamQ | None = request.app.state.application
    if app is None:
        raise Problem(404, "this API knows no application: start it as streamq api APP", kind="application-unknown")
    return app


def known_queue(request: Request, name: str) -> str:
    """Return the name if it is that of a queue, or of one of its partitions.

    Raises:
        Problem: 404.
    """
    if not stores_of(request).parts(name):
        raise Problem(404, f"no queue {name!r:.80} is known here", kind="queue-unknown")
    return name


async def or_503(answer: Awaitable[T], server: str) -> T:
    """Return an answer of a server.

    Raises:
        Problem: 503 while it is away or is not as the settings say; 404, 412, 422 or 507 if it has refused.
    """
    try:
        return await answer
    except JobNotFound:
        raise Problem(404, "no such job waits or runs", kind="job-unknown") from None
    except Conflict as changed:
        raise Problem(412, str(changed), kind="changed-meanwhile") from None
    except BadInput as bad:
        raise Problem(422, str(bad), kind="bad-parameter", errors=[{"parameter": "body", "detail": str(bad)}]) from None
    except QueueFull as full:
        raise Problem(507, str(full), kind="queue-full", headers={"retry-after": "5"}) from None
    except JobRejected as refused:
        raise Problem(422, str(refused), kind="job-rejected", errors=[{"detail": str(refused)}]) from None
    except DividedOtherwise as refused:
        raise divided_otherwise(refused) from None
    except StreamQError as error:
        raise _partly_done(error, server) if isinstance(error, PartlyDone) else _away(server, error) from None


def divided_otherwise(refused: DividedOtherwise) -> Problem:
    """Say that this API must be started with another setting before it can enqueue. Its caller may try again then."""
    return Problem(503, str(refused), kind="queue-divided-otherwise", hint=refused.hint)


def _partly_done(partly: PartlyDone, server: str) -> Problem:
    done, failed = ", ".join(partly.done), ", ".join(partly.failed)
    return Problem(
        503, f"done in {done}, and not in {failed}: {server} is away there", kind="partly-done",
        headers={"retry-after": "2"}, hint=partly.hint,
        done=list(partly.done), failed=list(partly.failed),
    )  # fmt: skip


def _away(server: str, error: StreamQError) -> Problem:
    unknown = "whether anything was done is unknown if this was a write; it may be repeated"
    told = {"hint": unknown} if isinstance(error, BrokerUnavailable) else {}
    return Problem(503, f"{server} is away", kind="store-away", headers={"retry-after": "2"}, **told)


def job_json(job: JobStatus) -> dict[str, Any]:
    """Write down a job, by the names of `JobStatus`; where its handler's number of attempts holds, that is not known here."""
    written = {field.name: told(getattr(job, field.name)) for field in dataclasses.fields(job)}
    return written | {"max_attempts": job.max_attempts or None}


def told(value: Any) -> Any:
    """Write points in time, also those within an attempt, and since when a job is parked."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, list):
        attempts: list[Any] = value
        return [_attempt(attempt) for attempt in attempts]
    return _attempt(value)


def _attempt(attempt: Any) -> Any:
    if not isinstance(attempt, dict):
        return attempt
    pairs = cast("Mapping[str, Any]", attempt)
    return {name: iso(value) if isinstance(value, datetime) else value for name, value in pairs.items()}
