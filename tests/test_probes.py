"""Cron and the recorder, run alone: machines ask them how they are in the same way as workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from streamq.process import READY
from tests.conftest import free_port

if TYPE_CHECKING:
    from pathlib import Path

APPLICATION = """
from streamq import StreamQ

app = StreamQ()


@app.handler
async def refresh(user_id: str) -> None: ...


@app.cron("0 0 1 1 *", handler=refresh)
async def everybody(cursor: str | None) -> tuple[list[str], str | None]:
    return [], None
"""


@pytest.fixture
async def start(mongodb_url: str, mongo_database: str, tmp_path: Path) -> Any:
    """Start a role on a port for probes; what still runs at the end is stopped, and must end well."""
    (tmp_path / "probed.py").write_text(APPLICATION)
    programs: list[asyncio.subprocess.Process] = []

    async def command(role: str, redis_url: str, **environment: str) -> int:
        port = free_port()
        settings = {
            "REDIS_URL": redis_url,
            "MONGODB_URL": mongodb_url,
            "STREAMQ_MONGODB_DATABASE": mongo_database,
            "STREAMQ_HEARTBEAT_FILE": str(tmp_path / "heartbeat"),
            f"STREAMQ_{role.upper()}_PORT": str(port),
        }
        line = [sys.executable, "-m", "streamq", role, "probed:app"]
        programs.append(
            await asyncio.create_subprocess_exec(*line, cwd=tmp_path, env=os.environ | settings | environment)
        )
        return port

    yield command
    for program in programs:
        program.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(program.wait(), 30) == 0


async def asked(port: int, path: str) -> tuple[int, str]:
    """Ask like a probe; status 0 while nobody listens."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("role", ["cron", "recorder"])
async def test_a_role_that_runs_alone_answers_probes_and_beats_its_file(redis_url, start, role, tmp_path, eventually):
    port = await start(role, redis_url)

    async def is_ready() -> bool:
        return await asked(port, "/readyz") == (200, "ok\n")

    await eventually(is_ready, "it is ready")
    assert await asked(port, "/livez") == (200, "ok\n")
    assert await asked(port, "/healthz") == (200, "ok\n")
    heartbeat = tmp_path / "heartbeat"
    await eventually(lambda: heartbeat.exists() and heartbeat.read_text() == f"{READY}\n", "the file says so, too")


async def test_a_recorder_whose_redis_is_away_is_live_and_not_ready_and_names_no_address(
    redis_server, start, tmp_path, eventually
):
    port = await start("recorder", redis_server.url)

    async def status() -> int:
        return (await asked(port, "/readyz"))[0]

    async def is_ready() -> bool:
        return await status() == 200

    async def is_away() -> bool:
        return "[-] servers: Redis cannot be reached\n" in (await asked(port, "/readyz?verbose"))[1]

    await eventually(is_ready, "it is ready")
    redis_server.kill9()
    await eventually(is_away, "it is not ready any more, and says why", timeout=60)
    told = (await asked(port, "/readyz?verbose"))[1]
    assert "127.0.0.1" not in told
    assert (await asked(port, "/livez"))[0] == 200
    heartbeat = tmp_path / "heartbeat"
    await eventually(lambda: "Redis" in heartbeat.read_text(), "the file says so, too")
    redis_server.start()
    await eventually(is_ready, "it is ready again", timeout=60)
