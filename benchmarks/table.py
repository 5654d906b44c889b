"""The tables of a kept comparison: `python -m benchmarks.table FILE`, as docs/benchmarks.md has them, and with --short as the README has."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.systems import is_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["main", "short_table", "table"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of every system."""

    heading: str
    scenario: str
    """What stands before the dot in the names of its figures."""
    read: Callable[[Row], float | None]
    is_less_better: bool = False
    words: str = ""
    """How the short table calls it, if it has it."""


def _value(row: Row) -> float | None:
    value: float | None = row["value"]
    return value


def _detail(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["detail"].get(name)


def _restart_s(row: Row) -> float | None:
    """Return when the last job started again; nothing when some never did while the program watched."""
    return None if row["detail"]["lost"] else _value(row)


COLUMNS = (
    Column("no-op jobs/s", "drain_noop", _value, words="no-op jobs a second, one process"),
    Column("2 processes", "drain_noop_2", _value),
    Column("enqueue/s", "enqueue_one", _value, words="enqueued a second, one call after another"),
    Column("concurrent", "enqueue_concurrent", _value),
    Column("bulk", "enqueue_many", _value, words="in bulk"),
    Column("50 ms of I/O, jobs/s", "io_50ms", _value),
    Column("1 ms of CPU, jobs/s", "cpu_1ms", _value),
    Column("idle p50 ms", "idle_latency_ms", _value, True, "ms from due to started, idle worker, median"),
    Column("p99 ms", "idle_latency_ms", _detail("p99"), is_less_better=True),
    Column("delayed p99 ms late", "delayed_late_ms", _value, is_less_better=True),
    Column("256 B, jobs/s", "drain_256", _value),
    Column("4 KiB, jobs/s", "drain_4096", _value),
    Column("64 KiB, jobs/s", "drain_65536", _value),
    Column("AOF, jobs/s", "drain_aof", _value),
    Column("a million waiting, jobs/s", "backlog_1000000", _value),
    Column("five millions, jobs/s", "backlog_5000000", _value),
    Column("fast users wait, s p99", "fast_users_wait_s", _value, True, "s that fast users wait beside slow ones, p99"),
    Column("bytes waiting", "bytes_per_waiting_job", _value, True, "bytes of Redis per waiting job"),
    Column("bytes left", "bytes_per_waiting_job", _detail("left_per_finished_job"), is_less_better=True),
    Column("worker µs a job", "drain_noop", _detail("worker_cpu_us"), is_less_better=True),
    Column("Redis µs a job", "drain_noop", _detail("redis_cpu_us"), is_less_better=True),
    Column("commands a job", "drain_noop", _detail("commands_per_job"), is_less_better=True),
    Column(
        "s to restart after kill -9",
        "crash_default_restart_s",
        _restart_s,
        True,
        "s from `kill -9` to the restart of its jobs",
    ),
    Column("s at its best", "crash_fast_restart_s", _restart_s, is_less_better=True),
)
MOST_COLUMNS = 8
"""In one table: more are not readable."""


def table(document: Mapping[str, Any]) -> str:
    """Return the figures of a document of `benchmarks.peers` as Markdown; the first of each column is bold.

    The bare loop promises nothing and is nobody's rival; a cell is empty where nothing was measured, or did not come.
    """
    figures = {row["name"]: row for row in document["results"]}
    systems = list(document["promises"])
    columns = [column for column in COLUMNS if any(_read(column, name, figures) is not None for name in systems)]
    return (
        "\n\n".join(
            _one(columns[at : at + MOST_COLUMNS], systems, figures) for at in range(0, len(columns), MOST_COLUMNS)
        )
        + "\n"
    )


def short_table(document: Mapping[str, Any]) -> str:
    """Return what streamq comes to beside redis-py by hand and the best of the others, as Markdown."""
    figures = {row["name"]: row for row in document["results"]}
    lines = [["", "streamq", "redis-py by hand", "best of the others"], ["---", "--:", "--:", "--:"]]
    for column in COLUMNS:
        found = {name: _read(column, name, figures) for name in document["promises"]} if column.words else {}
        values = {name: value for name, value in found.items() if value is not None}
        if "streamq" in values:
            others = [name for name in values if not is_limit(name) and not name.startswith("streamq")]
            best = (min if column.is_less_better else max)(others, key=values.__getitem__, default="")
            told = f"{_cell(values[best], is_best=False)} ({best})" if best else ""
            ours, limit = (_cell(values.get(name), is_best=False) for name in ("streamq", "raw"))
            lines.append([column.words, ours, limit, told])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _one(columns: Sequence[Column], systems: Sequence[str], figures: Mapping[str, Row]) -> str:
    by_column = [_column(column, systems, figures) for column in columns]
    lines = [["", *(column.heading for column in columns)], ["---", *("--:" for _ in columns)]]
    lines += [[name, *(cells[name] for cells in by_column)] for name in systems]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _column(column: Column, systems: Sequence[str], figures: Mapping[str, Row]) -> dict[str, str]:
    values = {name: _read(column, name, figures) for name in systems}
    rivals = [value for name, value in values.items() if value is not None and not is_limit(name)]
    best = (min if column.is_less_better else max)(rivals, default=None)
    return {name: _cell(value, is_best=value == best and not is_limit(name)) for name, value in values.items()}


def _read(column: Column, system: str, figures: Mapping[str, Row]) -> float | None:
    row = figures.get(f"{column.scenario}.{system}")
    return None if row is None else column.read(row)


def _cell(value: float | None, *, is_best: bool) -> str:
    if value is None:
        return ""
    told = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"**{told}**" if is_best else told


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("file", type=Path, help="what `python -m benchmarks.peers --into FILE` kept")
    parser.add_argument("--short", action="store_true", help="streamq, redis-py by hand and the best of the others")
    chosen = parser.parse_args(arguments)
    print((short_table if chosen.short else table)(json.loads(chosen.file.read_text())), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
