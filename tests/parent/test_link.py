"""The child's end of the line to its parent."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket

import pytest

from streamq import parentlink
from streamq.parentlink import PARENT_FD, ParentLink


@pytest.fixture
def line(monkeypatch):
    """The parent's end of a line, and the environment that gives the child its own."""
    monkeypatch.setattr(parentlink, "_silence_output", lambda: None)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, {PARENT_FD: str(theirs.detach())}
    ours.close()


def heard(ours: socket.socket) -> list[dict]:
    """Return what arrived."""
    try:
        return [json.loads(line) for line in ours.recv(1_000_000).splitlines()]
    except BlockingIOError:
        return []


async def test_a_child_says_who_it_is_that_it_lives_and_that_it_goes(line):
    """The whole vocabulary."""
    ours, environ = line
    link = ParentLink.open(environ)
    assert link.present
    link.hello(["a", "b"])
    link.ready()
    link.tick(2, 10)
    link.bye()
    link.close()
    assert heard(ours) == [
        {"type": "hello", "consumers": ["a", "b"]},
        {"type": "ready"},
        {"type": "tick", "busy": 2, "slots": 10, "problem": ""},
        {"type": "bye"},
    ]


async def test_the_line_is_not_handed_on_to_what_the_child_starts(line):
    """A grandchild must neither speak for it nor hide its end."""
    _, environ = line
    number = int(environ[PARENT_FD])
    link = ParentLink.open(environ)
    assert environ == {}
    assert not os.get_inheritable(number)
    link.close()


@pytest.mark.parametrize("environ", [{}, {PARENT_FD: ""}, {PARENT_FD: "x"}, {PARENT_FD: "999999"}])
async def test_without_a_parent_nothing_happens(environ):
    """The same worker runs under systemd alone."""
    link = ParentLink.open(environ)
    link.hello(["a"])
    link.ready()
    link.tick(0, 1)
    link.bye()
    link.close()
    assert not link.present
    assert not link.gone.is_set()


async def test_the_death_of_the_parent_is_seen(line):
    """The child drains then."""
    ours, environ = line
    link = ParentLink.open(environ)
    ours.close()
    await asyncio.wait_for(link.gone.wait(), 40)
    assert not link.present
    link.tick(0, 1)  # harmless


async def test_a_parent_that_dies_while_it_is_told_something_is_seen(line):
    """Whichever comes first."""
    ours, environ = line
    link = ParentLink.open(environ)
    ours.close()
    link.ready()
    assert link.gone.is_set()


async def test_a_parent_that_does_not_read_holds_up_nobody_and_misses_ticks_only(line):
    """What it has to know waits in the child."""
    ours, environ = line
    link = ParentLink.open(environ)
    for n in range(100_000):
        link.tick(n, 10)
    link.bye()
    messages = b""
    while not messages.endswith(b'{"type":"bye"}\n'):
        messages += ours.recv(1_000_000)
        link.tick(0, 0)
    kinds = [json.loads(message)["type"] for message in messages.splitlines()]
    assert kinds.count("bye") == 1
    assert kinds.count("tick") < 100_000
    link.close()


async def test_ticks_go_on_until_they_are_cancelled(line, eventually):
    """With the load as it is then."""
    ours, environ = line
    link = ParentLink.open(environ)
    busy = itertools.count()
    ticks: list[dict] = []
    ticking = asyncio.ensure_future(link.keep_ticking(lambda: (next(busy), 5), 0.001))

    def are_many() -> bool:
        ticks.extend(heard(ours))
        return len(ticks) > 3

    await eventually(are_many)
    ticking.cancel()
    assert ticks[:2] == [{"type": "tick", "busy": n, "slots": 5, "problem": ""} for n in (0, 1)]
    link.close()
