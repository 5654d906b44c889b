"""A cluster of three masters without replicas, on ports of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.crc import key_slot

from benchmarks.cluster import SLOTS, Node, ask, bus_ports, join, wait_until_whole
from streamq import StreamQ, embedded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE_TIMEOUT_MS = 1_000
PARTITIONS = 6
"""Those of the queue `default` lie on all three masters."""


class Cluster:
    """Three servers, each with a third of the slots."""

    def __init__(self, directory: Path) -> None:
        *self.buses, self._spare_bus = bus_ports(4)
        self._directory = directory
        self.servers = [self._node(f"node-{number}", bus) for number, bus in enumerate(self.buses)]
        self.replicas: list[embedded.RedisServer] = []

    def _node(self, name: str, bus: int) -> embedded.RedisServer:
        settings = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-require-full-coverage": "no",
            "cluster-port": str(bus),
            "enable-debug-command": "local",
        }
        return embedded.RedisServer(
            self._directory / name, binary=os.environ.get("STREAMQ_TEST_REDIS"), settings=settings
        )

    def start(self) -> None:
        """Start the servers and make them one."""
        self.servers[0].start()
        for server in self.servers[1:]:
            server.password = self.servers[0].password
            server.start()
        nodes = [Node(server.url, server.port, bus) for server, bus in zip(self.servers, self.buses, strict=True)]
        join(nodes)

    def stop(self) -> None:
        """Stop the servers."""
        for server in (*self.servers, *self.replicas):
            server.stop()

    def begin_replica(self, place: int) -> embedded.RedisServer:
        """Start a node that is to take over from a master."""
        replica, master = self._node("replica", self._spare_bus), self.servers[place]
        replica.password = master.password
        replica.start()
        self.replicas.append(replica)
        self.ask(replica, "CONFIG", "SET", "masterauth", master.password)
        self.ask(replica, "CLUSTER", "MEET", "127.0.0.1", master.port, self.buses[place])
        return replica

    def replicate(self, replica: embedded.RedisServer, place: int) -> bool:
        """Have a node copy a master; it cannot before it has met it."""
        try:
            self.ask(replica, "CLUSTER", "REPLICATE", self.ask(self.servers[place], "CLUSTER", "MYID"))
        except redis.ResponseError:
            return False
        return True

    def follows(self, replica: embedded.RedisServer) -> bool:
        """Tell whether a replica is in step with its master."""
        return bool(self.ask(replica, "INFO", "replication").get("master_link_status") == "up")

    @property
    def url(self) -> str:
        """The address of the cluster by all its nodes."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis://:{self.servers[0].password}@{hosts}/0"

    def url_of(self, *places: int) -> str:
        """The address of the cluster by some of its nodes."""
        hosts = ",".join(f"127.0.0.1:{self.servers[place].port}" for place in places)
        return f"redis://:{self.servers[0].password}@{hosts}/0"

    def ask(self, server: embedded.RedisServer, *command: Any) -> Any:
        """Run a command on one node."""
        return ask(server.url, *command)

    def wait_until_whole(self) -> None:
        """Return when each node knows all slots, and serves its own."""
        wait_until_whole([server.url for server in self.servers])

    def slot(self, partition: str) -> int:
        """Return the slot of a partition, by its name."""
        queue, _, number = partition.partition(":")
        return int(key_slot(f"{{sq:{queue}:{number or 0}}}".encode()))

    def owner(self, partition: str) -> int:
        """Return the place of the master that had the slot of a partition at the start."""
        return min(2, self.slot(partition) * 3 // SLOTS)

    def flush(self) -> None:
        """Empty all nodes."""
        for server in self.servers:
            self.ask(server, "FLUSHALL")

    def begin_move(self, slot: int, source: int, target: int) -> None:
        """Let a slot be in between: no call on it is served before the end."""
        ids = [self.ask(server, "CLUSTER", "MYID") for server in self.servers]
        self.ask(self.servers[target], "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        self.ask(self.servers[source], "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])

    def end_move(self, slot: int, source: int, target: int) -> None:
        """Take all keys over, and tell everybody."""
        here, there = self.servers[source], self.servers[target]
        while names := self.ask(here, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.ask(here, "MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "AUTH", there.password, "KEYS", *names)
        new = self.ask(there, "CLUSTER", "MYID")
        for place in (target, source, 3 - target - source):
            self.ask(self.servers[place], "CLUSTER", "SETSLOT", slot, "NODE", new)


@pytest.fixture(scope="session")
def cluster_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of all tests that break nothing for good."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(cluster_of_session: Cluster) -> Iterator[Cluster]:
    """An empty cluster."""
    yield cluster_of_session
    cluster_of_session.wait_until_whole()
    cluster_of_session.flush()


@pytest.fixture
async def app(cluster: Cluster):
    """Give an application on the cluster."""
    made = StreamQ(
        redis_url=cluster.url, worker_concurrency=8, dead_after_ms=2_000, beat_ms=100, grace_ms=2_000, history=False,
        partitions=(str(PARTITIONS),),
    )  # fmt: skip
    yield made
    await made.close()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of the test's own, which may end otherwise than it began."""
    cluster = Cluster(tmp_path)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
