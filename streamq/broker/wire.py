"""One connection to Redis: calls go out at once, replies come back in order; and what each kind of failure means.

redis-py's clients repeat a command up to ten times after a lost reply, also one that must not run twice. So streamq
uses redis-py to *open* connections (address, TLS, user, database) and speaks over them itself: a call either
returned, was refused (`ServerRefused`), or may or may not have happened (`BrokerUnavailable`).

See https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import weakref
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import hiredis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from streamq.errors import BrokerUnavailable, ConfigurationError, QueueFull, StreamQError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence, Sized

    from redis.asyncio.connection import Connection

    from streamq.broker.nodes import Node, Nodes
    from streamq.scripts import Script

__all__ = [
    "REMEDIES", "Arg", "Fault", "Remedy", "ServerRefused", "Vigil", "Wire", "Words", "fault_of", "forget_sockets", "packed",
]  # fmt: skip

Arg = str | bytes | int | float


class Words(NamedTuple):
    """Some words of a command, as they go over the wire."""

    number: int
    raw: bytes


def packed(words: Sequence[Arg]) -> Words:
    """Write words as they go over the wire, before it is known what stands around them."""
    raw = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return Words(len(words), raw[raw.index(b"\n") + 1 :])


class Fault(StrEnum):
    """What an error of the server asks for. None of them ever fails a job."""

    WAIT = "wait"
    """The server cannot do it now; the connection is good. Try again later."""
    RECONNECT = "reconnect"
    """This connection is of no use any more: make a new one, and try again."""
    REJOIN = "rejoin"
    """The group is gone: register again."""
    RESEND = "resend"
    """The server does not know the script: send its text, once."""
    FULL = "full"
    """Memory is full: only enqueue is refused."""
    EXIT = "exit"
    """Nothing will change without a person."""


class Remedy(NamedTuple):
    """A row of the table: how to know an error, and what is done about it."""

    sign: str
    """How the reply begins; or words in it, if there is a space in them."""
    fault: Fault
    meaning: str


NO_REPLY = Remedy(
    "", Fault.RECONNECT, "the connection broke, or no reply came in time: a dropped reply, a frozen server"
)
REMEDIES = (
    NO_REPLY,
    Remedy("LOADING", Fault.WAIT, "the server has just started and reads its data"),
    Remedy("BUSY", Fault.WAIT, "somebody's script keeps the server busy"),
    Remedy("MISCONF", Fault.WAIT, "the server cannot write to its disk"),
    Remedy("NOREPLICAS", Fault.WAIT, "fewer replicas are connected than `min-replicas-to-write` asks for"),
    Remedy("MASTERDOWN", Fault.WAIT, "a replica has lost its master"),
    Remedy("TRYAGAIN", Fault.WAIT, "a slot of the cluster is being moved"),
    Remedy("ASK", Fault.WAIT, "the same, and what was asked for is not there yet"),
    Remedy("max number of clients", Fault.WAIT, "the server has as many connections as `maxclients` allows"),
    Remedy("READONLY", Fault.RECONNECT, "this server is a replica now: the master is elsewhere"),
    Remedy("UNBLOCKED", Fault.RECONNECT, "a blocked read was ended, by a failover or by a person"),
    Remedy("CLUSTERDOWN", Fault.RECONNECT, "the cluster is electing, or this node is cut off from it: ask another"),
    Remedy("MOVED", Fault.RECONNECT, "the slot is on another node of the cluster, which is asked at once"),
    Remedy("NOGROUP", Fault.REJOIN, "the consumer group is gone, after FLUSHALL for example"),
    Remedy("NOSCRIPT", Fault.RESEND, "the server does not know the script, after SCRIPT FLUSH or a failover"),
    Remedy("OOM", Fault.FULL, "`maxmemory` is reached"),
    Remedy("WRONGPASS", Fault.EXIT, "user or password are wrong"),
    Remedy("NOAUTH", Fault.EXIT, "a password is needed"),
    Remedy("NOPERM", Fault.EXIT, "the user may not do this"),
    Remedy("DENIED", Fault.EXIT, "protected mode: the server takes connections from its own host alone"),
    Remedy("WRONGTYPE", Fault.EXIT, "a key of streamq's holds something else"),
)
"""Every error that a worker lives through, and those that it ends with. What is not here is of the last kind."""

_BY_WORD = {remedy.sign: remedy for remedy in REMEDIES if remedy.sign and " " not in remedy.sign}
_BY_WORDS = tuple(remedy for remedy in REMEDIES if " " in remedy.sign)


class ServerRefused(StreamQError):
    """Redis answered with an error. The call did nothing."""

    exit_code = 70
    """Of one that nobody foresaw; a supervisor may start afresh."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class ErrorReply(Exception):
    """An error as the server sent it."""


def fault_of(message: str) -> Fault:
    """Tell what an error reply asks for; an unknown one asks for a person."""
    first, _, rest = message.partition(" ")
    if first in _BY_WORD:
        return _BY_WORD[first].fault
    for remedy in _BY_WORDS:
        if remedy.sign in message:
            return remedy.fault
    # An error inside a script comes wrapped: ERR ... script: ..., on @user_script:12. MISCONF ...
    return next((remedy.fault for word, remedy in _BY_WORD.items() if f"{word} " in rest), Fault.EXIT)


def _translate(message: str, where: str) -> StreamQError:
    """Turn an error reply into an error of ours."""
    fault = fault_of(message)
    if fault is Fault.FULL:
        return QueueFull(f"Redis at {where} is out of memory: {message}", hint="raise maxmemory")
    if fault in (Fault.WAIT, Fault.RECONNECT):
        return BrokerUnavailable(f"Redis at {where} cannot serve now: {message}")
    refused = ServerRefused(f"Redis at {where} refused: {message}", fault)
    if message.partition(" ")[0] in _BY_WORD:
        refused.exit_code = ConfigurationError.exit_code
    return refused


_CLOCK_STEP_S = 0.002
"""An alarm may come so much too early: event loops count in milliseconds."""
_MOST_MOVES = 3
"""How many nodes may send a call on; more is a cluster that does not know where a slot is."""

_LINES: weakref.WeakSet[_Line] = weakref.WeakSet()


def forget_sockets() -> None:
    """Have a forked copy of this process speak into the void, where it would speak over the connections of the original."""
    void = os.open(os.devnull, os.O_RDWR)
    for line in _LINES:
        if line.is_open:
            os.dup2(void, line.fileno())
    os.close(void)


class Vigil:
    """Keeps the loop awake for a moment, for a reply that is likely to come by then.

    A loop that falls asleep has to be woken: that takes processor time of both sides, more than it takes to look for so long,
    and a caller with one job after another waits for it each time. Where replies prove not to come by then, because
    the server is far away or waits for the same core, it is hardly tried any more.
    """

    FEWEST_LEFT_OUT, MOST_LEFT_OUT = 8, 1024
    """After a vigil in vain so many are left out; after each further one twice as many."""

    def __init__(self, loop: asyncio.AbstractEventLoop, awaited: Sized, longest_s: float = 60e-6) -> None:
        """Note what is awaited: it is there as long as `awaited` is not empty."""
        self._loop = loop
        self._awaited = awaited
        self._longest_s = longest_s
        self._until = 0.0
        self._left_out = self._to_leave_out = 0
        self.is_kept = False

    def keep(self) -> None:
        """Begin one, or make the present one longer."""
        if self._to_leave_out:
            self._to_leave_out -= 1
            return
        self._until = time.monotonic() + self._longest_s
        if not self.is_kept:
            self.is_kept = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        if not self._awaited:
            self.is_kept, self._left_out = False, 0
        elif time.monotonic() < self._until:
            self._loop.call_soon(self._look)
        else:
            self.is_kept = False
            self._left_out = min(max(2 * self._left_out, self.FEWEST_LEFT_OUT), self.MOST_LEFT_OUT)
            self._to_leave_out = self._left_out


class _Line(asyncio.Protocol):
    """An open connection: what was asked waits in order, and each reply goes to the one that waits longest."""

    def __init__(self, connection: Connection) -> None:
        writer = connection._writer  # noqa: SLF001 - redis-py opens the connection; from here on it is ours  # pyright: ignore[reportPrivateUsage]
        assert writer is not None  # noqa: S101 - it has just connected
        self._connection = connection
        self._transport = cast("asyncio.Transport", writer.transport)
        self._reader = hiredis.Reader(replyError=ErrorReply)
        self._waiting: deque[tuple[asyncio.Future[Any], float, float]] = deque()
        """For each reply: who gets it, until when on the loop's clock, and how long that was, in seconds."""
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._loop = asyncio.get_running_loop()
        self._vigil = Vigil(self._loop, self._waiting)
        self.is_open = True
        self._transport.set_protocol(self)
        is_encrypted = self._transport.get_extra_info("sslcontext") is not None
        self._socket_number = -1 if is_encrypted else self.fileno()
        _LINES.add(self)

    def fileno(self) -> int:
        """Return the number of the socket."""
        number: int = self._transport.get_extra_info("socket").fileno()
        return number

    def ask(self, command: bytes, timeout_s: float, *, is_short: bool = False) -> asyncio.Future[Any]:
        """Send a command that is already packed; return a future for its reply. For a short one the loop stays awake."""
        self._write(command)
        if is_short:
            self._vigil.keep()
        return self._expect(timeout_s)

    def _write(self, command: bytes) -> None:
        """Send at once: uvloop's transport does it at the end of the loop's turn, and meanwhile the server would wait."""
        transport = self._transport
        sent = 0
        if self._socket_number >= 0 and not (transport.get_write_buffer_size() or transport.is_closing()):
            try:
                sent = os.write(self._socket_number, command)
            except OSError:
                sent = 0  # what is wrong the transport finds out as well, and tells
        if sent < len(command):
            transport.write(command[sent:])

    def ask_all(self, commands: bytes, replies: int, timeout_s: float) -> list[asyncio.Future[Any]]:
        """Send commands that are already packed; return a future for each reply."""
        futures = [self._expect(timeout_s) for _ in range(replies)]
        self._write(commands)
        return futures

    def _expect(self, timeout_s: float) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        until = self._loop.time() + timeout_s
        self._waiting.append((future, until, timeout_s))
        if until < self._alarm_at:
            self._set_alarm(until)
        return future

    def _set_alarm(self, at: float) -> None:
        """Have one alarm for all calls, at the earliest end: one for each would cost more than packing it."""
        self._stop_alarm()
        self._alarm, self._alarm_at = self._loop.call_at(at, self._time_out), at

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = None, math.inf

    def _time_out(self) -> None:
        """Tell those whose time is up that no reply came."""
        self._stop_alarm()
        now = self._loop.time() + _CLOCK_STEP_S
        waiting = [each for each in self._waiting if not each[0].done()]
        for future, until, timeout_s in waiting:
            if until <= now:
                future.set_exception(TimeoutError(f"no reply within {timeout_s:g} s"))
        later = [until for _, until, _ in waiting if until > now]
        if later:
            self._set_alarm(min(later))

    def data_received(self, data: bytes) -> None:
        """Give each complete reply to whom it belongs; somebody who no longer waits is passed over."""
        reader = self._reader
        reader.feed(data)
        while self._waiting:
            reply = reader.gets()
            if reply is False:
                return
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits that no reply will come."""
        self.is_open = False
        self._stop_alarm()
        for future, _, _ in self._waiting:
            if not future.done():
                future.set_exception(ConnectionError(str(exc or "the connection was closed")))
        self._waiting.clear()
        self._connection._writer = self._connection._reader = None  # noqa: SLF001 - it must not close it again  # pyright: ignore[reportPrivateUsage]

    def let_go(self) -> None:
        """Close once everybody who waits has a reply."""
        if self._waiting:
            self._waiting[-1][0].add_done_callback(lambda _: self.close())
        else:
            self.close()

    def close(self) -> None:
        """Drop the connection and everybody who waits."""
        if self.is_open:
            self._transport.abort()
            self.connection_lost(None)


class Wire:
    """One connection, opened by its first call and again after it broke. Any number of calls may be under way.

    In a cluster it goes to whichever node has the slot of its keys, as the nodes tell; so it is for the keys of one
    partition.
    """

    def __init__(self, nodes: Nodes, node: Node | None = None, *, timeout_s: float = 10.0) -> None:
        """Note how to connect.

        Args:
            nodes: Where to go on.
            node: Where to begin; None: at the first of them.
            timeout_s: The longest wait for any reply. A blocking command adds its own time.
        """
        self._nodes = nodes
        self.node: Node = node or nodes.first
        """Where it leads."""
        self._is_named = node is not None
        """Whether this very node is meant, since a cluster has named it: others would only send us there again."""
        self._timeout_s = timeout_s
        self._line: _Line | None = None
        self._opening = asyncio.Lock()
        self.is_new = False
        """Whether the connection was opened since somebody last looked which server it leads to."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open as far as this side knows."""
        return self._line is not None and self._line.is_open

    async def call(self, *command: Arg, extra_s: float = 0.0) -> Any:
        """Send one command and return its reply, with bytes for strings.

        Args:
            command: The command and its arguments.
            extra_s: How much longer than usual the reply may take, for blocking commands.

        Raises:
            BrokerUnavailable: No reply came; whether the command ran is unknown. Or the server cannot serve now.
            ServerRefused: The server answered with an error that waiting does not cure.
        """
        reply = await self._exchange(command, extra_s)
        if type(reply) is ErrorReply:
            reply = await self._followed(reply, lambda: self._exchange(command, extra_s))
        if type(reply) is ErrorReply:
            raise self._refusal(reply)
        return reply

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[Arg], *, is_short: bool = False) -> Any:
        """Run a script by its digest, and by its text once if the server does not know it.

        Args:
            script: What to run.
            keys: Its KEYS.
            args: Its ARGV.
            is_short: It takes the server so little that it is worth staying awake for the reply.
        """
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        reply = await self._exchange(command, is_short=is_short)
        if type(reply) is ErrorReply:
            reply = await self._followed(reply, lambda: self._exchange(command))
        if type(reply) is ErrorReply:
            if fault_of(str(reply)) is Fault.RESEND:
                return await self.call("EVAL", script.source, len(keys), *keys, *args)
            raise self._refusal(reply)
        return reply

    async def packed_script(self, script: Script, keys: Words, args: Words, more: Words) -> Any:
        """Run a script as `script` does, with keys and the last arguments that were packed beforehand."""
        reply = await self._said(packed(("EVALSHA", script.sha, keys.number)), keys, args, more)
        if type(reply) is ErrorReply:
            reply = await self._followed(
                reply, lambda: self._said(packed(("EVALSHA", script.sha, keys.number)), keys, args, more)
            )
        if type(reply) is ErrorReply and fault_of(str(reply)) is Fault.RESEND:
            reply = await self._said(packed(("EVAL", script.source, keys.number)), keys, args, more)
        if type(reply) is ErrorReply:
            raise self._refusal(reply)
        return reply

    async def pipeline(self, commands: Sequence[Sequence[Arg]], *, extra_s: float = 0.0) -> list[Any]:
        """Send several commands at once and return their replies in order; see `call`.

        Raises:
            BrokerUnavailable: Some replies did not come; any of the commands may have run.
            ServerRefused: One of them was refused; the others ran.
        """
        replies = await self._exchange_all(commands, extra_s)
        for _ in range(_MOST_MOVES):
            moved = next((place for place, reply in enumerate(replies) if self._follow(reply)), None)
            if moved is None:
                break
            # What came after it may have run where it means nothing, such as WAIT; no key of ours was touched there.
            replies[moved:] = await self._exchange_all(commands[moved:], extra_s)
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise self._refusal(reply)
        return replies

    async def _exchange_all(self, commands: Sequence[Sequence[Arg]], extra_s: float) -> list[Any]:
        packed = b"".join(hiredis.pack_command(tuple(command)) for command in commands)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        line = await self._open()
        futures = line.ask_all(packed, len(commands), self._timeout_s + extra_s)
        try:
            return [await future for future in futures]
        except OSError as error:
            raise self._broken(line, error) from error
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # seen: the first one that failed is told

    async def _followed(self, reply: Any, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Ask the node that a MOVED error names: what was answered with it did not run. Other replies stay."""
        for _ in range(_MOST_MOVES):
            if not self._follow(reply):
                break
            reply = await ask()
        return reply

    def _follow(self, reply: Any) -> bool:
        """Lead to another node from now on, if the reply says so. Those who wait for the old one get their replies."""
        if type(reply) is not ErrorReply or not (node := self._nodes.moved(str(reply), self.node)):
            return False
        if node is not self.node:
            self.node, self._is_named = node, True
            line, self._line = self._line, None
            if line is not None:
                line.let_go()
        return True

    async def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _exchange(
        self, command: tuple[Arg, ...], extra_s: float = 0.0, *, is_short: bool = False
    ) -> Coroutine[Any, Any, Any]:
        return self._sent(hiredis.pack_command(command), extra_s, is_short=is_short)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    def _said(self, *parts: Words) -> Coroutine[Any, Any, Any]:
        return self._sent(b"*%d\r\n" % sum(part.number for part in parts) + b"".join(part.raw for part in parts))

    async def _sent(self, command: bytes, extra_s: float = 0.0, *, is_short: bool = False) -> Any:
        line = self._line
        if line is None or not line.is_open:
            line = await self._open()
        try:
            return await line.ask(command, self._timeout_s + extra_s, is_short=is_short)
        except OSError as error:
            raise self._broken(line, error) from error

    def _broken(self, line: _Line, error: OSError) -> BrokerUnavailable:
        line.close()
        return BrokerUnavailable(f"cannot reach Redis at {self.node.where}: {error}")

    async def _open(self) -> _Line:
        """Connect to the node that a cluster has named, else to the first of all that lets us in."""
        async with self._opening:
            if self._line is not None and self._line.is_open:
                return self._line
            tries = 1 if self._is_named else self._nodes.count
            while True:
                tries -= 1
                try:
                    self._line = await self._opened()
                except BrokerUnavailable:
                    self.node, self._is_named = self._nodes.after(self.node), False
                    if not tries:
                        raise
                else:
                    self.is_new = True
                    return self._line

    async def _opened(self) -> _Line:
        connection = cast("Connection", self.node.pool.make_connection())  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._timeout_s):  # a frozen server lets us in, and says nothing
                await connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise self._not_opened(error) from error
        return _Line(connection)

    def _not_opened(self, error: Exception) -> StreamQError:
        where = self.node.where
        if isinstance(error, AuthenticationError):
            return ConfigurationError(
                f"Redis at {where} refused the user or password: {error}",
                hint="check the user and password in REDIS_URL",
            )
        if type(error) is ResponseError:
            return _translate(str(error), where)
        hint = f"is Redis running?  redis-cli -u {where} ping"
        why = str(error) or f"no reply within {self._timeout_s:g} s"
        return BrokerUnavailable(f"cannot reach Redis at {where}: {why}", hint=hint)

    def _refusal(self, reply: ErrorReply) -> StreamQError:
        """Translate an error reply; a connection that leads to the wrong place is dropped."""
        message = str(reply)
        where = self.node.where
        if fault_of(message) is Fault.RECONNECT:
            self.node, self._is_named = self._nodes.after(self.node), False
            if self._line is not None:
                self._line.close()
        return _translate(message, where)
