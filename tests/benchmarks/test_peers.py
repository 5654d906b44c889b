"""streamq beside other systems: that each is what the table says, and that a run says what could not be measured."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from benchmarks import crash, fairness, peers, plots
from benchmarks.servers import server_binary
from benchmarks.systems import SYSTEMS, System, environments
from benchmarks.systems.environments import NotToBeHad, folder_of, make

FOLDER = Path(peers.__file__).parent / "systems"
OWN = ["raw", "raw-sync", "streamq"]


def file_of(system: System) -> Path:
    """Return the adapter of a system."""
    name = system.module or system.name.replace("-", "_")
    return FOLDER / (name if system.is_node else f"{name}.py")


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))
def test_each_system_has_an_adapter_with_both_sides(system):
    """A name that is missing would only be found when the system is measured."""
    source = file_of(system).read_text()
    if system.is_node:
        assert "async function fill" in source
        return
    tree = ast.parse(source)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert {"open", "one", "work"} <= defined | imported


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))
def test_each_system_is_pinned_and_says_what_it_promises(system):
    """A figure without its version and its promise says nothing."""
    assert all("==" in requirement or "@" in requirement for requirement in system.requirements)
    assert system.ack
    assert system.result
    assert system.left


@pytest.mark.slow
def test_a_system_that_cannot_be_installed_is_named(tmp_path, monkeypatch):
    """The others are measured all the same."""
    monkeypatch.setattr("benchmarks.systems.environments.HOME", tmp_path)
    with pytest.raises(NotToBeHad, match="nonsense: .*no-such-folder"):
        make(System("nonsense", (str(tmp_path / "no-such-folder"),)))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_programs_that_need_an_environment_make_it_once(tmp_path, monkeypatch):
    """Else one would remove what the other is making."""
    monkeypatch.setattr("benchmarks.systems.environments.HOME", tmp_path)
    made, really = [], environments._make
    monkeypatch.setattr(environments, "_make", lambda *given: (made.append(given), really(*given)))
    system = System("six", ("six==1.17.0",))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: make(system), range(3)))
    assert made == [(system, folder_of(system))]
    assert list(folder_of(system).glob("lib/python*/site-packages/six-1.17.0.dist-info"))


@pytest.mark.slow
def test_a_system_that_needs_a_newer_server_is_left_out_and_named(monkeypatch):
    """Which server would do is said, and how to give it."""
    monkeypatch.setitem(SYSTEMS, "newest", System("newest", needs_redis=(99, 1)))
    monkeypatch.setattr(peers, "NOTES", [])
    assert peers._make_environments(["newest"]) == []
    (note,) = peers.NOTES
    assert note.startswith("newest is not measured: it needs Redis 99.1, and this is ")
    assert note.endswith("STREAMQ_BENCH_REDIS names another server")


@pytest.mark.parametrize("program", [peers, fairness])
def test_without_what_draws_a_run_with_plots_ends_before_it_measures(program, monkeypatch, capsys):
    """Five minutes of figures would be lost at their end."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="2"):
        program.main(["--plot", "somewhere"])
    assert "drawing needs matplotlib: pip install matplotlib, or leave --plot out" in capsys.readouterr().err


def test_a_system_whose_jobs_did_not_all_start_again_has_no_bar(tmp_path, monkeypatch):
    """How long the program watched is no time of a restart."""
    drawn = {}
    monkeypatch.setattr(plots, "_bars", lambda rows, _, file: drawn.update({file.name: [row["name"] for row in rows]}))
    rows = [("crash_default_restart_s.ours", 4.5, 0), ("crash_default_restart_s.theirs", 75.0, 3)]
    results = [{"name": name, "value": value, "detail": {"lost": lost}} for name, value, lost in rows]
    plots.plot_peers({"results": [*results, {"name": "drain_noop.ours", "value": None, "detail": {}}]}, tmp_path)
    assert drawn == {"crash_default_restart_s.svg": ["crash_default_restart_s.ours"]}


def test_a_server_that_is_named_and_not_there_is_an_error(monkeypatch):
    """Another would be measured instead, unseen."""
    monkeypatch.setenv("STREAMQ_BENCH_REDIS", "no-such-server")
    with pytest.raises(FileNotFoundError, match="STREAMQ_BENCH_REDIS names 'no-such-server', which is not a program"):
        server_binary()


@pytest.mark.slow
def test_two_systems_are_measured_in_the_same_rounds(capsys):
    """The document has each figure, its ratio to the limit, and what each system promises."""
    sizes = ["--quick", "--json", "--systems", *OWN, "--scenarios", "drain_noop", "enqueue_many"]
    assert peers.main(sizes) == 0
    document = json.loads(capsys.readouterr().out)
    results = {result["name"]: result for result in document["results"]}
    assert set(document["promises"]) == set(OWN)
    assert results["drain_noop.raw"]["detail"]["ratio_to_raw"] == 1
    assert results["drain_vs_raw"]["unit"] == "x raw"
    assert results["enqueue_many.streamq"]["value"] > 0
    assert document["scenarios"]["enqueue_many"]["figures"] == [f"enqueue_many.{name}" for name in OWN]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_further_scenario_can_be_measured(capsys):
    """One that fails in every system is a note in the document, and nobody sees it."""
    scenarios = ["io_50ms", "cpu_1ms", "idle_latency", "delayed", "payload_4096", "aof", "memory", "fairness"]
    systems = ["--systems", "streamq", "--rounds", "1"]
    assert peers.main(["--quick", "--json", *systems, "--scenarios", *scenarios]) == 0
    document = json.loads(capsys.readouterr().out)
    assert not [note for note in document["notes"] if "failed" in note]
    assert [result["name"].partition(".")[0] for result in document["results"]] == [
        "io_50ms", "cpu_1ms", "idle_latency_ms", "delayed_late_ms", "drain_4096", "drain_aof", "bytes_per_waiting_job",
        "fast_users_wait_s",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_worker_costs_seconds_and_no_job():
    """The scenario counts what was lost and what ran twice; for streamq that is nothing."""
    system = SYSTEMS["streamq"]
    make(system)
    found = crash.measure(partial(peers.worker, system), partial(peers.produce, system), 8, "default", 30)
    assert (found.jobs, found.restarted, found.doubled) == (8, 8, 0)
