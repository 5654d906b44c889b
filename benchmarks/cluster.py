"""A Redis Cluster on this machine: servers that are there already are made masters, each of its share of the slots."""

from __future__ import annotations

import itertools
import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.servers import IN_MEMORY, RedisServer
from streamq import embedded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from benchmarks.processes import CpuClock
    from benchmarks.servers import ServerFigures

__all__ = ["SLOTS", "Node", "RedisCluster", "ask", "bus_ports", "join", "wait_until_whole"]

SLOTS = 16_384
WHOLE_WITHIN_S = 30


class Node(NamedTuple):
    """A server with cluster-enabled, as a client and as the other nodes reach it."""

    url: str
    port: int
    bus: int


def bus_ports(count: int) -> list[int]:
    """Pick ports for nodes to talk to each other.

    Left alone a bus is 10,000 above the port, where the system takes ports for connections.
    """
    free = [port for port in embedded._PORTS if embedded._is_free(port)]  # noqa: SLF001 - the same ports, for the same reason
    return secrets.SystemRandom().sample(free, count)  # tests seed `random`, in each process of theirs alike


def join(nodes: Sequence[Node]) -> None:
    """Make servers one cluster, each the master of as many slots as the others, in their order.

    Raises:
        TimeoutError: They do not come together.
    """
    bounds = [SLOTS * number // len(nodes) for number in range(len(nodes) + 1)]
    for node, (first, end) in zip(nodes, itertools.pairwise(bounds), strict=True):
        ask(node.url, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        ask(node.url, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus)
    wait_until_whole([node.url for node in nodes])


def ask(url: str, *command: Any) -> Any:
    """Run a command on one node."""
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        return client.execute_command(*command)


def wait_until_whole(urls: Sequence[str]) -> None:
    """Return when each node knows all slots, and serves its own.

    Raises:
        TimeoutError: They do not come together.
    """
    deadline = time.monotonic() + WHOLE_WITHIN_S
    while not all(map(_is_whole, urls)):
        if time.monotonic() > deadline:
            raise TimeoutError("the cluster does not come together")
        time.sleep(0.02)


def _is_whole(url: str) -> bool:
    try:
        info = ask(url, "CLUSTER", "INFO")
    except redis.RedisError:
        return False
    told = {name.decode(): value.decode() for name, value in info.items()} if isinstance(info, dict) else {}
    if not told:
        text = info.decode() if isinstance(info, bytes) else str(info)
        told = dict(line.split(":", 1) for line in text.split() if ":" in line)
    return told.get("cluster_state") == "ok" and told.get("cluster_slots_ok") == str(SLOTS)


class RedisCluster:
    """Masters of the benchmark's own without replicas, used as a context."""

    def __init__(self, masters: int) -> None:
        self._nodes = [
            (RedisServer(*IN_MEMORY, "--cluster-enabled", "yes", "--cluster-port", str(bus)), bus)
            for bus in bus_ports(masters)
        ]
        self.servers = [server for server, _ in self._nodes]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as running:
            for server in self.servers:
                running.enter_context(server)
            join([Node(server.url, server.port, bus) for server, bus in self._nodes])
            self._running = running.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        """The address of the cluster by all its nodes."""
        return "redis://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers) + "/0"

    @property
    def clocks(self) -> tuple[CpuClock, ...]:
        """What shows the processor time of each master."""
        return tuple(server.cpu for server in self.servers)

    def blocked_clients(self) -> int:
        """Count the clients that are blocked in a read, of any master."""
        return sum(server.blocked_clients() for server in self.servers)

    def flush(self) -> None:
        """Forget all data and all figures."""
        for server in self.servers:
            server.flush()

    def figures(self) -> ServerFigures:
        """Read what the masters count, added up."""
        return sum((server.figures() for server in self.servers[1:]), self.servers[0].figures())
