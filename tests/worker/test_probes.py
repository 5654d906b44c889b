"""How a worker answers when a machine asks how it is."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from streamq import StreamQ
from streamq.errors import ConfigurationError
from streamq.process import READY
from streamq.worker import Worker
from tests.conftest import free_port

OK = "HTTP/1.1 200 OK"


async def said(port: int, request: bytes) -> str:
    """Send bytes, and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def asked(port: int, path: str) -> str:
    """Ask like a probe; return the answer, empty while nobody listens."""
    try:
        return await said(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    except OSError:
        return ""


def application(redis_url: str, **settings: Any) -> StreamQ:
    """Make an application whose worker has a port for probes."""
    return StreamQ(
        redis_url=redis_url, worker_concurrency=2, beat_ms=100, grace_ms=500, health_port=free_port(), **settings
    )


async def test_a_worker_that_takes_jobs_is_live_and_ready(redis_url, work, eventually):
    app = application(redis_url)
    port = app.settings.health_port
    await work(app=app)
    await eventually(lambda: asked(port, "/readyz"), "somebody listens")
    await eventually(lambda: _starts_well(port, "/readyz"), "it is ready")
    for path in ("/livez", "/healthz"):
        answer = await asked(port, path)
        assert answer.startswith(OK)
        assert answer.endswith("\r\n\r\nok\n")
    assert "[+] registered: ok\n[+] redis: ok\n[+] takes jobs: ok\nok\n" in await asked(port, "/readyz?verbose")
    await app.close()


async def _starts_well(port: int, path: str) -> bool:
    return (await asked(port, path)).startswith(OK)


async def test_a_quiet_worker_is_live_and_not_ready(redis_url, work, eventually):
    """So that a balancer looks elsewhere and nobody kills it."""
    app = application(redis_url)
    port = app.settings.health_port
    worker = await work(app=app)
    await eventually(lambda: _starts_well(port, "/readyz"), "it is ready")
    worker.quiet()
    answer = await asked(port, "/readyz?verbose")
    assert answer.startswith("HTTP/1.1 503 Service Unavailable")
    assert "[-] takes jobs: the worker is quiet\nunavailable\n" in answer
    assert await _starts_well(port, "/livez")
    worker.resume()
    assert await _starts_well(port, "/readyz")
    await app.close()


async def test_a_frozen_redis_makes_a_worker_unready_and_never_dead(redis_server, work, eventually, monkeypatch):
    """To restart every worker because Redis is away would help nobody."""
    monkeypatch.setattr("streamq.worker.service._FRESH_S", 0.3)
    app = application(redis_server.url)
    port = app.settings.health_port
    await work(app=app)
    await eventually(lambda: _starts_well(port, "/readyz"), "it is ready")
    redis_server.sigstop()
    await eventually(lambda: _unready(port, "[-] redis: no good round trip to Redis for "), "it is not ready")
    assert await _starts_well(port, "/livez")
    redis_server.sigcont()
    await eventually(lambda: _starts_well(port, "/readyz"), "it is ready again")
    await app.close()


async def _unready(port: int, words: str) -> bool:
    return words in await asked(port, "/readyz?verbose")


@pytest.mark.parametrize(
    ("request_", "first", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found", "there are /livez, /readyz and /healthz"),
        (b"POST /livez HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed", "only GET and HEAD are answered"),
        (b"hello\r\n\r\n", "HTTP/1.1 400 Bad Request", "this is not a request of HTTP"),
        (b"GET /livez HTTP/9\r\n\r\n", "HTTP/1.1 400 Bad Request", "this is not a request of HTTP"),
        (b"x" * 9000 + b"\r\n", "HTTP/1.1 400 Bad Request", "this is not a request of HTTP"),
        (b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 200, "HTTP/1.1 400 Bad Request", "this is not a request of HTTP"),
    ],
    ids=["path", "method", "words", "version", "length", "headers"],
)
async def test_what_is_no_probe_is_refused_in_words(redis_url, work, eventually, request_, first, words):
    app = application(redis_url)
    await work(app=app)
    await eventually(lambda: asked(app.settings.health_port, "/livez"), "somebody listens")
    answer = await said(app.settings.health_port, request_)
    assert answer.startswith(first)
    assert words in answer
    await app.close()


async def test_a_port_in_use_is_waited_for_and_the_worker_works(redis_url, work, eventually, caplog):
    """In a rolling restart it is the predecessor's until that has drained."""
    app = application(redis_url)

    @app.handler
    async def beside() -> None:
        pass

    with socket.create_server(("127.0.0.1", app.settings.health_port)):
        worker = await work(app=app)
        await beside.enqueue()
        await eventually(lambda: worker.slots is not None and worker.slots.counters["completed"] == 1, "a job runs")
        told = " ".join(getattr(record, "text", "") for record in caplog.records)
        assert f"probes cannot listen on 127.0.0.1:{app.settings.health_port}: it is in use; trying again each" in told
    await eventually(lambda: _starts_well(app.settings.health_port, "/readyz"), "it answers")
    await app.close()


async def test_an_address_that_is_no_address_of_this_machine_is_refused_at_the_start(redis_url):
    app = application(redis_url, health_host="203.0.113.7")
    with pytest.raises(ConfigurationError, match=r"worker cannot serve its probes on 203.0.113.7:\d+: ") as caught:
        await Worker(app, app.settings).run()
    assert "STREAMQ_HEALTH_PORT" in caught.value.hint
    await app.close()


async def test_the_heartbeat_file_says_whether_the_worker_is_ready(redis_url, work, eventually, tmp_path):
    path = tmp_path / "run" / "heartbeat"
    app = StreamQ(redis_url=redis_url, heartbeat_file=str(path), grace_ms=500)
    worker = await work(app=app)
    await eventually(lambda: path.exists() and path.read_text() == f"{READY}\n", "it is ready")
    worker.quiet()
    await eventually(lambda: path.read_text() == "the worker is quiet\n", "it says why it is not")
    assert list(path.parent.iterdir()) == [path]
    await app.close()


async def test_a_heartbeat_file_that_cannot_be_written_is_refused_at_the_start(redis_url, tmp_path):
    (tmp_path / "file").touch()
    app = StreamQ(redis_url=redis_url, heartbeat_file=str(tmp_path / "file" / "heartbeat"))
    with pytest.raises(ConfigurationError, match=r"the heartbeat file .*heartbeat cannot be written: "):
        await Worker(app, app.settings).run()
    await app.close()


async def test_systemd_hears_of_a_single_worker(redis_url, work, eventually, monkeypatch, notifications):
    """Its watchdog is answered from the event loop, so that a loop that hangs is noticed."""
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    app = StreamQ(redis_url=redis_url, worker_concurrency=3, grace_ms=500)
    worker = await work(app=app)
    await eventually(lambda: "READY=1" in notifications(), "it is up")
    await eventually(lambda: notifications().count("WATCHDOG=1") > 2, "the watchdog is answered")
    assert "STATUS=0/3 busy" in notifications()
    worker.drain()
    await eventually(lambda: "STOPPING=1" in notifications(), "it stops")
    await app.close()
