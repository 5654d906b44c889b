"""The installed programs: `streamq`, and `streamq-ROLE` for `streamq ROLE`."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Run the command line; the program's own name may stand for its first argument."""
    role = Path(sys.argv[0]).stem.removeprefix("streamq").removeprefix("-")
    sys.argv[:1] = ["streamq", role] if role else ["streamq"]
    from streamq.cli import main as run  # the name above must be settled first

    run()
