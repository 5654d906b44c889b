"""Secrets that can be told apart are put wherever secrets may be, and looked for in all that streamq says of itself."""

from __future__ import annotations

import re
import secrets
from urllib.parse import quote, urlsplit

import httpx
import pymongo
import pytest

from streamq import StreamQ
from streamq.api.application import OPERATIONS
from tests.conftest import free_port

pytestmark = pytest.mark.slow

SHOP = """
import os
from streamq import StreamQ

app = StreamQ()

@app.handler(key="user_id", max_attempts=1)
async def pay(user_id: str, card: str = ""):
    password = os.environ["SHOP_PASSWORD"]
    if user_id == "bad":
        raise ConnectionError(f"no answer from postgres://shop:{password}@db/shop and http://pay/?api_token={password}")
    return {"paid": True}

@app.cron("0 * * * *", handler=pay)
async def everybody(page):
    return ["u1"], None
"""

HELD = ("ledger",)
"""Collections that hold jobs as they are to be enqueued again, and so their arguments."""


def shown_in(said, canaries):
    """Return which canary shows in which place."""
    return [(name, place) for place, text in said.items() for name, secret in canaries.items() if secret in text]


def answers(client, known):
    """Ask everything that can be asked, and return what was answered by route."""
    said = {}
    for operation in OPERATIONS:
        if operation.method != "GET" or operation.name == "stream_events":
            continue
        path = re.sub(r"{(\w+)(:\w+)?}", lambda place: quote(known.get(place[1], "nothing"), safe=""), operation.path)
        for header in ({}, {"authorization": "Bearer wrong"}):
            answer = client.get(path, headers=header)
            assert answer.status_code != 500
            said[f"{operation.method} {path} {header}"] = f"{answer.headers} {answer.text}"
    return said


def documents(url, database):
    """Return all that lies in MongoDB, but for what holds jobs to be enqueued again."""
    with pymongo.MongoClient(url) as client:
        names = [name for name in client[database].list_collection_names() if name not in HELD]
        return {f"collection {name}": repr(list(client[database][name].find())) for name in names}


def test_no_secret_shows_in_anything_that_streamq_says(
    programs, command, folder, redis_url, mongodb_url, mongo_database, eventually_sync, monkeypatch
):
    """Logs of all roles at the finest level, every route, every document, errors, and what the command line prints."""
    (folder / "shop.py").write_text(SHOP)
    names = ("bootstrap token", "variable", "argument", "header", "password of Redis", "password of MongoDB")
    canaries = {name: f"canary{secrets.token_hex(10)}" for name in names}
    monkeypatch.setenv("SHOP_PASSWORD", canaries["variable"])
    port = free_port()
    parent = programs.start(
        "up", "-n", "1", "--port", str(port), "--log-level", "debug",
        SHOP_PASSWORD=canaries["variable"], STREAMQ_API_TOKEN=canaries["bootstrap token"],
    )  # fmt: skip
    eventually_sync(lambda: "parent.ready" in parent.output, "all roles are ready")
    told = command("token", "create", "ada", "--scope", "jobs:read").out
    canaries |= {"token": told.strip(), "server": urlsplit(redis_url).password or "none"}
    jobs = _enqueued(redis_url, canaries)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        client.headers["authorization"] = f"Bearer {canaries['bootstrap token']}"
        where = f"/v1/jobs/{jobs['bad']}"
        eventually_sync(lambda: client.get(where).json().get("state") == "dead", "it is dead")
        eventually_sync(lambda: not client.get(where).json()["stale"], "MongoDB knows it")
        assert client.get("/v1/session", headers={"authorization": f"Bearer {canaries['token']}"}).status_code == 200
        assert client.post("/v1/session", json={"token": canaries["token"]}).status_code == 201
        again = {"handler": "pay", "kwargs": {"user_id": "ok", "card": canaries["argument"]}, "ledger": True}
        assert client.post("/v1/jobs", json=again).status_code == 201
        assert client.post("/v1/jobs", json={**again, "card": canaries["argument"]}).status_code == 422
        (worker,) = [each["name"] for each in client.get("/v1/workers").json()["items"] if each["state"] == "alive"]
        assert client.post(f"/v1/workers/{worker}:dump").status_code == 202
        eventually_sync(lambda: client.get(f"/v1/workers/{worker}/dump").status_code == 200, "it answers")
        known = {"job_id": jobs["bad"], "user_id": "bad", "worker": worker, "queue": "default", "schedule": "everybody"}
        said = answers(client, known)
    assert "no answer from postgres://shop:***@db" in said[f"GET /v1/jobs/{quote(jobs['bad'], safe='')} {{}}"]
    printed = {
        " ".join(words): repr(command(*words))
        for words in (
            ("config", "show"), ("status", "--json"), ("doctor",), ("jobs", "ls"), ("jobs", "show", jobs["bad"], "--json"),
            ("dead", "ls", "--json"), ("token", "ls", "--json"), ("workers", "ls"), ("ps",), ("schedule", "ls"),
        )
    }  # fmt: skip
    away = {
        "REDIS_URL": f"redis://u:{canaries['password of Redis']}@127.0.0.1:9/0",
        "MONGODB_URL": f"mongodb://u:{canaries['password of MongoDB']}@127.0.0.1:9/",
    }
    odd = {"REDIS_URL": f"http://u:{canaries['password of Redis']}@127.0.0.1:9"}
    printed |= {
        f"{words} {list(env)}": repr(programs.run(*words, **env))
        for words, env in (
            (("status",), away), (("doctor",), away), (("token", "ls"), away), (("config", "show"), away),
            (("worker", "--no-parent"), away | {"STREAMQ_LOG_LEVEL": "debug"}), (("status",), odd), (("worker", "--no-parent"), odd),
        )
    }  # fmt: skip
    assert parent.stop() == 0
    whole = {**said, **printed, **documents(mongodb_url, mongo_database), "the logs": parent.output}
    assert not shown_in(whole, canaries)
    assert "job.dead" in parent.output and "collection audit" in whole


def _enqueued(redis_url, canaries):
    """Enqueue a job that completes and one that dies, with secrets in them. Returns their ids."""
    app = StreamQ(redis_url=redis_url)

    @app.handler(key="user_id", max_attempts=1)
    async def pay(user_id: str, card: str = ""): ...

    sending = pay.options(headers={"authorization": canaries["header"]})
    return {user: sending.enqueue_sync(user, canaries["argument"]).id for user in ("good", "bad")}
