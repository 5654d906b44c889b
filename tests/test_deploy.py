"""What the pages for operators say is what the code does, and the example files call commands that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from streamq.broker.wire import REMEDIES
from streamq.cli import run

DOCS = Path(__file__).parent.parent / "docs"
DEPLOY = DOCS / "deploy"
PROGRAM = re.compile(r"^(?:\S*/)?streamq(?:-(worker|cron|api))?$")


def commands() -> list[tuple[str, ...]]:
    """Return every different command line of the example files, as arguments of `streamq`."""
    found = [shlex.split(line.partition(": ")[2]) for line in (DEPLOY / "Procfile").read_text().splitlines()]
    for unit in DEPLOY.glob("*.service"):
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        roles = ("cron", "recorder", "api") if unit.name == "streamq@.service" else ("1",)
        found += [shlex.split(line.replace("%i", role)) for role in roles]
    found += [
        json.loads(words) for words in re.findall(r"command: (\[.*?\])", (DEPLOY / "kubernetes.yaml").read_text())
    ]
    roles = re.findall(r'role\("\w+", "(.*?)"', (DEPLOY / "ecosystem.config.js").read_text())
    found += [["streamq", *shlex.split(role), "shop:app"] for role in roles]
    return sorted({tuple(_arguments(line)) for line in found})


def _arguments(line: list[str]) -> list[str]:
    program = PROGRAM.match(line[0])
    assert program is not None, line
    return [*filter(None, program.groups()), *(word.replace("$PORT", "8080") for word in line[1:])]


def test_the_example_files_are_all_read():
    assert len(commands()) == 11


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_example_files_is_one_that_streamq_knows(arguments, capsys):
    """With --help at its end it does nothing, but an option that does not exist is refused all the same."""
    assert run([*arguments, "--help"]) == 0
    assert run([*arguments, "--no-such-option", "--help"]) == 2
    capsys.readouterr()


def test_the_table_of_errors_in_the_manual_is_that_of_the_code():
    rows = re.findall(
        r"^\| (\(none\)|`[A-Za-z ]+`) \| (\w+) \| (.*) \|$", (DOCS / "workers.md").read_text(), re.MULTILINE
    )
    assert [(sign.strip("`").replace("(none)", ""), fault, meaning) for sign, fault, meaning in rows] == [
        (remedy.sign, remedy.fault.value, remedy.meaning) for remedy in REMEDIES
    ]
