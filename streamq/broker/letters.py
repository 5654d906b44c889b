"""The dead letters of a partition: browse, replay at a set rate, edit and replay, delete.

A page is bounded whatever lies there, and its cursor says where to go on. A replay moves each letter on its own, so that
it can be stopped, and begun again, at any point.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streamq.codec import decode_envelope, encode_envelope, encode_json
from streamq.errors import BadInput, JobNotFound
from streamq.keys import LANES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from streamq.broker.orders import Orders, Replayed
    from streamq.broker.wire import Wire
    from streamq.job import Envelope

__all__ = ["EVERY", "Edits", "Letter", "LetterRecord", "Letters", "Page", "Progress", "Wanted"]

MOST_LOOKED_AT = 10_000
"""The most letters that are looked at for one page."""
_CHUNK = 100
_AT_ONCE = 32
_LISTEN_S = 0.2
"""How long a stop goes unheard at most."""


class _Error(msgspec.Struct, rename={"type": "t", "message": "m", "traceback": "tb", "fingerprint": "fp"}):
    type: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""


class LetterRecord(
    msgspec.Struct,
    rename={
        "handler": "h", "key": "u", "attempt": "n", "max_attempts": "m", "lane": "l", "enqueued_ms": "e", "begun_ms": "b",
        "finished_ms": "f", "crashes": "c", "error": "x",
    },
):  # fmt: skip
    """What is wanted of a record; see "Record" in docs/architecture.md."""

    handler: str = ""
    key: str | None = None
    attempt: int = 1
    max_attempts: int = 0
    lane: str = ""
    enqueued_ms: int = 0
    begun_ms: int = 0
    finished_ms: int = 0
    crashes: int = 0
    error: _Error = msgspec.field(default_factory=_Error)

    @classmethod
    def of(cls, raw: bytes) -> LetterRecord:
        """Decode it; of one that nobody can read there is nothing."""
        try:
            return _RECORDS.decode(raw)
        except (ValueError, RecursionError):
            return cls()


_RECORDS = msgspec.json.Decoder(LetterRecord)


class Letter(NamedTuple):
    """A job that will not be tried again by itself."""

    id: str
    """The entry's: milliseconds of its death, by the server's clock, and a number."""
    job_id: str
    handler: str
    key: str | None
    lane: str
    attempt: int
    crashes: int
    enqueued_ms: int
    died_ms: int
    error_type: str
    error: str
    traceback: str
    fingerprint: str
    """Of the kind of error and where it was raised."""
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: those that fit everything that is said."""

    job_ids: frozenset[str] = frozenset()
    handler: str | None = None
    key: str | None = None
    """The user key."""
    error: str | None = None
    """A fingerprint, or the name of the exception's class."""
    since_ms: int = 0
    """Died at this moment of the server's or later."""
    until_ms: int = 0
    """Died at this moment or earlier; 0: whenever."""

    def fits(self, letter: Letter) -> bool:
        """Tell whether a letter is meant."""
        return (
            (not self.job_ids or letter.job_id in self.job_ids)
            and self.handler in (None, letter.handler)
            and self.key in (None, letter.key)
            and self.error in (None, letter.fingerprint, letter.error_type)
            and self.since_ms <= letter.died_ms
            and (not self.until_ms or letter.died_ms <= self.until_ms)
        )


EVERY = Wanted()


class Page(NamedTuple):
    """Some letters, the newest first."""

    letters: list[Letter]
    cursor: str | None
    """Pass it for the next page; None: that was the last one."""


@dataclass(slots=True)
class Progress:
    """How far a replay or a deletion is."""

    total: int
    """Letters there were when it began."""
    looked_at: int = 0
    became: Counter[str] = field(default_factory=Counter)
    """`replayed` or `deleted`; `gone`: somebody was faster; `alive`: a job of that id lives; `held`: its dedup key is;
    `unreadable`: it stays."""
    is_stopped: bool = False

    @property
    def matched(self) -> int:
        """How many letters were meant."""
        return sum(self.became.values())


class Edits(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What to change in a job before it is replayed; what is left out stays."""

    handler: str | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    key: str | None = None
    max_attempts: int | None = None

    def applied_to(self, envelope: Envelope) -> Envelope:
        """Return the changed envelope.

        With other arguments, or another handler, it is another job: its dedup key does not fit it any more and is dropped.

        Raises:
            BadInput: A value is none that a job can have.
        """
        changes: dict[str, Any] = {
            name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None
        }
        if not changes:
            raise BadInput("nothing was said to change: handler, args, kwargs, key or max_attempts")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise BadInput(f"max_attempts counts from 1, and {self.max_attempts} came")
        try:
            encode_json(list(changes.values()))
        except ValueError as error:
            raise BadInput(f"the new values are not JSON: {error}") from None
        if changes.keys() & {"handler", "args", "kwargs"}:
            changes |= {"dedup": None, "dedup_window_ms": 0, "dedup_scope": ""}
        if changes.keys() & {"handler", "key"}:
            changes["gates"] = ""  # the worker gives it those of its handler and key
        return msgspec.structs.replace(envelope, **changes)


class Letters:
    """The dead letters of one partition."""

    def __init__(self, wire: Wire, orders: Orders) -> None:
        self._wire = wire
        self._orders = orders
        self._stream = orders.keys.dead
        self._queue = orders.keys.queue

    async def page(self, wanted: Wanted = EVERY, *, limit: int = 50, cursor: str | None = None) -> Page:
        """List letters, the newest first.

        Looks at 10,000 letters at most; the page may then be short, or empty, and still have a cursor.
        """
        found: list[Letter] = []
        looked_at, end = 0, f"({cursor}" if cursor else str(wanted.until_ms or "+")
        while looked_at < MOST_LOOKED_AT:
            chunk = await self._wire.call("XREVRANGE", self._stream, end, wanted.since_ms or "-", "COUNT", _CHUNK)
            for entry in chunk:
                letter = _letter(entry)
                looked_at += 1
                if wanted.fits(letter):
                    found.append(letter)
                    if len(found) == limit:
                        return Page(found, letter.id)
            if len(chunk) < _CHUNK:
                return Page(found, None)
            end = f"({chunk[-1][0].decode()}"
        return Page(found, end[1:])

    async def find(self, job_id: str) -> Letter:
        """Return the newest letter of a job.

        Raises:
            JobNotFound: There is none; it was replayed, deleted or evicted, or the job never died.
        """
        async for letter in self._newest_first(Wanted(frozenset({job_id}))):
            return letter
        raise JobNotFound(f"no dead letter of job {job_id!r} lies in queue {self._queue!r}")

    async def _newest_first(self, wanted: Wanted) -> AsyncGenerator[Letter]:
        page = await self.page(wanted)
        while True:
            for letter in page.letters:
                yield letter
            if page.cursor is None:
                return
            page = await self.page(wanted, cursor=page.cursor)

    async def replay(
        self,
        wanted: Wanted = EVERY,
        *,
        rate: float | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_each: Callable[[Letter, str, str], None] = lambda *_: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Make jobs of letters again, the oldest first: a new life with all its attempts, under the same id.

        Letters that come while it runs are left alone, so a job that dies again is not replayed without end.

        Args:
            wanted: Which.
            rate: The most in a second; None: as fast as it goes.
            on_progress: Told after each few letters.
            on_each: Told of each: what became of it, and with `held` the job that holds its dedup key.
            should_stop: Asked at least five times a second; what was replayed until then stays so.

        Raises:
            BrokerUnavailable: Redis went away; what was replayed until then stays so. Begin again.
        """

        async def one(letter: Letter) -> str:
            became: str
            try:
                became, holder = await self.replay_one(letter)
            except BadInput:  # the others are none the worse for it
                became, holder = "unreadable", ""
            on_each(letter, became, holder)
            return became

        async def several(letters: Sequence[Letter]) -> Sequence[str]:
            return await asyncio.gather(*map(one, letters))

        return await self._go_through(wanted, several, _Pace(rate, should_stop), on_progress)

    async def replay_one(self, letter: Letter, edits: Edits | None = None) -> tuple[Replayed, str]:
        """Make a job of a letter again, as it was or edited. See `Orders.replay`.

        Raises:
            BadInput: The letter cannot be read, or an edit makes no sense.
        """
        raw = letter.envelope
        if edits is not None:
            raw = encode_envelope(edits.applied_to(self._readable(letter)))
        else:
            self._readable(letter)
        return await self._orders.replay(letter.id, letter.job_id, raw, letter.lane)

    def _readable(self, letter: Letter) -> Envelope:
        try:
            return decode_envelope(letter.envelope)
        except ValueError as error:
            raise BadInput(
                f"the job {letter.job_id!r} cannot be replayed, since its letter cannot be read: {error}"
            ) from None

    async def delete(
        self,
        wanted: Wanted,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Delete letters for good; their status stays in the history. `EVERY` means all of them."""

        async def several(letters: Sequence[Letter]) -> Sequence[str]:
            deleted = await self._orders.delete_letters([letter.id for letter in letters])
            return ["deleted"] * deleted + ["gone"] * (len(letters) - deleted)

        return await self._go_through(wanted, several, _Pace(None, should_stop), on_progress)

    async def _go_through(
        self,
        wanted: Wanted,
        several: Callable[[Sequence[Letter]], Any],
        pace: _Pace,
        on_progress: Callable[[Progress], None],
    ) -> Progress:
        """Do something with each letter that is meant and lies there now, oldest first."""
        progress = Progress(total=int(await self._wire.call("XLEN", self._stream)))
        newest = await self._wire.call("XREVRANGE", self._stream, wanted.until_ms or "+", "-", "COUNT", 1)
        start: str = str(wanted.since_ms or "-")
        while newest:
            chunk = await self._wire.call("XRANGE", self._stream, start, newest[0][0], "COUNT", _CHUNK)
            meant = [letter for entry in chunk if wanted.fits(letter := _letter(entry))]
            for first in range(0, len(meant), pace.at_once):
                if not await pace.may_go_on():
                    progress.is_stopped = True
                    return progress
                progress.became.update(await several(meant[first : first + pace.at_once]))
                on_progress(progress)
            progress.looked_at += len(chunk)
            on_progress(progress)
            if len(chunk) < _CHUNK:
                break
            start = f"({chunk[-1][0].decode()}"
        return progress


class _Pace:
    """How fast to go, and whether to go on."""

    def __init__(self, rate: float | None, should_stop: Callable[[], bool]) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise BadInput(f"a rate is more than 0 in a second, and {rate:g} came")
        self._every_s = 1 / rate if rate else 0.0
        self._should_stop = should_stop
        self._next_at = asyncio.get_running_loop().time()
        self.at_once = 1 if rate else _AT_ONCE

    async def may_go_on(self) -> bool:
        """Wait for the next turn. Returns whether there is one."""
        loop = asyncio.get_running_loop()
        while not self._should_stop():
            wait_s = self._next_at - loop.time()
            if wait_s <= 0:
                self._next_at = max(self._next_at + self._every_s, loop.time() - 1.0)  # no burst after a standstill
                return True
            await asyncio.sleep(min(wait_s, _LISTEN_S))
        return False


def _letter(entry: tuple[bytes, list[bytes]]) -> Letter:
    """Decode a letter. One whose record cannot be read is shown with what can."""
    entry_id, raw = entry
    fields: Mapping[bytes, bytes] = dict(zip(raw[::2], raw[1::2], strict=True))
    record = LetterRecord.of(fields.get(b"r", b""))
    name = entry_id.decode()
    error = record.error
    return Letter(
        name, fields.get(b"j", b"").decode("utf-8", "replace"), record.handler, record.key,
        record.lane if record.lane in LANES else "normal", record.attempt, record.crashes, record.enqueued_ms,
        int(name.partition("-")[0]), error.type, error.message, error.traceback, error.fingerprint,
        fields.get(b"d", b""),
    )  # fmt: skip
