"""What is installed is what is in the repository, and its programs are the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import streamq
from streamq import programs


def test_every_file_of_the_package_is_installed(pytestconfig: pytest.Config) -> None:
    """A Lua script that is left out of the wheel would be missed only in production."""
    source, installed = pytestconfig.rootpath / "streamq", Path(streamq.__file__).parent
    missing = [
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not (installed / path.relative_to(source)).is_file()
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/venv/bin/streamq", "dev", "--demo"], ["streamq", "dev", "--demo"]),
        (["/opt/venv/bin/streamq-worker", "--app", "a:b"], ["streamq", "worker", "--app", "a:b"]),
        (["streamq-cron"], ["streamq", "cron"]),
        (["streamq-api.exe"], ["streamq", "api"]),
    ],
)
def test_the_name_of_a_program_stands_for_its_role(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: list[str]
) -> None:
    """`streamq-worker` is `streamq worker`, in its messages too."""
    seen: list[list[str]] = []
    monkeypatch.setattr("streamq.cli.main", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", argv)
    programs.main()
    assert seen == [expected]
