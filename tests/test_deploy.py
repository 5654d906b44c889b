"""What the pages for operators say is what the code does, and the example files call commands that exist."""

from __future__ import annotations

import configparser
import contextlib
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from streamq.api import role
from streamq.broker.wire import REMEDIES
from streamq.cli import run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamq.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
DEPLOY = DOCS / "deploy"
PROGRAM = re.compile(r"^(?:\S*/)?streamq(?:-(worker|cron|api))?$")


def commands() -> list[tuple[str, ...]]:
    """Return every different command line of the example files, as arguments of `streamq`."""
    found = [shlex.split(line.partition(": ")[2]) for line in (DEPLOY / "Procfile").read_text().splitlines()]
    found += [command for unit in DEPLOY.glob("*.service") for command in _of_unit(unit)]
    found += _of_kubernetes(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    roles = re.findall(r'role\("\w+", "(.*?)"', (DEPLOY / "ecosystem.config.js").read_text())
    found += [["streamq", *shlex.split(role), "shop:app"] for role in roles]
    return sorted({tuple(_arguments(line)) for line in found})


def _of_unit(path: Path) -> list[list[str]]:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] - systemd minds upper and lower case
    unit.read(path)
    assert unit.sections() == ["Unit", "Service", "Install"], path
    roles = ("cron", "recorder", "api") if path.name == "streamq@.service" else ("1",)
    return [shlex.split(unit["Service"]["ExecStart"].replace("%i", role)) for role in roles]


def _of_kubernetes(documents: Iterable[dict[str, Any]]) -> list[list[str]]:
    found: list[list[str]] = []
    for document in documents:
        assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]
        for container in document["spec"]["template"]["spec"]["containers"]:
            found.append(container["command"])
            probes = (container.get(f"{kind}Probe", {}) for kind in ("liveness", "readiness"))
            found += [probe["exec"]["command"] for probe in probes if "exec" in probe]
    return found


def _arguments(line: list[str]) -> list[str]:
    program = PROGRAM.match(line[0])
    assert program is not None, line
    return [*filter(None, program.groups()), *(word.replace("$PORT", "8080") for word in line[1:])]


def test_the_example_files_are_all_read():
    assert len(commands()) == 13


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_example_files_is_one_that_streamq_knows(arguments, capsys):
    """With --help at its end it does nothing, but an option that does not exist is refused all the same."""
    assert run([*arguments, "--help"]) == 0
    assert run([*arguments, "--no-such-option", "--help"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize("arguments", [line for line in commands() if line[0] == "api"], ids=" ".join)
def test_every_api_of_the_example_files_may_listen_where_it_does(arguments, tmp_path, monkeypatch):
    """Where other machines reach it, it starts only with TLS, or when a proxy is said to do that."""
    (tmp_path / "shop.py").write_text("from streamq import StreamQ\n\napp = StreamQ()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    seen: list[Settings] = []
    monkeypatch.setattr("streamq.api.main", lambda settings, _: seen.append(settings) or 0)
    assert run([*arguments]) == 0
    sys.modules.pop("shop")
    with contextlib.closing(role.listen(seen[0].api_host, 0)) as listener:
        role._check_reach(listener, seen[0])


def test_the_table_of_errors_in_the_manual_is_that_of_the_code():
    rows = re.findall(
        r"^\| (\(none\)|`[A-Za-z ]+`) \| (\w+) \| (.*) \|$", (DOCS / "workers.md").read_text(), re.MULTILINE
    )
    assert [(sign.strip("`").replace("(none)", ""), fault, meaning) for sign, fault, meaning in rows] == [
        (remedy.sign, remedy.fault.value, remedy.meaning) for remedy in REMEDIES
    ]
