"""The budget of a job in figures that do not depend on the machine's mood: `python -m benchmarks.guard [--json] [--update]`.

Commands, round trips and bytes per job, as the server counts them, and instructions per job, as valgrind's callgrind counts
them. They are compared with `benchmarks/budget.json`; a figure that has grown by more than 5 % ends the program with 1. To
spend more, run with `--update` and write a line that names the figure and its new value into docs/decisions.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import app
from benchmarks.drains import tallied
from benchmarks.harness import Bar, Part, Report, Scale, at_most, run
from benchmarks.processes import TREE, Child
from benchmarks.servers import RedisServer, ServerFigures
from benchmarks.waits import hold, wait_for_readers, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["BUDGET", "Budget", "main"]

BUDGET = Path(__file__).with_name("budget.json")
DECISIONS = TREE / "docs" / "decisions.md"
GROWTH = 1.05
JOBS = 8_000
"""Enough batches that the first and the last one do not count; callgrind runs them in a few seconds."""

ROUNDS = 3
SIDES = ("enqueue", "work")
COUNTED = ("commands", "round_trips", "bytes_to_redis", "bytes_from_redis")
BUILD = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
"""Instructions are comparable between runs of one build of the interpreter."""


class Budget:
    """What each figure may be."""

    def __init__(self, known: dict[str, Any]) -> None:
        self._counts: dict[str, float] = known.get("counts", {})
        self._instructions: dict[str, dict[str, float]] = known.get("instructions", {})

    @classmethod
    def read(cls) -> Budget:
        """Read the file that is kept with the code."""
        return cls(json.loads(BUDGET.read_text()) if BUDGET.exists() else {})

    def of(self, name: str) -> float | None:
        """Return the budget of a figure, or None if there is none for this interpreter."""
        return self._counts.get(name, self._instructions.get(BUILD, {}).get(name))

    def bar(self, name: str) -> Bar | None:
        """Return the bar that a figure may not exceed: its budget and five per cent."""
        known = self.of(name)
        return None if known is None else at_most(float(f"{known * GROWTH:.4g}"))

    def replaced(self, figures: dict[str, float]) -> dict[str, Any]:
        """Return the content of the file with these figures in place of the old ones."""
        counts = {name: value for name, value in figures.items() if not name.startswith("instructions")}
        instructions = {name: value for name, value in figures.items() if name.startswith("instructions")}
        every = self._instructions | ({BUILD: instructions} if instructions else {})
        return {"counts": self._counts | counts, "instructions": every}

    def unexplained(self, decisions: str) -> list[str]:
        """Return the counted figures that no line of the decisions names with their value."""
        lines = decisions.splitlines()
        return [
            name
            for name, value in self._counts.items()
            if not any(f"`{name}`" in line and f"{value:g}" in line for line in lines)
        ]


def _enqueued(report: Report) -> dict[str, float]:
    with RedisServer() as server, _callgrind() as meter, tempfile.TemporaryDirectory() as folder:
        report.server = server.version
        sizes = json.dumps({"folder": folder, "count": JOBS})
        told = Path(folder)
        with Child(
            "-m", "benchmarks.producers", "fill_when_told", server.url, sizes,
            environment=app.environment(server.url) | FIXED, program=meter.program,
        ) as child:  # fmt: skip
            wait_until((told / "ready").exists, "the producer is warm", child, limit_s=120)
            spent = _measured(server, child, meter, (told / "go").touch, (told / "done").exists)
            (told / "bye").touch()
    return spent


def _worked(report: Report) -> dict[str, float]:
    with RedisServer() as server, _callgrind() as meter, tallied() as tallies:
        report.server = server.version
        environment = tallies.environment | app.environment(server.url, **RARELY) | FIXED | {app.SLOWED: "1000"}
        line = ("-m", "streamq", "worker", "benchmarks.app:app", "--no-parent", "-c", "100")
        with Child(*line, environment=environment, program=meter.program) as child:
            wait_for_readers(server, child, limit_s=120)
            _fill(server, 256)
            wait_until(lambda: tallies.total() == 256, "the worker is warm", child, limit_s=60)
            hold(child)
            _fill(server, JOBS)
            spent = _measured(
                server, child, meter,
                lambda: child.process.send_signal(signal.SIGCONT), lambda: tallies.total() == 256 + JOBS,
            )  # fmt: skip
    return spent


def _fill(server: RedisServer, count: int) -> None:
    line = ("-m", "benchmarks.producers", "fill", server.url, json.dumps({"count": count}))
    with Child(*line, environment=app.environment(server.url)) as child:
        child.process.wait(60)


FIXED = {"PYTHONHASHSEED": "0", "STREAMQ_LOG_LEVEL": "info"}
"""The same order of sets and dicts each time."""


RARELY = {"beat_ms": "300000", "dead_after_ms": "900000", "lease_ms": "3600000"}
"""What happens once a second would be counted by how slow callgrind is, not by what a job takes.

So would be what a worker hands back because it is slow: it reads ahead, here, as it would at full speed.
"""


def _measured(
    server: RedisServer, child: Child, meter: _Callgrind, go: Callable[[], object], is_done: Callable[[], bool]
) -> dict[str, float]:
    """Read all counters before and after, and return what a job took."""
    meter.begin(child)
    before = server.figures()
    go()
    wait_until(is_done, "the jobs are done", child, limit_s=300)
    after = server.figures()
    return _per_job(before, after) | meter.end(child)


def _per_job(before: ServerFigures, after: ServerFigures) -> dict[str, float]:
    own = 6  # what reading the figures itself does: three INFO, and a connection's greetings
    return {
        "commands": (after.commands - before.commands - own) / JOBS,
        "round_trips": (after.replies - before.replies - own) / JOBS,
        "bytes_to_redis": (after.bytes_in - before.bytes_in) / JOBS,
        "bytes_from_redis": (after.bytes_out - before.bytes_out) / JOBS,
    }


def _tell(report: Report, budget: Budget, side: str, measure: Callable[[Report], dict[str, float]]) -> None:
    """Measure a few times and keep the least of each: how many jobs a batch takes depends a little on who is quicker."""
    rounds = [measure(report) for _ in range(ROUNDS)]
    for name in rounds[0]:
        full, seen = f"{name}_per_job.{side}", [spent[name] for spent in rounds]
        bar = budget.bar(full)
        report.add(full, [min(seen)], "", bar, f"{JOBS:,} no-op jobs", detail={"budget": budget.of(full), "seen": seen})
        if bar is None:
            report.notes.append(f"{full} has no budget for {BUILD}: nothing to compare with")


class _Callgrind:
    """Counts the instructions of a program between two moments; where there is no valgrind, nothing."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / "callgrind.out"
        self._is_there = bool(shutil.which("valgrind") and shutil.which("callgrind_control"))
        tool = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={self._out}")
        self.program = (*tool, sys.executable) if self._is_there else (sys.executable,)

    def begin(self, child: Child) -> None:
        """Count from here."""
        self._say(child, "-i", "on")

    def end(self, child: Child) -> dict[str, float]:
        """Stop, and return the instructions per job."""
        self._say(child, "-d")
        self._say(child, "-i", "off")
        totals = [re.search(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE) for file in self._dumps()]
        counted = sum(int(found[1]) for found in totals if found)
        return {"instructions": counted / JOBS} if self._is_there else {}

    def _dumps(self) -> Iterator[Path]:
        return self._out.parent.glob("callgrind.out*")

    def _say(self, child: Child, *words: str) -> None:
        if self._is_there:
            command = ["callgrind_control", *words, str(child.pid)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)


class _callgrind:  # noqa: N801 - used as a function
    def __enter__(self) -> _Callgrind:
        self._folder = tempfile.TemporaryDirectory()
        return _Callgrind(Path(self._folder.name))

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def parts(budget: Budget, _scale: Scale) -> list[Part]:
    """List what is measured: the same in a quick run."""
    names = {side: [f"{name}_per_job.{side}" for name in (*COUNTED, "instructions")] for side in SIDES}
    return [
        Part(names["enqueue"], partial(_tell, budget=budget, side="enqueue", measure=_enqueued), quick_s=25),
        Part(names["work"], partial(_tell, budget=budget, side="work", measure=_worked), quick_s=25),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and compare. Returns 1 when a figure is over its budget, or a budget is not explained."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--update", action="store_true", help="make what was measured the budget")
    chosen, _ = options.parse_known_args(arguments)
    budget, reports = Budget.read(), list[Report]()
    code = run("guard", partial(parts, budget), arguments, options=options, finish=reports.append)
    results = reports[0].results
    if chosen.update:
        kept = budget.replaced({result.name: float(f"{result.value:.4g}") for result in results if result.value})
        BUDGET.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
        return code
    over = [result.name for result in results if result.passes is False]
    silent = budget.unexplained(DECISIONS.read_text() if DECISIONS.exists() else "")
    for name in over:
        print(f"guard: {name} has grown by more than 5 %; see docs/decisions.md on budgets", file=sys.stderr)
    for name in silent:
        print(f"guard: no line of docs/decisions.md names `{name}` with its budget", file=sys.stderr)
    return code or int(bool(over or silent))


if __name__ == "__main__":
    sys.exit(main())
