"""One connection to Redis, one call at a time, and what each kind of failure means.

redis-py's clients repeat a command up to ten times after a lost reply, also one that must not run twice. So streamq
uses redis-py's *connections*, which never repeat anything, and decides itself: a call either returned, was refused
(`ServerRefused`), or may or may not have happened (`BrokerUnavailable`).

See https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import asyncio
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from hiredis import pack_command
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError as RedisConnectionError,
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from streamq.errors import BrokerUnavailable, ConfigurationError, QueueFull, StreamQError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.scripts import Script

__all__ = ["Fault", "ServerRefused", "Wire", "fault_of"]

Arg = str | bytes | int | float


class Fault(StrEnum):
    """What an error of the server asks for. None of them ever fails a job."""

    WAIT = "wait"
    """The server cannot do it now; the connection is good. Try again later."""
    RECONNECT = "reconnect"
    """This connection leads to the wrong place now: make a new one."""
    REJOIN = "rejoin"
    """The group is gone: register again."""
    FULL = "full"
    """Memory is full: only enqueue is refused."""
    EXIT = "exit"
    """Nothing will change without a person."""


FAULTS: dict[str, Fault] = {
    "LOADING": Fault.WAIT,
    "BUSY": Fault.WAIT,
    "MISCONF": Fault.WAIT,
    "NOREPLICAS": Fault.WAIT,
    "TRYAGAIN": Fault.WAIT,
    "CLUSTERDOWN": Fault.WAIT,
    "MASTERDOWN": Fault.WAIT,
    "READONLY": Fault.RECONNECT,
    "UNBLOCKED": Fault.RECONNECT,
    "MOVED": Fault.RECONNECT,
    "ASK": Fault.RECONNECT,
    "NOGROUP": Fault.REJOIN,
    "OOM": Fault.FULL,
    "WRONGPASS": Fault.EXIT,
    "NOAUTH": Fault.EXIT,
    "NOPERM": Fault.EXIT,
    "WRONGTYPE": Fault.EXIT,
}
"""The first word of an error reply, and what to do."""

_WORDS_WITHOUT_CODE = {
    # redis-py cuts the first word off some replies; these are what is left.
    "max number of clients reached": Fault.WAIT,
    "loading the dataset": Fault.WAIT,
    "can't write against a read only": Fault.RECONNECT,
    "no such key": Fault.REJOIN,
    "command not allowed when used memory": Fault.FULL,
    "unblocked": Fault.RECONNECT,
    "the cluster is down": Fault.WAIT,
    "busy": Fault.WAIT,
}


class ServerRefused(StreamQError):
    """Redis answered with an error. The call did nothing."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


def fault_of(message: str) -> Fault:
    """Tell what an error reply asks for; an unknown one asks for a person."""
    for word in message.replace(":", " ").split()[:2]:
        if word in FAULTS:
            return FAULTS[word]
    lowered = message.lower()
    for text, fault in _WORDS_WITHOUT_CODE.items():
        if text in lowered:
            return fault
    return next((fault for word, fault in FAULTS.items() if word in message.split()), Fault.EXIT)


def _translate(error: Exception, where: str) -> StreamQError:
    """Turn an error of redis-py's into ours."""
    if isinstance(error, AuthenticationError):
        return ConfigurationError(
            f"Redis at {where} refused the user or password: {error}",
            hint="check the user and password in REDIS_URL",
        )
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return BrokerUnavailable(f"cannot reach Redis at {where}: {error}")
    message = str(error)
    fault = fault_of(message)
    if fault is Fault.FULL:
        return QueueFull(f"Redis at {where} is out of memory: {message}", hint="raise maxmemory")
    if fault in (Fault.WAIT, Fault.RECONNECT):
        return BrokerUnavailable(f"Redis at {where} cannot serve now: {message}")
    return ServerRefused(f"Redis at {where} refused: {message}", fault)


class Wire:
    """One connection. Calls from several tasks take turns, in the order they came."""

    def __init__(self, pool: ConnectionPool, where: str, *, timeout_s: float = 10.0) -> None:
        """Make a connection that opens with its first call.

        Args:
            pool: Knows address and credentials; its connections are made here and not shared.
            where: The address without secrets, for messages.
            timeout_s: The longest wait for any reply. A blocking command adds its own time.
        """
        self._connection = cast("Connection", pool.make_connection())  # type: ignore[no-untyped-call]
        self._where = where
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open as far as this side knows."""
        return bool(self._connection.is_connected)

    async def call(self, *command: Arg, extra_s: float = 0.0) -> Any:
        """Send one command and return its reply, with bytes for strings.

        Args:
            command: The command and its arguments.
            extra_s: How much longer than usual the reply may take, for blocking commands.

        Raises:
            BrokerUnavailable: No reply came; whether the command ran is unknown. Or the server cannot serve now.
            ServerRefused: The server answered with an error that waiting does not cure.
        """
        async with self._turn:
            try:
                return await self._exchange(command, self._timeout_s + extra_s)
            except (RedisError, OSError) as error:
                raise await self._failed(error) from error

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """Run a script by its digest, and by its text once if the server does not know it."""
        async with self._turn:
            try:
                try:
                    return await self._exchange(("EVALSHA", script.sha, len(keys), *keys, *args), self._timeout_s)
                except NoScriptError:
                    return await self._exchange(("EVAL", script.source, len(keys), *keys, *args), self._timeout_s)
            except (RedisError, OSError) as error:
                raise await self._failed(error) from error

    async def pipeline(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Send several commands at once and return their replies in order.

        Raises:
            BrokerUnavailable: Some replies did not come; any of the commands may have run.
            ServerRefused: One of them was refused; the others ran.
        """
        connection = self._connection
        async with self._turn:
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                replies = [await self._read_any() for _ in commands]
            except (RedisError, OSError) as error:
                raise await self._failed(error) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise _translate(reply, self._where)
        return replies

    async def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        await self._connection.disconnect(nowait=True)

    async def _exchange(self, command: Sequence[Arg], timeout_s: float) -> Any:
        connection = self._connection
        if not connection.is_connected:
            await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_packed_command([pack_command(tuple(command))], check_health=False)  # type: ignore[arg-type]
        if not math.isinf(timeout_s):
            async with asyncio.timeout(timeout_s):
                return await connection.read_response(timeout=math.inf)
        return await connection.read_response(timeout=math.inf)

    async def _read_any(self) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._connection.read_response(timeout=math.inf)
        except ResponseError as error:
            if isinstance(error, RedisConnectionError):
                raise
            return error

    async def _failed(self, error: Exception) -> StreamQError:
        """Translate an error; a connection that may hold half a reply is thrown away."""
        if not isinstance(error, ResponseError) or fault_of(str(error)) is Fault.RECONNECT:
            await self.close()
        return _translate(error, self._where)


def make_pool(url: str, *, connect_timeout_s: float = 5.0) -> ConnectionPool:
    """Make the maker of connections for a URL. Its connections never repeat a command by themselves."""
    return ConnectionPool.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,
        socket_connect_timeout=connect_timeout_s,
        socket_keepalive=True,
        socket_read_size=262_144,
        lib_name=None,
        lib_version=None,
    )
