"""The budget of a job: what is compared, and when a figure that grew is accepted."""

import json

import pytest

from benchmarks import guard
from benchmarks.guard import BUILD, Budget

KNOWN = {"counts": {"commands_per_job.work": 0.1}, "instructions": {BUILD: {"instructions_per_job.work": 50_000}}}


def test_a_figure_may_exceed_its_budget_by_five_per_cent():
    """Counts differ a little from run to run; more than that is a change."""
    bar = Budget(KNOWN).bar("commands_per_job.work")
    assert bar is not None
    assert bar.is_met_by(0.105)
    assert not bar.is_met_by(0.106)


def test_instructions_are_compared_with_runs_of_the_same_interpreter_only():
    """Another build counts other instructions for the same work."""
    other = {"instructions": {"CPython 2.7.18 vax": {"instructions_per_job.work": 1}}}
    assert Budget(KNOWN).of("instructions_per_job.work") == 50_000
    assert Budget(other).bar("instructions_per_job.work") is None


def test_an_update_leaves_the_figures_of_other_interpreters_alone():
    """The file serves every machine that runs the guard."""
    other = {"instructions": {"CPython 2.7.18 vax": {"instructions_per_job.work": 1}}}
    kept = Budget(other).replaced({"commands_per_job.work": 0.2, "instructions_per_job.work": 7})
    assert kept == {
        "counts": {"commands_per_job.work": 0.2},
        "instructions": {**other["instructions"], BUILD: {"instructions_per_job.work": 7}},
    }


@pytest.mark.parametrize(
    ("decisions", "silent"),
    [
        ("Budget: `commands_per_job.work` is 0.1, one command for ten jobs", []),
        ("Budget: `commands_per_job.work` is small", ["commands_per_job.work"]),
        ("", ["commands_per_job.work"]),
    ],
)
def test_a_budget_needs_a_line_with_its_figure_in_the_decisions(decisions, silent):
    """Nobody raises a budget in passing."""
    assert Budget(KNOWN).unexplained(decisions) == silent


def test_the_budget_that_is_kept_is_explained():
    """The same look that CI takes."""
    assert Budget.read().unexplained(guard.DECISIONS.read_text()) == []


@pytest.mark.slow
def test_a_figure_that_has_grown_ends_the_guard_with_1_and_is_named(tmp_path, monkeypatch, capsys):
    """This is what stops a change that costs more."""
    tight = tmp_path / "budget.json"
    tight.write_text(json.dumps({"counts": {"commands_per_job.enqueue": 0.000_001}}))
    monkeypatch.setattr(guard, "BUDGET", tight)
    monkeypatch.setattr(guard, "ROUNDS", 1)
    assert guard.main(["--json", "--only", "commands_per_job.enqueue"]) == 1
    told = capsys.readouterr()
    assert "guard: commands_per_job.enqueue has grown by more than 5 %" in told.err
    assert json.loads(told.out)["results"][0]["passes"] is False
