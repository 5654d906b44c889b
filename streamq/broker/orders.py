"""What operators do to a partition: cancel, replay, delete, pause, resume, and orders to its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import orjson

from streamq.codec import decode_envelope, encode_envelope
from streamq.errors import JobNotFound
from streamq.keys import lane_digit
from streamq.scripts import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.broker.wire import Arg, Wire
    from streamq.job import Envelope
    from streamq.keys import Keys

__all__ = ["Cancelled", "Orders", "Replayed"]

Cancelled = Literal["cancelled", "asked"]
Replayed = Literal["replayed", "gone", "alive", "held"]

_TRIES = 8
"""A job that moves between looking and cancelling is looked up again; it cannot do so for long."""
_CONTROL_MAX = 1_000


class Orders:
    """The operators' side of one partition."""

    def __init__(self, wire: Wire, keys: Keys, *, outbox_max: int = 200_000) -> None:
        self._wire = wire
        self.keys = keys
        self._outbox_max = outbox_max

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
            raw, enqueued_ms = await self._waiting(job_id, token)
            envelope = decode_envelope(raw) if raw else None
            verdict = await self._cancel(job_id, token, envelope, (enqueued_ms, reason))
            if verdict == b"CANCELLED":
                return "cancelled"
            if verdict == b"ASKED":
                return "asked"
        raise JobNotFound(f"no job {job_id!r} waits or runs in queue {self.keys.queue!r}")

    async def _waiting(self, job_id: str, token: bytes) -> tuple[bytes | None, int]:
        """Return the envelope of a job where the token says it is, and when it was enqueued."""
        if token[:1] == b"z":
            payload = await self._wire.call("HGET", self.keys.payload, job_id)
            if payload is None:
                return None, 0
            _, enqueued, raw = payload.split(b"|", 2)
            return raw, int(enqueued)
        lane = self.keys.lanes[int(token[:1]) - 1]
        entry = token[1:].partition(b"*")[0]
        found = await self._wire.call("XRANGE", lane, entry, entry)
        if not found:
            return None, 0
        fields = found[0][1]
        return fields[3], int(fields[5]) if len(fields) > 4 else int(entry.partition(b"-")[0])

    async def _cancel(self, job_id: str, token: bytes, envelope: Envelope | None, said: tuple[int, str]) -> bytes:
        keys = self.keys
        enqueued_ms, reason = said
        names = [
            *keys.lanes, keys.delayed, keys.payload, keys.index, keys.outbox, keys.control,
        ]  # fmt: skip
        server_s, server_us = await self._wire.call("TIME")
        now_ms = int(server_s) * 1000 + int(server_us) // 1000
        record: dict[str, object] = {
            "s": "cancelled", "e": enqueued_ms, "f": now_ms, "x": {"t": "Cancelled", "m": reason, "tb": "", "fp": ""},
        }  # fmt: skip
        if envelope is not None:
            record |= {"h": envelope.handler, "n": envelope.attempt}
            record |= {"u": envelope.key} if envelope.key is not None else {}
            record |= {"o": envelope.occurrence} if envelope.occurrence is not None else {}
            if envelope.dedup is not None:
                names.append(keys.dedup(envelope.dedup))
        args: list[Arg] = [job_id, token, orjson.dumps(record), self._outbox_max, reason]
        verdict: bytes = await self._wire.script(load("cancel"), names, args)
        return verdict

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
        fresh = msgspec.structs.replace(envelope, attempt=1, starts=envelope.starts + 1, deadline_ms=0)
        names = [*self.keys.lanes, self.keys.index, self.keys.dead]
        # A throttled job's key is kept by time alone: taken here, it would never be freed.
        if envelope.dedup is not None and envelope.dedup_scope not in ("t", "p"):
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
        """Let no worker start a job of this queue, until resumed or the time has come (0: open).

        Workers that are already waiting may start the one job that they are blocked for; see `is_paused` in the cycle.
        """
        why = orjson.dumps({"reason": reason, "by": by}).decode()
        await self._wire.call("HSET", self.keys.pause, "queue", f"{until_ms}|{why}")
        await self._wire.call("XADD", self.keys.lanes[0], "*", "w", "1")

    async def resume(self) -> bool:
        """Let workers start jobs again. Returns whether the queue was paused."""
        return bool(await self._wire.call("HDEL", self.keys.pause, "queue"))

    async def tell(self, order: str, *, to: str = "*") -> None:
        """Give an order to a worker by name, or to all: quiet, resume, stop, dump. It is heard within a beat."""
        await self._wire.call("XADD", self.keys.control, "MAXLEN", "~", _CONTROL_MAX, "*", "do", order, "to", to)
