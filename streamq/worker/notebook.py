"""Writes down what handlers tell of their jobs while they run: all of it together, and a few times a second at most."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import orjson

from streamq.errors import StreamQError

if TYPE_CHECKING:
    from streamq.job import Delivery
    from streamq.worker.pump import Pump

__all__ = ["EVERY_S", "Notebook"]

EVERY_S = 0.25
_LAST_WORDS_S = 1.0


class Notebook:
    """The notes of all jobs that run here. Losing some is harmless: the next ones say more."""

    def __init__(self) -> None:
        self._new: dict[bytes, tuple[Pump, bytes]] = {}
        self._writer: asyncio.Task[None] | None = None

    def take(self, delivery: Delivery, pump: Pump) -> None:
        """Have the notes of a running job written down."""
        if delivery.notes is not None and delivery.envelope is not None:
            delivery.notes.is_new = False
            told = {"n": delivery.envelope.attempt, **delivery.notes.as_record()}
            self._put(delivery, pump, orjson.dumps(told))

    def tear_out(self, delivery: Delivery, pump: Pump) -> None:
        """Forget the notes of a job that has ended: they are in its record."""
        self._put(delivery, pump, b"")

    def _put(self, delivery: Delivery, pump: Pump, text: bytes) -> None:
        self._new[delivery.id] = (pump, text)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._new:
            new, self._new = self._new, {}
            for pump in {pump for pump, _ in new.values()}:
                rows = [(job_id, text) for job_id, (owner, text) in new.items() if owner is pump]
                with contextlib.suppress(StreamQError, OSError):
                    await pump.note_down(rows)
            await asyncio.sleep(EVERY_S)
        self._writer = None

    async def close(self) -> None:
        """Write down what is left, if that takes no time; what is not has a TTL."""
        writer = self._writer
        if writer is not None:
            await asyncio.wait({writer}, timeout=_LAST_WORDS_S)
            writer.cancel()
