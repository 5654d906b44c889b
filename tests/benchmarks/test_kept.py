"""A comparison that is measured in pieces is one document, and no mixture."""

import json
from argparse import Namespace

import pytest

from benchmarks import peers
from benchmarks.harness import Report, Scale
from benchmarks.kept import Unlike, keep


def document(at, scenarios, *, failures=None, **versions):
    """Make a document as a run of some scenarios leaves it."""
    rows = {
        scenario: {f"{scenario}.{system}": value for system, value in found.items()}
        for scenario, found in scenarios.items()
    }
    return {
        "benchmark": "peers",
        "quick": False,
        "measured_at": at,
        "machine": {"processor": "p", "cores": 2, "system": "s", "load_average": [at]},
        "versions": {"python": "3.11", "server": "Redis 7.0.15", **versions},
        "notes": ["always", f"at {at}"],
        "results": [{"name": name, "value": value} for found in rows.values() for name, value in found.items()],
        "failures": failures or {},
        "promises": {system: {} for found in scenarios.values() for system in found},
        "scenarios": {
            name: {"measured_at": at, "figures": list(found) or [name], "notes": [f"at {at}"]}
            for name, found in rows.items()
        },
    }


@pytest.fixture
def path(tmp_path):
    """Keep a first piece."""
    path = tmp_path / "peers.json"
    keep(path, document(1, {"drain": {"raw": 10, "arq": 1}, "io": {"raw": 5}}))
    return path


def test_what_is_measured_again_takes_the_place_of_what_was(path):
    """A system that failed this time does not keep the figure of another run beside those of this one."""
    whole = keep(path, document(2, {"drain": {"raw": 12}}))
    assert {row["name"]: row["value"] for row in whole["results"]} == {"drain.raw": 12, "io.raw": 5}
    assert {name: told["measured_at"] for name, told in whole["scenarios"].items()} == {"drain": 2, "io": 1}
    assert whole["notes"] == ["always", "at 2"]
    assert json.loads(path.read_text()) == whole


def test_a_scenario_that_failed_once_and_then_not_is_no_failure(path):
    """And the other way round."""
    failed = document(2, {"drain": {}}, failures={"drain": "told"})
    failed["results"] = [{"name": "drain", "value": None}]
    whole = keep(path, failed)
    assert [row["name"] for row in whole["results"]] == ["drain", "io.raw"]
    assert whole["failures"] == {"drain": "told"}
    assert keep(path, document(3, {"drain": {"raw": 11}}))["failures"] == {}


def test_pieces_with_unlike_versions_are_not_put_together(path):
    """Unlike is not called like; what was kept stays."""
    before = path.read_text()
    with pytest.raises(
        Unlike, match=r"^what is kept was measured with server 'Redis 7\.0\.15', and this with 'Redis 8\.6\.3'"
    ):
        keep(path, document(2, {"drain": {"raw": 12}}, server="Redis 8.6.3"))
    assert path.read_text() == before


def test_a_run_that_cannot_be_kept_is_printed_all_the_same(path):
    """An hour of figures is not lost over a file."""
    report = Report("peers", Scale(quick=True), extra={"scenarios": {"drain": {"figures": []}}})
    peers._finish(Namespace(systems=[], into=path, plot=None, server="Redis 7.0.15"), report)
    assert report.notes[-1].startswith("not kept: what is kept was measured with processor 'p', and this with ")


@pytest.mark.parametrize(
    ("text", "says"),
    [("{}", "is not a document that says its scenarios; name another file"), ("{", "cannot be read as a document")],
)
def test_a_file_that_holds_something_else_is_refused_before_anything_is_measured(tmp_path, text, says, capsys):
    """And stays as it is."""
    (tmp_path / "notes").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        peers.main(["--into", str(tmp_path / "notes")])
    assert says in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == text
