"""Makes `.venv` beside `bin/`: streamq out of this clone with all that it needs, from wheels only.

With the argument `tox` it adds what `bin/test` needs. `_environment.sh` calls it when the environment is missing or was
made from another `pyproject.toml` or in another place.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "made-from"
UNAVAILABLE = 69
NETWORK_TROUBLE = ("NewConnectionError", "ConnectTimeout", "Max retries exceeded", "Connection broken", "ProxyError")


def main(extras: list[str]) -> None:
    """Bring the environment up to date, unless another process did so while this one waited for it."""
    with one_at_a_time():
        made_from = f"{ROOT}\n{(ROOT / 'pyproject.toml').read_text()}"
        if not (PYTHON.exists() and STAMP.exists() and STAMP.read_text() == made_from):
            make(made_from)
        if "tox" in extras and not (VENV / "bin" / "tox").exists():
            say("installing the test tools")
            pip_install(*tomllib.loads(made_from.partition("\n")[2])["dependency-groups"]["tox"])


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock on the clone's own folder, so that no lock file is left in it."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another program that is making .venv")
        fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(folder)


def make(made_from: str) -> None:
    """Make or update the environment; the stamp is written last, so that a broken run is repeated."""
    begun = time.monotonic()
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        end(f"{sys.executable} has no venv module: install it (on Debian: apt-get install -y python{version}-venv)")
    say(f"making .venv with Python {sys.version.split()[0]}, once; packages come from the package index")
    STAMP.unlink(missing_ok=True)
    clear = [] if runs(PYTHON) else ["--clear"]
    run([sys.executable, "-m", "venv", *clear, str(VENV)], "python -m venv")
    pip_install("--editable", f"{ROOT}[embedded]")
    STAMP.write_text(made_from)
    say(f"made .venv in {time.monotonic() - begun:.0f} s")


def pip_install(*what: str) -> None:
    """Install from wheels only: what would have to be compiled is refused at once, not after minutes."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--only-binary=:all:", "--retries=2"]
    run([str(PYTHON), "-m", "pip", "install", *options, *what], "pip install")


def runs(python: Path) -> bool:
    """Whether an interpreter is there and starts; the one that .venv was made with may have been removed."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(command: list[str], name: str) -> None:
    """Run a command quietly; if it fails, end with one line that says why and what to do."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode == 0:
        return
    if any(sign in done.stdout for sign in NETWORK_TROUBLE):
        end(
            "the package index cannot be reached: connect to a network, or name a mirror in PIP_INDEX_URL, and try again"
        )
    lines = done.stdout.strip().splitlines() or [f"it ended with {done.returncode}"]
    errors = [line for line in lines if line.startswith(("ERROR", "Error"))]
    end(f"{name} failed: {(errors or lines)[-1]}")


def say(line: str) -> None:
    """Tell the person at the terminal; standard output belongs to the program that runs next."""
    print(f"streamq: {line}", file=sys.stderr, flush=True)


def end(line: str) -> NoReturn:
    """Give up with one line."""
    say(line)
    sys.exit(UNAVAILABLE)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
