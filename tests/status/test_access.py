"""Who may ask what: tokens, roles, sessions, how often, and what is written down of it."""

from __future__ import annotations

import asyncio
import inspect
import re
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from starlette.routing import compile_path

from streamq import access
from streamq.access import SCOPES, Principal, checked_scopes, digest
from streamq.api import create_app, door
from streamq.api.application import OPERATIONS
from streamq.clock import utc_now
from streamq.errors import BadInput, ConfigurationError
from streamq.settings import Settings

SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


def filled(path):
    return re.sub(r"{\w+(:\w+)?}", "u1", path)


# Roles

ROLES = {
    "nobody": None,
    "stranger": (),
    "reader": ("jobs:read",),
    "producer": ("jobs:write",),
    "operator": ("jobs:read", "queues:write", "workers:write"),
    "prometheus": ("metrics:read",),
    "user": ("user:u1",),
    "admin": ("admin",),
}


def expected(operation, scopes):
    """What the gate says, given only the table: 401, 403, or anything else."""
    if operation.is_open:
        return "passes"
    if scopes is None:
        return "401"
    granted = operation.scope is None or operation.scope in scopes or "admin" in scopes
    by_user = operation.by_user and any(scope.startswith("user:") for scope in scopes)
    return "passes" if granted or by_user else "403"


def meant_by(method, path):
    """Find the operation that a path is of, too: `DELETE /v1/jobs/x:cancel` is about a job of that name."""
    fitting = (each for each in OPERATIONS if each.method == method and compile_path(each.path)[0].fullmatch(path))
    return next(fitting, None)


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_may_call_what_its_scopes_say_and_nothing_else(settings, serving, statuses, role):
    """The table of operations times all methods: an operation that is added is in here by itself."""
    scopes = ROLES[role]

    def login(connection):
        return None if scopes is None else Principal(role, frozenset(scopes))

    async with serving(msgspec.structs.replace(settings, history=False), authenticate=login) as client:
        del client.headers["authorization"]
        for operation in OPERATIONS:
            if operation.name == "stream_events":
                continue  # does not end; its own tests call it
            answer = await client.request(operation.method, filled(operation.path), headers=SAME_ORIGIN)
            says = str(answer.status_code) if answer.status_code in (401, 403) else "passes"
            if operation.name == "log_in":
                says = "passes"  # there, 401 is about the token in the body
            assert says == expected(operation, scopes), f"{role}: {operation.method} {operation.path}: {answer.text}"
        for path in {operation.path for operation in OPERATIONS}:
            there = {operation.method for operation in OPERATIONS if operation.path == path}
            for method in {"PUT", "PATCH", "DELETE", "POST"} - there:
                answer = await client.request(method, filled(path), headers=SAME_ORIGIN)
                says = str(answer.status_code) if answer.status_code in (401, 403) else "passes"
                meant = meant_by(method, filled(path))
                assert says == ("401" if scopes is None else expected(meant, scopes) if meant else "passes"), path
                assert (answer.status_code == 405) == (scopes is not None and meant is None), f"{role}: {method} {path}"


async def test_a_missing_scope_is_403_and_names_it(client, bearing):
    """The caller is to know what to ask for."""
    answer = await client.post("/v1/queues/q:pause", headers=await bearing("jobs:read"))
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:streamq:problem:scope-missing")
    assert answer.json()["detail"] == "this needs the scope queues:write"
    assert 'error="insufficient_scope", scope="queues:write"' in answer.headers["www-authenticate"]


async def test_one_user_cannot_read_another(client, bearing, hand, statuses, store):
    """Not even whether there is one: the answer is that of a user or a job that nobody knows."""
    await store(statuses, ("mine", hand.record(u="u1")), ("theirs", hand.record(u="u2")))
    await hand.enqueue("live", u="u2")
    mine = await bearing("user:u1")
    base = "/app/job-status/status/user"
    assert (await client.get(f"{base}/u1", headers=mine)).json()["jobId"] == "mine"
    assert (await client.get("/v1/jobs/mine", headers=mine)).json()["user"] == "u1"
    assert [job["id"] for job in (await client.get("/v1/jobs", headers=mine)).json()["items"]] == ["mine"]
    pairs = [
        (f"{base}/u2", f"{base}/u9"), ("/v1/jobs/theirs", "/v1/jobs/none"), ("/v1/jobs/live", "/v1/jobs/none"),
        ("/v1/jobs/theirs/attempts", "/v1/jobs/none/attempts"), ("/v1/jobs/live/log", "/v1/jobs/none/log"),
    ]  # fmt: skip
    for theirs, unknown in pairs:
        refused, missing = await client.get(theirs, headers=mine), await client.get(unknown, headers=mine)
        assert refused.status_code == missing.status_code == 404
        assert {**refused.json(), "instance": ""} == {**missing.json(), "instance": ""}
    other = await client.get("/v1/jobs", params={"user": "u2"}, headers=mine)
    assert other.status_code == 422
    for path in ("/app/job-status/recent", "/app/job-status/queue/stats", "/v1/queues", "/v1/errors", "/v1/audit"):
        assert (await client.get(path, headers=mine)).status_code == 403


async def test_who_may_read_two_users_says_which(client, bearing, hand, statuses, store):
    """A list of both would need an index that is not there."""
    await store(statuses, ("a", hand.record(u="u1")), ("b", hand.record(u="u2")))
    both = await bearing("user:u1", "user:u2")
    unsaid = await client.get("/v1/jobs", headers=both)
    assert (unsaid.status_code, unsaid.json()["detail"]) == (422, "say which of your users is meant")
    said = await client.get("/v1/jobs", params={"user": "u2"}, headers=both)
    assert [job["id"] for job in said.json()["items"]] == ["b"]


# Tokens


async def test_a_token_is_stored_as_a_digest_and_let_in(client, tokens, mongo):
    """Who reads the database cannot ask anything with what is in there."""
    issued = await tokens.issue("ada", ["jobs:read"], by="bob")
    assert re.fullmatch(r"sq_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", issued.text)
    stored = await mongo.collection("tokens").find_one({"_id": issued.id})
    assert stored["digest"] == digest(issued.text.encode())
    assert issued.text not in repr(stored) and issued.text.split("_", 2)[2] not in repr(stored)
    answer = await client.get("/v1/session", headers={"authorization": f"Bearer {issued.text}"})
    assert answer.json() == {"name": "ada", "scopes": ["jobs:read"]}


async def test_a_token_that_is_not_good_is_a_401_like_any_other(client, tokens):
    """Whether it was revoked, has expired, or never was is nobody's business."""
    issued = await tokens.issue("a", ["admin"], by="x")
    expired = await tokens.issue("b", ["admin"], by="x", lasts=timedelta(microseconds=1))
    revoked = await tokens.issue("c", ["admin"], by="x")
    assert (await tokens.revoke(revoked.id)).state == "revoked"
    bad = [
        expired.text, revoked.text, issued.text[:-1], issued.text + "x", issued.text.upper(), f"sq_{issued.id}_", "sq_",
        f"sq_{'0' * 12}_{issued.text.split('_', 2)[2]}", f"sq_{issued.id}", "sq_\xff_x", "sq_$ne_x", issued.id,
    ]  # fmt: skip
    bodies = set()
    for token in bad:
        answer = await client.get("/v1/session", headers={"authorization": f"Bearer {token}".encode("latin-1")})
        assert answer.status_code == 401, token
        bodies.add(answer.text)
    assert len(bodies) == 1
    assert (await client.get("/v1/session", headers={"authorization": f"Bearer {issued.text}"})).status_code == 200


async def test_a_revoked_token_is_out_within_seconds(client, tokens, monkeypatch):
    """It is looked up again when it was believed for long enough."""
    monkeypatch.setattr("streamq.api.door.BELIEVED_S", 0.0)
    issued = await tokens.issue("a", ["admin"], by="x")
    header = {"authorization": f"Bearer {issued.text}"}
    assert (await client.get("/v1/session", headers=header)).status_code == 200
    await tokens.revoke(issued.id)
    await tokens.revoke(issued.id)
    assert (await client.get("/v1/session", headers=header)).status_code == 401


async def test_rotation_lets_both_in_until_the_old_one_ends(client, tokens):
    """Nobody can swap a token everywhere in one moment."""
    old = await tokens.issue("a", ["jobs:read"], by="x")
    new = await tokens.replace(old.id, by="y", overlap=timedelta(hours=1))
    for text in (old.text, new.text):
        answer = await client.get("/v1/session", headers={"authorization": f"Bearer {text}"})
        assert answer.json() == {"name": "a", "scopes": ["jobs:read"]}
    ends = {each.id: each.expires_at for each in await tokens.list()}
    assert ends[new.id] is None
    assert timedelta(minutes=59) < ends[old.id] - utc_now() < timedelta(minutes=61)
    await tokens.revoke(old.id)
    with pytest.raises(BadInput, match=rf"^token {old.id} is revoked; only an active one can be replaced$"):
        await tokens.replace(old.id, by="y", overlap=timedelta(0))


async def test_when_a_token_was_last_used_is_noted(settings, serving, statuses, tokens):
    """A token that nobody uses can be taken back. It is written now and then, not for every request."""
    issued = await tokens.issue("a", ["jobs:read"], by="x")
    assert (await tokens.list())[0].last_used_at is None
    async with serving(settings) as client:
        await client.get("/v1/session", headers={"authorization": f"Bearer {issued.text}"})
    (status,) = await tokens.list()
    assert utc_now() - status.last_used_at < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("name", "scopes", "lasts", "says"),
    [
        ("", ["admin"], None, "the name of a token has 1 to 100 printable characters"),
        ("a\nb", ["admin"], None, "printable characters, not 'a\\nb'"),
        ("a", [], None, "a token needs a scope"),
        ("a", ["jobs"], None, "'jobs' is no scope"),
        ("a", ["user:"], None, "'user:' names no user"),
        ("a", ["admin"], timedelta(0), "a token lasts longer than nothing"),
    ],
)
async def test_what_cannot_be_a_token_is_refused_with_the_reason(tokens, name, scopes, lasts, says):
    """Nothing is stored then."""
    with pytest.raises(BadInput) as caught:
        await tokens.issue(name, scopes, by="x", lasts=lasts)
    assert says in str(caught.value)
    assert await tokens.list() == []
    with pytest.raises(BadInput, match=r"^there is no token 'none'$"):
        await tokens.revoke("none")


def test_scopes_are_each_once_and_in_order():
    """However often they are said."""
    assert checked_scopes(["user:u/1", "admin", "admin", *SCOPES]) == tuple(sorted([*SCOPES, "user:u/1"]))


async def test_without_mongodb_the_bootstrap_token_goes_on_and_so_does_who_was_here(
    settings, mongo_server, serving, tokens, absent_server, monkeypatch, eventually
):
    """Operators need the API most when something is down."""
    from streamq.access import TokenBook
    from streamq.mongo import Mongo

    mongo = Mongo(mongo_server.url, settings.mongodb_database)
    book = TokenBook(mongo)
    known = await book.issue("known", ["jobs:read"], by="x")
    fresh = await book.issue("fresh", ["jobs:read"], by="x")
    await mongo.close()
    monkeypatch.setattr("streamq.api.door.BELIEVED_S", 0.0)
    async with serving(msgspec.structs.replace(settings, mongodb_url=mongo_server.url)) as client:
        headers = {each.id: {"authorization": f"Bearer {each.text}"} for each in (known, fresh)}
        assert (await client.get("/v1/queues", headers=headers[known.id])).status_code == 200
        await asyncio.to_thread(mongo_server.kill9)
        assert (await client.get("/v1/queues")).status_code == 200
        assert (await client.get("/v1/queues", headers=headers[known.id])).status_code == 200
        answer = await client.get("/v1/queues", headers=headers[fresh.id])
        assert (answer.status_code, answer.json()["detail"]) == (503, "MongoDB is away, and with it the tokens")


async def test_no_token_is_ever_compared_as_text(settings, serving, statuses, tokens, monkeypatch):
    """It is looked up by a digest and compared by digests of one length, so the time that it takes tells nothing of it."""
    compared = []

    def compare(left, right):
        compared.append((left, right))
        return left == right

    for module in ("streamq.access", "streamq.api.door"):
        monkeypatch.setattr(f"{module}.hmac.compare_digest", compare)
    issued = await tokens.issue("ada", ["jobs:read"], by="x")
    shown = [
        settings.api_token, settings.api_token[:-1], issued.text, issued.text[:-1], f"sq_{'0' * 12}_x", "x", "",
    ]  # fmt: skip
    async with serving(settings) as client:
        statuses_ = [
            (await client.get("/v1/session", headers={"authorization": f"Bearer {text}"})).status_code for text in shown
        ]
    assert statuses_ == [200, 401, 200, 401, 401, 401, 401]
    assert {(type(each), len(each)) for pair in compared for each in pair} == {(bytes, 32)}
    # The bootstrap token is held against all that come; a stored one against what its id finds, also if that is nothing.
    assert len(compared) == len(shown) + 3


def test_no_line_compares_a_token_as_text():
    """Whoever adds one is to use what is there."""
    for module in (access, door):
        source = Path(inspect.getfile(module)).read_text()
        assert not re.search(r"(token|digest|secret)\w* [!=]= |[!=]= \w*(token|digest|secret)\b", source)


# Tokens over HTTP


async def test_an_admin_makes_lists_and_revokes_tokens_over_http(client, mongo, monkeypatch):
    """The text is in the one answer, and neither in the database, the list nor the audit."""
    monkeypatch.setattr("streamq.api.door.BELIEVED_S", 0.0)
    order = {"name": "ada", "scopes": ["jobs:read", "user:u1"], "lasts_s": 3600}
    made = await client.post("/v1/tokens", json=order)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    text = made.json()["token"]
    header = {"authorization": f"Bearer {text}"}
    assert (await client.get("/v1/session", headers=header)).json() == {"name": "ada", "scopes": order["scopes"]}
    (listed,) = (await client.get("/v1/tokens")).json()["items"]
    assert (listed["id"], listed["state"], listed["created_by"]) == (made.json()["id"], "active", "bootstrap")
    assert listed["expires_at"] > listed["created_at"]
    ended = await client.delete(f"/v1/tokens/{listed['id']}")
    assert (ended.status_code, ended.json()["state"]) == (200, "revoked")
    assert (await client.delete(f"/v1/tokens/{listed['id']}")).json() == ended.json()
    assert (await client.get("/v1/session", headers=header)).status_code == 401
    audit = (await client.get("/v1/audit")).text
    stored = await mongo.collection("tokens").find_one({"_id": listed["id"]})
    secret = text.split("_", 2)[2]
    assert not [where for where in (audit, repr(stored), repr(listed)) if secret in where]
    assert '"token.create"' in audit and '"token.revoke"' in audit


async def test_a_token_is_rotated_over_http(client):
    """The old one stays good for as long as was said."""
    old = (await client.post("/v1/tokens", json={"name": "ada", "scopes": ["jobs:read"]})).json()
    new = await client.post(f"/v1/tokens/{old['id']}:rotate", json={"overlap_s": 60})
    assert new.status_code == 201
    for text in (old["token"], new.json()["token"]):
        answer = await client.get("/v1/session", headers={"authorization": f"Bearer {text}"})
        assert answer.json() == {"name": "ada", "scopes": ["jobs:read"]}
    ends = {each["id"]: each["expires_at"] for each in (await client.get("/v1/tokens")).json()["items"]}
    assert ends[new.json()["id"]] is None and ends[old["id"]] is not None
    await client.delete(f"/v1/tokens/{old['id']}")
    again = await client.post(f"/v1/tokens/{old['id']}:rotate")
    assert (again.status_code, again.json()["detail"]) == (
        422, f"token {old['id']} is revoked; only an active one can be replaced",
    )  # fmt: skip


@pytest.mark.parametrize("order", [{"name": "a\nb", "scopes": ["admin"]}, {"name": "a", "scopes": ["jobs"]}])
async def test_what_cannot_be_a_token_is_refused_over_http_too(client, order):
    """With the reason; nothing is stored."""
    answer = await client.post("/v1/tokens", json=order)
    assert answer.status_code == 422
    assert re.search("printable characters|is no scope", answer.json()["detail"])
    assert (await client.get("/v1/tokens")).json() == {"items": []}


async def test_nobody_but_an_admin_gets_at_tokens(client, bearing):
    """Who could make one could do everything."""
    scopes = [scope for scope in SCOPES if scope != "admin"]
    header = await bearing(*scopes, "user:u1")
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/abcdefabcdef"), ("POST", "/abcdefabcdef:rotate")):
        answer = await client.request(method, f"/v1/tokens{path}", headers=header)
        assert answer.status_code == 403
    unknown = await client.delete("/v1/tokens/abcdefabcdef")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "no token 'abcdefabcdef' is known here")


# The host application's login


async def test_the_host_applications_login_is_asked_about_whoever_has_no_token(settings, serving, statuses):
    """Its own session, its own users, our scopes."""
    asked = []

    async def login(connection):
        asked.append(connection.headers.get("x-user"))
        return Principal("ada", frozenset({"jobs:read"})) if connection.headers.get("x-user") == "ada" else None

    async with serving(msgspec.structs.replace(settings, api_token=""), authenticate=login) as client:
        del client.headers["authorization"]
        assert (await client.get("/v1/session", headers={"x-user": "ada"})).json()["name"] == "ada"
        assert (await client.get("/v1/session", headers={"x-user": "bob"})).status_code == 401
        assert (await client.get("/v1/session", headers={"authorization": "Bearer "})).status_code == 401
        assert asked[:2] == ["ada", "bob"]


@pytest.mark.parametrize("answer", [RuntimeError("secret"), "ada"])
async def test_a_login_that_fails_is_503_and_lets_nobody_in(settings, serving, statuses, answer, caplog):
    """It is not our mistake, and its text is not for strangers."""

    def login(connection):
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with serving(settings, authenticate=login) as client:
        del client.headers["authorization"]
        refused = await client.get("/v1/session")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:streamq:problem:login-failed")
    assert "secret" not in refused.text
    assert "api.hook_failed" in caplog.text


def test_without_a_token_and_without_a_login_nothing_is_served():
    """With a login of the host's there need not be a token."""
    create_app(Settings(), authenticate=lambda connection: None)
    with pytest.raises(ConfigurationError, match=r"^the API has no token: "):
        create_app(Settings())


# Sessions


async def logged_in(client, token="token-of-the-tests"):  # noqa: S107
    answer = await client.post("/v1/session", json={"token": token})
    assert answer.status_code == 201, answer.text
    client.headers.pop("authorization", None)
    return answer


async def test_a_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(client):
    """HttpOnly, SameSite=Strict, and it ends."""
    answer = await logged_in(client)
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("streamq_session=")
    for word in ("httponly", "samesite=strict", "max-age=43200", "path=/"):
        assert word in cookie
    assert "secure" not in cookie, "plain http on this machine"
    assert "token-of-the-tests" not in cookie
    assert (await client.get("/v1/session")).json() == {"name": "bootstrap", "scopes": ["admin"]}
    await client.delete("/v1/session", headers=SAME_ORIGIN)
    assert (await client.get("/v1/session")).status_code == 401


async def test_behind_a_proxy_that_does_tls_the_cookie_is_secure(settings, serving, statuses):
    """The proxy speaks plain HTTP to us; the browser does not."""
    async with serving(msgspec.structs.replace(settings, api_behind_proxy=True)) as client:
        assert "secure" in (await logged_in(client)).headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403), ({"sec-fetch-site": "cross-site"}, 403), ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403), ({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://api"}, 403),
        (SAME_ORIGIN, 200), ({"origin": "http://api"}, 200),
    ],
)  # fmt: skip
async def test_a_write_with_the_cookie_comes_from_a_page_of_this_very_site(client, hand, headers, status):
    """Cookies go along with what other pages make a browser send, too."""
    await logged_in(client)
    answer = await client.post(f"/v1/queues/{hand.keys.queue}:pause", headers=headers)
    assert answer.status_code == status
    assert ((await hand.inspection.counts()).pause is not None) == (status == 200)


async def test_a_session_ends_with_its_token(client, tokens, monkeypatch):
    """Whoever loses a laptop revokes the token."""
    monkeypatch.setattr("streamq.api.door.BELIEVED_S", 0.0)
    issued = await tokens.issue("ada", ["jobs:read"], by="x")
    await logged_in(client, issued.text)
    assert (await client.get("/v1/session")).json()["name"] == "ada"
    await tokens.revoke(issued.id)
    assert (await client.get("/v1/session")).status_code == 401


@pytest.mark.parametrize("cookie", ["", "x", "IiI.aaaa.bbbb", '"".x', "a" * 5000])
async def test_a_cookie_that_is_not_ours_opens_nothing(client, cookie):
    """It is signed."""
    del client.headers["authorization"]
    assert (await client.get("/v1/session", headers={"cookie": f"streamq_session={cookie}"})).status_code == 401


async def test_a_wrong_token_opens_no_session_and_each_address_may_try_ten_times_a_minute(client):
    """A guess costs more than it can bring."""
    del client.headers["authorization"]
    guesses = [await client.post("/v1/session", json={"token": f"tökén {n}"}) for n in range(10)]
    assert [guess.status_code for guess in guesses] == [401] * 10
    answer = await client.post("/v1/session", json={"token": "token-of-the-tests"})
    assert (answer.status_code, answer.json()["type"]) == (429, "urn:streamq:problem:too-many")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


# How often


async def test_who_asks_too_often_is_told_when_to_come_back(settings, serving, statuses, tokens):
    """Each token has its own share; a script that runs away takes nobody else's."""
    other = await tokens.issue("other", ["jobs:read"], by="x")
    async with serving(msgspec.structs.replace(settings, api_rate_limit=3)) as client:
        answers = [await client.get("/v1/session") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"default";q=3;w=60'}
        left = [re.fullmatch(r'"default";r=(\d+);t=(\d+)', answer.headers["ratelimit"]) for answer in answers]
        assert [int(each[1]) for each in left] == [2, 1, 0, 0]
        assert all(1 <= int(each[2]) <= 60 for each in left)
        assert answers[3].headers["content-type"] == "application/problem+json"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        header = {"authorization": f"Bearer {other.text}"}
        assert (await client.get("/v1/session", headers=header)).status_code == 200
        assert (await client.get("/livez")).status_code == 200


async def test_no_limit_is_none(settings, serving, statuses):
    """For those whose proxy counts."""
    async with serving(msgspec.structs.replace(settings, api_rate_limit=0)) as client:
        assert "ratelimit" not in (await client.get("/v1/session")).headers
        assert {(await client.get("/v1/session")).status_code for _ in range(50)} == {200}


# Headers


async def test_other_sites_may_ask_only_if_they_are_listed(settings, serving, statuses):
    """CORS is off; a list of sites turns it on, for them, and without cookies."""
    preflight = {"origin": "https://ops.example.com", "access-control-request-method": "GET"}
    async with serving(settings) as client:
        answer = await client.get("/v1/session", headers={"origin": "https://ops.example.com"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await client.options("/v1/jobs", headers=preflight)).status_code == 405
    listed = msgspec.structs.replace(settings, api_cors_origins=("https://ops.example.com",))
    async with serving(listed) as client:
        answer = await client.options("/v1/jobs", headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://ops.example.com")
        assert "access-control-allow-credentials" not in answer.headers
        other = await client.get("/v1/session", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_every_answer_carries_the_headers_that_keep_browsers_in_check(client):
    """Also those that are errors."""
    for path in ("/v1/session", "/nowhere", "/v1/jobs?limit=x", "/docs", "/livez"):
        answer = await client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert len(answer.headers.get_list("content-security-policy")) == 1
        assert len(answer.headers.get_list("cache-control")) == 1


# The audit


async def test_every_write_is_written_down(client, bearing, hand, caplog):
    """Was it us? Who, what, from where to what."""
    ada = await bearing("queues:write", "jobs:read", name="ada")
    queue = hand.keys.queue
    await client.post(f"/v1/queues/{queue}:pause", json={"reason": "deploy"}, headers=ada)
    await client.post(f"/v1/queues/{queue}:resume", headers=ada)
    await client.post(f"/v1/queues/{queue}:resume", headers=ada)
    await client.post("/v1/queues/nowhere:pause", headers=ada)
    await client.get("/v1/queues", headers=ada)
    entries = (await client.get("/v1/audit")).json()["items"]
    assert [(each["action"], each["who"], each["target"]) for each in entries] == [
        ("queue.resume", "ada", queue), ("queue.pause", "ada", queue),
    ]  # fmt: skip
    assert entries[1]["after"] == {"reason": "deploy", "for_s": 0}
    assert entries[0]["before"]["reason"] == "deploy"
    assert entries[0]["token_id"] and entries[0]["address"] == "127.0.0.1"
    assert caplog.text.count("api.write") == 2


async def test_the_audit_is_read_page_by_page(client, hand):
    """The newest first."""
    for _ in range(3):
        await client.post(f"/v1/queues/{hand.keys.queue}:pause")
        await client.post(f"/v1/queues/{hand.keys.queue}:resume")
    first = (await client.get("/v1/audit", params={"limit": 4})).json()
    second = (await client.get("/v1/audit", params={"limit": 4, "cursor": first["next"]})).json()
    actions = [each["action"] for each in first["items"] + second["items"]]
    assert actions == ["queue.resume", "queue.pause"] * 3
    assert second["next"] is None
    foreign = (await client.get("/v1/audit", params={"cursor": "W10"})).json()
    assert foreign["errors"][0]["parameter"] == "cursor"


async def test_what_was_done_while_mongodb_was_away_is_written_down_afterwards(
    settings, mongo_server, serving, hand, absent_server, eventually, monkeypatch
):
    """A pause must work then, and must not go unseen."""
    monkeypatch.setattr("streamq.api.application.UPKEEP_EVERY_S", 0.05)
    async with serving(msgspec.structs.replace(settings, mongodb_url=mongo_server.url)) as client:
        assert (await client.get("/v1/audit")).json()["items"] == []
        await asyncio.to_thread(mongo_server.kill9)
        assert (await client.post(f"/v1/queues/{hand.keys.queue}:pause")).status_code == 200
        assert (await client.get("/v1/audit")).status_code == 503
        await asyncio.to_thread(mongo_server.restart)

        async def told():
            answer = await client.get("/v1/audit")
            return answer.status_code == 200 and [each["action"] for each in answer.json()["items"]]

        assert await eventually(told) == ["queue.pause"]
