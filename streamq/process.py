"""What a process and its machine tell each other: systemd, a heartbeat file for probes, and how a dead one ended.

Nothing here may block or raise because the machine does not care: a missing systemd is not an error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HEARTBEAT_LIMIT_S", "HEARTBEAT_PERIOD_S", "READY", "Reporter", "be_nice", "beat_file", "exit_status", "exit_words",
    "file_age_s", "is_frozen", "notify", "queued_s", "rss_bytes", "watchdog_period_s",
]  # fmt: skip

HEARTBEAT_PERIOD_S = 5.0
"""How often a live process touches its heartbeat file."""
HEARTBEAT_LIMIT_S = 30.0
"""A heartbeat file older than this belongs to a process that is stuck or gone."""

READY = "ready"
"""What the heartbeat file of a process says that does its work."""
STATUS_PERIOD_S = 1.0
"""How often systemd hears how things stand."""

_EXIT_WORDS = {
    0: "ended",
    1: "failed",
    2: "wrong command line",
    64: "wrong command line",
    65: "bad input",
    69: "a server could not be reached",
    70: "an error inside streamq",
    75: "a temporary failure",
    78: "bad configuration",
    126: "the program may not be executed",
    127: "the program was not found",
    130: "forced to stop",
}


def notify(*states: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell systemd something, for example `notify("READY=1", "STATUS=2 of 2 ready")`.

    Returns:
        Whether it was sent; False where no systemd listens.

    See https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(address)
            sender.sendall("\n".join(states).encode())
    except OSError:
        return False
    return True


def watchdog_period_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how often `notify("WATCHDOG=1")` is due: half of what systemd allows. None if it does not watch us."""
    limit_us = environ.get("WATCHDOG_USEC", "")
    watched = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not limit_us.isdecimal() or int(limit_us) == 0 or watched != str(os.getpid()):
        return None
    return int(limit_us) / 1_000_000 / 2


def beat_file(path: Path, words: str = READY) -> None:
    """Write the heartbeat file, making it if needed: its age says that we live, its words whether we are ready.

    Args:
        path: The file; it is replaced as a whole, so that nobody reads half of it.
        words: `READY`, or why not.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(f"{words}\n")
    new.replace(path)


def file_age_s(path: Path) -> float | None:
    """Return how long ago the heartbeat file was touched; None if there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _try_to_beat(path: Path) -> None:
    try:
        beat_file(path, "starting")
    except OSError as error:
        raise ConfigurationError(
            f"the heartbeat file {path} cannot be written: {error.strerror or error}",
            hint="set STREAMQ_HEARTBEAT_FILE to a path in a directory that this user may write to",
        ) from error


class Reporter:
    """Tells systemd and the heartbeat file how a process is. `tell` is for its event loop, each `period_s`."""

    def __init__(self, heartbeat_file: Path | None = None) -> None:
        """Write the file for the first time.

        Raises:
            ConfigurationError: It cannot be written.
        """
        self._file = heartbeat_file
        self._watchdog_s = watchdog_period_s()
        self._written_s = -HEARTBEAT_PERIOD_S
        self._words = ""
        self.period_s = min(STATUS_PERIOD_S, self._watchdog_s or STATUS_PERIOD_S)
        if heartbeat_file is not None:
            _try_to_beat(heartbeat_file)

    def tell(self, status: str, problem: str = "") -> None:
        """Say that we live, and how things stand.

        The file is written each `HEARTBEAT_PERIOD_S`, and at once when we turn ready or not. Where it cannot be
        written, its age tells.

        Args:
            status: One line, for a person.
            problem: Why we do not do our work now; empty if we do.
        """
        notify(f"STATUS={status}", *(["WATCHDOG=1"] if self._watchdog_s else []))
        words, now_s = problem or READY, time.monotonic()
        if self._file is None or (words == self._words and now_s - self._written_s < HEARTBEAT_PERIOD_S):
            return
        self._words, self._written_s = words, now_s
        with contextlib.suppress(OSError):
            beat_file(self._file, words)

    def ready(self, status: str) -> None:
        """Say that the work has begun."""
        notify("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """Say that we drain."""
        notify("STOPPING=1", "STATUS=draining")


def exit_status(returncode: int) -> int:
    """Return the code with which a program passes on how its child ended: 128 + n for signal n, as a shell does."""
    return returncode if returncode >= 0 else 128 - returncode


def exit_words(returncode: int) -> str:
    """Say how a process ended, for a person: `exit 78, bad configuration` or `killed by SIGSEGV`.

    Args:
        returncode: As `subprocess` gives it: minus the signal's number for a process that a signal ended.
    """
    if returncode >= 0:
        words = _EXIT_WORDS.get(returncode, "")
        return f"exit {returncode}, {words}" if words else f"exit {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = ", perhaps out of memory" if -returncode == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def rss_bytes(pid: int) -> int | None:
    """Return the memory that a process holds; None where /proc does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None


def is_frozen(pid: int) -> bool:
    """Whether the process was stopped by SIGSTOP, so that it runs nothing; False where /proc does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def be_nice(by: int) -> None:
    """Let other processes go first, as far as the machine allows it.

    Linux shares processors between sessions first (autogroups), and nice counts within a session only. So a process that
    leads one makes its session nice as well.
    """
    with contextlib.suppress(OSError):
        os.nice(by)
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text(str(by))


def queued_s() -> float:
    """Return for how long this thread has been ready and had no processor, since its start; 0 where nobody counts that."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
