"""What happens, as it happens: server-sent events, made of the outboxes.

One reader in this process serves all who listen. Each event carries the places in all outboxes as its id, so that any
process that has been listening for long enough can go on where another left off.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent

from streamq.api.answers import Problem
from streamq.api.desk import stores_of
from streamq.api.parameters import Parameter
from streamq.api.queues import queues_json
from streamq.api.table import Operation, users_seen
from streamq.broker.outbox import version_of
from streamq.errors import StreamQError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.api.stores import Stores
    from streamq.broker.outbox import Feed, OutboxEntry

__all__ = ["OPERATIONS", "Hub"]

KEPT = 2_000
"""Events that somebody who comes back may have missed."""
MOST_LISTENERS = 100
MOST_WAITING = 256
"""Events that a listener may be behind before it is sent away."""
READ_AT_ONCE = 200
BLOCK_MS = 1_000
PAUSE_S = 0.02
LINGER_S = 60.0
PING_S = 15
LONGEST_S = 900.0
"""A listener comes back after this time, and its token is looked at again."""


class Happened(NamedTuple):
    """One entry of an outbox."""

    queue: str
    version: int
    id: str
    items: list[dict[str, Any]]


class _Record(msgspec.Struct, rename={"state": "s", "handler": "h", "user": "u", "attempt": "n"}):
    state: str = ""
    handler: str = ""
    user: str | None = None
    attempt: int = 1


class Listener:
    """Somebody who listens."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Happened | str | None] = asyncio.Queue(MOST_WAITING)
        """Events, `resync`, the JSON of all queues in front of which stands `queues`, or None: it is over."""

    def put(self, what: Happened | str | None) -> None:
        """Hand something over; a listener that is too slow is sent away, and may come back."""
        try:
            self.waiting.put_nowait(what)
        except asyncio.QueueFull:
            while not self.waiting.empty():
                self.waiting.get_nowait()
            self.waiting.put_nowait(None)


class Hub:
    """Reads the outboxes for as long as somebody listens, and a minute longer."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._listeners: set[Listener] = set()
        self._kept: deque[Happened] = deque(maxlen=KEPT)
        self._floor: dict[str, int] = {}
        """Of each queue, the version up to which nothing is kept any more."""
        self._places: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._is_closed = False

    async def join(self, last_id: str) -> Listener:
        """Begin to listen, behind the event with this id if it is not empty.

        Raises:
            Problem: 503; Redis is away, or too many listen already.
        """
        if len(self._listeners) >= MOST_LISTENERS or self._is_closed:
            raise Problem(503, f"{MOST_LISTENERS} listen already", kind="too-many", headers={"retry-after": "30"})
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(2):
                await self._ready.wait()
        except TimeoutError:
            raise Problem(503, "Redis is away", kind="store-away", headers={"retry-after": "2"}) from None
        listener = Listener()
        for event in self._missed(last_id):
            listener.put(event)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """End to listen."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Send everybody away, since the process ends."""
        self._is_closed = True
        for listener in self._listeners:
            listener.put(None)
        if self._task is not None:
            self._task.cancel()

    def _missed(self, last_id: str) -> list[Happened | str]:
        if not last_id:
            return []
        places = _places_of(last_id)
        if places is None or any(places.get(queue, -1) < floor for queue, floor in self._floor.items()):
            return ["resync"]
        missed: list[Happened | str] = [each for each in self._kept if each.version > places[each.queue]]
        return missed if len(missed) < MOST_WAITING else ["resync"]

    async def _read(self) -> None:
        feed = self._stores.feed()
        idle_since = time.monotonic()
        try:
            await self._stores.redis.ask(feed.start)
            self._begin(feed)
            watch = asyncio.create_task(self._watch_queues())
            try:
                while self._listeners or time.monotonic() - idle_since < LINGER_S:
                    idle_since = time.monotonic() if self._listeners else idle_since
                    await self._read_on(feed)
            finally:
                watch.cancel()
        except StreamQError:
            return  # who joins is told
        finally:
            await feed.close()

    def _begin(self, feed: Feed) -> None:
        self._kept.clear()
        self._note_places(feed)
        self._floor = {queue: version_of(place) for queue, place in feed.places.items()}
        self._ready.set()

    def _note_places(self, feed: Feed) -> None:
        self._places = {queue: place.decode() for queue, place in feed.places.items()}

    async def _read_on(self, feed: Feed) -> None:
        before = dict(feed.places)
        try:
            entries = await feed.read(limit=READ_AT_ONCE, block_ms=BLOCK_MS)
            gap = await feed.has_gap()
        except StreamQError:
            await asyncio.sleep(1)
            return
        places = {queue: place.decode() for queue, place in before.items()}
        for queue, entry in entries:
            places[queue] = entry.id.decode()
            self._tell(_happened(queue, entry, places))
        if gap:
            self._begin(feed)
            self._send("resync")
        self._note_places(feed)
        await asyncio.sleep(PAUSE_S)

    def _tell(self, event: Happened) -> None:
        if len(self._kept) == KEPT:
            oldest = self._kept[0]
            self._floor[oldest.queue] = oldest.version
        self._kept.append(event)
        self._send(event)

    def _send(self, what: Happened | str) -> None:
        for listener in self._listeners:
            listener.put(what)

    async def _watch_queues(self) -> None:
        """Tell what queues hold whenever that has changed, once a second at most."""
        told = ""
        while True:
            with contextlib.suppress(StreamQError):
                counts = await self._stores.counts()
                # What only grows older is no change.
                queues = queues_json(self._stores, counts)
                for each in (part for queue in queues for part in (queue, *queue["partitions"])):
                    each |= {"oldest_wait_ms": None, "outbox_age_ms": None}
                said = "queues" + orjson.dumps({"items": queues}).decode()
                if said != told:
                    told = said
                    self._send(said)
            await asyncio.sleep(1)


async def stream_events(request: Request) -> Response:
    """Tell what happens, as server-sent events.

    `jobs`: what became of jobs, a batch for each event. `queues`: what queues hold, when it has changed. `resync`: events
    were missed, so what is shown has to be asked for anew. After an interruption the header Last-Event-ID, which browsers
    send by themselves, brings what was missed, as long as it is kept.
    """
    hub: Hub = request.app.state.hub
    stores_of(request)
    listener = await hub.join(request.headers.get("last-event-id", ""))
    return EventSourceResponse(
        _told(hub, listener, users_seen(request)), ping=PING_S, send_timeout=10, headers={"cache-control": "no-store"}
    )


OPERATIONS = (
    Operation(
        method="GET", path="/v1/events", run=stream_events, tag="events", scope="jobs:read", by_user=True,
        media="text/event-stream",
        headers=(Parameter("Last-Event-ID", "The id of the last event that was read.", {"type": "string"}),),
    ),
)  # fmt: skip


async def _told(hub: Hub, listener: Listener, users: frozenset[str] | None) -> AsyncIterator[ServerSentEvent]:
    try:
        async with asyncio.timeout(LONGEST_S):
            while (what := await listener.waiting.get()) is not None:
                if event := _event(what, users):
                    yield event
    except TimeoutError:
        return
    finally:
        hub.leave(listener)


def _event(what: Happened | str, users: frozenset[str] | None) -> ServerSentEvent | None:
    if isinstance(what, Happened):
        items = [item for item in what.items if users is None or item["user"] in users]
        data = orjson.dumps({"queue": what.queue, "items": items}).decode()
        return ServerSentEvent(data, event="jobs", id=what.id) if items else None
    if what == "resync":
        return ServerSentEvent("{}", event="resync")
    return ServerSentEvent(what.removeprefix("queues"), event="queues") if users is None else None


def _happened(queue: str, entry: OutboxEntry, places: Mapping[str, str]) -> Happened:
    items: list[dict[str, Any]] = []
    for job_id, raw in entry.records:
        with contextlib.suppress(ValueError, RecursionError):  # the recorder puts what nobody can read aside
            items.append({"id": job_id, **msgspec.to_builtins(_decoded(raw))})
    return Happened(queue, entry.version, _id_of(places), items)


def _decoded(raw: bytes) -> dict[str, Any]:
    record = msgspec.json.decode(raw, type=_Record)
    return {"state": record.state, "handler": record.handler, "user": record.user, "attempt": record.attempt}


def _id_of(places: Mapping[str, str]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(dict(places))).decode().rstrip("=")


def _places_of(event_id: str) -> dict[str, int] | None:
    """Read the id of an event; None if it is none of ours."""
    try:
        raw = base64.b64decode(event_id.encode() + b"=" * (-len(event_id) % 4), altchars=b"-_", validate=True)
        places = msgspec.json.decode(raw, type=dict[str, str])
        return {queue: version_of(place) for queue, place in places.items()}
    except (ValueError, RecursionError):
        return None
