"""Jobs in processes that can be killed."""

import asyncio
import json
import os
import sys
from datetime import timedelta

import msgspec
import orjson
import pytest

from streamq import StreamQ
from streamq.broker.inspection import Inspection
from streamq.errors import ConfigurationError, JobFailed
from streamq.keys import Keys
from streamq.worker import Worker
from tests.conftest import is_running

KEPT = timedelta(seconds=60)


@pytest.fixture
async def cage(redis_url, borrowed):
    """The application of `cage.py`."""
    app = borrowed("cage")
    app.settings = msgspec.structs.replace(
        app.settings, app="cage:app", redis_url=redis_url, worker_concurrency=4, dead_after_ms=2_000, beat_ms=100,
        grace_ms=2_000,
    )  # fmt: skip
    yield app
    await app.close()


@pytest.fixture
async def worker(cage):
    """A worker of it."""
    made = Worker(cage, cage.settings)
    running = asyncio.create_task(made.run())
    yield made
    made.force()
    assert await running in (0, 130)


def kept(app: StreamQ, handler: str):
    return app.handler_named(handler).options(keep_result=KEPT)


async def test_a_job_runs_in_a_process_that_stays_with_its_lifespan_middleware_and_dependencies(cage, worker):
    first = await (await kept(cage, "who").enqueue("u1")).result()
    second = await (await kept(cage, "plain_who").enqueue(2)).result()
    assert first["pid"] != os.getpid()
    assert first == {
        "pid": first["pid"], "opener": first["pid"], "key": "u1", "attempt": 1, "fence": 1, "around": "who",
    }  # fmt: skip
    assert second == {"pid": first["pid"], "attempt": 1, "x": 2, "around": "plain_who"}


async def test_what_a_handler_raises_there_decides_the_outcome_here(cage, worker, tmp_path):
    fails, asks = await kept(cage, "fails").enqueue(), await kept(cage, "asks").enqueue(str(tmp_path))
    with pytest.raises(JobFailed, match=r"is dead: ValueError: in there"):
        await fails.result()
    assert await asks.result() == 2
    with pytest.raises(JobFailed, match=r"is completed, but its result could not be kept: the result is not JSON"):
        await (await kept(cage, "odd").enqueue()).result()


async def test_a_run_in_a_process_is_one_span_and_the_handler_is_inside_it(spans, cage, worker, eventually):
    """Two spans for one run would count it twice, and none around the handler would leave its own ones alone."""
    told = await (await kept(cage, "traced").enqueue()).result()
    with pytest.raises(JobFailed):
        await (await kept(cage, "fails").enqueue()).result()

    def runs():
        return [span for span in spans.get_finished_spans() if span.name == "process default"]

    await eventually(lambda: len(runs()) == 2)
    fine, failed = runs()
    assert told.split("-")[2] == f"{fine.context.span_id:016x}"
    assert "error.type" not in fine.attributes
    assert failed.attributes["error.type"] == "ValueError"
    [told] = failed.events
    assert told.attributes["exception.message"] == "in there"
    assert "raise ValueError" in told.attributes["exception.stacktrace"]


@pytest.mark.parametrize(
    ("how", "words"),
    [("os._exit", "exit 3"), ("segfault", "killed by SIGSEGV"), ("kill -9", "killed by SIGKILL")],
)
async def test_a_process_that_dies_costs_its_own_job_a_crash_and_nobody_elses(cage, worker, tmp_path, how, words):
    running = await kept(cage, "endless").enqueue(str(tmp_path))
    job = await kept(cage, "ends_itself").enqueue(how)
    others = [await kept(cage, "beside").enqueue(n) for n in range(5)]
    with pytest.raises(JobFailed, match=rf"is dead: CrashedProcess: 3 processes died .*{words}"):
        await job.result()
    assert [await other.result() for other in others] == [0, 1, 2, 3, 4]
    assert worker.slots.counters["crashed"] == 2
    assert worker.slots.counters["dead"] == 1
    wire = cage.client.broker.wire()
    [letter] = await Inspection(wire, Keys("default")).dead(2)
    await wire.close()
    assert orjson.loads(letter.record)["c"] == 3
    assert len(worker.slots.running) == 1
    assert await running.cancel() == "asked"


async def test_a_run_that_takes_too_much_memory_fails_and_a_smaller_one_does_not(cage, worker):
    with pytest.raises(JobFailed, match=r"is dead: MemoryError"):
        await (await kept(cage, "hungry").enqueue(400)).result()
    assert await (await kept(cage, "hungry").enqueue(100)).result() == 100 << 20


@pytest.fixture
def pids(tmp_path, eventually):
    """Wait until a handler has said in which processes it runs."""

    async def wait() -> list[int]:
        said = tmp_path / "pids"
        await eventually(said.exists, "it runs")
        return [int(pid) for pid in said.read_text().split()]

    return wait


async def test_a_job_that_runs_too_long_is_interrupted_and_its_process_goes_on(cage, worker):
    pid = (await (await kept(cage, "who").enqueue("u")).result())["pid"]
    with pytest.raises(JobFailed, match=r"JobTimeout: ran longer than its timeout of 0.1 s"):
        await (await kept(cage, "late").enqueue()).result()
    assert (await (await kept(cage, "who").enqueue("u")).result())["pid"] == pid


@pytest.mark.parametrize("handler", ["deaf", "blocks"])
async def test_a_handler_that_does_not_let_go_is_dumped_and_killed_with_what_it_has_started(
    cage, worker, tmp_path, eventually, pids, capfd, handler
):
    job = await kept(cage, handler).enqueue(str(tmp_path))
    found = await pids()
    assert await job.cancel("enough") == "asked"
    with pytest.raises(JobFailed, match=r"is cancelled: Cancelled: enough"):
        await job.result()
    await eventually(lambda: not any(is_running(pid) for pid in found), "they are gone")
    assert f"in {handler}" in capfd.readouterr().err  # where it stood
    assert (await (await kept(cage, "who").enqueue("u")).result())["pid"] not in found


async def test_progress_and_log_pass_through_while_the_job_runs_and_with_its_end(cage, worker, tmp_path, eventually):
    job = await kept(cage, "tells").enqueue(str(tmp_path))
    wire = cage.client.broker.wire()
    view = Inspection(wire, Keys("default"))
    told = await eventually(lambda: view.notes(job.id), "it is told")
    assert (told["p"], told["lg"][0][1]) == ([0.5, "half"], "in there")
    (tmp_path / "go").touch()
    await job.result()
    ((_, fields),) = await wire.call("XRANGE", Keys("default").outbox, "-", "+")
    record = json.loads(fields[3])
    assert (record["p"], record["lg"][0][1]) == ([1.0, ""], "in there")
    await wire.close()


@pytest.mark.parametrize("handler", ["forks_async", "forks_plain", "multiprocesses"])
async def test_a_handler_that_forks_ends_once(cage, worker, handler):
    job = await kept(cage, handler).enqueue()
    assert await job.result() == (0 if handler == "multiprocesses" else 1)
    assert (await (await kept(cage, "who").enqueue("u")).result())["attempt"] == 1
    assert worker.slots.counters["completed"] == 2


async def test_a_process_that_cannot_import_the_application_parks_the_job_and_says_why(
    cage, tmp_path, eventually, caplog
):
    (tmp_path / "cage.py").write_text("import nothing_of_that_name")
    made = Worker(cage, cage.settings)
    running = asyncio.create_task(made.run())
    await kept(cage, "who").enqueue("u")
    await eventually(lambda: made.slots and made.slots.counters["snoozed"], "it is parked")
    failed = [record for record in caplog.records if record.message == "worker.child_failed"]
    assert "nothing_of_that_name" in failed[0].fields["reason"]
    made.drain()
    assert await running == 0


async def test_an_application_without_a_name_cannot_have_processes(app):
    @app.handler(isolation="process")
    async def nameless() -> None: ...

    with pytest.raises(ConfigurationError, match=r"handler 'nameless' has isolation='process', and a process imports"):
        await Worker(app, app.settings).run()


async def test_processes_end_with_their_worker_and_the_job_goes_back(cage, tmp_path, eventually, pids):
    made = Worker(cage, cage.settings)
    running = asyncio.create_task(made.run())
    await kept(cage, "endless").enqueue(str(tmp_path))
    (pid,) = await pids()
    made.force()
    assert await running == 130
    assert not is_running(pid)
    assert made.slots is not None and made.slots.counters["released"] == 1


async def test_processes_end_when_their_worker_is_killed(cage, tmp_path, eventually, pids, redis_url):
    """Even one whose handler blocks its loop: its job will be run by others."""
    line = [sys.executable, "-m", "streamq", "worker", "cage:app", "--no-parent"]
    environment = {**os.environ, "REDIS_URL": redis_url, "STREAMQ_LOG_LEVEL": "error"}
    program = await asyncio.create_subprocess_exec(*line, cwd=tmp_path, env=environment)
    await kept(cage, "blocks").enqueue(str(tmp_path))
    (pid,) = await pids()
    program.kill()
    await program.wait()
    await eventually(lambda: not is_running(pid), "it is gone")
