"""Where a task stands, down to the innermost call: asyncio shows the outermost frame of one that waits."""

from __future__ import annotations

import faulthandler
import linecache
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["stack_of", "stacks_of_threads"]

_DEEPEST = 100


def stack_of(task: asyncio.Task[Any]) -> str:
    """Return the calls of a task that waits, outermost first, as a traceback writes them."""
    lines: list[str] = []
    step: Any = task.get_coro()
    while step is not None and len(lines) < _DEEPEST:
        frame = getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            source = linecache.getline(code.co_filename, frame.f_lineno).strip()
            lines.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n    {source}\n')
        step = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None)
    return "".join(lines)


def stacks_of_threads() -> str:
    """Return where every thread of this process stands, innermost call first, as `faulthandler` writes it."""
    with tempfile.TemporaryFile() as file:  # it writes to nothing but a file
        faulthandler.dump_traceback(file=file)
        file.seek(0)
        return file.read().decode("utf-8", "replace")
