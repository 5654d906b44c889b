"""What every benchmark promises: one document, true sizes, nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from benchmarks import cluster, core, recovery, scale, status, worker
from benchmarks.drains import tallied
from benchmarks.harness import Part, Report, Scale, at_least, at_most, interval, percentile, ratios, run
from benchmarks.processes import Child, run_to_json
from benchmarks.servers import RedisServer

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    core: {
        "drain_noop_ratio", "drain_noop_c3_ratio", "worker_cpu_us_per_job", "redis_cpu_us_per_job",
        "round_trips_per_job", "enqueue_many_ratio", "enqueue_many_dedup_ratio", "enqueue_concurrent_ratio",
        "enqueue_one_ratio", "idle_latency_p50_ratio", "idle_latency_p99_ms", "delayed_late_p99_ms",
        "bytes_per_queued_job", "bytes_per_finished_job", "million_due_max_call_ms",
    },
    worker: {"io_ideal_ratio", "thread_ideal_ratio", "head_of_line_max_ms", "two_process_ratio"},
    recovery: {
        "child_kill_restart_p99_s", "host_kill_restart_p99_s", "lost_reply_restart_s", "frozen_double_outcomes",
        "sigterm_attempts_used", "sigterm_extra_starts", "redis_restart_lost", "redis_restart_resume_p99_s",
    },
    status: {
        "recorder_docs_per_s", "recorder_on_ratio", "status_lag_p99_s", "recorder_saturated_ratio", "routes_p99_ms",
        "mongo_down_throughput_ratio", "mongo_back_catch_up_s", "mongo_kill_wrong_states",
    },
    scale: {
        "rate_at_largest_vs_smallest", "plan_redis_cpu_error", "plan_worker_cpu_error", "plan_memory_error",
        "partitions_per_cpu_ratio", "partitions_per_cpu_ratio_2_workers",
    },
}  # fmt: skip


SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text())


def document(capsys, parts, *arguments):
    """Run a benchmark made of these parts; return its exit code and its document."""
    code = run("sample", lambda _scale: parts, ["--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def adds(name, values, bar, **more):
    """Make a part with one figure."""
    return Part([name], lambda report: report.add(name, values, "s", bar, "small", **more), quick_s=1)


@pytest.mark.parametrize("benchmark", NAMES)
@pytest.mark.parametrize("quick", [True, False])
def test_each_benchmark_measures_the_figures_that_have_bars(benchmark, quick):
    """The names are looked up by programs; a quick run has the same ones."""
    parts = benchmark.parts(Scale(quick))
    assert {name for part in parts for name in part.measures} == NAMES[benchmark]
    assert sum(part.quick_s for part in parts) <= 50 or not quick


def test_the_document_has_the_median_with_its_interval_and_the_verdict(capsys):
    """This is what a program reads."""
    code, found = document(capsys, [adds("pace", [3.0, 1.0, 2.0], at_least(1.5))])
    (result,) = found["results"]
    assert code == 0
    assert found["benchmark"] == "sample"
    assert {"machine", "versions"} <= found.keys()
    assert (result["value"], result["spread"], result["bar"], result["passes"]) == (2.0, [1.0, 3.0], ">= 1.5", True)
    assert result["size"] == "small"


def test_the_document_is_as_the_schema_says_also_when_something_failed(capsys):
    """Programs read these documents for years."""

    def broken(_report):
        raise ZeroDivisionError

    _, found = document(capsys, [adds("pace", [3.0, 1.0], at_least(1.5)), Part(["lost"], broken, quick_s=1)])
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert [result["value"] for result in found["results"]] == [2.0, None]


@pytest.mark.parametrize("kept", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_results_that_are_kept_are_as_the_schema_says(kept):
    """README and docs quote them."""
    jsonschema.validate(json.loads(kept.read_text()), SCHEMA, cls=jsonschema.Draft202012Validator)


def test_a_figure_that_misses_its_bar_is_still_measured(capsys):
    """The exit code says whether the figures are there, not whether they please."""
    code, found = document(capsys, [adds("delay", [3.0], at_most(2))])
    assert code == 0
    assert found["results"][0]["passes"] is False


def test_a_bar_is_missed_when_what_else_must_hold_does_not(capsys):
    """A fast recovery that loses a job is none."""
    _, found = document(capsys, [adds("delay", [1.0], at_most(2), holds=False)])
    assert found["results"][0]["passes"] is False


def test_one_part_that_fails_leaves_the_others_and_is_named(capsys):
    """Half of the figures are better than none, but not a success."""

    def breaks(report: Report) -> None:
        report.add("half", [1.0], "s", None, "small")
        raise RuntimeError("no server")

    code, found = document(capsys, [Part(["half", "other"], breaks, quick_s=1), adds("pace", [1.0], None)])
    assert code == 1
    assert [(r["name"], r["value"]) for r in found["results"]] == [("half", None), ("other", None), ("pace", 1.0)]
    assert "no server" in found["failures"]["half"]


def test_a_quick_run_leaves_out_rounds_that_it_has_no_time_for():
    """At least one round is measured, however slow the machine is."""
    late = Report("sample", Scale(quick=True), time_is_up_at=0.0)
    assert list(late.rounds(5)) == [0]
    assert list(Report("sample", Scale(quick=False)).rounds(3)) == [0, 1, 2]


def test_an_unknown_figure_is_refused(capsys):
    """A typing error must not look like a run without results."""
    with pytest.raises(SystemExit):
        run("sample", lambda _scale: [adds("pace", [1.0], None)], ["--only", "peace"])
    assert "there is no figure peace" in capsys.readouterr().err


def test_the_table_for_people_names_bar_and_size(capsys):
    """Without --json a person reads it."""
    assert run("sample", lambda _scale: [adds("pace", [1.0], at_least(2))], []) == 0
    told = capsys.readouterr().out
    assert "pace" in told
    assert ">= 2" in told
    assert "small" in told


def test_a_long_part_says_how_far_it_is_to_whoever_watches(monkeypatch, capsys):
    """Five million documents take minutes; off a terminal nobody hears of it."""

    def slow(report: Report) -> None:
        report.tell("documents", 3, 7)
        report.add("pace", [1.0], "s", None, "small")

    assert document(capsys, [Part(["pace"], slow, quick_s=1)])[0] == 0
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("sample", lambda _scale: [Part(["pace"], slow, quick_s=1)], ["--json"]) == 0
    assert "pace" in capsys.readouterr().err


def test_percentiles_are_values_that_were_seen():
    """A percentile of few values is the largest, not something between two of them."""
    assert percentile([1.0, 5.0, 2.0], 99) == 5.0
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile(list(range(1, 101)), 50) == 50


def test_the_interval_covers_the_median_and_is_the_same_each_time():
    """Chance in the resampling must not change a document."""
    values = [1.0, 2.0, 3.0, 4.0, 10.0]
    low, high = interval(values)
    assert low <= 3.0 <= high
    assert interval(values) == (low, high)
    assert interval([1.0]) is None


def test_ratios_compare_within_a_round():
    """A round in which both sides were slow says the same as one in which both were fast."""
    assert ratios([2.0, 4.0], [1.0, 2.0]) == [2.0, 2.0]


def test_what_handlers_count_is_read_from_outside_and_outlives_them():
    """The count is in a mapped file, so that a handler pays nothing for it."""
    program = (
        "from benchmarks.tally import counter, recorder_of_values\ndone = counter()\nfor _ in range(250): done()\n"
    )
    with tallied() as tallies:
        with Child("-c", program + "recorder_of_values()(-7)", environment=tallies.environment) as child:
            assert child.process.wait(50) == 0, child.output
        assert tallies.total() == 250
        assert sorted(tallies.marks_ns(child.pid)) == [100, 200]
        assert tallies.values() == [-7]


def test_what_is_measured_runs_as_in_production_whatever_the_benchmark_runs_with(monkeypatch):
    """A job of a worker in Python's development mode takes more than twice the instructions."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    told = run_to_json("-c", "import sys; print(int(sys.flags.dev_mode))")
    assert told == 0


def test_a_program_that_broke_is_told_with_its_last_words():
    """Whoever waits for it must not wait for the time limit."""
    with Child("-c", "raise SystemExit('no such queue')") as child:
        child.process.wait(50)
        with pytest.raises(RuntimeError, match="no such queue"):
            child.assert_alive()


def test_the_server_is_gone_after_an_error():
    """A benchmark leaves neither processes nor files behind."""
    with pytest.raises(ZeroDivisionError), RedisServer() as server:  # noqa: PT012 - what it leaves is the test
        pid, folder = server.pid, server.folder
        assert server.client().ping()
        raise ZeroDivisionError
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_was_killed_comes_back_on_its_port_with_its_data():
    """Recovery is measured with clients that hold the old address."""
    with RedisServer("--save", "", "--appendonly", "yes") as server:
        with server.client() as client:
            client.set("kept", "1")
        server.kill()
        server.start()
        with server.client() as client:
            assert client.get("kept") == b"1"


@pytest.mark.slow
def test_a_real_benchmark_prints_one_document():
    """From the command line to the JSON, with a server and producers of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.core", "--quick", "--json", "--only", "enqueue_one_ratio"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    results = {result["name"]: result for result in json.loads(ran.stdout)["results"]}
    assert results["enqueue_one_ratio"]["value"] > 0
    assert results["enqueue_one_ratio"]["size"]


def test_masters_are_one_cluster_whose_figures_are_added_up():
    """Each was told once of the first one."""
    with cluster.RedisCluster(3) as masters:
        assert masters.figures().calls["cluster|meet"] == 3
        assert all(clock.seconds() > 0 for clock in masters.clocks)
        folders = [server.folder for server in masters.servers]
    assert not any(folder.exists() for folder in folders)


def test_servers_that_do_not_become_a_cluster_are_not_waited_for_for_ever(monkeypatch):
    """A figure of half a cluster would be a wrong one."""
    monkeypatch.setattr(cluster, "WHOLE_WITHIN_S", 0)
    with RedisServer() as server, pytest.raises(TimeoutError, match="the cluster does not come together"):
        cluster.wait_until_whole([server.url])
