"""What operators tell a partition and its workers. Each order is one round trip, and repeating it is harmless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from streamq.codec import encode_json

if TYPE_CHECKING:
    from streamq.broker.wire import Wire
    from streamq.keys import Keys

__all__ = ["EVERYONE", "Orders", "WorkerOrder"]

EVERYONE = "*"
KEPT_ORDERS = 1_000
"""Workers look at least once a second, so far fewer can be unread."""

WorkerOrder = Literal["quiet", "resume", "stop", "dump"]


class Orders:
    """The orders to one partition."""

    def __init__(self, wire: Wire, keys: Keys) -> None:
        self._wire = wire
        self._keys = keys

    async def pause(self, *, reason: str, by: str, for_ms: int = 0) -> None:
        """Have no job given out from now on; jobs that run are finished. Replaces an earlier pause.

        With `for_ms` the pause ends by itself after that time, on the server's clock; 0 is until `resume`.
        """
        until_ms = 0
        if for_ms:
            seconds, micros = await self._wire.call("TIME")
            until_ms = int(seconds) * 1000 + int(micros) // 1000 + for_ms
        said = encode_json({"reason": reason, "by": by})
        await self._wire.call("HSET", self._keys.pause, "queue", b"%d|%s" % (until_ms, said))

    async def resume(self) -> bool:
        """End a pause. Returns whether there was one."""
        return bool(await self._wire.call("HDEL", self._keys.pause, "queue"))

    async def tell(self, order: WorkerOrder, worker: str = EVERYONE) -> None:
        """Tell the workers of that name something; a name that nobody has is told to nobody."""
        await self._order("do", order, "to", worker)

    async def cancel_running(self, job_id: str, reason: str) -> None:
        """Have the worker that runs the job, if one does, cancel it."""
        await self._order("do", "cancel", "job", job_id, "why", reason)

    async def _order(self, *words: str) -> None:
        await self._wire.call("XADD", self._keys.control, "MAXLEN", "~", KEPT_ORDERS, "*", *words)
