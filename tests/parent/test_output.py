"""The children's lines: split, labelled, kept, and never in the parent's way."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest

from streamq.parent import Output
from streamq.parent.output import READ_BYTES, WAITING_LINES, LineReader


class Terminal(io.BytesIO):
    """What a terminal looks like to a program."""

    def isatty(self) -> bool:
        """Return true."""
        return True


class Stalled(io.BytesIO):
    """A reader that has been stopped, as with Ctrl-S, until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.entered = threading.Event()

    def write(self, data) -> int:
        """Wait, then write."""
        self.entered.set()
        self.released.wait(20)
        return super().write(data)


def shown(*lines: tuple[str, str], colour: bool = False, target: io.BytesIO | None = None) -> str:
    """Return what an output makes of these lines of children."""
    out = target or io.BytesIO()
    output = Output(out, io.BytesIO(), colour=colour)
    for child, text in lines:
        output.line(child.partition(".")[0], child, "stdout", text)
    output.close()
    return out.getvalue().decode()


def test_every_line_says_which_child_it_is_from():
    """Four workers in one terminal are a riddle otherwise."""
    assert shown(("worker.3", "hello"), ("cron.1", "tick")) == "worker.3 | hello\ncron.1   | tick\n"


def test_labels_are_coloured_where_colour_is_wanted():
    """Each child has a colour of its own."""
    text = shown(("worker.1", "a"), ("worker.2", "b"), ("worker.1", "c"), colour=True)
    first, second, third = (line.partition("worker")[0] for line in text.splitlines())
    assert first == third == "\x1b[36m"
    assert second == "\x1b[32m"


def test_no_color_is_honoured(monkeypatch):
    """See no-color.org."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.BytesIO()
    output = Output(out, out)
    output.line("worker", "worker.1", "stdout", "a")
    output.close()
    assert out.getvalue() == b"worker.1 | a\n"


def test_json_lines_stay_json_unless_a_person_reads_them():
    """A label would break whatever collects the logs."""
    line = json.dumps({"event": "job.started"})
    assert shown(("worker.1", line)) == line + "\n"
    assert shown(("worker.1", line), target=Terminal()) == f"worker.1 | {line}\n"


def test_kept_lines_are_given_by_role_or_child_oldest_first():
    """`streamq logs worker`, `streamq logs worker.2`, `streamq logs`."""
    output = Output(io.BytesIO(), io.BytesIO(), colour=False)
    for n in range(3):
        output.line("worker", f"worker.{n % 2}", "stderr", f"line {n}")
    output.line("cron", "cron.1", "stdout", "tick")
    output.close()
    assert [line["line"] for line in output.recent("worker", 100)] == ["line 0", "line 1", "line 2"]
    assert [line["line"] for line in output.recent("worker.0", 100)] == ["line 0", "line 2"]
    assert [line["line"] for line in output.recent("", 2)] == ["line 2", "tick"]
    assert output.recent("", 0) == []


def test_a_stalled_terminal_stalls_nobody_and_what_is_lost_is_counted(eventually_sync):
    """The beats of all workers come from the same process."""
    out = Stalled()
    output = Output(out, io.BytesIO(), colour=False)
    output.line("worker", "worker.1", "stdout", "first")
    out.entered.wait(20)
    for n in range(WAITING_LINES + 5):
        output.line("worker", "worker.1", "stdout", str(n))
    out.released.set()
    eventually_sync(lambda: output._writer._waiting.empty())
    output.line("worker", "worker.1", "stdout", "last")
    output.close()
    tail = out.getvalue().decode().splitlines()[-2:]
    assert tail == ["(5 lines were not shown: nobody read them in time)", "worker.1 | last"]


def test_a_closed_terminal_does_not_stop_the_output():
    """The parent goes on, and its log is still kept."""
    out = io.BytesIO()
    output = Output(out, io.BytesIO(), colour=False)
    out.close()
    output.line("worker", "worker.1", "stdout", "hello")
    output.close()
    assert output.recent("worker", 1)[0]["line"] == "hello"


def test_the_parents_own_log_has_its_label():
    """It is one voice among the others."""
    err = io.BytesIO()
    output = Output(io.BytesIO(), err, colour=False)
    output.stream_of("parent").write("one\ntwo\n")
    output.close()
    assert err.getvalue() == b"parent   | one\nparent   | two\n"


@pytest.fixture
def pipe():
    """A pipe to write into and read from."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_lines_are_put_together_whatever_the_chunks(pipe, eventually):
    """A pipe knows nothing of lines."""
    lines: list[bytes] = []
    reader = LineReader(pipe[0], lines.append)
    for chunk in (b"on", b"e\ntwo\nthr", b"ee"):
        os.write(pipe[1], chunk)
    await eventually(lambda: len(lines) == 2)
    reader.finish()
    assert lines == [b"one", b"two", b"three"]


async def test_a_line_without_an_end_is_cut(pipe, eventually):
    """It must not eat the memory of the parent."""
    lines: list[bytes] = []
    reader = LineReader(pipe[0], lines.append)
    for _ in range(3):
        os.write(pipe[1], b"x" * (READ_BYTES // 2))
        await eventually(lambda: not select_readable(pipe[0]))
    reader.finish()
    assert b"".join(lines) == b"x" * (READ_BYTES * 3 // 2)
    assert len(lines) > 1 or len(lines[0]) <= READ_BYTES * 2


def select_readable(fd: int) -> bool:
    """Whether something waits to be read."""
    import select

    return bool(select.select([fd], [], [], 0)[0])
