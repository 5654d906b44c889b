"""What handlers may do to a real worker, and what becomes of them, of it, and of the jobs beside them."""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import redis

from streamq.errors import JobFailed
from streamq.keys import Keys

KEPT = timedelta(seconds=60)


@pytest.fixture
async def wild(redis_url, borrowed, monkeypatch):
    """The application of `wild.py`, to enqueue with; this process runs none of its jobs."""
    from streamq.worker import service, slots

    for module, name in ((slots, "STUCK_S"), (service, "RECYCLE_AFTER_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # the import changes them, and not for long
    app = borrowed("wild")
    app.settings = msgspec.structs.replace(app.settings, redis_url=redis_url)
    yield app
    await app.close()


@pytest.fixture
async def start(wild, redis_url, tmp_path):
    """Start `streamq worker` on it; what still runs at the end is stopped, and must end well."""
    programs: list[asyncio.subprocess.Process] = []

    async def command(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
        line = [sys.executable, "-m", "streamq", "worker", "wild:app", *arguments]
        settings = {"REDIS_URL": redis_url, "STREAMQ_BEAT_MS": "100", "STREAMQ_HISTORY": "false", **environment}
        with (tmp_path / "output").open("ab") as output:
            program = await asyncio.create_subprocess_exec(
                *line, cwd=tmp_path, env=os.environ | settings, stdout=output, stderr=output
            )
        programs.append(program)
        return program

    yield command
    for program in programs:
        if program.returncode is None:
            program.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(program.wait(), 50) == 0, (tmp_path / "output").read_text()


def kept(app, handler):
    return app.handler_named(handler).options(keep_result=KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["deaf_async", "deaf_plain"])
async def test_a_handler_that_does_not_let_go_is_shown_its_slot_replaced_and_the_process_recycled(
    wild, start, redis_url, tmp_path, eventually, handler
):
    program = await start("--no-parent", "-c", "2")
    deaf, holder = await kept(wild, handler).enqueue(), await kept(wild, "holds").enqueue(str(tmp_path))
    await eventually((tmp_path / "holds").exists, "both slots are taken")
    others = [await kept(wild, "beside").enqueue(n) for n in range(3)]
    assert [await other.result() for other in others] == [0, 1, 2]
    assert program.returncode is None
    (tmp_path / "go").touch()
    assert await holder.result() == "went"
    assert await asyncio.wait_for(program.wait(), 50) == 0
    with pytest.raises(JobFailed, match=r"JobTimeout: ran longer than its timeout of 0.1 s"):
        await deaf.result()
    said = (tmp_path / "output").read_text()
    assert "job.stuck" in said and f"in {handler}" in said
    with redis.Redis.from_url(redis_url) as client:
        assert client.hget(Keys("default").counts, "stuck") == b"1"


@pytest.mark.slow
@pytest.mark.parametrize(("how", "words"), [("os._exit", "exit 3"), ("segfault", "SIGSEGV")])
async def test_a_handler_that_kills_its_worker_is_dead_the_third_time_and_the_jobs_beside_it_are_not(
    wild, start, tmp_path, eventually, how, words
):
    await start("-n", "2", "-c", "2")
    holder = await kept(wild, "holds").enqueue(str(tmp_path))
    poison = await kept(wild, "kills_worker").enqueue(str(tmp_path), how)
    others = [await kept(wild, "beside").enqueue(n) for n in range(20)]
    await eventually(lambda: len(lines(tmp_path / "kills")) >= 2, "two died; the next time it is alone")
    (tmp_path / "go").touch()
    assert await holder.result() == "went"
    with pytest.raises(JobFailed, match=r"is dead: CrashedWorker: 3 workers died while they ran this job"):
        await poison.result()
    assert len(lines(tmp_path / "kills")) == 3
    assert [await other.result() for other in others] == list(range(20))
    assert words in (tmp_path / "output").read_text()


@pytest.mark.slow
async def test_a_handler_that_blocks_the_loop_keeps_its_job_while_another_worker_is_free(wild, start, tmp_path):
    """For longer than a worker may be silent; without a parent, a thread beats."""
    for _ in range(2):
        await start("--no-parent", "-c", "1", STREAMQ_DEAD_AFTER_MS="1500")
    job = await kept(wild, "blocks").enqueue(str(tmp_path), 4.0)
    other = await kept(wild, "beside").enqueue(1)
    assert await other.result() == 1
    assert await job.result() == "done"
    assert len(lines(tmp_path / "blocks")) == 1


@pytest.mark.parametrize("handler", ["forks_async", "forks_plain"])
async def test_a_handler_that_forks_ends_once_and_its_copy_leaves_the_worker_alone(
    wild, start, tmp_path, eventually, handler
):
    program = await start("--no-parent", "-c", "4")
    holder = await kept(wild, "holds").enqueue(str(tmp_path))
    await eventually((tmp_path / "holds").exists, "a job runs beside it")
    assert await (await kept(wild, handler).enqueue(str(tmp_path))).result() == "done"
    pids = await eventually(lambda: len(both := lines(tmp_path / "forks")) == 2 and both, "two ran")
    assert str(program.pid) in pids
    (copy,) = {int(pid) for pid in pids} - {program.pid}
    await eventually(lambda: not Path(f"/proc/{copy}/cmdline").exists() or not read(copy), "the copy is gone")
    (tmp_path / "go").touch()
    assert await holder.result() == "went"
    assert await (await kept(wild, "beside").enqueue(7)).result() == 7
    assert program.returncode is None


def lines(path: Path) -> list[str]:
    """Return what handlers have noted."""
    return path.read_text().split() if path.exists() else []


def read(pid: int) -> bytes:
    """Return what a process is called; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
