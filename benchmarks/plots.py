"""The figures of a run as SVG: bars on a logarithmic scale, so that the slow ones can be seen beside the fast ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["plot_peers"]

OURS, THEIRS, LIMIT = "#d9480f", "#5c7cfa", "#adb5bd"
TITLES = {
    "drain_noop": "No-op jobs a second, one process",
    "drain_noop_2": "No-op jobs a second, two processes",
    "enqueue_one": "Enqueued a second, one call after another",
    "enqueue_many": "Enqueued a second, in bulk",
    "io_50ms": "Jobs that wait 50 ms, a second, concurrency 100",
    "idle_latency_ms": "From due to started on an idle worker, median, ms",
    "bytes_per_waiting_job": "Bytes in Redis per waiting job",
    "crash_default_restart_s": "Seconds from kill -9 to the restart of its jobs, default settings",
}


def plot_peers(document: Mapping[str, Any], folder: Path) -> None:
    """Draw each scenario of a document of `benchmarks.peers` into a file of its name.

    Raises:
        ImportError: matplotlib is not installed; it is in the dependency group `bench`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for scenario, title in TITLES.items():
        rows = [row for row in document["results"] if row["name"].startswith(f"{scenario}.") and row["value"]]
        if rows:
            _bars(rows, title, folder / f"{scenario}.svg")


def _bars(rows: Sequence[Mapping[str, Any]], title: str, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams.update({"svg.hashsalt": "streamq", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: row["value"])
    names = [row["name"].partition(".")[2] for row in rows]
    values = [row["value"] for row in rows]
    low = [value - (row["spread"] or (value,))[0] for row, value in zip(rows, values, strict=True)]
    high = [(row["spread"] or (value,))[-1] - value for row, value in zip(rows, values, strict=True)]
    figure, axes = pyplot.subplots(figsize=(7, 0.32 * len(rows) + 1))
    axes.barh(names, values, color=[_colour(name) for name in names], xerr=[low, high], ecolor="#495057")
    axes.set_xscale("log")
    for place, value in enumerate(values):
        axes.annotate(f" {value:,.4g}", (value, place), va="center", xytext=(4, 0), textcoords="offset points")
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _colour(name: str) -> str:
    return LIMIT if name == "raw" else OURS if name.startswith("streamq") else THEIRS
