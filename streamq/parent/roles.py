"""What a parent is told: the roles to keep alive, how patient to be, and whom to tell about deaths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    OnDeath = Callable[[str, str, int, Sequence[str], int], Awaitable[None]]
    OnHang = Callable[[str, str, int, Sequence[str]], Awaitable[None]]

__all__ = ["Guardian", "Hooks", "Pace", "Role"]


@dataclass(frozen=True, slots=True)
class Role:
    """A program to keep running in one or more copies."""

    name: str
    argv: Sequence[str]
    """The command line; `{name}` in a word stands for the name of the child, such as `worker.3`."""
    instances: int = 1
    grace_ms: int = 25_000
    """How long a child may drain after SIGTERM. The parent waits `Pace.margin_s` longer before it kills."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    numbered: Mapping[str, int] = field(default_factory=dict[str, int])
    """Variables of the environment whose value rises with the number of the child: a port for each. This is the first."""
    hang_limit_ms: int = 0
    """A child that was ready and then sent no tick for so long is dumped, killed and replaced; 0 = never."""
    speaks: bool = True
    """Whether children use `ParentLink`. One that does not counts as ready when it has lived `Pace.presumed_ready_s`."""
    overlap: bool = True
    """Whether old and new may run side by side in a rolling restart; False where both would bind one port."""
    spares: int = 0
    """Processes that have imported everything and wait for a place. The program must use `parentlink.wait_for_place`."""
    once: bool = False
    """Whether exit 0 means that the work is done, so that the child is not started again."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a parent is."""

    first_delay_s: float = 0.5
    most_delay_s: float = 30.0
    settled_s: float = 60.0
    """A life of this length clears what came before it."""
    ready_settled_s: float = 10.0
    """The same for a child that had been ready: what killed it was its work, or somebody else."""
    deaths: int = 5
    """So many deaths before being ready, within `within_s`, and the parent gives up on the child."""
    within_s: float = 60.0
    margin_s: float = 5.0
    """Beyond the grace of a child, and after a second signal, before SIGKILL."""
    ready_limit_s: float = 60.0
    """In a rolling restart: a new child that is not ready by then is stopped, and the old one stays."""
    presumed_ready_s: float = 1.0
    beat_ms: int = 1_000
    renew_after_ms: int = 20_000
    """A child silent for so long cannot renew the leases of its jobs, so the parent does it: a third of a lease."""
    dump_s: float = 1.0
    """How long a hanging child has to print its stacks before it is killed."""


class Guardian(Protocol):
    """Keeps and hands back deliveries on behalf of the children: the way to Redis, which this package does not know.

    Every method may fail or take its time; the parent goes on and tries again at the next beat.
    """

    async def beat(self, consumers: Sequence[str]) -> None:
        """Say that these consumers live."""
        ...

    async def renew(self, consumers: Sequence[str]) -> None:
        """Keep the deliveries of these consumers, whose processes live but are too busy to do it."""
        ...

    async def bury(self, consumers: Sequence[str]) -> None:
        """Say that these consumers are dead, and make their deliveries free to take. A repeat is harmless."""
        ...

    async def close(self) -> None:
        """Let go of the server."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the parent tells what happens to its children."""

    guardian: Guardian | None = None
    on_death: OnDeath | None = None
    """Awaited with role, child name, pid, consumers and returncode, as soon as a child has died for whatever reason."""
    on_hang: OnHang | None = None
    """Awaited with role, child name, pid and consumers, before a child that hangs is dumped and killed."""
