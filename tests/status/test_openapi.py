"""The OpenAPI document: it is what is served, it is true, and it is what is in docs/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from streamq.api.application import OPERATIONS
from streamq.api.openapi import document
from streamq.api.pages import page
from tests.conftest import free_port

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
EXAMPLES = 8

CONFIG = """
[checks]
# Whether a text is good may depend on what is there: a queue, a handler, a cursor that was given out, a span of time; and
# a whole number written as 1.0 is one to JSON Schema only. The bootstrap token has an empty id, which schemathesis finds in
# the audit: a path that ends there is that of the list, which has other methods.
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "401", "403", "404", "405", "409", "412", "429"]

[[operations]]
include-operation-id = [
    "list_jobs", "list_audit", "list_errors", "show_series", "enqueue", "enqueue_many", "begin_bulk", "recent", "failed",
    "retry_job", "make_token", "put_schedule", "purge_queue",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "422", "429"]
"""


def test_the_document_is_a_valid_one_and_has_every_operation():
    """Programs are generated from it."""
    told = document(OPERATIONS)
    validate(told)
    assert told["openapi"] == "3.1.0"
    named = [what["operationId"] for methods in told["paths"].values() for what in methods.values()]
    assert len(named) == len(set(named)) == len(OPERATIONS)
    for methods in told["paths"].values():
        for what in methods.values():
            assert what["summary"].endswith("."), what["operationId"]
            assert ("401" in what["responses"]) or what["security"] == []


def test_the_committed_document_is_the_one_that_is_served():
    """A change of the API shows in the review."""
    assert json.loads(COMMITTED.read_text()) == document(OPERATIONS), "python -m streamq.api > docs/openapi.json"


def test_the_committed_document_is_made_by_a_command():
    """The one that the test above names."""
    made = subprocess.run([sys.executable, "-m", "streamq.api"], capture_output=True, check=True).stdout
    assert made == COMMITTED.read_bytes()


async def test_the_document_and_its_page_are_served_to_whoever_has_a_token(client):
    """The page fetches nothing: no script, no font, no picture, no style but its own."""
    answer = await client.get("/openapi.json")
    assert answer.json() == document(OPERATIONS)
    html = await client.get("/docs")
    assert html.headers["content-type"].startswith("text/html")
    assert "script" not in html.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|//", html.text)
    assert set(re.findall(r"href='([^']*)'", html.text)) == {"/openapi.json"}
    for operation in OPERATIONS:
        assert f"id='{operation.name}'" in html.text
    del client.headers["authorization"]
    assert (await client.get("/docs")).status_code == 401


def test_the_page_escapes_what_it_is_made_of():
    """A description is text, whatever it looks like."""
    told = document(OPERATIONS)
    evil = "<script>alert(1)</script>'\""
    told["info"]["summary"] = evil
    told["paths"][evil] = {"get": {**told["paths"]["/v1/jobs"]["get"], "summary": evil, "operationId": evil}}
    told["components"]["schemas"][evil] = {"properties": {evil: {"type": evil, "description": evil}}}
    assert "<script>" not in page(told)
    assert "id='<" not in page(told)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_api_is_as_the_document_says_whatever_it_is_asked(
    redis_url, mongodb_url, mongo_database, queue_name, tmp_path, eventually_sync
):
    """schemathesis: all its checks, over HTTP, in a bounded time; no answer is a 5xx."""
    port = free_port()
    code = f"""
import sys
from streamq import StreamQ, logs
from streamq.api import events, main
from streamq.settings import Settings
settings = Settings(
    redis_url={redis_url!r}, mongodb_url={mongodb_url!r}, mongodb_database={mongo_database!r}, queues=({queue_name!r},),
    api_token="t", api_port={port}, api_rate_limit=0,
)
app = StreamQ(settings)
@app.handler(queue={queue_name!r})
async def refresh(user_id: str) -> None: ...
@app.cron("0 * * * *", handler=refresh)
async def everybody(page): return ["ada"], None
logs.configure("error")
events.LONGEST_S = 0.05  # else each stream of events would be waited for
sys.exit(main(settings, app))
"""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", str(COMMITTED), "--url", f"http://127.0.0.1:{port}",
        "--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "7", "--generation-deterministic", "--no-color",
        "--continue-on-failure", "--request-timeout", "10", "--warnings", "off",
        "--header", "Authorization: Bearer t",
    ]  # fmt: skip
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code]) as server:
        try:
            eventually_sync(lambda: _answers(port), "the API listens")
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"},
                timeout=400,
            )  # fmt: skip
            server.terminate()
            assert server.wait(50) == 0
        finally:
            server.kill()
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Server error" not in done.stdout
    tested = re.search(r"Selected: (\d+)/(\d+)", done.stdout)
    assert tested and int(tested[1]) == len(OPERATIONS), done.stdout[-3_000:]


def _answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
