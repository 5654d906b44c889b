"""What streamq is told from outside: one frozen value, read from five places and checked whole at the start.

Every message here speaks of a setting by the name that the user gave it, wherever that was. The environment is only
ever read: what stands in `.env` reaches this program alone, never its children by accident.
"""

from streamq.settings.load import load
from streamq.settings.table import Row, Settings, Spec, describe, spec

__all__ = ["Row", "Settings", "Spec", "describe", "load", "spec"]
