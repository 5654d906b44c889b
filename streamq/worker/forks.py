"""What becomes of a copy of this process that a handler makes with `os.fork`.

The copy shares the worker's connections and what its event loop waits with, and must not use them: both lead nowhere there,
and it ends when its handler ends, or gives the loop back. Signals sent to it must not reach the worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from streamq.broker.wire import forget_sockets
from streamq.worker.threads import in_copy

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["guard"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP, signal.SIGCONT)


def guard(loop: AbstractEventLoop) -> None:
    """See to it that copies of this process, which runs this loop, stay out of its way. Once in a process."""
    thread = threading.get_ident()
    os.register_at_fork(after_in_child=lambda: _settle_copy(loop, thread))


def _settle_copy(loop: AbstractEventLoop, thread: int) -> None:
    signal.set_wakeup_fd(-1)  # a signal to the copy would be written into the worker's own pipe
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    in_copy.append(_end)
    forget_sockets()
    _forget_polls()
    if threading.get_ident() == thread:
        loop.call_soon(_end)


def _forget_polls() -> None:
    """Leave epoll sets to the original, with an empty one in the place of each: both would share what one puts in or takes out."""
    if sys.platform != "linux":
        return
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if "eventpoll" in str(entry.readlink()):
                with select.epoll() as empty:
                    os.dup2(empty.fileno(), int(entry.name))


def _end() -> NoReturn:
    os._exit(0)
