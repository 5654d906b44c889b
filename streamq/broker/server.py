"""The Redis server itself: where it is, whether it is one that streamq can work with, and connections to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from streamq.broker.nodes import Node, Nodes, without_secrets
from streamq.broker.partition import Partition
from streamq.broker.wire import Fault, ServerRefused, Wire
from streamq.errors import BrokerUnavailable, ConfigurationError
from streamq.keys import Keys

__all__ = ["OLDEST_REDIS", "Broker", "Memory", "ServerInfo", "memory_of"]

OLDEST_REDIS = (7, 0)
"""XAUTOCLAIM drops entries that no longer exist, and scripts may say `allow-oom`, from here on."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server said of itself."""

    product: str
    version: str
    maxmemory_policy: str
    has_aof: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """How full a server is."""

    used_bytes: int
    limit_bytes: int
    """0: as much as the machine has."""
    evicts: bool
    """Whether it drops keys, and jobs with them, when it is full."""


async def memory_of(wire: Wire) -> Memory:
    """Ask a server how full it is.

    Raises:
        BrokerUnavailable: It did not answer.
        ServerRefused: The user may not run INFO.
    """
    info = _parse_info(await wire.call("INFO", "memory"))
    used, limit = (int(info.get(name, 0)) for name in ("used_memory", "maxmemory"))
    return Memory(used, limit, info.get("maxmemory_policy", "noeviction") != "noeviction")


class Broker:
    """Makes connections to one Redis server."""

    def __init__(self, url: str, *, allow_eviction: bool = False, timeout_s: float = 10.0) -> None:
        """Note the address; nothing is opened yet.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            allow_eviction: Accept a server that may evict keys, and with them jobs.
            timeout_s: The longest wait for a reply.
        """
        self.where = without_secrets(url)
        self._timeout_s = timeout_s
        self._allow_eviction = allow_eviction
        try:
            self._nodes = Nodes(url)
        except ValueError as error:
            raise ConfigurationError(
                f"{self.where!r} is not the address of a Redis server: {error}",
                hint="use redis://host:6379/0, rediss:// for TLS, or unix:///path/to/socket",
            ) from None

    def wire(self) -> Wire:
        """Make a connection of its own; it opens with its first call."""
        return Wire(self._nodes, timeout_s=self._timeout_s)

    def partition(self, name: str) -> Partition:
        """Make the scripts of a partition, over a connection of their own."""
        return Partition(Keys(name), self.wire())

    async def check(self) -> ServerInfo:
        """Ask the server what it is, and refuse one that would lose jobs.

        Raises:
            BrokerUnavailable: It could not be reached.
            ConfigurationError: It is too old, or may evict keys.
        """
        wire = self.wire()
        try:
            info = _parse_info(await wire.call("INFO"))
            masters = await self._masters(wire) if info.get("cluster_enabled") == "1" else []
        except BrokerUnavailable as error:
            error.hint = f"is Redis running?  redis-cli -u {self.where} ping"
            raise
        except ServerRefused as error:
            if error.fault is not Fault.EXIT:
                raise
            raise ConfigurationError(str(error), hint="let the user run INFO") from error
        finally:
            await wire.close()
        judged = self._judge(info)
        others = [await self._warnings_of(node) for node in masters]
        return replace(judged, warnings=tuple(dict.fromkeys(chain(judged.warnings, *others))))

    async def _warnings_of(self, node: Node) -> tuple[str, ...]:
        """Check a master of a cluster; what lies on the others can be worked on while one is away."""
        wire = Wire(self._nodes, node, timeout_s=self._timeout_s)
        try:
            return self._judge(_parse_info(await wire.call("INFO"))).warnings
        except BrokerUnavailable as error:
            return (f"a master of the cluster is away: {error}",)
        finally:
            await wire.close()

    async def _masters(self, wire: Wire) -> list[Node]:
        """Ask a node of a cluster for all masters. They are known from then on, should the one that was asked be away."""
        slots = await wire.call("CLUSTER", "SLOTS")
        found = [self._nodes.at(row[2][0].decode(), row[2][1], wire.node) for row in slots]
        return list(dict.fromkeys(node for node in found if node is not None))

    def _judge(self, info: dict[str, str]) -> ServerInfo:
        version = info.get("redis_version", "0")
        if _version(version) < OLDEST_REDIS:
            raise ConfigurationError(
                f"Redis at {self.where} is version {version}; streamq needs 7.0 or newer",
                hint="upgrade Redis, or use Valkey",
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not self._allow_eviction:
            raise ConfigurationError(
                f"Redis at {self.where} has maxmemory-policy {policy}: it may evict jobs",
                hint="CONFIG SET maxmemory-policy noeviction, or start with --allow-eviction",
            )
        has_aof = info.get("aof_enabled") == "1"
        warnings = []
        if policy != "noeviction":
            warnings.append(f"maxmemory-policy is {policy}: Redis may evict jobs")
        if not has_aof:
            warnings.append("appendonly is off: jobs since the last snapshot are lost when Redis restarts")
        product = "Valkey" if "valkey_version" in info else "Redis"
        return ServerInfo(product, info.get("valkey_version", version), policy, has_aof, tuple(warnings))

    async def close(self) -> None:
        """Close what the pool holds; connections given out are closed by those who asked for them."""
        await self._nodes.close()


def _parse_info(reply: Any) -> dict[str, str]:
    lines = reply.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
