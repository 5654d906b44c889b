"""Metrics: what workers count, what the API writes of it, and that alerts and dashboard ask for what there is."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import msgspec
import promql_parser
import pytest
import yaml
from hypothesis import given, strategies as st
from prometheus_client.parser import text_string_to_metric_families

from streamq.api import shapes
from streamq.app import StreamQ
from streamq.broker.partition import NewJob, Report
from streamq.codec import encode_envelope
from streamq.cron.health import _metrics
from streamq.gates import Gates
from streamq.job import Envelope
from streamq.meters import BOUNDS_S, Meter, metered
from streamq.retry import RetryPolicy
from streamq.worker.service import Worker

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


def families(text):
    """Parse what the API wrote, by Prometheus' own library."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text, name, **labels):
    """Return one figure."""
    [found] = [
        sample.value
        for family in families(text).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


# What is counted


@given(st.lists(st.tuples(st.sampled_from(["a", "b|c", "r1"]), st.floats(0, 2000), st.floats(0, 2000)), max_size=50))
def test_what_is_counted_comes_back_whatever_handlers_are_called(runs):
    """A name with a bar in it must not become another field."""
    meter = Meter()
    for handler, run_s, wait_s in runs:
        meter.run(handler, "completed" if run_s < 1000 else "dead", run_s, wait_s)
    found = metered(meter.taken())
    assert sum(found.ended.values()) == len(runs)
    assert {handler for handler, _ in found.ended} == {handler for handler, _, _ in runs} == set(found.runs)
    assert sum(sum(histogram.buckets) for histogram in found.runs.values()) == sum(found.waits.buckets) == len(runs)
    assert found.waits.sum_s == pytest.approx(sum(wait_s for _, _, wait_s in runs), abs=1e-3)
    assert meter.taken() == {}, "it begins anew"


def test_a_duration_falls_into_the_first_bucket_that_holds_it():
    """As Prometheus counts: `le` is less or equal."""
    meter = Meter()
    for run_s in (0.005, 0.0051, 1, 1000):
        meter.run("h", "completed", run_s, 0)
    buckets = metered(meter.taken()).runs["h"].buckets
    assert [place for place, number in enumerate(buckets) if number] == [0, 1, BOUNDS_S.index(1), len(BOUNDS_S)]


def test_fields_that_this_version_does_not_know_are_left_out():
    """A newer worker may count more."""
    assert metered({"new|x": 1, "other": 2, "reclaimed": 3}).plain == {"reclaimed": 3}


# End to end


async def test_what_workers_did_is_in_the_metrics_also_after_they_are_gone(client, settings, queue_name, eventually):
    """One scrape of the API has all of it."""
    app = StreamQ(settings)

    @app.handler(queue=queue_name, name="fine")
    async def fine() -> None: ...

    @app.handler(queue=queue_name, name="fails", max_attempts=2, retry=RetryPolicy(base=timedelta(milliseconds=1)))
    async def fails() -> None:
        raise ValueError

    worker = Worker(app, settings)
    running = asyncio.create_task(worker.run())
    for _ in range(5):
        await fine.enqueue()
    await fails.enqueue()
    await eventually(lambda: worker.slots and worker.slots.counters["dead"] and worker.slots.counters["completed"] == 5)
    worker.drain()
    assert await running == 0

    text = (await client.get("/metrics")).text
    of = {"queue": queue_name}
    assert value(text, "streamq_jobs_enqueued_total", **of) == 6
    assert value(text, "streamq_jobs_finished_total", **of, handler="fine", outcome="completed") == 5
    assert value(text, "streamq_jobs_finished_total", **of, handler="fails", outcome="dead") == 1
    assert value(text, "streamq_job_retries_total", **of, handler="fails") == 1
    assert value(text, "streamq_job_duration_seconds_count", **of, handler="fine") == 5
    assert value(text, "streamq_job_duration_seconds_bucket", **of, handler="fine", le="+Inf") == 5
    assert value(text, "streamq_job_wait_seconds_count", **of) == 7
    assert 0 < value(text, "streamq_job_wait_seconds_sum", **of) < 60
    assert value(text, "streamq_jobs_reclaimed_total", **of) == 0
    await app.close()


async def test_a_delivery_that_is_not_renewed_shows_in_the_metrics(client, hand, eventually):
    """Somebody should look before the lease of all has run out."""
    await hand.enqueue("job")
    await hand.take("w1")

    async def idle():
        return value((await client.get("/metrics")).text, "streamq_pending_max_idle_seconds")

    await eventually(lambda: _above(idle(), 0.05))
    text = (await client.get("/metrics")).text
    seconds, _ = await hand.wire.call("TIME")
    assert value(text, "streamq_worker_heartbeat_timestamp_seconds", worker="w1") == pytest.approx(int(seconds), abs=90)


async def _above(figure, bound):
    return await figure > bound


async def test_what_the_reconciler_found_is_in_the_metrics(client, statuses, queue_name):
    """Also how much the outbox may hold, for the alarm before it is full."""
    await statuses.note_round(queue_name, {"lost": 3}, 1000)
    text = (await client.get("/metrics")).text
    assert value(text, "streamq_reconciler_findings", queue=queue_name, kind="lost") == 3
    assert value(text, "streamq_outbox_limit_entries", queue=queue_name) == 1000
    assert value(text, "streamq_reconciler_last_round_timestamp_seconds", queue=queue_name) > 1_700_000_000


async def test_times_in_seconds_are_written_with_all_their_digits(client, hand):
    """Six digits of a time since 1970 would be ten days."""
    await hand.wire.call(
        "HSET", hand.keys.counts, "fired|hourly", 1_700_000_123_456, "missed|hourly", 1_700_000_000_000
    )
    text = (await client.get("/metrics")).text
    assert value(text, "streamq_cron_last_fire_timestamp_seconds", entry="hourly") == 1_700_000_123.456
    assert value(text, "streamq_cron_last_missed_timestamp_seconds", entry="hourly") == 1_700_000_000


async def park(hand, gates, *jobs):
    """Have a worker read jobs of a handler with limits, so that those which may not start wait."""
    partition = hand.broker.partition(hand.keys.queue)
    await partition.register("keeper")
    envelopes = [(name, encode_envelope(Envelope("refresh", key=key, gates=gates.of_job(key)))) for name, key in jobs]
    await partition.add("tests", 1, [NewJob(name, 2, envelope) for name, envelope in envelopes])
    await partition.cycle(
        "keeper", Report(), want=0 if gates.is_fair else 100, reads=[(2, 128, 0)], dead_after_ms=99999, control_cursor=b"0-0",
        limits=(0, 1), now=0.0,
    )  # fmt: skip
    await partition.wire.close()


JOBS = [("a1", "ada"), ("a2", "ada"), ("a3", "ada"), ("b1", "bob")]


async def test_gates_are_in_the_metrics_those_of_handlers_one_by_one_and_no_user_by_name(client, hand, queue_name):
    """There may be a gate for each user, and labels must stay few."""
    await park(hand, Gates.of("refresh", 1, None, 2, None), *JOBS)
    text = (await client.get("/metrics")).text
    of = {"queue": queue_name}
    assert value(text, "streamq_parked_jobs", **of) == 2
    here = {**of, "handler": "refresh", "gate": "concurrency"}
    assert value(text, "streamq_gate_jobs", **here, state="running") == 2
    assert value(text, "streamq_gate_jobs", **here, state="parked") == 0
    assert value(text, "streamq_gate_limit", **here) == 2
    assert 0 <= value(text, "streamq_gate_longest_seconds", **of) < 60
    assert value(text, "streamq_fair_keys", **of) == 0
    assert "ada" not in text


async def test_keys_that_wait_for_their_turn_are_counted_in_the_metrics(client, hand, queue_name):
    await park(hand, Gates.of("refresh", 0, None, 0, None, fair=True), *JOBS)
    text = (await client.get("/metrics")).text
    assert value(text, "streamq_fair_keys", queue=queue_name) == 2
    assert value(text, "streamq_parked_jobs", queue=queue_name) == 4
    assert "ada" not in text


async def test_the_api_tells_where_a_job_waits_and_what_a_gate_holds(client, hand, queue_name):
    await park(hand, Gates.of("refresh", 1, None, 0, "1/m"), *JOBS)
    parked = (await client.get("/v1/jobs/a3")).json()["parked"]
    assert (parked["gate"], parked["before"]) == ("concurrency_per_key of refresh for ada", 1)
    assert parked["since"].endswith("Z")
    assert (await client.get("/v1/jobs/a1")).json()["parked"] is None
    assert (await client.get(f"/v1/queues/{queue_name}")).json()["parked"] == 3
    told = (await client.get(f"/v1/queues/{queue_name}/gates")).json()
    msgspec.convert(told, shapes.Gates)
    assert (told["parked"], told["is_whole"], told["keys_waiting"]) == (3, True, 0)
    assert [(gate["kind"], gate["user"], gate["running"], gate["parked"]) for gate in told["gates"]] == [
        ("concurrency_per_key", "ada", 1, 2), ("rate", None, None, 1), ("concurrency_per_key", "bob", 1, 0),
    ]  # fmt: skip
    assert 0 < told["gates"][1]["opens_in_ms"] <= 60_000
    assert len((await client.get(f"/v1/queues/{queue_name}/gates?limit=1")).json()["gates"]) == 1


async def test_jobs_that_wait_at_gates_are_in_the_history_and_so_in_the_lists_of_the_api(
    client, hand, statuses, recording, eventually
):
    """Those of a fair queue never come into a lane before they start."""
    await park(hand, Gates.of("refresh", 0, None, 0, None, fair=True), *JOBS)

    async def listed() -> dict:
        jobs = (await client.get("/v1/jobs?state=queued")).json()["items"]
        return {job["id"]: job["parked"] and job["parked"]["gate"] for job in jobs}

    async with recording(hand, statuses):
        await eventually(lambda: _has(listed(), 4), "the recorder has seen them")
    assert await listed() == {**dict.fromkeys(("a1", "a2", "a3"), "the turn of ada"), "b1": "the turn of bob"}


async def _has(listed, count):
    return len(await listed) == count


async def test_the_api_tells_whose_turn_it_is(client, hand, queue_name):
    await park(hand, Gates.of("refresh", 0, None, 0, None, fair=True), *JOBS)
    told = (await client.get(f"/v1/queues/{queue_name}/gates")).json()
    msgspec.convert(told, shapes.Gates)
    assert [(turn["user"], turn["parked"], turn["virtual_ms"], turn["weight"]) for turn in told["turns"]] == [
        ("ada", 3, 0.0, 1), ("bob", 1, 0.0, 1),
    ]  # fmt: skip
    assert (await client.get("/v1/jobs/b1")).json()["parked"]["gate"] == "the turn of bob"
    missing = await client.get("/v1/queues/nowhere/gates")
    assert missing.status_code == 404


# Alerts and dashboard


async def exported(client, hand, statuses):
    """Return what the API wrote, with one of everything in the servers."""
    await statuses.note_round(hand.keys.queue, {"lost": 1}, 10)
    counts = {
        "e|dead|h": 1, "e|retrying|h": 1, "r0|h": 1, "rs|h": 1, "w0": 1, "ws": 1, "fired|s": 1, "missed|s": 1,
    }  # fmt: skip
    for name, number in counts.items():
        await hand.wire.call("HSET", hand.keys.counts, name, number)
    await hand.wire.call("HSET", hand.keys.times, "limit", 100, "since", 1)
    await hand.enqueue("job")
    await hand.take("w1")
    await park(hand, Gates.of("refresh", 1, None, 2, None), *JOBS)
    return families((await client.get("/metrics")).text)


def of_cron():
    """Return the names of cron's own metrics."""
    return set(families("".join(_metrics(SimpleNamespace(conditions={})))))


def expressions():
    """Return every question of the alert rules and the dashboard, by its name."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    found = {rule["alert"]: rule["expr"] for rule in rules}
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "5m").replace("$queue", ".*")
            found[f"{panel['title']} {target['refId']}"] = expr
    return found


@pytest.mark.parametrize("name", expressions())
def test_each_question_of_alerts_and_dashboard_is_promql(name):
    """Prometheus refuses a whole file for one that is not."""
    assert promql_parser.parse(expressions()[name])


async def test_alerts_and_dashboard_ask_for_metrics_that_there_are(client, hand, statuses):
    """A renamed metric would leave an alert silent for ever."""
    written = await exported(client, hand, statuses)
    there = {sample.name for family in written.values() for sample in family.samples} | of_cron()
    asked = {name for expr in expressions().values() for name in re.findall(r"streamq_\w+", expr)}
    assert asked
    assert asked <= there


async def test_the_manual_lists_all_metrics_with_their_labels_and_no_other(client, hand, statuses):
    """Whoever writes an alert looks there."""
    written = {}
    for name, family in (await exported(client, hand, statuses)).items():
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        written[f"{name}_total" if family.type == "counter" else name] = labels
    table = (MONITORING.parent / "monitoring.md").read_text().partition("## Metrics")[2].partition("## Alerts")[0]
    told = {
        name: set(labels.split(",")) if labels else set()
        for row in re.findall(r"^\| (`streamq_.*?) \|", table, re.MULTILINE)
        for name, labels in re.findall(r"`(\w+)(?:\{([\w,]+)\})?`", row)
    }
    assert told == written


async def test_outcomes_that_a_handler_never_came_to_are_there_as_nought(client, hand):
    """A series that begins with its first dead job would hide that job from every rate."""
    await hand.wire.call("HSET", hand.keys.counts, "e|completed|h", 5, "r0|h", 5, "rs|h", 1)
    text = (await client.get("/metrics")).text
    assert value(text, "streamq_jobs_finished_total", handler="h", outcome="completed") == 5
    assert value(text, "streamq_jobs_finished_total", handler="h", outcome="dead") == 0


async def test_memory_of_redis_and_jobs_that_nobody_brings_into_their_lane_are_told(client, hand):
    """Redis says no to every new job when it is full; and without a worker nothing that is due begins."""
    text = (await client.get("/metrics")).text
    assert value(text, "streamq_redis_memory_bytes") > 100_000
    assert value(text, "streamq_redis_memory_limit_bytes") == 0
    assert value(text, "streamq_redis_evicts") == 0
    assert value(text, "streamq_queue_overdue_seconds", queue=hand.keys.queue) == 0
    await hand.delay("job", 1_700_000_000_000)
    text = (await client.get("/metrics")).text
    assert value(text, "streamq_queue_overdue_seconds", queue=hand.keys.queue) > 86_400


def test_each_alert_is_tried_out_with_made_up_figures():
    """`promtool test rules alerts_test.yml` runs them; here is that none is left out, firing or silent."""
    trials = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())
    assert trials["rule_files"] == ["alerts.yml"]
    fires, is_silent = set(), set()
    for trial in (each for test in trials["tests"] for each in test["alert_rule_test"]):
        (fires if trial.get("exp_alerts") else is_silent).add(trial["alertname"])
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    assert fires == {rule["alert"] for rule in rules}
    assert is_silent >= fires


def test_each_alert_says_what_to_do():
    """It is read at three in the morning."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    described = (MONITORING.parent / "monitoring.md").read_text()
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert f"`{rule['alert']}`" in described
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_the_dashboard_is_whole():
    """Grafana takes a file with a title, panels that do not lie on each other, and a data source to choose."""
    board = json.loads((MONITORING / "grafana.json").read_text())
    assert board["title"] == "streamq"
    assert {"datasource", "queue"} == {variable["name"] for variable in board["templating"]["list"]}
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    assert all(panel["title"] and panel["targets"] for panel in board["panels"])
