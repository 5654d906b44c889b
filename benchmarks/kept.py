"""A comparison that is measured piece by piece: what a run adds to the document that an earlier one left.

All of it takes over an hour. Each scenario is measured in one piece and says when; nothing is mixed within one.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["Unlike", "keep", "kept_document", "merged"]

Document = dict[str, Any]
SAME = ("processor", "cores", "system")
"""What of a machine has to be the same in all pieces."""


class Unlike(ValueError):
    """The pieces are of unlike machines or versions: side by side they would say nothing."""


def kept_document(name: str) -> Path:
    """Read the option --into: that a file is none of ours is better known before the minutes of a run than after.

    Raises:
        ArgumentTypeError: There is such a file, and it is not a document of `benchmarks.peers`.
    """
    path = Path(name)
    try:
        found = json.loads(path.read_text()) if path.exists() else {"scenarios": {}}
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be read as a document: {error}") from error
    if not isinstance(found, dict) or "scenarios" not in found:
        raise argparse.ArgumentTypeError(f"{name} is not a document that says its scenarios; name another file")
    return path


def keep(path: Path, new: Document) -> Document:
    """Write the kept document anew, with what was measured now in place of what it had of the same scenarios.

    Raises:
        Unlike: They were measured on another machine, or with other versions; the file stays as it is.
    """
    whole = merged(json.loads(path.read_text()), new) if path.exists() else new
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    beside.replace(path)
    return whole


def merged(kept: Document, new: Document) -> Document:
    """Return the new document with the scenarios of the kept one that it has not.

    Args:
        kept: An earlier document.
        new: What was measured now.

    Raises:
        Unlike: They were measured on another machine, or with other versions.
    """
    _compare(kept, new)
    scenarios = {**kept["scenarios"], **new["scenarios"]}
    rows = {row["name"]: row for row in [*kept["results"], *new["results"]]}
    gone = {name for scenario in new["scenarios"] for name in kept["scenarios"].get(scenario, {}).get("figures", ())}
    failed = {name: told for name, told in kept["failures"].items() if name not in gone | set(new["scenarios"])}
    past = {note for scenario in new["scenarios"] for note in kept["scenarios"].get(scenario, {}).get("notes", ())}
    return {
        **new,
        "notes": list(dict.fromkeys([note for note in kept["notes"] if note not in past] + new["notes"])),
        "results": [rows[name] for scenario in scenarios.values() for name in scenario["figures"]],
        "failures": {**failed, **new["failures"]},
        "promises": {**kept["promises"], **new["promises"]},
        "scenarios": scenarios,
    }


def _compare(kept: Document, new: Document) -> None:
    for what, was, is_now in (
        *((name, kept["machine"][name], new["machine"][name]) for name in SAME),
        *((name, kept["versions"].get(name), version) for name, version in new["versions"].items()),
        ("quick", kept["quick"], new["quick"]),
    ):
        if was != is_now:
            raise Unlike(
                f"what is kept was measured with {what} {was!r}, and this with {is_now!r}: keep it in another file"
            )
