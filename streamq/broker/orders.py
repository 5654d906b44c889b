"""What operators do to a partition: cancel, purge, replay, delete, stop and let go, and orders to its workers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import orjson

from streamq.codec import decode_envelope, encode_envelope
from streamq.errors import BadInput, JobNotFound, PartlyDone, StreamQError
from streamq.keys import lane_digit
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from streamq.broker.wire import Arg, Wire
    from streamq.job import Envelope
    from streamq.keys import Keys

__all__ = ["Cancelled", "Orders", "Replayed", "came_of_all"]

Cancelled = Literal["cancelled", "asked"]
T = TypeVar("T")
Replayed = Literal["replayed", "gone", "alive", "held"]

_TRIES = 8
"""A job that moves between looking and cancelling is looked up again; it cannot do so for long."""
_CONTROL_MAX = 1_000
_BATCH = 128


def came_of_all(became: Mapping[str, T | BaseException]) -> list[T]:
    """Return what came of an order in each of several partitions.

    Raises:
        PartlyDone: Some have carried it out, and some have not.
        StreamQError: None has, as far as is known.
    """
    done: dict[str, T] = {}
    failed: dict[str, StreamQError] = {}
    for name, each in became.items():
        if isinstance(each, StreamQError):
            failed[name] = each
        elif isinstance(each, BaseException):
            raise each
        else:
            done[name] = each
    if not failed:
        return list(done.values())
    why = next(iter(failed.values()))
    if not done:
        raise why
    raise PartlyDone(
        f"done in {', '.join(done)}, and not in {', '.join(failed)}: {why}",
        hint="do it once more; what is done stays done", done=list(done), failed=list(failed),
    )  # fmt: skip


class Orders:
    """The operators' side of one partition."""

    def __init__(self, wire: Wire, keys: Keys, *, outbox_max: int = 200_000) -> None:
        self._wire = wire
        self.keys = keys
        self._outbox_max = outbox_max

    @property
    def wire(self) -> Wire:
        """The connection."""
        return self._wire

    async def cancel(self, job_id: str, *, reason: str = "") -> Cancelled:
        """End a waiting job as cancelled; tell the worker of a running one to interrupt it.

        Returns:
            `cancelled`: it has ended. `asked`: it runs, and ends as cancelled once its handler lets go.

        Raises:
            JobNotFound: No living job has this id; it may have ended.
        """
        for _ in range(_TRIES):
            token = await self._wire.call("HGET", self.keys.index, job_id)
            if token is None:
                break
            (verdict,) = await self._cancel([(job_id.encode(), token)], reason, spares_running=False)
            if verdict == b"CANCELLED":
                return "cancelled"
            if verdict == b"ASKED":
                return "asked"
        raise JobNotFound(f"no job {job_id!r} waits or runs in queue {self.keys.queue!r}")

    async def cancel_many(self, jobs: Sequence[tuple[bytes, bytes]], *, reason: str = "") -> list[bytes]:
        """Cancel jobs as `cancel` does, given their ids and tokens as the index has them; two round trips for each 128.

        Returns:
            For each, in order, `CANCELLED`, `ASKED`, or `GONE` and `MOVED` if it was not found there.
        """
        verdicts: list[bytes] = []
        for first in range(0, len(jobs), _BATCH):
            verdicts += await self._cancel(jobs[first : first + _BATCH], reason, spares_running=False)
        return verdicts

    async def purge(self, *, reason: str = "", on_progress: Callable[[int], object] | None = None) -> int:
        """End every job that waits, is due later, blocked or at a gate as cancelled; those that run are left.

        What is enqueued after the call began stays. After an error what is purged stays so; call again.

        Args:
            reason: Why; it becomes part of the status.
            on_progress: Told how many have ended, after each call.

        Returns:
            How many have ended.
        """
        begun_ms = await self._now_ms()
        ended = 0
        for _ in range(_TRIES):
            moved = 0
            async for rows in self._living():
                verdicts = Counter(await self._cancel(rows, reason, spares_running=True, until_ms=begun_ms))
                ended, moved = ended + verdicts[b"CANCELLED"], moved + verdicts[b"MOVED"]
                if on_progress is not None:
                    on_progress(ended)
            if not moved:
                break
        return ended

    async def _living(self) -> AsyncGenerator[list[tuple[bytes, bytes]]]:
        """Yield ids and tokens of the jobs that have not ended, up to a batch at a time; one may come twice."""
        cursor: Any = b"0"
        while True:
            cursor, flat = await self._wire.call("HSCAN", self.keys.index, cursor, "COUNT", _BATCH)
            rows = list(zip(flat[::2], flat[1::2], strict=True))
            for first in range(0, len(rows), _BATCH):
                yield rows[first : first + _BATCH]
            if cursor == b"0":
                return

    async def _cancel(
        self, rows: Sequence[tuple[bytes, bytes]], reason: str, *, spares_running: bool, until_ms: int | None = None
    ) -> list[bytes]:
        """Cancel up to a batch of jobs, given their ids and tokens, that were enqueued up to then. Two round trips."""
        keys, now_ms = self.keys, await self._now_ms()
        names = [
            *keys.lanes, keys.delayed, keys.payload, keys.index, keys.outbox, keys.control, keys.gates, keys.places,
            keys.openings,
        ]  # fmt: skip
        args: list[Arg] = [self._outbox_max, reason, "1" if spares_running else "0"]
        fixed = len(args)
        replies = await self._wire.pipeline([self._where(*row) for row in rows])
        for (job_id, token), reply in zip(rows, replies, strict=True):
            raw, enqueued_ms = _waiting(token, reply)
            if until_ms is not None and enqueued_ms > until_ms:
                continue
            envelope = decode_envelope(raw) if raw else None
            lock = 0
            if envelope is not None and envelope.dedup is not None:
                names.append(keys.dedup(envelope.dedup))
                lock = len(names)
            keep_ms = envelope.keep_result_ms if envelope is not None else 0
            names.append(keys.result(job_id.decode()))
            args += (job_id, token, _record(envelope, enqueued_ms, now_ms, reason), lock, len(names), keep_ms)
        if len(args) == fixed:
            return []
        verdicts: list[bytes] = await self._wire.script(load("cancel"), names, args)
        return verdicts

    def _where(self, job_id: bytes, token: bytes) -> tuple[Arg, ...]:
        """Return the command that reads a job where the token says it is."""
        if token[:1] == b"z":
            return ("HGET", self.keys.payload, job_id)
        entry = token[1:].partition(b"*")[0]
        return ("XRANGE", self.keys.lanes[int(token[:1]) - 1], entry, entry)

    async def until_ms(self, for_ms: int) -> int:
        """Return the moment by the server's clock that comes after so long; of 0 it is 0, as for what has no end."""
        return await self._now_ms() + for_ms if for_ms else 0

    async def _now_ms(self) -> int:
        seconds, micros = await self._wire.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def replay(self, letter_id: str, job_id: str, raw: bytes, lane: str) -> tuple[Replayed, str]:
        """Make a dead letter a job again, with its first attempt.

        Args:
            letter_id: The entry of the dead letter.
            job_id: Its job's id, which stays.
            raw: The envelope, as it was or edited.
            lane: Where it goes.

        Returns:
            What became of it, and with `held` the id of the job that holds its dedup key.
        """
        envelope = decode_envelope(raw)
        fresh = msgspec.structs.replace(
            envelope, attempt=1, starts=envelope.starts + 1, deadline_ms=0, retry_until_ms=0, crashes=0
        )
        names = [*self.keys.lanes, self.keys.index, self.keys.dead, self.keys.result(job_id)]
        if envelope.dedup is not None:
            names.append(self.keys.dedup(envelope.dedup))
        args: list[Arg] = [letter_id, job_id, lane_digit(lane), encode_envelope(fresh)]
        reply = (await self._wire.script(load("replay"), names, args)).decode()
        if reply.startswith("HELD"):
            return "held", reply[4:]
        verdicts: dict[str, Replayed] = {"OK": "replayed", "GONE": "gone", "ALIVE": "alive"}
        return verdicts[reply], ""

    async def delete_letters(self, letter_ids: Sequence[str]) -> int:
        """Delete dead letters for good. Returns how many there were."""
        return int(await self._wire.call("XDEL", self.keys.dead, *letter_ids)) if letter_ids else 0

    async def pause(self, *, reason: str, by: str, until_ms: int = 0) -> None:
        """Let no worker start a job of this queue, until resumed or the time has come (server ms; 0: open).

        Nothing that is enqueued after this returns is started before the queue is resumed.
        """
        await self._stop("queue", until_ms, reason, by)

    async def resume(self) -> bool:
        """Let workers start jobs again. Returns whether the queue was paused."""
        return await self._let_go("queue")

    async def block(
        self, *, handler: str | None = None, key: str | None = None, reason: str, by: str, until_ms: int = 0
    ) -> None:
        """Let no worker start jobs of a handler, or those of one user key; other jobs go on.

        Blocked jobs use no attempt. When the block is lifted or its time has come (server ms; 0: open) they go back
        into their lanes, oldest first.

        Raises:
            BadInput: Neither or both were named, or so many blocks at once are not allowed.
        """
        await self._stop(_what(handler, key), until_ms, reason, by)

    async def unblock(self, *, handler: str | None = None, key: str | None = None) -> bool:
        """Let the jobs of a handler, or those of one user key, start again. Returns whether they were blocked."""
        return await self._let_go(_what(handler, key))

    async def _stop(self, what: str, until_ms: int, reason: str, by: str) -> None:
        why = orjson.dumps({"reason": reason, "by": by})
        # 1 means "lift it now", and is as good as any other moment that is long past.
        if await self._block(what, max(until_ms, 2) if until_ms else 0, why) == b"FULL":
            raise BadInput(
                f"queue {self.keys.queue!r} has 128 blocks already, which is all that it may have",
                hint="unblock some, or pause the queue",
            )

    async def _let_go(self, what: str) -> bool:
        return await self._block(what, 1, b"{}") == b"OK"

    async def _block(self, what: str, until_ms: int, why: bytes) -> bytes:
        keys = (self.keys.lanes[0], self.keys.pause, self.keys.control)
        verdict: bytes = await self._wire.script(load("block"), keys, [what, until_ms, why])
        return verdict

    async def tell(self, order: str, *, to: str = "*") -> None:
        """Give an order to a worker by name, or to all: quiet, resume, stop, dump. It is heard within a beat."""
        await self._wire.call("XADD", self.keys.control, "MAXLEN", "~", _CONTROL_MAX, "*", "do", order, "to", to)


def _waiting(token: bytes, reply: Any) -> tuple[bytes | None, int]:
    """Return the envelope of a job, as it was read, and when it was enqueued; None and 0 if it is not there."""
    if not reply:
        return None, 0
    if token[:1] == b"z":
        _, enqueued, raw = reply.split(b"|", 2)
        return raw, int(enqueued)
    fields = reply[0][1]
    more = dict(zip(fields[4::2], fields[5::2], strict=True))
    return fields[3], int(more.get(b"q") or token[1:].partition(b"-")[0])


def _record(envelope: Envelope | None, enqueued_ms: int, now_ms: int, reason: str) -> bytes:
    record: dict[str, object] = {
        "s": "cancelled", "e": enqueued_ms, "f": now_ms, "x": {"t": "Cancelled", "m": reason, "tb": "", "fp": ""},
    }  # fmt: skip
    if envelope is not None:
        record |= {"h": envelope.handler, "n": envelope.attempt}
        record |= {"u": envelope.key} if envelope.key is not None else {}
        record |= {"o": envelope.occurrence} if envelope.occurrence is not None else {}
    return orjson.dumps(record)


def _what(handler: str | None, key: str | None) -> str:
    """Name what is to be blocked as the worker names it."""
    if (handler is None) is (key is None):
        raise BadInput("name a handler or a user key, one of the two")
    return f"h:{handler}" if handler is not None else f"k:{key}"
