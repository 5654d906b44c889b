"""The manual: what it leads to is there, and what there is stands in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import streamq
from streamq.cli import COMMANDS as TABLE, streamq as command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
OF_BENCHMARKS = {"--short", "--into", "--only", "--plot", "--quick", "--rounds", "--scenarios"}


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Give every command with its words, groups included."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*words, name))


COMMANDS = dict(commands(command_line))


def anchors(page: Path) -> set[str]:
    """Return what a link may name on a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not re.match(r"https?:", link) and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    assert broken == []


def test_every_public_name_is_in_the_manual():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in streamq.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_every_command_and_option_that_the_manual_names_is_there():
    """Decisions tell of what was, too."""
    pages = [page for page in PAGES if page.name not in ("decisions.md", "CHANGELOG.md")]
    known = OF_BENCHMARKS | {"--help"}
    for command in COMMANDS.values():
        known |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for page in pages:
        text = page.read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known, page.name
        for words in re.findall(r"(?:^ {4}|`)streamq ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", text, re.MULTILINE):
            group = COMMANDS.get(words[:1])
            assert group is not None, f"{page.name}: streamq {words[0]}"
            if isinstance(group, click.Group) and words[1]:
                assert words in COMMANDS, f"{page.name}: streamq {' '.join(words)}"


@pytest.mark.parametrize("words", [words for words in COMMANDS if words], ids=" ".join)
def test_every_command_says_what_it_does_and_what_each_option_is_for(words):
    """And the list of commands says the same of it."""
    command = COMMANDS[words]
    assert command.help
    silent = [each.name for each in command.params if isinstance(each, click.Option) and not each.help]
    assert silent == []
    if len(words) == 1:
        (told,) = [section[words[0]].help for section in TABLE.values() if words[0] in section]
        assert " ".join(command.help.split()).startswith(told)
