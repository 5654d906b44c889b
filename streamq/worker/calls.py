"""How a handler is called: on the loop, in a thread or in a process, with what it depends on, inside the middleware.

Put together once for each handler, when its first job comes; a job pays only for what its handler uses.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from streamq.context import current_job
from streamq.worker.threads import ThreadCall
from streamq.worker.traced import traced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import ThreadPoolExecutor

    from streamq.registry import HandlerSpec, Registry
    from streamq.worker.run import Caller, RunningJob

__all__ = ["Calls"]

_INSIST_S = 1.0


class Calls:
    """The handlers of an application, ready to be called."""

    def __init__(self, registry: Registry, threads: ThreadPoolExecutor, in_process: Caller | None = None) -> None:
        """Take what is called, and where.

        Args:
            registry: The application's.
            threads: Where plain functions run.
            in_process: Runs a job in a child process; None: this is the child.
        """
        self._registry = registry
        self._threads = threads
        self._in_process = in_process
        self._known: dict[str, tuple[HandlerSpec, Caller]] = {}

    def find(self, handler: str) -> tuple[HandlerSpec, Caller] | tuple[None, None]:
        """Return a handler and how it is called; nothing if the application has none of that name."""
        known = self._known.get(handler)
        if known is None:
            spec = self._registry.find(handler)
            if spec is None:
                return None, None
            call = self._caller(spec)
            if self._in_process is not None:  # else the worker of this child has made the span
                call = traced(call, spec.queue)
            known = self._known[handler] = (spec, call)
        return known

    def _caller(self, spec: HandlerSpec) -> Caller:
        if spec.isolation == "process" and self._in_process is not None:
            return self._in_process
        call: Caller = _on_loop if spec.is_async else self._in_thread
        if spec.dependencies:
            call = _with_dependencies(call, spec, self._registry)
        for middleware in reversed(self._registry.middleware):
            call = _inside(middleware, call)
        return call

    async def _in_thread(self, job: RunningJob) -> Any:
        """Run a plain function in the pool.

        A thread cannot be killed. Told to stop, it gets an exception at its next Python instruction, and the job has
        not ended before the thread has: otherwise the same job could run twice at once.
        """
        call = ThreadCall(job.spec.function, job.envelope.args, job.kwargs)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, contextvars.copy_context().run, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                call.interrupt()  # again and again: a handler may swallow one
                await asyncio.wait({future}, timeout=_INSIST_S)
            if not future.cancelled() and future.exception() is None:
                return future.result()  # it was done before the exception reached it
            raise


def _on_loop(job: RunningJob) -> Awaitable[Any]:
    args, kwargs = job.envelope.args, job.kwargs
    coroutine: Awaitable[Any] = job.spec.function(*args, **kwargs) if kwargs else job.spec.function(*args)
    return coroutine


def _with_dependencies(call: Caller, spec: HandlerSpec, registry: Registry) -> Caller:
    async def filled(job: RunningJob) -> Any:
        async with AsyncExitStack() as stack:
            kwargs = dict(job.kwargs)
            for dependency in spec.dependencies:
                kwargs[dependency.name] = await dependency.enter(stack, registry.state)
            job.kwargs = kwargs
            return await call(job)

    return filled


def _inside(middleware: Callable[..., Awaitable[Any]], call: Caller) -> Caller:
    async def around(job: RunningJob) -> Any:
        return await middleware(current_job(), partial(call, job))

    return around
