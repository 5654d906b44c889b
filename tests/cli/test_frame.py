"""What every command has in common: help, exit codes, and how failures are told."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from streamq import __version__, cli
from streamq.cli import COMMANDS, run
from streamq.cli.failures import report
from streamq.cli.frame import Lazy
from streamq.errors import BrokerUnavailable, ConfigurationError

HEAVY = ("apscheduler", "asyncio", "msgspec", "pymongo", "redis", "rich", "starlette", "uvicorn", "uvloop")


def streamq(*arguments, **kwargs):
    """Run the real program, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "streamq", *arguments], capture_output=True, text=True, timeout=50, check=False, **kwargs
    )


@pytest.fixture
def broken(monkeypatch):
    """Register a command `broken` that raises what it is given, and return a way to run it."""

    def broken(error: BaseException, *arguments: str) -> int:
        @click.command()
        @click.option("--json", is_flag=True)
        def command(json):
            raise error

        monkeypatch.setattr(cli, "broken", command, raising=False)
        monkeypatch.setitem(cli.streamq._table, "broken", Lazy("streamq.cli:broken", "Fail."))
        return run(["broken", *arguments])

    return broken


# Help


def test_help_imports_nothing_heavy():
    """People type it to look something up; half a second of imports is felt."""
    code = f"import sys; from streamq.cli import run; run(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_help_lists_every_command_and_every_exit_code():
    """It is the one place that a script's author looks."""
    told = streamq("--help")
    assert told.returncode == 0
    for name in (name for section in COMMANDS.values() for name in section):
        assert f"\n  {name} " in told.stdout
    for code in (0, 1, 2, 65, 69, 70, 75, 78, 130):
        assert f"\n    {code:<3}  " in told.stdout


@pytest.mark.parametrize("name", [name for section in COMMANDS.values() for name in section])
def test_the_line_in_the_list_is_the_first_line_of_the_commands_own_help(name):
    """The list is written without importing the command, so nothing else holds the two together."""
    command = cli.streamq.get_command(click.Context(cli.streamq), name)
    lines = {name: lazy.help for section in COMMANDS.values() for name, lazy in section.items()}
    assert command.get_short_help_str(200) == lines[name]


def test_every_option_of_every_command_has_a_help():
    """And so has every command of every group."""
    for section in COMMANDS.values():
        for name in section:
            command = cli.streamq.get_command(click.Context(cli.streamq), name)
            every = [command, *command.commands.values()] if isinstance(command, click.Group) else [command]
            for each in every:
                assert each.help, each.name
                options = [option for option in each.params if isinstance(option, click.Option)]
                assert all(option.help for option in options), (each.name, options)
                spelled = [text for option in options for text in (*option.opts, *option.secondary_opts)]
                assert len(spelled) == len(set(spelled)), each.name


def test_version_is_that_of_the_package():
    """One number, in one place."""
    assert streamq("--version").stdout == f"streamq {__version__}\n"


# The command line itself


def test_an_unknown_command_is_answered_with_the_nearest():
    """Exit 2, as for every wrong command line."""
    told = streamq("confg")
    assert told.returncode == 2
    assert "There is no command 'confg'; did you mean 'config'?" in told.stderr


def test_an_unknown_command_like_no_other_is_only_named():
    """A guess that is none would mislead."""
    told = streamq("xyzzy")
    assert told.stderr.endswith("There is no command 'xyzzy'\n")


def test_an_unknown_option_is_a_wrong_command_line():
    """Exit 2, and the usage."""
    told = streamq("--nope")
    assert told.returncode == 2
    assert "Usage: streamq" in told.stderr


def test_a_wrong_command_line_is_json_too():
    """A program that asked for JSON reads nothing else."""
    told = streamq("config", "show", "--json", "--nope")
    assert told.returncode == 2
    assert json.loads(told.stdout)["error"]["exit_code"] == 2
    assert "--nope" not in told.stderr


# Failures


def test_an_error_says_what_happened_what_to_do_and_the_exit_code(broken, capsys):
    """In this form, whatever the command."""
    error = BrokerUnavailable(
        "cannot reach Redis at redis://cache-1:6379/0 (REDIS_URL from .env)\n[Errno 111] Connection refused",
        hint="is Redis running?\nTLS? use rediss://",
    )
    assert broken(error) == 69
    assert capsys.readouterr() == (
        "",
        "error: cannot reach Redis at redis://cache-1:6379/0 (REDIS_URL from .env)\n"
        "       [Errno 111] Connection refused\n"
        "  try: is Redis running?\n"
        "       TLS? use rediss://\n"
        "exit 69\n",
    )


def test_an_error_without_a_hint_has_no_line_for_it(broken, capsys):
    """An empty `try:` tells nothing."""
    assert broken(ConfigurationError("no")) == 78
    assert capsys.readouterr().err == "error: no\nexit 78\n"


def test_with_json_an_error_is_one_document_on_standard_output(broken, capsys):
    """A script reads it where it reads the answer."""
    assert broken(ConfigurationError("no", hint="do"), "--json") == 78
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "error": {"type": "ConfigurationError", "message": "no", "hint": "do", "exit_code": 78}
    }  # fmt: skip


def test_an_unexpected_error_says_where_and_how_to_see_more(broken, capsys, monkeypatch):
    """Nobody wants fifty lines of ours; everybody wants to be able to report it."""
    monkeypatch.delenv("STREAMQ_DEBUG", raising=False)
    assert broken(ZeroDivisionError("division by zero")) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: streamq met something unexpected: ZeroDivisionError: division by zero"
    assert "test_frame.py, line " in lines[1]
    assert lines[2:] == ["  try: STREAMQ_DEBUG=1 in the environment shows the whole traceback", "exit 70"]


def test_streamq_debug_shows_the_whole_traceback(broken, capsys, monkeypatch):
    """With the frames in between."""
    monkeypatch.setenv("STREAMQ_DEBUG", "1")
    broken(ZeroDivisionError("division by zero"))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_ends_with_130_and_no_words(broken, capsys, error):
    """Whoever pressed it knows."""
    assert broken(error) == 130
    assert "error" not in capsys.readouterr().err


def test_a_reader_that_went_away_is_no_error(capsys):
    """`streamq jobs ls | head` is an ordinary thing to type."""
    assert report(BrokenPipeError(), as_json=False) == 141
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_leaves_no_traceback():
    """Not even at the very end, when Python flushes what is left."""
    code = (
        "import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); sys.argv[1:] = ['config', 'show']\n"
        "from streamq.cli import main\nmain()"
    )
    told = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in told.stderr
    assert "BrokenPipe" not in told.stderr


def test_an_exit_of_another_kind_is_passed_on():
    """A command that exits by itself has said what it had to say."""
    with pytest.raises(SystemExit):
        report(SystemExit(3), as_json=False)
