"""The figures of a run as SVG.

Of systems bars on a logarithmic scale, so that the slow ones can be seen beside the fast ones; of users who has started when.
"""

from __future__ import annotations

import argparse
import importlib.util
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.systems import is_limit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["folder_of_plots", "plot_fairness", "plot_peers", "started"]

OURS, THEIRS, LIMIT = "#d9480f", "#5c7cfa", "#adb5bd"
OTHERS = ("#212529", THEIRS, "#12b886", "#ae3ec9", LIMIT)
"""Of lines beside ours."""
TITLES = {
    "drain_noop": "No-op jobs a second, one process",
    "drain_noop_2": "No-op jobs a second, two processes",
    "enqueue_one": "Enqueued a second, one call after another",
    "enqueue_many": "Enqueued a second, in bulk",
    "io_50ms": "Jobs that wait 50 ms, a second, concurrency 100",
    "idle_latency_ms": "From due to started on an idle worker, median, ms",
    "bytes_per_waiting_job": "Bytes in Redis per waiting job",
    "crash_default_restart_s": "Seconds from kill -9 until all its jobs had started again, where they did",
    "fast_users_wait_s": "How long fast users wait beside slow ones, 99th percentile, s",
}


def folder_of_plots(name: str) -> Path:
    """Read the option --plot: that nothing can be drawn is better known before the minutes of a run than after.

    Raises:
        ArgumentTypeError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("drawing needs matplotlib: pip install matplotlib, or leave --plot out")
    return Path(name)


def plot_peers(document: Mapping[str, Any], folder: Path) -> None:
    """Draw each scenario of a document of `benchmarks.peers` into a file of its name.

    Raises:
        ImportError: matplotlib is not installed; it is in the dependency group `bench`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for scenario, title in TITLES.items():
        rows = [row for row in document["results"] if row["name"].startswith(f"{scenario}.") and row["value"]]
        came = [row for row in rows if not row["detail"].get("lost")]
        if came:
            _bars(came, title, folder / f"{scenario}.svg")


def _bars(rows: Sequence[Mapping[str, Any]], title: str, file: Path) -> None:
    pyplot = _pyplot()
    rows = sorted(rows, key=lambda row: row["value"])
    names = [row["name"].partition(".")[2] for row in rows]
    values = [row["value"] for row in rows]
    low = [value - (row["spread"] or (value,))[0] for row, value in zip(rows, values, strict=True)]
    high = [(row["spread"] or (value,))[-1] - value for row, value in zip(rows, values, strict=True)]
    figure, axes = pyplot.subplots(figsize=(7, 0.32 * len(rows) + 1))
    axes.barh(names, values, color=[_colour(name) for name in names], xerr=[low, high], ecolor="#495057")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.xaxis.set_minor_formatter("")
    for place, value in enumerate(values):
        told = f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
        axes.annotate(told, (value + high[place], place), va="center", xytext=(4, 0), textcoords="offset points")
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def plot_fairness(waits: Mapping[str, tuple[Sequence[float], Sequence[float]]], folder: Path) -> None:
    """Draw into `fairness.svg` how many fast and how many slow users have started over time, system by system.

    Args:
        waits: System to the waits of fast and of slow users, in s; nothing is drawn without any.
        folder: Is made if it is not there.

    Raises:
        ImportError: matplotlib is not installed; it is in the dependency group `bench`.
    """
    if not waits:
        return
    pyplot = _pyplot()
    figure, sides = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for side, title, which in zip(sides, ("fast users", "slow users"), (0, 1), strict=True):
        colours = cycle(OTHERS)
        for system, seconds in waits.items():
            is_ours = system == "streamq"
            colour, width = (OURS, 2) if is_ours else (next(colours), 1)
            side.plot(*started(seconds[which]), label=system, color=colour, linewidth=width)
        side.set_title(title, loc="left", fontsize=10)
        side.set_xlabel("s after the first job was enqueued")
        side.spines[["top", "right"]].set_visible(False)
        side.grid(alpha=0.3)
    sides[0].set_ylabel("% of them have started")
    sides[1].legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "fairness.svg", metadata={"Date": None})
    pyplot.close(figure)


def started(waits_s: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the times at which somebody started, rising, and how many % had started by then."""
    return sorted(waits_s), [100 * (place + 1) / len(waits_s) for place in range(len(waits_s))]


def _pyplot() -> Any:
    """Load matplotlib, told to make the same file of the same figures."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "streamq", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def _colour(name: str) -> str:
    return LIMIT if is_limit(name) else OURS if name.startswith("streamq") else THEIRS
