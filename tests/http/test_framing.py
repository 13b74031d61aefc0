"""Requests as bytes: ambiguous requests are refused, and malformed ones cause no server error."""

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.http.conftest import Api
from tests.http.raw import ServedApp, served_app

JSON = b"Content-Type: application/json\r\n"
POST = b"POST /v1/users HTTP/1.1\r\nHost: a\r\n" + JSON
CHUNKED = b"Transfer-Encoding: chunked\r\n"


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the client's address and scheme; 401 before the body is read if a secret is missing."""
    request = Request(scope, receive)
    host = request.client.host if request.client else None
    is_secured = request.url.path == "/v1/secrets"
    if not is_secured:
        with suppress(ClientDisconnect):
            await request.body()
    await PlainTextResponse(f"{host} {scope['scheme']}", 401 if is_secured else 200)(scope, receive, send)


@pytest.fixture
async def served() -> AsyncIterator[ServedApp]:
    async with served_app(who) as found:
        yield found


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(POST + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", id="length and coding"),
        pytest.param(POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", id="coding and length"),
        pytest.param(POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", id="the same length twice"),
        pytest.param(POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", id="two lengths"),
        pytest.param(POST + b"Content-Length: 2, 2\r\n\r\n{}", id="lengths in a list"),
        pytest.param(POST + b"Content-Length: +2\r\n\r\n{}", id="a length with a sign"),
        pytest.param(POST + b"Content-Length: 0x2\r\n\r\n{}", id="a hexadecimal length"),
        pytest.param(POST + b"Content-Length: -1\r\n\r\n", id="a negative length"),
        pytest.param(POST + b"Content-Length: \r\n\r\n", id="an empty length"),
        pytest.param(POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", id="an endless length"),
        pytest.param(POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n", id="coding twice"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="two codings"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="an unknown coding"),
        pytest.param(POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n", id="coding in HTTP/1.0"),
        pytest.param(POST.replace(b"1.1", b"0.9") + CHUNKED + b"\r\n0\r\n\r\n", id="coding in HTTP/0.9"),
        pytest.param(POST + b"X: a\n" + CHUNKED + b"\r\n0\r\n\r\n", id="a line that ends without CR"),
        pytest.param(POST + b"X: a\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", id="a head that ends without CR"),
        pytest.param(b"\n" + POST + b"\r\n", id="a line end before the request"),
        pytest.param(POST + b"X: a\r\n b\r\n\r\n", id="a folded line"),
        pytest.param(POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", id="a folded coding"),
        pytest.param(POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", id="a space before the colon"),
        pytest.param(POST + b"X: a\0b\r\n\r\n", id="NUL in a header"),
        pytest.param(POST + b"X\r\n\r\n", id="a header without a colon"),
        pytest.param(POST + b": x\r\n\r\n", id="a header without a name"),
        pytest.param(b"POST /v1/users HTTP/1.1\r\n" + JSON + b"\r\n", id="no host"),
        pytest.param(POST + b"Host: b\r\n\r\n", id="two hosts"),
        pytest.param(b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", id="two spaces"),
        pytest.param(b"GET /healthz HTTP/9.9.9\r\nHost: a\r\n\r\n", id="an unknown version"),
        pytest.param(b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", id="HTTP/2.0"),
        pytest.param(b"GET /healthz HTTP/1.2\r\nHost: a\r\n\r\n", id="HTTP/1.2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="the preface of HTTP/2"),
        pytest.param(b"GET /health z HTTP/1.1\r\nHost: a\r\n\r\n", id="a space in the path"),
        pytest.param("GET /ä HTTP/1.1\r\nHost: a\r\n\r\n".encode(), id="a path that is not ASCII"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", id="a large header"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 100 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", id="a long path"),
    ],
)
async def test_ambiguous_request_is_refused_and_its_connection_closed(served: ServedApp, request_: bytes) -> None:
    raw = await served.connect(request_ + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    reply = await raw.reply()
    assert (reply.status, reply.problem()["type"]) == (400, "urn:beneath:problem:bad-request")
    assert reply.headers["connection"] == "close"
    assert await raw.ended() == b"", "what follows is never taken for a request"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"z\r\nab\r\n0\r\n\r\n", id="no hexadecimal number"),
        pytest.param(b"-1\r\nab\r\n0\r\n\r\n", id="negative"),
        pytest.param(b"0x2\r\n{}\r\n0\r\n\r\n", id="with a prefix"),
        pytest.param(b" 2\r\n{}\r\n0\r\n\r\n", id="after a space"),
        pytest.param(b"f" * 30 + b"\r\n{}\r\n", id="endless"),
        pytest.param(b"2\r\n{}x\r\n0\r\n\r\n", id="shorter than the chunk"),
        pytest.param(b"2;" + b"x" * 20_000 + b"\r\n{}\r\n0\r\n\r\n", id="with a large extension"),
        pytest.param(b"2;a\rb\r\n{}\r\n0\r\n\r\n", id="with a CR in an extension"),
        pytest.param(b"2;a\nb\r\n{}\r\n0\r\n\r\n", id="with a line end in an extension"),
        pytest.param(b"2;a\0b\r\n{}\r\n0\r\n\r\n", id="with NUL in an extension"),
        pytest.param(b"2\r\n{}\r\n0;\r\r\n\r\n", id="with a CR at the end of the last one"),
        pytest.param(b"2\r\n{}\r\n0\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", id="with a large trailer"),
        pytest.param(b"2\r\n{}\r\n0\r\nX: a\r\n b\r\n\r\n", id="with a folded trailer"),
        pytest.param(b"2\r\n{}\r\n0\r\nX: a\n\r\n", id="with a trailer that ends without CR"),
        pytest.param(b"1\r\nx\r\n" * 1500 + b"0\r\n\r\n", id="many and tiny"),
    ],
)
async def test_invalid_chunks_are_refused_and_their_connection_closed(served: ServedApp, body: bytes) -> None:
    raw = await served.connect(POST + CHUNKED + b"\r\n" + body)
    received = await raw.ended()
    assert received.startswith(b"HTTP/1.1 400 "), received
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("body", [b"1\r\nx\r\n" * 900, (b"200\r\n" + b"x" * 512 + b"\r\n") * 1500])
async def test_small_chunks_are_accepted_up_to_a_share_of_the_body(served: ServedApp, body: bytes) -> None:
    assert (await served.ask(POST + CHUNKED + b"\r\n" + body + b"0\r\n\r\n")).status == 200


async def test_body_error_after_the_response_started_closes_the_connection(served: ServedApp) -> None:
    # The secret is checked first, so the 401 is sent before the body is read.
    raw = await served.connect(POST.replace(b"users", b"secrets") + CHUNKED + b"\r\n1\r\n{")
    assert (await raw.reply()).status == 401
    raw.send(b"zzz\r\n\r\n")
    assert await raw.ended() == b""
    assert (await served.ask(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200


async def test_malformed_methods_and_targets_get_a_short_response(api: Api) -> None:
    async with served_app(api.app) as served:
        for method in (b"CONNECT", b"TRACE", b"PRI", b"get", b"X" * 5000):
            for target in (b"/v1/users", b"*", b"a:80", b"http://[/v1", b"//", b"/%00%ff%ed%a0%80", b"/" + b"x" * 9000):
                reply = await served.ask(method + b" " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
                assert reply.status in {404, 405}
                assert len(reply.body) < 1000
                assert all(len(value) < 500 for value in reply.headers.values())


FORWARDED = (
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9, 8.8.8.8\r\nX-Forwarded-Proto: https\r\n"
    b"Forwarded: for=7.7.7.7;proto=https\r\n\r\n"
)


@pytest.mark.parametrize(
    ("proxies", "seen"),
    [
        ((), b"127.0.0.1 http"),
        (("10.0.0.0/8",), b"127.0.0.1 http"),
        (("127.0.0.0/8",), b"8.8.8.8 https"),
        (("127.0.0.1/32", "8.8.8.8/32"), b"9.9.9.9 https"),
    ],
)
async def test_forwarded_addresses_are_used_only_from_trusted_proxies(
    proxies: tuple[str, ...], seen: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    async with served_app(who, proxies=proxies) as served:
        assert (await served.ask(FORWARDED)).body == seen


@pytest.mark.parametrize("proxies", [("127.0.0.0/8", "10.0.0.0/8"), ("::ffff:7f00:0/104", "::ffff:a00:0/104")])
@pytest.mark.parametrize("proxy", [b"10.0.0.1", b"::ffff:10.0.0.1", b"[::ffff:10.0.0.1]:80", b"10.0.0.1:80"])
async def test_proxy_is_trusted_in_every_form_of_its_address(proxies: tuple[str, ...], proxy: bytes) -> None:
    async with served_app(who, proxies=proxies) as served:
        forwarded = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9, " + proxy + b"\r\n\r\n"
        assert (await served.ask(forwarded)).body == b"9.9.9.9 http"
