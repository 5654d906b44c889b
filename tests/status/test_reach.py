"""Where the API listens, how it is reached, and how long it waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys

import httpx
import pytest
import trustme

from streamq.api import main
from streamq.errors import ConfigurationError
from streamq.settings import Settings
from tests.conftest import free_port

TOKEN = {"authorization": "Bearer token-of-the-tests"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_is_refused_without_tls(host):
    """Exit 78, and both ways out: a token that is read along once is everybody's."""
    with pytest.raises(
        ConfigurationError, match=r"^the API would listen on .*, where other machines reach it"
    ) as caught:
        main(Settings(api_token="t", api_host=host, api_port=0))
    assert caught.value.exit_code == 78
    assert "STREAMQ_API_TLS_CERTIFICATE" in caught.value.hint and "--behind-proxy" in caught.value.hint


def test_the_command_refuses_it_too(tmp_path):
    """As a program, with the exit code that keeps a supervisor from trying again."""
    command = [sys.executable, "-m", "streamq", "api", "--host", "0.0.0.0", "--port", "0", "--token", "t"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path)
    assert (done.returncode, "without TLS" in done.stderr) == (78, True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"api_tls_certificate": "/nowhere.pem"}, r"^TLS needs a certificate and its key, and one of them is given$"),
        ({"api_tls_key": "/nowhere.pem"}, r"^TLS needs a certificate and its key, and one of them is given$"),
        ({"api_tls_certificate": "/a.pem", "api_tls_key": "/b.pem"}, r"^there is no file '/a\.pem', which TLS needs$"),
    ],
)
def test_half_a_certificate_is_none(files, says):
    """Plain HTTP instead would be the worst answer."""
    with pytest.raises(ConfigurationError, match=says):
        main(Settings(api_token="t", api_host="0.0.0.0", api_port=0, **files))


@pytest.mark.parametrize("tls", [True, False])
def test_with_tls_or_behind_a_proxy_it_listens_everywhere(
    redis_url, mongodb_url, mongo_database, queue_name, tmp_path, eventually_sync, tls
):
    """With a certificate it speaks TLS itself, and nothing else on that port."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    port = free_port()
    how = ["--api-tls-certificate", "cert.pem", "--api-tls-key", "key.pem"] if tls else ["--behind-proxy"]
    command = [
        sys.executable, "-W", "ignore", "-m", "streamq", "api", "--host", "0.0.0.0", "--port", str(port), "--token", "t",
        "--redis-url", redis_url, "--mongodb-url", mongodb_url, "--mongodb-database", mongo_database, "-q", queue_name, *how,
    ]  # fmt: skip
    context = ssl.create_default_context()
    authority.configure_trust(context)
    scheme = "https" if tls else "http"
    with subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), stderr=subprocess.DEVNULL) as process:
        with httpx.Client(base_url=f"{scheme}://localhost:{port}", verify=context, timeout=40) as client:

            def answers():
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/livez").status_code == 200

            eventually_sync(answers, "it listens")
            login = client.post("/v1/session", json={"token": "t"})
            assert login.status_code == 201
            assert "secure" in login.headers["set-cookie"].lower()
        if tls:
            with pytest.raises(httpx.TransportError), httpx.Client(verify=True) as stranger:
                stranger.get(f"https://localhost:{port}/livez")
        process.terminate()
        assert process.wait(50) == 0


# Patience


@pytest.mark.parametrize("start", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\n"])
async def test_who_does_not_say_what_they_want_is_cut_off(settings, statuses, listening, monkeypatch, start):
    """Connections that wait for ever are how a server runs out of them; bytes that trickle in buy no time."""
    monkeypatch.setattr("streamq.api.role.HEADERS_WITHIN_S", 0.3)
    async with listening(settings) as (_, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(start)

        async def trickle():
            with contextlib.suppress(ConnectionError):
                while True:
                    await asyncio.sleep(0.05)
                    writer.write(b"x" if start else b"")
                    await writer.drain()

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):
            assert b"200" not in await asyncio.wait_for(reader.read(), 40)
        trickling.cancel()
        writer.close()


async def test_a_connection_that_is_kept_serves_one_request_after_another(settings, statuses, listening, monkeypatch):
    """Patience begins anew with each."""
    monkeypatch.setattr("streamq.api.role.HEADERS_WITHIN_S", 0.3)
    async with listening(settings) as (_, address), httpx.AsyncClient(base_url=address, headers=TOKEN) as client:
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began < 0.8:
            assert (await client.get("/v1/session")).status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for(settings, statuses, hand, listening, monkeypatch):
    """408, and nothing was done."""
    monkeypatch.setattr("streamq.api.parameters.BODY_WITHIN_S", 0.2)

    request = (
        f"POST /v1/queues/{hand.keys.queue}:pause HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token-of-the-tests\r\n"
        'content-length: 99\r\n\r\n{"reason":'
    )
    async with listening(settings) as (_, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(request.encode())
        answer = await asyncio.wait_for(reader.read(), 40)  # to the end of the connection
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert (await hand.inspection.counts()).pause is None


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("path", ["/v1/queues/q:pause", "/v1/jobs", "/v1/bulk", "/v1/session"])
async def test_a_body_of_ten_megabytes_is_refused(settings, statuses, listening, path, is_told):
    """Whether or not it says how long it is; and little of it is read."""
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(160):
            sent += 65_536
            yield b" " * 65_536

    content = b" " * 10_000_000 if is_told else chunks()
    known = {"/v1/queues/q:pause": f"/v1/queues/{settings.queues[0]}:pause"}.get(path, path)
    async with listening(settings) as (_, address), httpx.AsyncClient(base_url=address, headers=TOKEN) as client:
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the server closes, and need not read it all
            answer = await client.post(known, content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["type"]) == (413, "urn:streamq:problem:body-too-large")
        assert sent < 10_000_000
        assert (await client.get("/livez")).status_code == 200


async def test_a_request_that_takes_too_long_is_ended(settings, statuses, serving, monkeypatch):
    """503, rather than a connection that nobody waits at any more."""

    async def stuck(self, limit):
        await asyncio.Event().wait()

    monkeypatch.setattr("streamq.api.legacy.Desk.recent", stuck)
    async with serving(settings) as client:
        from streamq.api.original import OPERATIONS

        recent = next(each for each in OPERATIONS if each.name == "recent")
        object.__setattr__(recent, "limit_s", 0.05)
        answer = await client.get("/app/job-status/recent")
        object.__setattr__(recent, "limit_s", 10.0)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:streamq:problem:too-slow")
