"""Gates: how many jobs of a user key or of a handler run at once, and how often one may start.

A job carries its gates in its envelope, as the handler had them when it was enqueued. A job without one pays nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from urllib.parse import quote, unquote

from streamq.errors import BadArguments, ConfigurationError

__all__ = ["GateName", "Gates", "Rate", "fair_gate"]

_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_RATE = re.compile(r"(\d{1,9})/(\d{0,9})([smhd])")
_MOST_AT_ONCE = 1_000_000
_SHARE_AT_ONCE = 20
"""One in so many starts may come ahead of its time, so that a worker that looks late loses nothing."""
_NAME_SAFE = "!$&'()*+,-./:;<>?@[]^_`{|}~"


@dataclass(frozen=True)
class Rate:
    """At most so many starts in any period of that length."""

    most: int
    period_us: int

    @classmethod
    def parse(cls, text: object, where: str) -> Rate:
        """Read `10/s`, `100/m`, `5/10s`.

        Raises:
            ConfigurationError: It is something else; the message begins with `where`.
        """
        found = _RATE.fullmatch(text) if isinstance(text, str) else None
        number = int(found[2] or 1) if found else 0
        if not found or not int(found[1]) or not 0 < number * _UNITS_US[found[3]] <= 365 * _UNITS_US["d"]:
            raise ConfigurationError(
                f"{where} is a number of starts and a period, at most 365d, and {text!r} came",
                hint="write it as '10/s', '100/m' or '5/10s'",
            )
        return cls(int(found[1]), number * _UNITS_US[found[3]])

    @property
    def at_once(self) -> int:
        """How many may start together."""
        return max(1, self.most // _SHARE_AT_ONCE)

    @property
    def interval_us(self) -> int:
        """How far starts are apart in the long run: so many at once and then one by one are never more than `most`."""
        return -(-self.period_us // (self.most - self.at_once + 1))


def fair_gate(key: str | None, weight: int, others: str) -> str:
    """Put the gate before the others at which the job waits for the turn of its key."""
    return f"f{weight},0=f:{_quoted(key or '')}" + (f" {others}" if others else "")


def _quoted(key: str) -> str:
    return key if key.isalnum() and key.isascii() else quote(key, safe=_NAME_SAFE)


class GateName(NamedTuple):
    """What the name of a gate in Redis says."""

    kind: str
    """The option of the handler that makes it: `concurrency`, `rate`, those `_per_key`, and `fair`."""
    handler: str | None
    """None for the turn of a key: that is one for all handlers of the queue."""
    key: str | None
    """None for the gate of a handler, and for the turn of jobs without a key."""

    @classmethod
    def parse(cls, name: str) -> GateName:
        """Read a name such as `k:refresh:ada`, `rh:refresh` or `f:ada`."""
        letter, _, rest = name.partition(":")
        kind = _KINDS.get(letter, letter)
        if letter == "f":
            return cls(kind, None, unquote(rest) or None)
        handler, has_key, key = rest.partition(":")
        return cls(kind, handler, unquote(key) if has_key else None)

    def __str__(self) -> str:
        """Say it in words."""
        if self.handler is None:
            return f"the turn of {self.key}" if self.key is not None else "the turn of jobs without a key"
        return f"{self.kind} of {self.handler}" + (f" for {self.key}" if self.key is not None else "")


_KINDS = {"k": "concurrency_per_key", "rk": "rate_per_key", "h": "concurrency", "rh": "rate", "f": "fair"}


@dataclass(frozen=True)
class Gates:
    """What jobs of one handler have to pass before they start. 0 and None: nothing."""

    handler: str
    concurrency_per_key: int = 0
    rate_per_key: Rate | None = None
    concurrency: int = 0
    rate: Rate | None = None
    is_fair: bool = False

    @classmethod
    def of(
        cls,
        handler: str,
        concurrency_per_key: int,
        rate_per_key: str | None,
        concurrency: int,
        rate: str | None,
        *,
        fair: bool = False,
    ) -> Gates | None:
        """Check what a handler says; None when it says nothing.

        Raises:
            ConfigurationError: A limit is below 0 or no whole number, or a rate is none.
        """
        where = f"handler {handler!r}"
        limits: dict[str, object] = {"concurrency_per_key": concurrency_per_key, "concurrency": concurrency}
        for name, limit in limits.items():
            if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= _MOST_AT_ONCE:
                raise ConfigurationError(
                    f"{where}: {name} is a whole number from 1 to {_MOST_AT_ONCE:,}, or 0 for no limit, and {limit!r} came"
                )
        if not (concurrency_per_key or rate_per_key or concurrency or rate or fair):
            return None
        return cls(
            handler,
            concurrency_per_key,
            Rate.parse(rate_per_key, f"{where}: rate_per_key") if rate_per_key else None,
            concurrency,
            Rate.parse(rate, f"{where}: rate") if rate else None,
            fair,
        )

    def of_job(self, key: str | None, weight: int = 1) -> str:
        """Return the gates of one job as its envelope carries them, in the order in which it passes them.

        A place that is taken is kept while the job waits at the next gate. So what is narrow comes first: who waits for
        the others of its key takes up no place of the handler.

        Raises:
            BadArguments: There is a limit per key, and the job has none.
        """
        others = self._limits(key)
        return fair_gate(key, weight, others) if self.is_fair else others

    def _limits(self, key: str | None) -> str:
        if not self.is_per_key:
            return self._of_handler
        if key is None:
            raise BadArguments(
                f"{self.handler!r} has a limit per user key, and this job has no key",
                hint="pass key=..., or name the argument that is the key in the handler's key=",
            )
        name = f"{self.handler}:{_quoted(key)}"
        gates: list[str] = []
        if self.concurrency_per_key:
            gates.append(f"c{self.concurrency_per_key},0=k:{name}")
        if self.rate_per_key is not None:
            gates.append(_rate_gate(self.rate_per_key, f"rk:{name}"))
        if self._of_handler:
            gates.append(self._of_handler)
        return " ".join(gates)

    @property
    def is_per_key(self) -> bool:
        """Whether a job needs a key."""
        return bool(self.concurrency_per_key or self.rate_per_key)

    @cached_property
    def _of_handler(self) -> str:
        gates: list[str] = []
        if self.concurrency:
            gates.append(f"c{self.concurrency},0=h:{self.handler}")
        if self.rate is not None:
            gates.append(_rate_gate(self.rate, f"rh:{self.handler}"))
        return " ".join(gates)


def _rate_gate(rate: Rate, name: str) -> str:
    return f"r{rate.interval_us},{rate.at_once}={name}"
