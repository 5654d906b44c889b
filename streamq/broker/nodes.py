"""The servers that a connection may lead to: those of the URL, and those that a cluster tells of."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio.connection import AbstractConnection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from streamq.settings.addresses import hosts_apart

__all__ = ["Node", "Nodes", "without_secrets"]

# A connection need not name its library: that is two more commands each time, and old servers refuse them.
_NAMELESS: dict[str, None] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)

_MOVED = re.compile(r"MOVED \d+ (.*):(\d+)")


class Node(NamedTuple):
    """A server."""

    pool: ConnectionPool
    """Knows address and credentials; its connections are made one by one and not shared."""
    where: str
    """The address without secrets, for messages."""


class Nodes:
    """The servers of one URL, which may name several of a cluster: `redis://a:7001,b:7001`."""

    def __init__(self, url: str, *, connect_timeout_s: float = 5.0) -> None:
        """Note the addresses; nothing is opened.

        Raises:
            ValueError: It is no address.
        """
        self._connect_timeout_s = connect_timeout_s
        self._nodes = [self._node(each) for each in hosts_apart(url)]

    def _node(self, url: str) -> Node:
        pool = ConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=self._connect_timeout_s,
            socket_read_size=262_144,
            **_NAMELESS,
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        )
        return Node(pool, without_secrets(url))

    @property
    def first(self) -> Node:
        """Where to begin."""
        return self._nodes[0]

    @property
    def count(self) -> int:
        """How many are known by now."""
        return len(self._nodes)

    def after(self, node: Node) -> Node:
        """Return the next one to try when one cannot be reached; the same where there is no other."""
        return self._nodes[(self._nodes.index(node) + 1) % len(self._nodes)]

    def moved(self, message: str, by: Node) -> Node | None:
        """Return the node that a MOVED error names; None if it is none, or leads nowhere.

        Args:
            message: As the server sent it.
            by: Who said so; it may leave its own host out.
        """
        found = _MOVED.match(message)
        return self.at(found[1], int(found[2]), by) if found else None

    def at(self, host: str, port: int, by: Node) -> Node | None:
        """Return the node at an address, with the credentials of another; None where it has no address of that kind."""
        told = by.pool.connection_kwargs
        if "host" not in told:
            return None
        host = told["host"] if host in ("", "?") else host
        for node in self._nodes:
            if (node.pool.connection_kwargs["host"], node.pool.connection_kwargs.get("port", 6379)) == (host, port):
                return node
        there: dict[str, Any] = {**told, "host": host, "port": port}
        pool = ConnectionPool(by.pool.connection_class, **there)
        scheme = "rediss" if issubclass(by.pool.connection_class, SSLConnection) else "redis"
        node = Node(pool, f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        self._nodes.append(node)
        return node

    async def close(self) -> None:
        """Close what the pools hold; connections given out are closed by those who asked for them."""
        for node in self._nodes:
            await node.pool.disconnect()


def without_secrets(url: str) -> str:
    """Return a URL that may be shown: without user and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
