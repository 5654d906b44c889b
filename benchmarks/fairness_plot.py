"""The picture of `benchmarks.fairness --plot`: how long fast and slow users wait, system by system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["draw"]


def draw(hours: Mapping[str, tuple[Sequence[float], Sequence[float]]], file: Path) -> None:
    """Draw the share of users that have started over time, and write it as SVG.

    Args:
        hours: System to the waits of fast and of slow users, in s.
        file: Where it goes.
    """
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "streamq"  # the same figures give the same file
    figure, sides = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for side, title, which in zip(sides, ("fast users", "slow users"), (0, 1), strict=True):
        for system, waits in hours.items():
            ordered = sorted(waits[which])
            side.plot(ordered, [100 * (place + 1) / len(ordered) for place in range(len(ordered))], label=system)
        side.set_title(title)
        side.set_xlabel("s after the first job was enqueued")
        side.grid(alpha=0.3)
    sides[0].set_ylabel("% of them have started")
    sides[1].legend()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
