"""What becomes of a copy of this process that a handler makes with `os.fork`.

The copy shares the worker's connections and its event loop's files, and must not use them: it ends when its handler
ends, or gives the loop back. Signals sent to it must not reach the worker.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

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
    if threading.get_ident() == thread:
        loop.call_soon(_end)


def _end() -> NoReturn:
    os._exit(0)
