"""Error responses of the HTTP API, its health routes, and the limit of wrong secrets."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator

import httpx2
import pytest

from beneath.http.app import HttpOptions
from beneath.http.core.health import create_health_app
from bus import PublishIndeterminate
from infra.db import CommitIndeterminate
from tests.http.conftest import Api, problem
from tests.http.raw import until

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", [b"{", b"{'a': 1}", b'{"email": }', b"\xff\xfe", b'{"a": NaN'])
async def test_invalid_json_is_a_bad_request(api: Api, body: bytes) -> None:
    answer = await api.client.post("/v1/users", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["type"] in {"urn:beneath:problem:malformed-json", "urn:beneath:problem:bad-request"}


async def test_deeply_nested_json_is_no_server_error(api: Api) -> None:
    answer = await api.client.post("/v1/users", content=b"[" * 100_000, headers=JSON)
    assert answer.status_code in {400, 422}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_body_of_another_type_is_an_unsupported_media_type(api: Api, content_type: str) -> None:
    answer = await api.client.post("/v1/users", content=b"email=a", headers={"Content-Type": content_type})
    problem(answer, 415, "unsupported-media-type")


async def test_a_body_too_large_is_refused_unread(api: Api) -> None:
    problem(await api.client.post("/v1/users", content=b" " * (1024 * 1024 + 1), headers=JSON), 413, "too-large")


async def test_too_large_body_without_a_content_length_is_refused(api: Api) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    problem(await api.client.post("/v1/users", content=chunks(), headers=JSON), 413, "too-large")


async def test_an_unknown_path_is_not_found(api: Api) -> None:
    problem(await api.client.get("/v1/nothing"), 404, "not-found")
    problem(await api.client.get("/v1/me/"), 404, "not-found")


@pytest.mark.parametrize("host", ["[", "a b", "", "x:y:z", "\x00"])
async def test_invalid_host_header_causes_no_server_error(api: Api, host: str) -> None:
    problem(await api.client.get("/v1/nothing", headers={"Host": host}), 404, "not-found")
    problem(await api.client.get("/v1/me", headers={"Host": host}), 401, "unauthenticated")
    problem(await api.client.put("/v1/users", json={}, headers={"Host": host}), 405, "method-not-allowed")


async def test_unsupported_method_is_answered_with_the_allowed_methods(api: Api) -> None:
    answer = await api.client.put("/v1/users", json={})
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    several = await api.client.delete("/v1/secrets")
    problem(several, 405, "method-not-allowed")
    assert several.headers["allow"] == "GET, HEAD, POST"
    assert (await api.client.delete("/healthz")).headers["allow"] == "GET, HEAD"


async def test_head_returns_the_headers_of_get_without_the_body(api: Api) -> None:
    ada = await api.sign_up()
    for path in ("/v1/me", "/v1/secrets", "/v1/nothing", "/v1/secrets?limit=x", "/healthz"):
        got, head = await ada("GET", path), await ada("HEAD", path)
        assert (head.status_code, head.text) == (got.status_code, "")
        for name in ("content-type", "content-length", "etag"):
            assert head.headers.get(name) == got.headers.get(name), (path, name)


async def test_unexpected_error_is_logged_and_not_shown(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(type(api.domain.user), "sign_up", fail)
    answer = await api.client.post("/v1/users", json={"email": "ada@example.com", "name": "Ada"})
    found = problem(answer, 500, "internal")
    assert "hunter2" not in answer.text
    logged = caplog.text + capsys.readouterr().out
    assert "hunter2" in logged
    assert found["request_id"] in logged


class TestLockedDatabase:
    @pytest.fixture
    def busy_timeout(self) -> float:
        return 0.3

    async def test_locked_database_is_answered_with_retry_after_and_loses_nothing(self, api: Api) -> None:
        ada = await api.sign_up()
        with contextlib.closing(sqlite3.connect(str(api.domain.db.path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await ada("PATCH", "/v1/me", json={"name": "Countess"})
            problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert (await ada("GET", "/v1/me")).status_code == 200, "readers wait for no writer"
        assert (await ada("PATCH", "/v1/me", json={"name": "Countess"})).status_code == 200


@pytest.mark.parametrize("error", [CommitIndeterminate("lost"), PublishIndeterminate("lost", id="1")])
async def test_indeterminate_commit_is_reported_as_such(
    api: Api, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(type(api.domain.user), "sign_up", fail)
    answer = await api.client.post("/v1/users", json={"email": "ada@example.com", "name": "Ada"})
    problem(answer, 503, "indeterminate")
    assert "retry-after" not in answer.headers


async def test_every_answer_has_the_security_headers(api: Api) -> None:
    for path in ("/healthz", "/v1/me", "/v1/nothing", "/openapi.json"):
        headers = (await api.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


async def test_valid_request_id_is_kept_and_invalid_one_replaced(api: Api) -> None:
    kept = await api.client.get("/healthz", headers={"X-Request-ID": "from-the-proxy:1"})
    assert kept.headers["x-request-id"] == "from-the-proxy:1"
    for bad in ("", "a b", "x" * 129, "a\tb"):
        replaced = (await api.client.get("/healthz", headers={"X-Request-ID": bad})).headers["x-request-id"]
        assert replaced not in {bad, ""}


async def test_request_id_is_the_correlation_id_of_the_events(api: Api) -> None:
    seen: list[str | None] = []
    api.domain.kit.bus.observe(lambda outgoing: seen.append(outgoing.correlation_id))
    await api.client.post(
        "/v1/users", json={"email": "ada@example.com", "name": "Ada"}, headers={"X-Request-ID": "r-1"}
    )
    assert seen
    assert set(seen) == {"r-1"}


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "cursor=x", "cursor=", "page=2"])
async def test_list_refuses_invalid_query_parameters(api: Api, query: str) -> None:
    ada = await api.sign_up()
    problem(await ada("GET", f"/v1/secrets?{query}"), 422, "invalid")


class TestHealth:
    async def test_live_probe_succeeds(self, api: Api) -> None:
        answer = await api.client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    async def test_ready_probe_succeeds_if_every_part_is_ready(self, api: Api) -> None:
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]) == (200, {"database": "ok"})

    async def test_ready_probe_fails_if_a_part_is_not_ready(self, api: Api) -> None:
        api.broken["database"] = OSError("disk on fire")
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]) == (503, {"database": "failed"})
        assert "fire" not in answer.text

    async def test_metrics_are_those_of_the_given_source(self, api: Api) -> None:
        answer = await api.client.get("/metrics")
        assert (answer.status_code, answer.text) == (200, "beneath_up 1\n")
        assert answer.headers["content-type"].startswith("text/plain; version=")


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
async def test_concurrent_health_requests_share_one_round_of_queries(path: str) -> None:
    asked, go_on = 0, asyncio.Event()

    async def probe() -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()

    async def scrape() -> bytes:
        await probe()
        return b""

    app = create_health_app(ready={"database": probe}, metrics=scrape)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        waiting = [asyncio.create_task(client.get(path)) for _ in range(20)]
        await until(lambda: asked > 0)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting[1:])} == {200}
        assert asked == 1
        assert (await client.get(path)).status_code == 200
        assert asked == 2, "a later request is answered by a new round"


class TestLimits:
    @pytest.fixture
    def options(self) -> HttpOptions:
        return HttpOptions(max_auth_failures=3)

    async def test_many_wrong_secrets_are_rate_limited(self, api: Api) -> None:
        ada = await api.sign_up()
        wrong = {"Authorization": "Bearer bnth_" + "x" * 43}
        for _ in range(3):
            problem(await api.client.get("/v1/me", headers=wrong), 401, "unauthenticated")
        answer = await api.client.get("/v1/me", headers=wrong)
        problem(answer, 429, "too-many-failures")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await ada("GET", "/v1/me")).status_code == 200, "a valid secret is accepted"
        await api.domain.kit.advance(seconds=61)
        problem(await api.client.get("/v1/me", headers=wrong), 401, "unauthenticated")
