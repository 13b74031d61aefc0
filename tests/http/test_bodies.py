"""Request bodies: read after the check of the secret, and parsed as unambiguous JSON."""

import json
import zlib
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from tests.http.conftest import Api, problem
from tests.http.operations import operations

JSON = {"Content-Type": "application/json"}
UTF_16 = '{"email": "ada@example.com", "name": "Ada"}'.encode("utf-16")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{", "at character 1: Expecting property name enclosed in double quotes"),
        (b'{"name": "\xe9"}', "at byte 10: not UTF-8"),
        (UTF_16, "at byte 0: not UTF-8"),
        (b'{"email": "ada@example.com", "name": "Ada", "name": "Eve"}', '"name" occurs twice in one object'),
        (b'{"email": [{"a": 1, "a": 1}]}', '"a" occurs twice in one object'),
        (b'{"email": NaN}', "NaN is not a JSON value"),
        (b'{"email": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"email": %s}' % (b"9" * 5000), "a number in it has too many digits"),
        (b"[" * 500 + b"]" * 500, "objects and arrays are nested more than 32 levels deep"),
        (b'{"email": ' + b"[" * 33 + b"]" * 33 + b"}", "objects and arrays are nested more than 32 levels deep"),
        (b'{"email": "a\0"}', "at character 12: Invalid control character at"),
        (b'{"%s": 1, "%s": 2}' % (b"x" * 500, b"x" * 500), '"%s\\u2026" occurs twice in one object' % ("x" * 99)),
    ],
)
async def test_position_of_invalid_json_is_reported(api: Api, body: bytes, detail: str) -> None:
    found = problem(await api.client.post("/v1/users", content=body, headers=JSON), 400, "malformed-json")
    assert found["detail"] == detail


async def test_byte_order_mark_is_ignored(api: Api) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"email": "ada@example.com", "name": "Ada"}).encode()
    assert (await api.client.post("/v1/users", content=body, headers=JSON)).status_code == 201


async def test_a_compressed_body_is_an_unsupported_media_type(api: Api) -> None:
    headers = {**JSON, "Content-Encoding": "deflate"}
    answer = await api.client.post("/v1/users", content=zlib.compress(b"{}"), headers=headers)
    assert "Content-Encoding" in problem(answer, 415, "unsupported-media-type")["detail"]


@pytest.mark.parametrize(
    "twice",
    [
        [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        [("Content-Type", "application/json"), ("Content-Type", "application/json")],
        [("Content-Type", "application/json"), ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")],
    ],
)
async def test_a_body_of_two_types_or_encodings_is_refused(api: Api, twice: list[tuple[str, str]]) -> None:
    body = json.dumps({"email": "ada@example.com", "name": "Ada"}).encode()
    problem(await api.client.post("/v1/users", content=body, headers=twice), 415, "unsupported-media-type")


async def test_every_operation_checks_the_secret_before_the_rest_of_the_request(api: Api) -> None:
    secured = [each for each in operations(api.app) if not each.is_open]
    assert secured
    for operation in secured:
        for headers in (JSON, {**JSON, "Idempotency-Key": "a b"}, {**JSON, "Idempotency-Key": "k"}):
            answer = await api.client.request(
                operation.method, operation.path, params={"limit": "x"}, content=b"{", headers=headers
            )
            problem(answer, 401, "unauthenticated")


async def test_missing_scope_is_reported_before_the_body_is_read(api: Api) -> None:
    ada = await api.sign_up()
    ada.secret = (await ada("POST", "/v1/secrets", json={"name": "ci", "scopes": ["read"]})).json()["token"]
    headers = {**JSON, "Authorization": f"Bearer {ada.secret}"}
    answer = await api.client.patch("/v1/me", content=b"{", headers=headers)
    problem(answer, 403, "insufficient-scope")


async def test_wrong_secret_is_looked_up_and_counted_once_per_request(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    def record(address: str) -> float:
        counted.append(address)
        return 0.0

    monkeypatch.setattr(api.app.state.failure_limit, "take", record)
    headers = {"Authorization": "Bearer bnth_" + "x" * 43, "Idempotency-Key": "k"}
    answer = await api.client.post("/v1/secrets", json={"name": "ci", "scopes": ["read"]}, headers=headers)
    problem(answer, 401, "unauthenticated")
    assert len(counted) == 1


async def test_two_secrets_in_one_request_are_refused(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    both = [("Authorization", f"Bearer {each.secret}") for each in (ada, eve)]
    problem(await api.client.get("/v1/me", headers=both), 401, "unauthenticated")


async def test_too_large_chunked_body_is_refused_by_every_operation(api: Api) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    ada = await api.sign_up()
    for key in ({}, {"Idempotency-Key": "k"}):
        headers = {**JSON, **key, "Authorization": f"Bearer {ada.secret}"}
        problem(await api.client.post("/v1/secrets", content=pieces(), headers=headers), 413, "too-large")


async def test_client_disconnect_within_a_body_is_no_server_error(
    api: Api, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Message] = []
    coming: list[Message] = [
        {"type": "http.request", "body": b'{"email": ', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": "POST", "path": "/v1/users", "query_string": b"", "headers": headers}
    await api.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert "Traceback" not in caplog.text + capsys.readouterr().out


@pytest.mark.parametrize("name", ["A\u2028da", "A\u2029da", "A\u0085da", "A\u009bda", "\u00a0Ada", "Ada\u00a0"])
async def test_name_must_be_one_line_in_every_script(api: Api, name: str) -> None:
    answer = await api.client.post("/v1/users", json={"email": "ada@example.com", "name": name})
    assert "expected one line" in problem(answer, 422, "invalid")["detail"]


@pytest.mark.parametrize("name", ["Åsa", "王小明", "O'Neill", "Ada\u00a0Lovelace", "👩‍🚀"])
async def test_name_of_any_script_is_accepted(api: Api, name: str) -> None:
    ada = await api.sign_up(name=name)
    assert (await ada("GET", "/v1/me")).json()["name"] == name


async def test_name_is_returned_in_normalized_form(api: Api) -> None:
    ada = await api.sign_up(name="A\u030asa")
    assert (await ada("GET", "/v1/me")).json()["name"] == "\u00c5sa"
