"""The frame of every benchmark: sizes, rounds, medians with their intervals, one document or one table.

A benchmark is a list of `Part`s. Each part measures some named figures and adds a `Result` per figure; a part that
cannot measure leaves the others alone, and its figures are in the document without a value.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

import streamq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Bar", "Part", "Report", "Result", "Scale", "Tell", "at_least", "at_most",
    "interval", "median", "percentile", "quiet", "ratios", "run",
]  # fmt: skip

T = TypeVar("T")
Tell = Callable[[str, int, int], None]
"""Given what is counted, how many are done, and how many there are in all."""
PACKAGES = ("redis", "hiredis", "uvloop", "orjson")


def quiet(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach."""

    sense: Literal[">=", "<="]
    limit: float

    def is_met_by(self, value: float) -> bool:
        """Tell whether the value reaches the bar."""
        return value >= self.limit if self.sense == ">=" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}"


def at_least(limit: float) -> Bar:
    """Make the bar of a figure that should be large."""
    return Bar(">=", limit)


def at_most(limit: float) -> Bar:
    """Make the bar of a figure that should be small."""
    return Bar("<=", limit)


@dataclass(frozen=True)
class Scale:
    """How much to measure: all of it, or what fits into 50 s."""

    quick: bool

    def pick(self, full: T, quick: T) -> T:
        """Choose between the size of a full run and that of a quick one."""
        return quick if self.quick else full


@dataclass
class Result:
    """One figure, as measured: nothing is scaled up from a smaller size to a larger one."""

    name: str
    value: float | None
    unit: str
    bar: Bar | None
    size: str
    """What it was measured at, in words."""
    spread: tuple[float, float] | None = None
    """Where the figure lies in 95 of 100 resamples of the rounds; with one round, nothing."""
    rounds: int = 1
    """How many values it was made from."""
    holds: bool = True
    """What else must be true for the bar to count as reached, as the part's `detail` shows."""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> bool | None:
        """Whether the bar is reached; nothing for a figure without a bar."""
        if self.bar is None:
            return None
        return self.value is not None and self.holds and self.bar.is_met_by(self.value)

    def as_json(self) -> dict[str, Any]:
        """Return the result as the document has it."""
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "spread": None if self.spread is None else [_rounded(end) for end in self.spread],
            "bar": None if self.bar is None else str(self.bar),
            "passes": self.passes,
            "size": self.size,
            "rounds": self.rounds,
            "detail": {key: _rounded(value) for key, value in self.detail.items()},
        }


@dataclass
class Report:
    """The figures of one run, in the order they were measured."""

    benchmark: str
    scale: Scale
    server: str = ""
    """Which server served, with its version."""
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    other_load: float = 0.0
    """Cores that programs of others kept busy meanwhile: how loud the machine was."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else belongs into the document."""
    tell: Tell = quiet
    """Says how far a long part is, to a person who is watching."""
    time_is_up_at: float = math.inf
    """When the part that runs should be done, on the monotonic clock."""

    def rounds(self, wanted: int) -> Iterator[int]:
        """Count rounds; a quick run ends early, with one round at least, when another would take too long."""
        begun = time.monotonic()
        for number in range(wanted):
            now = time.monotonic()
            if number and now + (now - begun) / number > self.time_is_up_at:
                return
            yield number

    def add(self, name: str, values: Sequence[float], unit: str, bar: Bar | None, size: str, **more: Any) -> None:
        """Add a figure that was measured once a round: its median, and the interval of the median."""
        self.results.append(
            Result(name, median(values), unit, bar, size, spread=interval(values), rounds=len(values), **more)
        )

    def add_percentile(
        self, name: str, samples: Sequence[float], percent: float, unit: str, bar: Bar | None, size: str, **more: Any
    ) -> None:
        """Add a percentile of all that was seen in all rounds, and the interval of that percentile."""
        spread = interval(samples, lambda values: percentile(values, percent))
        value = percentile(samples, percent)
        self.results.append(Result(name, value, unit, bar, size, spread=spread, rounds=len(samples), **more))

    def as_json(self) -> dict[str, Any]:
        """Return the whole document."""
        return {
            "benchmark": self.benchmark,
            "quick": self.scale.quick,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine() | {"cores_kept_busy_by_others": round(self.other_load, 2)},
            "versions": _versions() | {"server": self.server},
            "notes": self.notes,
            "results": [result.as_json() for result in self.results],
            "failures": self.failures,
            **self.extra,
        }


@dataclass(frozen=True)
class Part:
    """Measures the figures that it names; they share a server and, where they are compared, a round."""

    measures: Sequence[str]
    run: Callable[[Report], None]
    quick_s: float
    """How long it may take in a quick run. What one part leaves over, the next ones may use."""


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of all values do not exceed; of few values, the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def interval(
    values: Sequence[float], figure: Callable[[Sequence[float]], float] = median, *, resamples: int = 1000
) -> tuple[float, float] | None:
    """Return where a figure lies in 95 of 100 resamples; nothing for one value. Same values, same interval."""
    if len(values) < 2:
        return None
    dice = random.Random(1)
    figures = sorted(figure(dice.choices(values, k=len(values))) for _ in range(resamples))
    return figures[int(resamples * 0.025)], figures[math.ceil(resamples * 0.975) - 1]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide round by round, so that a slow minute of the machine falls on both sides."""
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def run(
    benchmark: str,
    parts: Callable[[Scale], Sequence[Part]],
    arguments: Sequence[str] | None = None,
    *,
    options: argparse.ArgumentParser | None = None,
    finish: Callable[[Report], None] = lambda _: None,
) -> int:
    """Measure and print; the body of each benchmark's program.

    Args:
        benchmark: Its name.
        parts: What it measures.
        arguments: Of the command line; the program's own, unless given.
        options: Further options of this benchmark, which it has read itself; here they are only explained.
        finish: Gets the report when everything is measured, before it is printed.

    Returns:
        0 when every figure could be measured, whatever it is; else 1.
    """
    parser = _parser(benchmark, options)
    options_given = parser.parse_args(arguments)
    report = Report(benchmark, Scale(options_given.quick))
    every = parts(report.scale)
    unknown = set(options_given.only or ()) - {name for part in every for name in part.measures}
    if unknown:
        parser.error(f"there is no figure {', '.join(sorted(unknown))}")
    chosen = [part for part in every if not options_given.only or set(options_given.only) & set(part.measures)]
    # Let go of servers and workers on the way out, as on an interrupt.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _measure_all(chosen, report)
    finally:
        signal.signal(signal.SIGTERM, before)
    finish(report)
    if options_given.json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        _print_table(report)
    return 1 if report.failures else 0


def _parser(benchmark: str, more: argparse.ArgumentParser | None) -> argparse.ArgumentParser:
    parents = [] if more is None else [more]
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}", parents=parents)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: done in 50 s")
    parser.add_argument("--only", action="append", metavar="NAME", help="measure this figure (repeat for more)")
    return parser


def _measure_all(parts: Sequence[Part], report: Report) -> None:
    begun, busy_before, own_before, allowed_s = time.monotonic(), _busy_s(), _own_s(), 0.0
    with _progress(len(parts)) as (begin, report.tell):
        for part in parts:
            begin(", ".join(part.measures))
            allowed_s += part.quick_s
            report.time_is_up_at = begun + allowed_s if report.scale.quick else math.inf
            _measure(part, report)
    others_s = (_busy_s() - busy_before) - (_own_s() - own_before)
    report.other_load = max(0.0, others_s / (time.monotonic() - begun))


def _measure(part: Part, report: Report) -> None:
    before = len(report.results)
    try:
        part.run(report)
    except Exception as error:  # noqa: BLE001 - whatever it was, the other figures are still worth having
        del report.results[before:]
        told = "".join(traceback.format_exception(error))
        for name in part.measures:
            report.results.append(Result(name, None, "", None, "could not be measured"))
            report.failures[name] = told


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Tell]]:
    """Show on standard error what is measured now and how far that is, if a person is watching."""
    if not sys.stderr.isatty():
        yield lambda _text: None, quiet
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[what]}", TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        parts, part = bars.add_task("", total=total, what="parts", completed=-1), bars.add_task("", total=None, what="")

        def begin(text: str) -> None:
            bars.update(parts, advance=1)
            bars.reset(part, total=None, description=text, what="")

        yield begin, lambda what, done, of: bars.update(part, what=what, completed=done, total=of)


def _print_table(report: Report) -> None:
    console = Console()
    table = Table(title=f"{report.benchmark} · {report.server}", title_justify="left")
    for heading in ("figure", "median", "95 % of resamples", "unit", "bar", ""):
        table.add_column(heading, no_wrap=heading == "figure")
    for result in report.results:
        mark = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[result.passes]
        spread = "" if result.spread is None else f"{_plain(result.spread[0])} to {_plain(result.spread[1])}"
        bar = "" if result.bar is None else str(result.bar)
        table.add_row(result.name, _plain(result.value), spread, result.unit, bar, mark)
    console.print(table)
    for result in report.results:
        detail = "".join(f", {key} {_plain(value)}" for key, value in result.detail.items())
        console.print(f"[bold]{result.name}[/]: {result.size}{detail}", highlight=False)
    console.print(f"· programs of others kept {report.other_load:.2f} of {os.cpu_count()} cores busy", highlight=False)
    for note in report.notes:
        console.print(f"· {note}", highlight=False)
    for name, told in report.failures.items():
        console.print(f"[red]{name} could not be measured:[/]")
        console.print(told, highlight=False, markup=False)


def _plain(value: Any) -> str:
    value = _rounded(value)
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _rounded(value: Any) -> Any:
    """Keep four digits: more would be noise."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if not isinstance(value, float):
        return value
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) >= 1000 else short


def _machine() -> dict[str, Any]:
    return {
        "processor": _line_of(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_mb": int((_line_of(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]) // 1024,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _busy_s() -> float:
    """Return for how long the processors were busy since the machine's start, all added up."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Return the processor time of this program and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _line_of(file: Path, word: str) -> str | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(word)), None)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "streamq": streamq.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
