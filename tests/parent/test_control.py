"""The control socket at its edges: who hangs up, who does not answer, and whose folder it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading

import pytest

from streamq.errors import Unavailable
from streamq.parent import follow, request, socket_path


async def test_lines_are_followed_until_the_reader_hangs_up(start, children, eventually):
    """A forgotten reader would be kept a queue for ever."""
    running = start(children.role("import time\nprint('one')\nprint('two')\ntime.sleep(60)"))
    await eventually(lambda: "two" in running.said)
    reader, writer = await asyncio.open_unix_connection(socket_path(running.directory))
    writer.write(b'{"command": "logs", "role": "worker", "lines": 1, "follow": true}\n')
    assert json.loads(await reader.readline()) == {"ok": True}
    assert json.loads(await reader.readline())["line"] == "two"
    output = running.parent._output
    output.line("cron", "cron.1", "stdout", "not asked for")
    output.line("worker", "worker.1", "stdout", "three")
    assert json.loads(await reader.readline())["line"] == "three"
    assert output._followers
    writer.close()
    await eventually(lambda: not output._followers)


async def test_kept_lines_alone_end_by_themselves(start, children, eventually):
    """`streamq logs worker`, without -f."""
    running = start(children.role("import time\nprint('one')\ntime.sleep(60)"))
    await eventually(lambda: "one" in running.said)
    lines = await asyncio.to_thread(lambda: list(follow(running.directory, {"command": "logs", "role": "worker.1"})))
    assert [line["line"] for line in lines] == ["one"]


async def test_a_request_without_an_end_is_cut_off(start, children, eventually):
    """It must not eat the memory of the parent."""
    running = start(children.speaker(1))
    await eventually(lambda: running.pids())
    reader, writer = await asyncio.open_unix_connection(socket_path(running.directory))
    writer.write(b"x" * 200_000)
    with contextlib.suppress(ConnectionResetError):  # or closed in good order
        assert await reader.read() == b""
    writer.close()
    answer = await asyncio.to_thread(request, running.directory, {"command": "ps"})
    assert answer["parent"]["pid"] == os.getpid()


async def test_a_folder_of_somebody_else_is_not_used(start, children, eventually, tmp_path, monkeypatch, caplog):
    """They could put their own socket there."""
    (tmp_path / "run").mkdir()
    uid = os.getuid()
    monkeypatch.setattr("streamq.parent.control.os.getuid", lambda: uid + 1)
    running = start(children.speaker(1))
    await eventually(lambda: running.pids())
    told = [getattr(record, "text", "") for record in caplog.records]
    assert any(f"{tmp_path / 'run'} belongs to somebody else" in text for text in told)
    assert not socket_path(tmp_path).exists()


@pytest.fixture
def impostor(tmp_path):
    """Something that listens where a parent should, and gives this answer; None for none."""
    path = socket_path(tmp_path)
    path.parent.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads = []

    def answer(text: bytes | None) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            if text is None:
                connection.recv(1000)
            else:
                connection.sendall(text)

    def start_answering(text: bytes | None) -> None:
        threads.append(threading.Thread(target=answer, args=(text,)))
        threads[-1].start()

    yield start_answering
    for thread in threads:
        thread.join(10)
    listener.close()


def test_a_parent_that_does_not_answer_in_time_is_told_as_such(tmp_path, impostor):
    """It may be frozen."""
    impostor(None)
    with pytest.raises(Unavailable, match=r"the parent at .*parent\.sock did not answer: timed out"):
        request(tmp_path, {"command": "ps"}, timeout_s=0.1)


def test_an_answer_that_is_no_json_is_no_answer(tmp_path, impostor):
    """Something else listens there."""
    impostor(b"hello\n")
    with pytest.raises(Unavailable, match="did not answer: Expecting value"):
        request(tmp_path, {"command": "ps"})


def test_a_parent_that_goes_away_instead_of_answering_is_told_as_such(tmp_path, impostor):
    """It may be stopping just now."""
    impostor(b"")
    with pytest.raises(Unavailable, match="went away before it answered"):
        request(tmp_path, {"command": "ps"})
