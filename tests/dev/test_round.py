"""A round against real servers, with workers in the test's own hands."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from typing import TYPE_CHECKING, Any

import pytest

from streamq import StreamQ
from streamq.broker.inspection import Inspection
from streamq.broker.outbox import version_of
from streamq.broker.server import Broker
from streamq.clock import from_ms
from streamq.cron import PageFailed
from streamq.dev.fire import fire
from streamq.dev.round import Round
from streamq.dev.screen import Screen
from streamq.keys import Keys
from streamq.mongo import Mongo, Statuses
from streamq.recorder import Recorder
from streamq.settings import Settings, load
from streamq.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import Eventually


@pytest.fixture
def settings(redis_url: str, mongodb_url: str, mongo_database: str) -> Settings:
    """Settings of this test's servers."""
    flags = {"redis_url": redis_url, "mongodb_url": mongodb_url, "mongodb_database": mongo_database}
    return load(flags, environ={})


@pytest.fixture
def app(settings: Settings) -> StreamQ:
    """A shop with three users; the plain page function shows that it need not be async."""
    app = StreamQ(settings)

    @app.handler(key="user", dedup="user", max_attempts=1)
    async def refresh(user: str) -> str:
        if user == "bad":
            raise ValueError("bad user")
        return user

    @app.cron("0 * * * *", handler=refresh)
    def everybody(page: str | None) -> tuple[list[str], str | None]:
        return (["a", "b"], "2") if page is None else (["bad"], None)

    return app


@pytest.fixture
async def round_(app: StreamQ) -> AsyncIterator[Round]:
    """A round of that shop, shown to nobody."""
    round_ = Round(app, app.cron_entries["everybody"], Screen(err=io.StringIO()))
    yield round_
    await round_.close()


@pytest.fixture
async def view(settings: Settings) -> AsyncIterator[Inspection]:
    """A look into the queue."""
    broker = Broker(settings.redis_url)
    wire = broker.wire()
    yield Inspection(wire, Keys("default"))
    await wire.close()
    await broker.close()


@pytest.fixture
async def workers(app: StreamQ, settings: Settings) -> AsyncIterator[Any]:
    """Call it to have a worker and a recorder from then on."""
    running: list[asyncio.Task[Any]] = []
    broker, mongo, stop = (
        Broker(settings.redis_url),
        Mongo(settings.mongodb_url, settings.mongodb_database),
        asyncio.Event(),
    )
    worker = Worker(app, settings)

    async def start() -> None:
        statuses = Statuses(mongo)
        await statuses.prepare()
        recorder = Recorder(broker, statuses, Keys("default"))
        running.extend([asyncio.create_task(worker.run()), asyncio.create_task(recorder.run(stop))])

    yield start
    worker.drain()
    stop.set()
    await asyncio.gather(*running)
    await mongo.close()
    await broker.close()


async def test_a_round_ends_when_every_job_has_and_tells_how(round_: Round, workers: Any):
    """Completed and failed, out of the history."""
    await workers()

    report = await round_.run()

    assert {user: job.state for user, job in report.jobs.items()} == {"a": "completed", "b": "completed", "bad": "dead"}
    assert report.groups() == {"all": 3}
    assert report.reasons() == [("ValueError: … user", 1)]
    assert not report.is_good


async def test_users_who_ask_again_while_their_job_waits_are_refused(
    round_: Round, workers: Any, view: Inspection, eventually: Eventually
):
    """The count is what the queue answered."""
    running = asyncio.create_task(round_.run(clicks=True))
    await eventually(_three_jobs(view), "the jobs are enqueued")
    await workers()

    report = await running

    assert (report.clicks, report.duplicates_refused) == (1, 1)
    assert len(report.jobs) == 3


async def test_a_round_that_finds_the_jobs_of_another_one_waiting_counts_them(
    app: StreamQ, settings: Settings, round_: Round, workers: Any
):
    """Ctrl-C in the middle of a round leaves its jobs; the next one finds them, and each user still runs once."""
    await fire(app.cron_entries["everybody"], settings)
    await workers()

    report = await round_.run()

    assert len(report.jobs) == 3
    assert report.duplicates_refused <= 3


async def test_a_job_that_finished_before_the_firing_and_was_settled_after_it_counts(round_: Round, settings: Settings):
    """It held its user's dedup key until then, so the firing had no job for that user."""
    fired_ms = 1_900_000_000_000
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    common = {"queue": "default", "state": "completed", "handler": "refresh", "finished_at": from_ms(fired_ms - 5)}
    settled_ms = {"before": fired_ms - 1, "after": fired_ms + 3}
    await mongo.collection("job_status").insert_many(
        [{"_id": name, "version": version_of(f"{ms}-7"), **common} for name, ms in settled_ms.items()]
    )
    found = await Statuses(mongo).find(round_._query(fired_ms))
    assert [document["_id"] for document in found] == ["after"]
    await mongo.close()


async def test_jobs_that_are_nowhere_are_lost(
    round_: Round, view: Inspection, settings: Settings, eventually: Eventually
):
    """A promise that cannot be seen broken is worth nothing: here Redis forgets everything."""
    running = asyncio.create_task(round_.run())
    await eventually(_three_jobs(view), "the jobs are enqueued")
    broker = Broker(settings.redis_url)
    wire = broker.wire()
    await wire.call("FLUSHDB")
    await wire.close()
    await broker.close()

    report = await running

    assert report.summary()["lost"] == 3
    assert report.unfinished() == ["a lost", "b lost", "bad lost"]


async def test_a_second_firing_in_the_same_hour_has_jobs_of_its_own(app: StreamQ, settings: Settings, view: Inspection):
    """The hour's own occurrence would add nothing a second time."""
    entry = app.cron_entries["everybody"]
    entry = dataclasses.replace(entry, handler=dataclasses.replace(entry.handler, dedup=None))

    first, second = await fire(entry, settings), await fire(entry, settings)

    assert first.occurrence != second.occurrence
    assert first.users == second.users == ("a", "b", "bad")
    assert (await view.counts()).jobs == 6


@pytest.mark.parametrize("page", [None, ("ab", None), (["a"],)], ids=["nothing", "text", "no cursor"])
async def test_a_page_that_is_none_ends_the_round(app: StreamQ, settings: Settings, page: Any):
    """With the words of the fan-out, which knows what a page is."""
    handler = app.handler_named("refresh")
    app.cron("0 * * * *", handler=handler, name="broken")(lambda _cursor: page)

    with pytest.raises(PageFailed, match="the page function, called with cursor None, gave"):
        await fire(app.cron_entries["broken"], settings)


def _three_jobs(view: Inspection) -> Callable[[], Any]:
    async def are_there() -> bool:
        return (await view.counts()).jobs == 3

    return are_there
