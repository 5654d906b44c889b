"""How far the move from another system has come: nothing runs, a shadow, a share of the users, all of them.

A phase comes from the settings, and from what `streamq rollout` has stored, which wins; but what the settings switch off
stays off.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from streamq.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streamq.settings import Settings

__all__ = ["ALL", "Phase", "place_of", "share_of"]


@dataclass(frozen=True, slots=True)
class Phase:
    """What schedules may do."""

    is_enabled: bool = True
    """False: nothing fires."""
    is_shadow: bool = False
    """Occurrences are dry runs, compared with what the old system does."""
    share: float = 1.0
    """Of the users that belong to streamq, 0 to 1; the others are left to the old system."""
    daily_updates: bool = True
    """Whether the old system's own batch is on. Nothing here depends on it; the old system reads it."""

    def admits(self, user: object) -> bool:
        """Tell whether a user belongs to the share."""
        return self.share >= 1.0 or place_of(str(user)) < self.share

    @property
    def filter(self) -> Callable[[object], bool] | None:
        """Which users belong to the share; None: all do."""
        return None if self.share >= 1.0 else self.admits

    @property
    def words(self) -> str:
        """The phase in a few words."""
        if not self.is_enabled:
            return "off: nothing fires"
        if self.is_shadow:
            return "shadow: occurrences are dry runs"
        return "all users" if self.share >= 1.0 else f"{self.share:.4%} of the users".replace(".0000%", "%")

    @classmethod
    def of(cls, settings: Settings, stored: Mapping[str, Any] | None = None) -> Phase:
        """Put settings and what is stored together."""
        told = cls(
            settings.background_jobs_enabled,
            settings.shadow,
            share_of(settings.rollout),
            settings.jobs_daily_updates,
        )
        if not stored:
            return told
        return replace(
            told,
            is_enabled=told.is_enabled and bool(stored.get("enabled", True)),
            is_shadow=bool(stored.get("shadow", told.is_shadow)),
            share=float(stored.get("share", told.share)),
            daily_updates=bool(stored.get("daily_updates", told.daily_updates)),
        )


ALL = Phase()


def place_of(user: str) -> float:
    """Return the place of a user between 0 and 1, the same for ever: the first 4 bytes of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(user.encode("utf-8", "surrogatepass")).digest()[:4], "big") / 2**32


def share_of(text: str) -> float:
    """Read a share: `10%`, or `all`.

    Raises:
        BadInput: It is neither.
    """
    word = text.strip().lower()
    if word == "all":
        return 1.0
    try:
        percent = float(word.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not word.endswith("%") or not 0 <= percent <= 100:
        raise BadInput(f"{text!r} is not a share of the users", hint="write 0% to 100%, or all")
    return percent / 100
