"""What a handler tells of its job: progress, and lines of a log."""

import asyncio
import json
from datetime import timedelta

from streamq import Retry, current_job
from streamq.broker.inspection import Inspection
from streamq.keys import Keys
from streamq.notes import LOG_CHARS, LOG_LINES
from streamq.worker.notebook import Notebook

KEPT = timedelta(seconds=60)


async def records(app, job_id: str) -> list[dict[str, object]]:
    """Return the outbox records of a job."""
    wire = app.client.broker.wire()
    entries = await wire.call("XRANGE", Keys("default").outbox, "-", "+")
    await wire.close()
    pairs = [pair for _, fields in entries for pair in zip(fields[2::2], fields[3::2], strict=True)]
    return [json.loads(raw) for name, raw in pairs if name.decode() == job_id]


async def test_progress_and_log_are_seen_while_the_job_runs_and_kept_in_its_record(app, work, eventually):
    go = asyncio.Event()

    @app.handler
    async def pages() -> None:
        current_job().progress(0.4, "page 3")
        current_job().log("three pages")
        await go.wait()
        current_job().progress(1)

    await work()
    job = await pages.options(keep_result=KEPT).enqueue()
    wire = app.client.broker.wire()
    view = Inspection(wire, Keys("default"))
    told = await eventually(lambda: view.notes(job.id), "it is told")
    assert (told["n"], told["p"], told["ln"]) == (1, [0.4, "page 3"], 1)
    assert told["lg"][0][1] == "three pages"
    go.set()
    await job.result()
    (record,) = await records(app, job.id)
    assert record["p"] == [1.0, ""]
    assert [line for _, line in record["lg"]] == ["three pages"]

    async def is_forgotten():
        return not await view.notes(job.id)

    await eventually(is_forgotten, "the record has it now")
    await wire.close()


async def test_a_plain_handler_tells_from_its_thread(app, work, eventually):
    @app.handler
    def plain() -> None:
        current_job().log("from a thread")

    job = await plain.options(keep_result=KEPT).enqueue()
    await work()
    await job.result()
    (record,) = await records(app, job.id)
    assert record["lg"][0][1] == "from a thread"


async def test_what_is_told_is_bounded_and_always_text_and_a_fraction(app, work):
    @app.handler
    async def chatty() -> None:
        job = current_job()
        for n in range(LOG_LINES + 5):
            job.log(f"{n} " + "x" * LOG_CHARS)
        job.log("\ud800")
        job.progress(7, "too far")
        job.progress(float("nan"), "nowhere")

    job = await chatty.options(keep_result=KEPT).enqueue()
    await work()
    await job.result()
    (record,) = await records(app, job.id)
    lines = [line for _, line in record["lg"]]
    assert (len(lines), lines[0][:2], lines[-1]) == (LOG_LINES, "6 ", "?")
    assert max(len(line) for line in lines) == LOG_CHARS
    assert record["ln"] == LOG_LINES + 6
    assert record["p"] == [0.0, "nowhere"]


async def test_a_failed_attempt_keeps_its_log_and_the_next_one_begins_with_none(app, work):
    @app.handler(max_attempts=2)
    async def flaky() -> None:
        if current_job().attempt == 1:
            current_job().log("before it failed")
            raise Retry(timedelta(milliseconds=1))

    job = await flaky.options(keep_result=KEPT).enqueue()
    await work()
    await job.result()
    first, second = await records(app, job.id)
    assert first["lg"][0][1] == "before it failed"
    assert "lg" not in second


async def test_a_job_that_tells_nothing_costs_nothing(app, work, monkeypatch):
    monkeypatch.setattr(Notebook, "_put", None)

    @app.handler
    async def quiet() -> int:
        return current_job().attempt

    job = await quiet.options(keep_result=KEPT).enqueue()
    worker = await work()
    assert await job.result() == 1
    assert worker.slots.notebook._writer is None
    (record,) = await records(app, job.id)
    assert not {"p", "lg", "ln"} & set(record)


async def test_a_hundred_reports_are_a_few_writes(app, work, eventually, monkeypatch):
    writes = []

    @app.handler
    async def busy() -> None:
        for n in range(100):
            current_job().progress(n / 100)
            await asyncio.sleep(0)

    worker = await work()
    await eventually(lambda: worker.slots and worker.slots.pumps[0].consumer, "it works")
    pump = worker.slots.pumps[0]
    note_down = pump.note_down

    async def counted(rows):
        writes.append(rows)
        await note_down(rows)

    monkeypatch.setattr(pump, "note_down", counted)
    await (await busy.options(keep_result=KEPT).enqueue()).result()
    await eventually(lambda: worker.slots.notebook._writer is None, "all is written")
    assert 1 <= len(writes) < 50
