"""The benchmarks are a part of the checkout, not of the wheel."""

from __future__ import annotations

import sys
from pathlib import Path

# Last, so that an installed streamq is still the one that is tested.
sys.path.append(str(Path(__file__).resolve().parents[2]))
