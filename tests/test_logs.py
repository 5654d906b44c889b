"""What the log lines of streamq look like, and what they leave alone."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager

import pytest

from streamq import logs

log = logging.getLogger("streamq.test")


def lines(fmt: str, level: str = "info") -> io.StringIO:
    """Configure the logs to be written into the returned buffer."""
    out = io.StringIO()
    logs.configure(level, fmt, stream=out)
    return out


@contextmanager
def terminal():
    """Give a stream that says it is a terminal."""
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    yield stream


def test_an_event_is_one_json_object_with_its_fields():
    """Log shippers read one object a line, by the fixed name."""
    out = lines("json")
    logs.event(log, logging.WARNING, "job.retrying", job_id="01J9", attempt=2, retry_in_s=37.2)
    line = json.loads(out.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "warning", "logger": "streamq.test", "event": "job.retrying",
        "job_id": "01J9", "attempt": 2, "retry_in_s": 37.2,
    }  # fmt: skip


def test_the_standard_extra_is_as_good_as_event():
    """Nobody has to learn a second API to give a line its fields."""
    out = lines("json")
    log.info("redis.back", extra={"gap_s": 3.5})
    assert json.loads(out.getvalue())["gap_s"] == 3.5


def test_free_text_is_an_event_named_log():
    """A line without a fixed name must not invent one that somebody then searches for."""
    out = lines("json")
    log.info("cannot read %s", "users.csv")
    line = json.loads(out.getvalue())
    assert (line["event"], line["message"]) == ("log", "cannot read users.csv")


def test_the_human_line_has_time_level_name_and_pairs():
    """A person reads the same event as words."""
    out = lines("human")
    logs.event(log, logging.INFO, "job.dead", queue="users", error="no such user")
    clock, level, rest = out.getvalue().rstrip("\n").split(maxsplit=2)
    assert len(clock) == len("03:04:05.678")
    assert (level, rest) == ("INFO", 'job.dead queue=users error="no such user"')


@pytest.mark.parametrize("value", ["a\nINFO job.dead", "a=b", 'say "x"', "", "a\x1b[31mb"])
def test_a_value_cannot_forge_a_line_or_a_field(value):
    """User ids and error texts come from outside."""
    out = lines("human")
    logs.event(log, logging.INFO, "job.dead", error=value)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().rstrip("\n").endswith("error=" + json.dumps(value))


def test_the_first_line_of_a_worker_has_the_words_that_are_looked_for():
    """The programs around the worker wait for exactly this line."""
    out = lines("human")
    logs.worker_started(log, "web-1", 3)
    assert out.getvalue().endswith(" [Worker:web-1] Worker started with concurrency: 3\n")


def test_the_first_line_of_a_worker_keeps_its_words_in_json():
    """Who waits for the words finds them in either format; who reads fields finds the figures."""
    out = lines("json")
    logs.worker_started(log, "web-1", 3)
    line = json.loads(out.getvalue())
    assert line["message"] == "[Worker:web-1] Worker started with concurrency: 3"
    assert (line["event"], line["worker"], line["concurrency"]) == ("worker.started", "web-1", 3)


def test_auto_is_json_for_a_pipe_and_human_on_a_terminal():
    """What reads a pipe is a program."""
    out = lines("auto")
    log.info("a.b")
    assert json.loads(out.getvalue())["event"] == "a.b"
    with terminal() as stream:
        logs.configure(stream=stream)
        log.info("a.b")
        assert stream.getvalue().endswith("a.b\n")


def test_levels_below_the_chosen_one_are_left_out():
    """One line a job is for `debug` only."""
    out = lines("human", "warning")
    log.info("job.started")
    log.warning("job.dead")
    assert "job.started" not in out.getvalue()
    assert "job.dead" in out.getvalue()


def test_a_repeated_configure_prints_each_line_once():
    """`dev` configures before its roles do."""
    lines("human")
    out = lines("human")
    log.info("a.b")
    assert out.getvalue().count("a.b") == 1


def test_the_root_logger_is_never_touched(caplog):
    """The host program owns it; our lines do not come out twice through it."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    lines("human")
    log.warning("job.dead")
    assert (list(root.handlers), root.level) == before
    assert not caplog.records


def test_without_configure_nothing_is_printed_by_us(capsys):
    """An application that embeds streamq hears nothing it did not ask for."""
    log.debug("job.started")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
        ("at mongodb://ann:p@ss@h1,h2/db now", "at mongodb://ann:***@h1,h2/db now"),
        ("redis://:a/b@h", "redis://:***@h"),
        ("redis://h?password=x&db=1", "redis://h?password=***&db=1"),
        ("http://h:8080/status/user/a@b.c", "http://h:8080/status/user/a@b.c"),
        ("redis://h:6379/0", "redis://h:6379/0"),
    ],
)
def test_masked_hides_passwords_and_nothing_else(text, shown):
    """An address is shown in every error; its password in none."""
    assert logs.masked(text) == shown


@pytest.mark.parametrize("fmt", ["human", "json"])
def test_a_password_in_an_error_text_or_traceback_does_not_reach_the_log(fmt):
    """Client libraries put whole URLs into their exceptions."""
    out = lines(fmt)
    refusal = ConnectionError("redis://:hunter2@cache:6379 refused")
    log.error("redis.lost", exc_info=refusal)
    assert "hunter2" not in out.getvalue()
    assert "ConnectionError" in out.getvalue()


def test_colour_follows_the_terminal_and_the_two_variables():
    """NO_COLOR wins over everything; FORCE_COLOR over a pipe."""
    with terminal() as stream:
        assert logs.is_colourful(stream, {})
        assert not logs.is_colourful(stream, {"NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert not logs.is_colourful(io.StringIO(), {})
    assert logs.is_colourful(io.StringIO(), {"FORCE_COLOR": "1"})


def test_a_warning_is_coloured_on_a_terminal_and_info_is_not(monkeypatch):
    """Colour marks what asks for attention."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal() as stream:
        logs.configure(stream=stream)
        log.info("a.b")
        log.warning("c.d")
    plain, coloured = stream.getvalue().splitlines()
    assert "\x1b" not in plain
    assert "\x1b[33mWARNING\x1b[0m" in coloured
