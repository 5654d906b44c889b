"""What each signal asks of the parent: the table in the operator's manual, as code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Protocol

from streamq.errors import BadInput
from streamq.logs import event

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Signals"]

log = logging.getLogger(__name__)

WORKER = "worker"
ECHO_S = 0.1
"""Two stop signals closer than this are one: tools such as `uv run` repeat the Ctrl-C that the terminal sent too."""


class Commanded(Protocol):
    """What takes the commands: the parent."""

    def scale(self, name: str, instances: int) -> int: ...
    def restart(self, name: str) -> None: ...
    def counts(self) -> dict[str, int]: ...
    def stop(self) -> None: ...
    def force(self) -> None: ...
    def quit(self) -> None: ...
    def set_quiet(self, *, is_quiet: bool) -> None: ...
    def forward(self, number: signal.Signals) -> None: ...


class Signals:
    """The signal handlers of the process, from now until `close`."""

    def __init__(self, parent: Commanded) -> None:
        self._parent = parent
        self._stop_s: float | None = None
        self._is_forced = False
        self._has_terminal = _has_terminal()
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGQUIT: parent.quit,
            signal.SIGHUP: self._on_hangup,
            signal.SIGTSTP: lambda: parent.set_quiet(is_quiet=True),
            signal.SIGCONT: lambda: parent.set_quiet(is_quiet=False),
            signal.SIGUSR1: lambda: parent.forward(signal.SIGUSR1),
            signal.SIGTTIN: lambda: self._step(+1),
            signal.SIGTTOU: lambda: self._step(-1),
        }
        for number, handler in self._handlers.items():
            self._loop.add_signal_handler(number, handler)

    def close(self) -> None:
        """Give the signals back."""
        for number in self._handlers:
            self._loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        """Drain at the first signal; at the second, force."""
        now_s = time.monotonic()
        if self._stop_s is None:
            self._stop_s = now_s
            self._parent.stop()
        elif now_s - self._stop_s > ECHO_S and not self._is_forced:
            self._is_forced = True
            self._parent.force()

    def _on_hangup(self) -> None:
        """Roll; but stop if the terminal that we were started at is gone, for nobody would ever stop us."""
        if self._has_terminal and not _has_terminal():
            self._on_stop()
            return
        for name in self._parent.counts():
            _ask(self._parent.restart, name)

    def _step(self, change: int) -> None:
        """Scale the workers, or the first role where none is called so, by one; never to none."""
        counts = self._parent.counts()
        name = WORKER if WORKER in counts else next(iter(counts))
        _ask(self._parent.scale, name, max(1, counts[name] + change))


def _ask(command: Callable[..., object], *args: object) -> None:
    """Do what a signal asks for; nobody waits for an answer, so a refusal goes to the log."""
    try:
        command(*args)
    except BadInput as refusal:
        event(log, logging.WARNING, "parent.refused", str(refusal))


def _has_terminal() -> bool:
    """Whether a terminal is at our standard input, and still there."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) >= 0
    except OSError:
        return False
