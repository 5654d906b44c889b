"""Somebody is told when the hour did not do its work: by a log line, a webhook, a probe, a metric and a command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from streamq.app import StreamQ
from streamq.broker.fanout import FanOutState
from streamq.cron.health import serving
from streamq.cron.roster import Roster
from streamq.cron.watch import Watch
from streamq.errors import ConfigurationError, HistoryUnavailable
from streamq.mongo import Mongo, Refreshed, Statuses
from streamq.schedules.condition import condition_of
from streamq.schedules.desks import desks
from streamq.schedules.occurrence import Occurrence, checked
from streamq.settings import Settings
from tests.cron.conftest import NOON, Listing, entry_of, ms

SCHEDULE = checked(entry_of(Listing([])))
HOURS = [Occurrence("hourly", ms(NOON + timedelta(hours=n))) for n in (-2, -1, 0)]
DONE = FanOutState(pages=1, added=100, begun_ms=ms(NOON), end="done")


def alarms(minutes: float, *states: FanOutState | None, mark: datetime | None = NOON - timedelta(hours=1), **options):
    """Return the alarms so many minutes after noon; the states are those of 10, 11 and 12."""
    now_ms = ms(NOON + timedelta(minutes=minutes))
    mark_ms = ms(mark) if mark else None
    return condition_of(SCHEDULE, now_ms, mark_ms, dict(zip(HOURS, states, strict=True)), **options).alarms


class TestCondition:
    """A schedule is judged by what is stored."""

    def test_a_finished_hour_raises_nothing(self):
        assert alarms(30, DONE, DONE, DONE) == ()

    def test_an_hour_that_nobody_began_within_the_grace_raises_an_alarm(self):
        assert alarms(4, DONE, DONE, None) == ()
        (alarm,) = alarms(6, DONE, DONE, None)
        assert (alarm.kind, alarm.occurrence) == ("not_fired", "20261123T1200Z")
        assert "no cron process has looked after the schedule since 2026-11-23 11:00 UTC" in alarm.text

    def test_an_hour_that_the_policy_left_out_raises_an_alarm_as_well(self):
        (alarm,) = alarms(6, DONE, DONE, None, mark=NOON)
        assert "it was missed, and the policy does not make up for it" in alarm.text

    def test_a_new_schedule_has_missed_nothing(self):
        assert alarms(30, None, None, None, mark=NOON + timedelta(minutes=10)) == ()

    def test_a_schedule_that_no_process_has_ever_looked_after_is_told_as_such(self):
        condition = condition_of(SCHEDULE, ms(NOON), None, dict.fromkeys(HOURS))
        assert (condition.is_watched, condition.alarms, condition.progress) == (False, (), None)

    def test_a_fan_out_that_is_unfinished_after_its_share_of_the_period_raises_an_alarm(self):
        half = FanOutState(pages=1, cursor="x", added=40, begun_ms=ms(NOON))
        assert alarms(29, DONE, DONE, half) == ()
        (alarm,) = alarms(31, DONE, DONE, half)
        assert alarm.kind == "unfinished"
        assert "hourly of 2026-11-23 12:00 UTC is unfinished, after 40 users" in alarm.text

    def test_one_that_was_given_up_raises_it_until_the_next_hour(self):
        given_up = FanOutState(added=40, begun_ms=ms(NOON), end="given up")
        assert [alarm.kind for alarm in alarms(10, DONE, DONE, given_up)] == ["unfinished"]
        assert alarms(10, DONE, given_up, DONE) == ()

    def test_users_that_are_not_refreshed_raise_an_alarm(self):
        (alarm,) = alarms(10, DONE, DONE, DONE, stale_users=1234)
        assert alarm.text == "schedule 'hourly': 1,234 users have not been refreshed for 3 periods"
        (alarm,) = alarms(10, DONE, DONE, DONE, stale_users=10_000)
        assert "10,000 or more users have not" in alarm.text

    def test_what_is_paused_raises_nothing(self):
        assert alarms(30, DONE, DONE, None, is_paused=True, stale_users=3) == ()

    def test_progress_is_told_by_the_size_of_the_fan_out_before(self):
        half = FanOutState(pages=1, cursor="x", added=40, begun_ms=ms(NOON))
        condition = condition_of(SCHEDULE, ms(NOON) + 1000, ms(NOON), dict(zip(HOURS, (DONE, DONE, half), strict=True)))
        assert (condition.state, condition.users, condition.progress) == ("firing", 40, 0.4)


@pytest.fixture
def webhook():
    """A server that notes what is posted, and refuses the first."""
    posted: list[dict] = []
    refusals = [503]

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if refusals:
                self.send_response(refusals.pop())
            else:
                posted.append(body)
                self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", posted
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
async def watching(redis_url, queue_name, unused_tcp_port, webhook):
    """Two watches of one schedule that nobody fires, as two cron processes have them."""
    settings = Settings(
        redis_url=redis_url, history=False, cron_port=unused_tcp_port, api_token="s3cret", alarm_webhook=webhook[0]
    )
    app = StreamQ(settings)

    @app.handler(queue=queue_name)
    async def refresh(user_id: str) -> None: ...

    app.cron("0 * * * *", handler=refresh, name="hourly", grace=timedelta(0))(Listing([]))
    async with desks(settings, asyncio.Event()) as bureau:
        roster = Roster(settings, app, bureau, None)
        roster.listed = _listing(app, settings)
        schedule = roster.listed[0].schedule
        last_hour = schedule.latest((await bureau.desk(queue_name).fanouts.server_ms()) - 3_600_000)[-1]
        await bureau.desk(queue_name).fanouts.advance(
            schedule.mark, last_hour.fire_ms // 1000, schedule.signature, 60_000
        )
        yield settings, bureau, [Watch(settings, roster, bureau, None) for _ in range(2)]


def _listing(app, settings):
    from streamq.schedules.book import listing

    return listing(app, settings, ())


async def test_an_alarm_is_posted_once_by_all_processes_together_and_again_when_it_was_refused(watching, webhook, said):
    _, _, watches = watching
    for _ in range(3):
        for watch in watches:
            await watch.check()
    assert [(each["alarm"], each["schedule"]) for each in webhook[1]] == [("not_fired", "hourly")]
    assert "did not take one: HTTP Error 503" in said("cron.webhook")[0]["text"]
    assert len(said("cron.alarm")) == 2


async def test_a_watch_that_fails_says_so_and_goes_on(watching, said, eventually, monkeypatch):
    _, _, (watch, _) = watching
    monkeypatch.setattr("streamq.cron.watch.LOOK_EVERY_S", 0.01)
    checks = iter([KeyError("odd"), None])
    check = watch.check

    async def failing():
        if (error := next(checks, None)) is not None:
            raise error
        await check()

    monkeypatch.setattr(watch, "check", failing)
    keeping = asyncio.create_task(watch.keep())
    await eventually(lambda: said("cron.alarm"), "it looks again")
    assert "the watch over schedules: KeyError: 'odd'" in said("cron.failed")[0]["text"]
    keeping.cancel()


async def test_probes_and_metrics_tell_of_the_alarm_and_of_its_end(watching, said):
    settings, bureau, (watch, _) = watching
    bearer = {"Authorization": "Bearer s3cret"}
    base_url = f"http://127.0.0.1:{settings.cron_port}"
    async with serving(settings, watch), httpx.AsyncClient(base_url=base_url) as client:
        assert (await client.get("/livez")).text == "ok\n"
        assert (await client.get("/readyz")).status_code == 200
        await watch.check()
        told = await client.get("/readyz")
        assert (told.status_code, told.text) == (503, "unavailable\n")
        assert "[-] schedules: an alarm of a schedule is raised\n" in (await client.get("/readyz?verbose")).text
        metrics = (await client.get("/metrics", headers=bearer)).text
        assert 'streamq_schedule_alarm{schedule="hourly",kind="not_fired"} 1' in metrics
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers={"Authorization": "Bearer wröng".encode()})).status_code == 401
        assert (await client.get("/nothing")).text == "there are /livez, /readyz, /healthz and /metrics\n"
        assert (await client.post("/readyz")).status_code == 405
        schedule = watch._roster.listed[0].schedule
        fanouts = bureau.desk(schedule.entry.handler.queue).fanouts
        now_ms = await fanouts.server_ms()
        await fanouts.advance(schedule.mark, now_ms // 1000 + 1, schedule.signature, 60_000)
        await watch.check()
        assert (await client.get("/healthz")).text == "ok\n"
        assert said("cron.calm")
        watch._looked_at -= 60
        assert "[-] redis: Redis has not answered for a while\n" in (await client.get("/readyz?verbose")).text


async def test_a_port_that_is_in_use_is_waited_for(watching, said, eventually, monkeypatch):
    """In a rolling restart the process before still has it."""
    monkeypatch.setattr("streamq.probes._RETRY_S", 0.02)
    settings, _, (before, after) = watching
    await before.check()

    async def answer() -> int:
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{settings.cron_port}/readyz")).status_code
        return 0

    async with contextlib.AsyncExitStack() as later:
        async with serving(settings, before):
            await later.enter_async_context(serving(settings, after))
            told = await eventually(lambda: said("cron.no_probes"))
            assert "it is in use; trying again each second" in told[0]["text"]
            assert await answer() == 503
        await eventually(lambda: _is(answer, 200), "the next one serves")


async def _is(answer, status) -> bool:
    return await answer() == status


async def test_an_address_of_another_machine_is_named(watching):
    settings, _, (watch, _) = watching
    with pytest.raises(ConfigurationError, match="cron cannot serve its probes on 203.0.113.7:"):
        async with serving(Settings(cron_host="203.0.113.7", cron_port=settings.cron_port), watch):
            pass


async def test_users_without_a_completed_job_for_too_long_are_counted(mongodb_url, mongo_database):
    now = datetime.now(UTC).replace(microsecond=0)
    mongo = Mongo(mongodb_url, mongo_database)
    statuses = Statuses(mongo)
    await statuses.prepare()

    def status(user, hours_ago, state):
        at = now - timedelta(hours=hours_ago)
        return {
            "_id": f"{user}:{hours_ago}", "queue": "q", "user": user, "schedule": "hourly", "state": state, "version": 1,
            "enqueued_at": at, **({"finished_at": at} if state in ("completed", "dead") else {}),
        }  # fmt: skip

    await mongo.collection("job_status").insert_many(
        [
            status("fresh", 3.5, "dead"), status("fresh", 0.5, "completed"),
            status("failing", 3.5, "dead"), status("failing", 1.5, "dead"),
            status("new", 1.5, "dead"),
            status("stuck", 3.5, "running"),
            status("once good", 3.5, "completed"), status("once good", 1.5, "dead"), status("once good", 1.2, "dead"),
            status("begins anew", 3.5, "completed"), status("begins anew", 2.5, "completed"), status("begins anew", 0.5, "queued"),
            status("left", 3.5, "completed"), status("left badly", 3.5, "dead"),
        ]
    )  # fmt: skip
    hourly = Refreshed("hourly", "q", now, timedelta(hours=1), 3)
    assert await statuses.stale_users(hourly, most=100, limit_s=30) == 3  # failing, stuck, once good
    assert await statuses.stale_users(hourly, most=2, limit_s=30) == 2
    assert await statuses.stale_users(hourly._replace(schedule="other"), most=100, limit_s=30) == 0
    await mongo.collection("job_status").drop_index("by_queue_and_state")
    with pytest.raises(HistoryUnavailable, match="cannot count stale users"):
        await statuses.stale_users(hourly, most=100, limit_s=30)
    assert await statuses.known(["new:1.5", "nobody"]) == {"new:1.5"}
    await mongo.close()
