"""Put each defect into a copy of the tree, and see that a test turns red.

    python -m tests.defects [--part 1/4] [--only WORDS] [--json]

Exit 0 if every defect was noticed, 1 if one was not. Runs next to the servers of the suite, several minutes in all; not
part of a normal run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.defects.table import DEFECTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.defects.table import Defect

ROOT = Path(__file__).parents[2]
LIMIT_S = 180


def copied(target: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("streamq", "tests", "benchmarks", "bin", "docs"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, target / name)


def judged(defect: Defect, tree: Path) -> dict[str, Any]:
    """Put one defect in, run its tests, and take it out again."""
    path = tree / "streamq" / defect.file
    sound = path.read_text()
    assert sound.count(defect.old) == 1, f"{defect.name}: what it replaces is not there once"
    path.write_text(sound.replace(defect.old, defect.new))
    began = time.monotonic()
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in defect.tests.split())],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
        code, output = run.returncode, run.stdout
    except subprocess.TimeoutExpired:
        code, output = 1, f"FAILED: longer than {LIMIT_S} s"
    finally:
        path.write_text(sound)
    noticed_by = next((line for line in output.splitlines() if line.startswith("FAILED")), "")
    # 1: tests ran, and one failed. Any other code means that something else went wrong.
    return {
        "defect": defect.name,
        "noticed": code == 1 and bool(noticed_by),
        "by": noticed_by.removeprefix("FAILED ").partition(" - ")[0],
        "seconds": round(time.monotonic() - began, 1),
    }


def chosen(part: str, only: str) -> Sequence[Defect]:
    """Return the defects of a part, such as 2/4, whose name has these words."""
    number, _, parts = part.partition("/")
    return [each for each in DEFECTS[int(number) - 1 :: int(parts)] if only in each.name]


def main() -> int:
    """Judge them one after another."""
    parser = argparse.ArgumentParser(prog="python -m tests.defects", description=__doc__.partition("\n")[0])
    parser.add_argument("--part", default="1/1", metavar="N/M", help="every Mth defect, from the Nth")
    parser.add_argument("--only", default="", metavar="WORDS", help="those with this in their name")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="defects-") as folder:
        copied(Path(folder))
        for defect in chosen(given.part, given.only):
            results.append(result := judged(defect, Path(folder)))
            word = "noticed" if result["noticed"] else "MISSED "
            print(f"{word}  {result['seconds']:6.1f} s  {defect.name}  {result['by']}", file=sys.stderr)  # noqa: T201
    missed = [result for result in results if not result["noticed"]]
    if given.json:
        print(json.dumps({"defects": len(results), "missed": len(missed), "results": results}, indent=2))  # noqa: T201
    print(f"{len(results) - len(missed)} of {len(results)} noticed", file=sys.stderr)  # noqa: T201
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
