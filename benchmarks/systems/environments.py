"""Environments of the systems: one each, pinned, made once, out of everybody's way."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.systems import System

__all__ = ["NotToBeHad", "command_of", "folder_of", "make"]

TREE = Path(__file__).resolve().parent.parent.parent
HOME = Path(os.environ.get("STREAMQ_BENCH_HOME", TREE / ".streamq" / "bench"))


class NotToBeHad(Exception):
    """A system cannot be installed on this machine; the message says why."""


def folder_of(system: System) -> Path:
    """Return where the environment of a system lies: another pin is another folder."""
    pins = hashlib.sha256(" ".join((_python(), *_requirements(system))).encode()).hexdigest()[:8]
    return HOME / f"{system.name if system.requirements else 'own'}-{pins}"


def _requirements(system: System) -> tuple[str, ...]:
    return system.requirements or _own()


def command_of(system: System) -> list[str]:
    """Return what starts a side of a system; the mode, the address and the sizes come behind it."""
    if system.is_node:
        script = Path(__file__).parent / system.module
        return [shutil.which("node") or "node", str(script), str(folder_of(system))]
    return [str(folder_of(system) / "bin" / "python"), "-m", "benchmarks.systems.program", system.name]


def make(system: System) -> None:
    """Make the environment of a system, unless there is one.

    Raises:
        NotToBeHad: Its interpreter is not here, or a registry does not have it.
    """
    folder = folder_of(system)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two programs that need it, one makes it and the other waits
        if not (folder / "made").exists():
            _make(system, folder)


def _make(system: System, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a program that was stopped has left
    folder.mkdir(parents=True)
    try:
        for command in _node(system, folder) if system.is_node else _venv(system, folder):
            subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    except (OSError, subprocess.CalledProcessError) as error:
        told = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise NotToBeHad(f"{system.name}: {told[-1] if told else error}") from None
    (folder / "made").touch()


def _venv(system: System, folder: Path) -> list[list[str]]:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [[_python(), "-m", "venv", str(folder)], [*pip, *_requirements(system)]]


def _node(system: System, folder: Path) -> list[list[str]]:
    npm = shutil.which("npm")
    if npm is None:
        raise NotToBeHad(f"{system.name}: npm is not on the PATH")
    return [[npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *system.requirements]]


@cache
def _python() -> str:
    """Find the newest interpreter that all systems support; one that a version manager keeps counts, too."""
    for minor in (13, 12, 11):
        kept = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"), reverse=True)
        for candidate in (f"python3.{minor}", *map(str, kept)):
            found = shutil.which(candidate)
            # Tried rather than looked up: a version manager's stand-in may have nothing behind it.
            if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
                return found
    return sys.executable


def _own() -> tuple[str, ...]:
    """Return what streamq itself needs, so that it runs on the interpreter of the others."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])
