"""The child of a worker that runs its `isolation="process"` jobs: `python -m streamq.worker.child FD`.

It imports the application as the worker did, goes through its lifespan, and runs one job after another. A thread
listens to the worker, so that a worker's death is heard while a handler blocks the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streamq import tracing
from streamq.codec import decode_envelope
from streamq.context import Place, place
from streamq.errors import LeaseLost, StreamQError
from streamq.job import Dead, Delivery, Outcome, Retrying, Snoozed
from streamq.loading import load_app
from streamq.logs import configure
from streamq.worker import forks
from streamq.worker.calls import Calls
from streamq.worker.notebook import EVERY_S
from streamq.worker.pipe import LENGTH, PARK_MS, Ended, FromChild, FromWorker, Hello, Order, Ready, Stop, Told, framed
from streamq.worker.run import RunningJob, Stop as Why, run

if TYPE_CHECKING:
    from streamq.app import StreamQ
    from streamq.worker.run import Caller

_DECODER = msgspec.json.Decoder(FromWorker)
_ORDERLY_END_S = 5.0


class Line:
    """The way to the worker."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        os.register_at_fork(after_in_child=self._socket.close)  # a copy must not speak for this process

    def receive(self) -> FromWorker | None:
        """Wait for the next message; None: the worker is gone, or has no more to say."""
        head = self._read(LENGTH)
        return _DECODER.decode(self._read(int.from_bytes(head, "big"))) if head else None

    def _read(self, count: int) -> bytes:
        read = b""
        while len(read) < count:
            try:
                more = self._socket.recv(count - len(read))
            except OSError:
                more = b""
            if not more:
                return b""
            read += more
        return read

    def send(self, message: FromChild) -> None:
        """Say something; that nobody listens any more is found out by `receive`."""
        with contextlib.suppress(OSError):
            self._socket.sendall(framed(message))


class Runner:
    """Runs jobs, one at a time."""

    def __init__(self, app: StreamQ, line: Line) -> None:
        self._line = line
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="streamq-job")
        self._threads.submit(int).result()  # a thread's stack must not count against a job's memory
        self._calls = Calls(app.registry, self._threads)
        self._base = contextvars.copy_context()
        self._job: RunningJob | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost: set[bytes] = set()
        self._messages: asyncio.Queue[FromWorker | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def serve(self) -> None:
        """Do what the worker says until it says no more."""
        threading.Thread(target=self._listen, daemon=True).start()
        self._line.send(Ready())
        while (message := await self._messages.get()) is not None:
            match message:
                case Order():
                    self._task = self._loop.create_task(self._run(message), context=self._base.copy())
                case Stop(why=why, reason=reason) if self._job is not None and self._job.task is not None:
                    self._stop(self._job, self._job.task, why, reason)
                case _:
                    pass

    def _stop(self, job: RunningJob, task: asyncio.Task[None], why: Why, reason: str) -> None:
        job.stop, job.stop_reason, job.stopped_at = why, reason, self._loop.time()
        if why is Why.LEASE_LOST:
            self._lost.add(job.delivery.token)
        task.cancel(LeaseLost(reason) if why is Why.LEASE_LOST else str(why))

    def _listen(self) -> None:
        """Hear the worker, whatever the loop does. A worker that died has no use for the job any more."""
        while (message := self._line.receive()) is not None:
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)
        if self._job is None:
            self._loop.call_soon_threadsafe(self._messages.put_nowait, None)
            time.sleep(_ORDERLY_END_S)
        os.killpg(0, signal.SIGKILL)

    async def _run(self, order: Order) -> None:
        try:
            ended = Ended.of(await self._outcome(order))
        except BaseException:  # noqa: BLE001 - out of memory even for saying so
            os._exit(os.EX_SOFTWARE)
        ended.is_spent = _is_spent(ended)
        self._line.send(ended)

    async def _outcome(self, order: Order) -> Outcome:
        delivery = Delivery(order.digit, b"", order.job_id, order.raw, order.enqueued_ms, self._loop.time())
        delivery.delivery = order.delivery
        if order.trace:
            tracing.join(order.trace)
        delivery.envelope = envelope = decode_envelope(order.raw)
        spec, call = self._calls.find(envelope.handler)
        if spec is None or call is None:
            return Snoozed(PARK_MS, f"no handler is named {envelope.handler!r} in the process")
        call = _limited(call, spec.memory_limit) if spec.memory_limit else call
        job = RunningJob(delivery, envelope, spec, call, order.begun_ms, self._loop.time())
        job.task = asyncio.current_task()
        here = Place(self._told, self._lost)
        here.delivery, here.max_attempts = delivery, job.max_attempts
        place.set(here)
        self._job = job
        try:
            return await run(job)
        finally:
            self._tell(delivery)
            self._lost.clear()
            self._job = None
            here.delivery = None

    def _told(self, delivery: Delivery) -> None:
        """Have the worker told, soon, what a handler has told of its job, on whatever thread."""
        notes = delivery.notes
        if notes is not None and not notes.is_new:
            notes.is_new = True
            self._loop.call_soon_threadsafe(self._loop.call_later, EVERY_S, self._tell, delivery)

    def _tell(self, delivery: Delivery) -> None:
        job = self._job  # a thread that a handler has left behind speaks for nobody
        if job is not None and job.delivery is delivery and delivery.notes is not None and delivery.notes.is_new:
            delivery.notes.is_new = False
            self._line.send(Told(delivery.notes.as_record()))


def _is_spent(ended: Ended) -> bool:
    """Tell whether memory ran out: what is left of it is in pieces."""
    return ended.kind in (Retrying.__name__, Dead.__name__) and ended.fields["failure"]["type"] == "MemoryError"


def _limited(call: Caller, memory_limit: int) -> Caller:
    """Let a run take so much memory, beyond what an idle process has."""

    async def limited(job: RunningJob) -> Any:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = _address_space_bytes() + memory_limit
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most < 0 else min(wanted, most), most))
        try:
            return await call(job)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return limited


def _address_space_bytes() -> int:
    """Return what the process has taken of its address space; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


async def _serve(app: StreamQ, line: Line) -> None:
    forks.guard(asyncio.get_running_loop())
    async with app.registry.alive():
        await Runner(app, line).serve()


def _loaded(hello: Hello) -> StreamQ:
    app = load_app(hello.settings.app)
    app.settings = hello.settings
    return app


def main(fd: int) -> None:
    """Run jobs for the worker at the other end of a socket."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    for signum in (signal.SIGTERM, signal.SIGINT):  # when to stop is the worker's to say
        signal.signal(signum, lambda *_: None)
    line = Line(fd)
    hello = line.receive()
    if not isinstance(hello, Hello):
        return
    configure(hello.settings.log_level, hello.settings.log_format)
    try:
        app = _loaded(hello)
        asyncio.run(_serve(app, line))
    except StreamQError as error:
        line.send(Ready(str(error)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
