"""The table of the comparison says what was measured, and who was first."""

import json
from pathlib import Path

import pytest

from benchmarks.table import main, short_table, table

ROOT = Path(__file__).parents[2]


def row(name, value, **detail):
    """Make a figure of a document."""
    return {"name": name, "value": value, "detail": detail}


def test_the_first_of_each_column_is_bold_and_the_bare_loop_is_nobodys_rival(tmp_path, capsys):
    """More is better for rates, and less for times; a system that lost jobs has no time of their restart."""
    rows = [
        row("drain_noop.raw", 90_000.0, worker_cpu_us=8.0),
        row("drain_noop.ours", 60_000.0, worker_cpu_us=12.25),
        row("drain_noop.theirs", 1_000.0, worker_cpu_us=700.0),
        row("crash_default_restart_s.ours", 4.5, lost=0),
        row("crash_default_restart_s.theirs", 0.2, lost=3),
    ]
    path = tmp_path / "document.json"
    path.write_text(json.dumps({"results": rows, "promises": {"raw": {}, "ours": {}, "theirs": {}}}))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | no-op jobs/s | worker µs a job | s to restart after kill -9 |",
        "| --- | --: | --: | --: |",
        "| raw | 90,000 | 8 |  |",
        "| ours | **60,000** | **12.2** | **4.5** |",
        "| theirs | 1,000 | 700 |  |",
    ]


def test_the_short_table_has_the_best_of_the_others_beside_streamq(tmp_path, capsys):
    """Neither another setting of streamq nor redis-py by hand is one of them."""
    rows = [
        row("drain_noop.raw", 90_000.0),
        row("drain_noop.raw-sync", 99_000.0),
        row("drain_noop.streamq", 60_000.0),
        row("drain_noop.streamq-default", 70_000.0),
        row("drain_noop.slow", 100.0),
        row("drain_noop.quick", 1_000.0),
        row("crash_default_restart_s.streamq", 4.5, lost=0),
        row("crash_default_restart_s.quick", 0.2, lost=3),
        row("io_50ms.streamq", 2_000.0),
    ]
    promises = {name: {} for name in ["raw", "raw-sync", "streamq", "streamq-default", "slow", "quick"]}
    path = tmp_path / "document.json"
    path.write_text(json.dumps({"results": rows, "promises": promises}))
    assert main([str(path), "--short"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | streamq | redis-py by hand | best of the others |",
        "| --- | --: | --: | --: |",
        "| no-op jobs a second, one process | 60,000 | 90,000 | 1,000 (quick) |",
        "| s from `kill -9` to the restart of its jobs | 4.5 |  |  |",
    ]


@pytest.mark.parametrize(("told", "file"), [(table, "docs/benchmarks.md"), (short_table, "README.md")])
def test_the_tables_that_are_read_are_those_of_the_kept_document(told, file):
    """Else one of them is of another run."""
    document = json.loads((ROOT / "benchmarks/results/peers.json").read_text())
    assert told(document) in (ROOT / file).read_text()
