"""How answers look: a table for a person, tabs for a pipe, one document for a program."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from streamq.cli import streamq
from streamq.cli.machine import _duration, _shown
from streamq.cli.output import Output, as_text

ITEMS = [{"id": "a", "oldest_wait_s": 1.5, "more": 1}, {"id": "b", "oldest_wait_s": None, "more": 2}]


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Say that standard output is a terminal, wide enough, and plain."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")


def test_a_pipe_gets_tabs_and_no_header(capsys):
    """`cut`, `sort` and `awk` need nothing else."""
    Output().rows(ITEMS, ["id", "oldest_wait_s"], id_of="id")
    assert capsys.readouterr().out == "a\t1.5\nb\t\n"


def test_a_terminal_gets_a_table_with_a_header(terminal, capsys):
    """With spaces in the names, and without boxes."""
    Output().rows(ITEMS, ["id", "oldest_wait_s"], id_of="id")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["id  oldest wait s", "a   1.5", "b"]


def test_one_thing_on_a_terminal_is_a_line_for_each_of_its_words(terminal, capsys):
    """Names to the left, values to the right."""
    Output().one({"id": "a", "due_at": None}, id_of="id")
    assert [line.split() for line in capsys.readouterr().out.splitlines()][-2:] == [["id", "a"], ["due", "at"]]


def test_json_has_every_key_and_times_in_utc(capsys):
    """The same keys as in the API; nothing is left out that the table has no room for."""
    zone = timezone(timedelta(hours=2))
    Output(as_json=True).rows([{"id": "a", "at": datetime(2026, 12, 1, 10, tzinfo=zone)}], ["id"], id_of="id")
    assert json.loads(capsys.readouterr().out) == {"items": [{"id": "a", "at": "2026-12-01T08:00:00.000Z"}]}


def test_quiet_is_the_ids_alone_and_no_words(capsys):
    """For xargs."""
    out = Output(quiet=True)
    out.rows(ITEMS, ["id"], id_of="id")
    out.note("done")
    assert capsys.readouterr() == ("a\nb\n", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (["a", 1], '["a", 1]'),
        (datetime(2026, 12, 1, tzinfo=UTC), "2026-12-01T00:00:00.000Z"),
        ("two\tcells\nand a line", "two\\tcells\\nand a line"),
        ("\x1b[2Jgone", "\\u001b[2Jgone"),
        ("Zoë, 東京", "Zoë, 東京"),
    ],
)
def test_no_value_gets_out_of_its_cell(value, text):
    """Errors and user ids come from outside; one could hold what clears a terminal, or a second line."""
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (61, "1 min 1 s"), (3_660, "1 h 1 min"), (90_000, "1 d 1 h")]
)
def test_a_duration_is_told_in_its_two_largest_units(seconds, words):
    """Nobody needs the seconds of a week."""
    assert _duration(seconds) == words


def test_a_process_that_waits_for_its_restart_has_no_figures():
    """Neither memory nor age, rather than zeros."""
    child = {"name": "worker.1", "rss_bytes": None, "uptime_s": None, "busy": 0, "slots": 0}
    assert _shown(child) == child | {"memory": "", "uptime": "", "busy": ""}


def test_the_shell_completes_commands():
    """From the table; an unknown one is none."""
    from click.shell_completion import ShellComplete

    completed = ShellComplete(streamq, {}, "streamq", "_STREAMQ_COMPLETE").get_completions([], "sc")
    assert [item.value for item in completed] == ["schedule", "scale"]
    assert streamq.get_command(None, "nope") is None
