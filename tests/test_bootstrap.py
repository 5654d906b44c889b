"""The programs in `bin/`: they make their environment once, then cost next to nothing, and say plainly what is missing."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# Stands in for an interpreter: says how it was called. Of its own code it runs only the question for its version.
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo py311; exit 0; fi
printf '%s\\n' "${0##*/}" "$@"
"""


class Clone:
    """A copy of what a clone holds, with an environment that is only pretended."""

    def __init__(self, source: Path, root: Path) -> None:
        self.root = root
        self.path = root.parent / "path"
        for name in ("bin", "streamq"):
            shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(source / name, root)
        self.path.mkdir()
        for tool in ("sh", "cat", "dirname", "readlink", "rm"):
            (self.path / tool).symlink_to(shutil.which(tool) or tool)

    def pretend_environment(self) -> None:
        """Put an interpreter and a fresh stamp where the programs look for them."""
        programs = self.root / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name in ("python", "tox"):
            executable(programs / name, FAKE_PYTHON)
        (self.root / ".venv" / "made-from").write_text(f"{self.root}\n{(self.root / 'pyproject.toml').read_text()}")

    def run(self, program: str | Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of the programs with nothing but the tools above on its PATH."""
        return subprocess.run(
            [self.root / "bin" / program, *args],
            env={"PATH": str(self.path), "HOME": str(self.root.parent)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def clone(tmp_path: Path, pytestconfig: pytest.Config) -> Clone:
    """A clone in a folder with a blank in its name."""
    (tmp_path / "my clone").mkdir()
    return Clone(pytestconfig.rootpath, tmp_path / "my clone")


@pytest.fixture
def maker(pytestconfig: pytest.Config) -> Callable[[str], Any]:
    """The names defined in `_make_environment.py`."""
    return runpy.run_path(str(pytestconfig.rootpath / "bin" / "_make_environment.py")).__getitem__


def executable(path: Path, text: str) -> None:
    """Write a program."""
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("streamq", ["-P", "-m", "streamq", "two words", "*"]),
        ("streamq-worker", ["-P", "-m", "streamq", "worker", "two words", "*"]),
        ("streamq-cron", ["-P", "-m", "streamq", "cron", "two words", "*"]),
        ("streamq-api", ["-P", "-m", "streamq", "api", "two words", "*"]),
        ("test", ["-m", "tox", "run", "-e", "py311", "--", "two words", "*"]),
    ],
)
def test_arguments_arrive_as_they_were_given(clone: Clone, program: str, expected: list[str]) -> None:
    """A handler's argument may hold anything; a role's program is `streamq` with its first word set."""
    clone.pretend_environment()
    assert clone.run(program, "two words", "*").stdout.splitlines() == ["python", *expected]


def test_bin_test_alone_runs_everything(clone: Clone) -> None:
    """Data of an earlier run would be counted into the coverage of this one."""
    clone.pretend_environment()
    (clone.root / ".coverage.old").touch()
    assert clone.run("test").stdout.splitlines()[-1] == "lint,type,py311,coverage"
    assert not (clone.root / ".coverage.old").exists()


def test_a_link_to_a_program_finds_its_clone(clone: Clone, tmp_path: Path) -> None:
    """People link programs into a folder on their PATH."""
    clone.pretend_environment()
    (tmp_path / "sq").symlink_to(clone.root / "bin" / "streamq-worker")
    assert clone.run(tmp_path / "sq").stdout.splitlines() == ["python", "-P", "-m", "streamq", "worker"]


def test_a_made_environment_costs_next_to_nothing(clone: Clone) -> None:
    """Every command pays for this look: a few small tools, and no Python but the one that is asked for."""
    clone.pretend_environment()
    started = clone.root.parent / "started"
    for tool in ("cat", "dirname", "readlink"):
        link = clone.path / tool
        real = link.readlink()
        link.unlink()
        executable(link, f"#!/bin/sh\necho {tool} >>'{started}'\nexec {real} \"$@\"\n")
    assert clone.run("streamq").stdout.startswith("python\n")
    assert sorted(started.read_text().split()) == ["cat", "cat", "dirname", "dirname", "readlink"]


@pytest.mark.parametrize("change", ["another pyproject", "another place"])
def test_a_stale_environment_is_made_anew(clone: Clone, change: str) -> None:
    """New dependencies have to arrive, and the link to the sources holds only where it was made."""
    clone.pretend_environment()
    executable(clone.path / "python3", FAKE_PYTHON)
    if change == "another pyproject":
        (clone.root / "pyproject.toml").write_text("[project]\n")
    else:
        clone.root = clone.root.rename(clone.root.with_name("moved"))
    assert clone.run("streamq").stdout.splitlines()[:2] == ["python3", f"{clone.root}/bin/_make_environment.py"]


def test_an_old_python_is_passed_over(clone: Clone) -> None:
    """`python3` may be 3.9, and `python3.12` a version manager's stand-in that only fails."""
    executable(clone.path / "python3", "#!/bin/sh\nexit 1\n")
    executable(clone.path / "python3.12", "#!/bin/sh\necho not installed >&2\nexit 127\n")
    executable(clone.path / "python3.11", "#!/bin/sh\n[ $1 = -c ] || exit 42\n")
    assert clone.run("streamq").returncode == 42


def test_without_a_python_one_line_says_what_to_install(clone: Clone) -> None:
    """The first thing a stranger may meet."""
    told = clone.run("streamq", "dev", "--demo")
    assert told.returncode == 69
    assert told.stderr.startswith("streamq: no Python 3.11 or newer was found on the PATH: install one")
    assert told.stderr.count("\n") == 1


def test_without_the_venv_module_one_line_says_what_to_install(
    maker: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debian has it in a package of its own."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        maker("make")("")
    assert ended.value.code == 69
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (
        f"has no venv module: install it (on Debian: apt-get install -y python{version}-venv)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "WARNING: NewConnectionError\nERROR: none\n",
            "streamq: the package index cannot be reached: connect to a network",
        ),
        ("ERROR: no wheel\nERROR: for this machine\nbye\n", "streamq: pip install failed: ERROR: for this machine"),
        ("killed\n", "streamq: pip install failed: killed"),
        ("", "streamq: pip install failed: it ended with 1"),
    ],
)
def test_a_failed_step_ends_in_one_line(
    maker: Callable[[str], Any], capsys: pytest.CaptureFixture[str], output: str, line: str
) -> None:
    """Of pip's many lines the one that names the fault is shown."""
    with pytest.raises(SystemExit) as ended:
        maker("run")(["/bin/sh", "-c", 'printf %s "$0"; exit 1', output], "pip install")
    assert ended.value.code == 69
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_first_runs_at_once_make_one_environment(clone: Clone) -> None:
    """The real thing: from sources and an interpreter to a program that runs, though two start together."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    processes = [
        subprocess.Popen(
            [clone.root / "bin" / "streamq", "--version"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    notes = "".join(stderr for _, stderr in told)
    assert notes.count("made .venv in") == 1
    assert notes.count("waiting for another program") == 1
    assert (clone.root / ".venv" / "bin" / "streamq-worker").exists()
