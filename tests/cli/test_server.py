"""The HTTP server as a runnable: start, shutdown and grace period."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from beneath.runtime.server import HttpServer

Serving = Callable[[HttpServer], "asyncio.Task[None]"]


class Gate:
    """An application that answers when the test opens its gate."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        await self.open.wait()
        await PlainTextResponse(Request(scope).url.path)(scope, receive, send)


@asynccontextmanager
async def listening(app: ASGIApp, *, grace: float = 5) -> AsyncIterator[HttpServer]:
    server = HttpServer("test", app, section="control", host="127.0.0.1", port=0, grace=grace)
    try:
        yield server
    finally:
        server.close()


async def test_connection_made_before_the_server_runs_is_served() -> None:
    gate = Gate()
    gate.open.set()
    async with listening(gate) as server, httpx2.AsyncClient() as client:
        asking = asyncio.create_task(client.get(f"{server.url}/x"))
        await asyncio.sleep(0)
        running = asyncio.create_task(server.run())
        assert (await asking).text == "/x"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_in_flight_request_completes_during_shutdown() -> None:
    gate = Gate()
    async with listening(gate) as server, httpx2.AsyncClient() as client:
        running = asyncio.create_task(server.run())
        asking = asyncio.create_task(client.get(f"{server.url}/x"))
        await gate.entered.wait()
        running.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert (await asking).status_code == 200
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_request_longer_than_the_grace_period_is_aborted() -> None:
    gate = Gate()
    async with listening(gate, grace=0.01) as server, httpx2.AsyncClient() as client:
        running = asyncio.create_task(server.run())
        asking = asyncio.create_task(client.get(f"{server.url}/x"))
        await gate.entered.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        result = (await asyncio.gather(asking, return_exceptions=True))[0]
        assert isinstance(result, httpx2.HTTPError) or (isinstance(result, httpx2.Response) and result.is_server_error)
