"""Connections over real sockets: limits of their number, and timeouts of slow clients."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from beneath.http.core import connections
from beneath.http.core.connections import ConnectionLimits, Connections
from tests.http.raw import Raw, ServedApp, served_app, until

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"

pytestmark = pytest.mark.timeout(120)


class Echo:
    """An application that returns the request's body; `/gate` waits for `open`, `/large` exceeds the socket buffers.

    `/early` answers before the body is received, `/turn` after other tasks have run.
    """

    def __init__(self) -> None:
        self.entered = 0
        self.open = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.entered += 1
        if request.url.path == "/early":
            await PlainTextResponse("early", 413)(scope, receive, send)
            return
        body = await request.body()
        if request.url.path == "/turn":
            await asyncio.sleep(0.001)
        if request.url.path == "/gate":
            await self.open.wait()
        text = b"x" * 50_000_000 if request.url.path == "/large" else body
        await PlainTextResponse(text)(scope, receive, send)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def limits() -> ConnectionLimits:
    return ConnectionLimits()


@pytest.fixture
async def served(echo: Echo, limits: ConnectionLimits) -> AsyncIterator[ServedApp]:
    async with served_app(echo, limits=limits) as found:
        yield found


class TestConnectionLimit:
    """At most three connections, with a long request timeout."""

    @pytest.fixture
    def limits(self) -> ConnectionLimits:
        return ConnectionLimits(max_connections=3, request_timeout=1000)

    async def test_silent_connections_make_room_for_a_new_one(self, served: ServedApp) -> None:
        silent = [await served.connect(b"GET /x HTTP/1.1\r\nX: ") for _ in range(10)]
        assert (await served.ask(GET)).status == 200
        assert len(served.server.connections) <= 3
        for each in silent[:8]:
            assert await each.ended() == b""

    async def test_connection_that_waited_longest_is_closed_first(self, served: ServedApp) -> None:
        oldest, idle, newest = [await served.connect(b"G") for _ in range(3)]
        await until(lambda: len(served.server.connections) == 3)
        idle.send(GET[1:])
        assert (await idle.reply()).status == 200
        await served.ask(GET)
        assert await oldest.ended() == b""
        await served.ask(GET)
        assert await newest.ended() == b"", "it has waited longer than the one that was answered since"

    async def test_new_connection_gets_503_while_all_are_being_answered(self, served: ServedApp, echo: Echo) -> None:
        busy = [await served.connect(GET.replace(b"/x", b"/gate")) for _ in range(3)]
        await until(lambda: echo.entered == 3)
        refused = await served.connect(GET)
        reply = await refused.reply()
        assert (reply.status, reply.problem()["type"]) == (503, "urn:beneath:problem:unavailable")
        assert reply.headers["retry-after"] == "1"
        assert reply.headers["connection"] == "close"
        assert await refused.ended() == b""
        echo.open.set()
        assert [(await each.reply()).status for each in busy] == [200] * 3

    @pytest.mark.parametrize("last", [GET, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")])
    async def test_connections_with_unread_responses_make_room_for_a_new_one(
        self, served: ServedApp, last: bytes
    ) -> None:
        for _ in range(3):
            raw = await served.connect(last.replace(b"/x", b"/large") + GET)
            stop_reading(raw)
        await until(lambda: all(each.unsent for each in served.server.connections))
        assert (await served.ask(GET)).status == 200
        assert served.server.connections.evicted == 1

    async def test_counts_are_shown_as_metrics(self, served: ServedApp) -> None:
        for _ in range(5):
            await served.connect()
        await until(lambda: served.server.connections.evicted == 2)
        found = {(each.name, *each.labels.values()): each.value for each in served.server.samples()}
        assert found["http_connections",] == 3
        assert found["http_connections_ended", "evicted"] == 2
        assert found["http_connections_ended", "refused"] == 0


class TestRequestTimeout:
    """A request timeout of 0.2 seconds."""

    @pytest.fixture
    def limits(self) -> ConnectionLimits:
        return ConnectionLimits(request_timeout=0.2, keep_alive=1)

    @pytest.mark.parametrize("sent", [b"", b"G", b"GET /x HTTP/1.1\r\nX: ", POST, POST + b"12345"])
    async def test_incomplete_request_is_answered_with_408(self, served: ServedApp, sent: bytes) -> None:
        raw = await served.connect(sent)
        reply = await raw.reply()
        assert (reply.status, reply.problem()["type"]) == (408, "urn:beneath:problem:request-timeout")
        assert await raw.ended() == b""

    @pytest.mark.parametrize("sent", [b"GET /x HTTP/1.1\r\nX: ", POST.replace(b"10", b"100000")])
    async def test_slow_partial_sends_do_not_extend_the_timeout(self, served: ServedApp, sent: bytes) -> None:
        raw = await served.connect(sent)
        dripping = asyncio.create_task(drip(raw))
        assert b" 408 " in await raw.ended()
        dripping.cancel()

    async def test_incomplete_pipelined_request_has_its_own_timeout(self, served: ServedApp) -> None:
        raw = await served.connect(GET + GET + b"GET /x HTTP/1.1\r\nX: ")
        assert [(await raw.reply()).status for _ in range(3)] == [200, 200, 408]
        assert await raw.ended() == b""

    async def test_body_of_a_pipelined_request_has_its_own_timeout(self, served: ServedApp) -> None:
        raw = await served.connect(GET + POST)
        assert [(await raw.reply()).status for _ in range(2)] == [200, 408]
        assert await raw.ended() == b""

    async def test_request_after_an_early_response_has_its_own_timeout(self, served: ServedApp) -> None:
        raw = await served.connect(POST.replace(b"/x", b"/early"))
        assert (await raw.reply()).status == 413
        (connection,) = served.server.connections
        started = connection.loop.time()
        raw.send(b"1234567890G")
        await until(lambda: connection.conn.cycles == 1)
        connection.check(started + 0.19)
        raw.send(GET[1:])
        assert (await raw.reply()).status == 200

    async def test_idle_connection_after_an_early_answer_is_closed(self, served: ServedApp) -> None:
        raw = await served.connect(POST.replace(b"/x", b"/early"))
        assert (await raw.reply()).status == 413
        raw.send(b"1234567890")
        assert await raw.ended() == b"", "closed without a word"

    async def test_idle_connection_is_closed_after_its_answer(self, served: ServedApp) -> None:
        raw = await served.connect(GET)
        assert (await raw.reply()).status == 200
        assert await raw.ended() == b"", "closed without a word"

    async def test_refused_body_is_still_subject_to_the_timeout(self, served: ServedApp) -> None:
        chunked = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw = await served.connect(chunked)
        dripping = asyncio.create_task(drip(raw, b"1\r\na\r\n"))
        assert b" 408 " in await raw.ended()
        dripping.cancel()

    async def test_client_that_does_not_read_its_response_is_disconnected(self, served: ServedApp) -> None:
        raw = await served.connect(GET.replace(b"/x", b"/large"))
        stop_reading(raw)
        await until(lambda: served.server.connections.timed_out > 0)
        await until(lambda: len(served.server.connections) == 0)
        assert served.server.connections.timed_out == 1

    async def test_slow_response_is_not_subject_to_the_request_timeout(self, served: ServedApp, echo: Echo) -> None:
        raw = await served.connect(GET.replace(b"/x", b"/gate"))
        others = [await served.connect() for _ in range(3)]
        for each in others:
            await each.ended()
        echo.open.set()
        assert (await raw.reply()).status == 200


async def test_pipelined_requests_do_not_accumulate_in_memory(served: ServedApp, echo: Echo) -> None:
    one = b"POST /turn HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    raw = await served.connect(one * 100_000)
    reading = asyncio.create_task(raw.ended())
    await until(lambda: echo.entered > 100)
    (connection,) = served.server.connections
    assert connection.conn.unparsed < 512 * 1024
    reading.cancel()


def stop_reading(raw: Raw) -> None:
    raw.reader._transport.pause_reading()  # type: ignore[attr-defined]  # StreamReader's, to be a client that waits


async def drip(raw: Raw, drop: bytes = b"a") -> None:
    while True:
        raw.send(drop)
        await asyncio.sleep(0.02)


async def test_connection_limit_leaves_half_of_the_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_max_open_files", lambda: 100)
    assert Connections(ConnectionLimits(max_connections=500)).limit == 50
    assert Connections(ConnectionLimits(max_connections=20)).limit == 20


async def test_malformed_requests_are_counted_and_not_logged(
    served: ServedApp, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert (await served.ask(b"GET x y z\r\n\r\n")).status == 400
    found = {each.labels.get("reason"): each.value for each in served.server.samples()}
    assert found["malformed"] == 3
    assert caplog.records == []


async def test_upgrade_requests_are_handled_as_plain_requests(served: ServedApp) -> None:
    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert (await served.ask(upgrade)).status == 200
