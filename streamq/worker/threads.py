"""Plain functions in threads, and how to stop one."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["JobInterrupted", "ThreadCall", "in_copy"]


class JobInterrupted(BaseException):
    """Raised inside a plain handler that must stop: its time is up, or its job was cancelled or lost.

    It is no `Exception`, so that a handler which catches those lets it pass.
    """


in_copy: list[Callable[[], None]] = []
"""In a copy of the process that a handler has forked: what ends the copy when its handler ends."""


class ThreadCall:
    """One call of a plain function, in whatever thread it comes to run."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._lock = threading.Lock()
        self._thread_id: int | None = None
        self._interrupted = False

    def __call__(self) -> Any:
        """Run it, unless it was interrupted before it began."""
        with self._lock:
            if self._interrupted:
                raise JobInterrupted
            self._thread_id = threading.get_ident()
        try:
            return self._run()
        except JobInterrupted:
            self._leave()  # should it have come on the way out, before `_leave` had begun
            raise

    def _run(self) -> Any:
        try:
            return self._function(*self._args, **self._kwargs)
        except StopIteration as error:  # a future cannot carry it; a coroutine turns it into this, too
            raise RuntimeError("the handler raised StopIteration") from error
        finally:
            self._leave()

    def _leave(self) -> None:
        """End the call so that an interruption which comes just now hits neither the pool nor the next call.

        One that waits to be raised is not called off but replaced and met here: before Python 3.12 calling it off leaves
        the interpreter looking for it for ever, which slows every thread, and stops those that are traced.
        """
        for end in in_copy:
            end()
        replaced = False
        while True:
            try:
                with self._lock:
                    self._thread_id = None
                if replaced or not self._interrupted:
                    return
                replaced = True
                _raise_in(threading.get_ident(), JobInterrupted)
                while True:
                    pass
            except JobInterrupted:
                continue

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in it. A call into C code hears it when that returns."""
        with self._lock:
            self._interrupted = True
            if self._thread_id is not None:
                _raise_in(self._thread_id, JobInterrupted)


def _raise_in(thread_id: int, kind: type[BaseException]) -> None:
    """Have a thread raise an exception at its next instruction, instead of one that may wait there already.

    See https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))
