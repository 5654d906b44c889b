"""The programs in the README and in the first steps run, and do what is said of them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamq.settings.table import SETTINGS, shown
from tests.dev.conftest import PATIENCE_S

if TYPE_CHECKING:
    from tests.dev.conftest import Dev

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIRST_STEPS = (ROOT / "docs" / "getting-started.md").read_text()


def program(document: str, name: str) -> str:
    """Return the program of that name, as its first line gives it."""
    programs: list[str] = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    return next(source for source in programs if source.startswith(f"# {name}\n"))


def test_the_example_of_the_readme_has_twelve_lines():
    """As its heading says; blank ones and the name of the file are not counted."""
    lines = [line for line in program(README, "shop.py").splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12


def test_every_promise_is_in_the_readme_with_what_it_does_not_cover():
    """And says plainly whether it holds now."""
    rows = re.findall(r"^\| G(\d+) \|(.*)\|$", README, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 19))
    assert all(re.search(r"\| [^|]*(yes|not yet)[^|]*$", row) for _, row in rows)


def test_every_setting_is_in_the_readme_with_its_default():
    """A table that is kept by hand is wrong after the second change."""
    section = README.partition("## Settings")[2].partition("## Commands")[0]
    for name, known in SETTINGS.items():
        assert f"`{name}`" in section
        for variable in known.variables[1:]:
            assert f"`{variable}`" in section
        if value := shown(known, known.default):
            assert f"`{value}`" in section, name


@pytest.mark.slow
def test_the_example_of_the_readme_runs(dev: Dev):
    """Fired once, both of its users are refreshed."""
    (dev.folder / "shop.py").write_text(program(README, "shop.py"))

    assert dev.run("shop", "--once", "--json") == 0

    assert dev.document()["summary"]["completed"] == 2
    assert dev.document()["users"] == {"all": 2}


@pytest.mark.slow
def test_another_terminal_enqueues_a_job_and_gets_its_result(dev: Dev):
    """With nothing but the file that `streamq dev` has written for it."""
    (dev.folder / "shop.py").write_text(program(README, "shop.py"))
    (dev.folder / "ask.py").write_text(program(FIRST_STEPS, "ask.py"))
    process = dev.start("shop")
    dev.wait_for("shells ")

    for command, said in (
        (f"{sys.executable} -m streamq enqueue refresh user_id=ada", ""),
        (f"{sys.executable} ask.py", "{'letters': 5}"),
    ):
        done = subprocess.run(
            ["sh", "-c", f". .streamq/env && {command}"], cwd=dev.folder, env=dev.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert said in done.stdout

    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_the_shaky_example_heals(dev: Dev):
    """Two attempts fail, the third goes well."""
    (dev.folder / "shaky.py").write_text(program(FIRST_STEPS, "shaky.py"))

    assert dev.run("shaky", "--once", "--json") == 0

    summary = dev.document()["summary"]
    assert (summary["completed"], summary["retried"]) == (2, 2)
