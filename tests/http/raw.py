"""A real server on a free port, and clients that send arbitrary bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from beneath.http.core.connections import ConnectionLimits
from beneath.runtime.server import HttpServer


@dataclass(frozen=True, slots=True)
class Reply:
    """A response as received over the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """Check that the body is a problem; return it."""
        assert self.headers["content-type"] == "application/problem+json", self
        found: dict[str, Any] = json.loads(self.body)
        return found


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; the timeout of the test ends the wait otherwise."""
    while not condition():  # noqa: ASYNC110 - the watched state has no event to wait for
        await asyncio.sleep(0.005)


class Raw:
    """A client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Reply:
        """Return the next response; raise `IncompleteReadError` if the connection ends first."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(head[0].split()[1]), headers, body)

    async def ended(self) -> bytes:
        """Wait until the server closes the connection; return the bytes received before."""
        received = b""
        with suppress(ConnectionError):
            while part := await self.reader.read(65536):
                received += part
        return received

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class ServedApp:
    """A running server and its client connections."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._opened: list[Raw] = []

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    async def connect(self, data: bytes = b"") -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        self._opened.append(raw)
        raw.send(data)
        return raw

    async def ask(self, data: bytes) -> Reply:
        """Send `data` over a new connection; return the response."""
        return await (await self.connect(data)).reply()

    async def close(self) -> None:
        for each in self._opened:
            await each.close()


@asynccontextmanager
async def served_app(
    app: ASGIApp, *, limits: ConnectionLimits | None = None, proxies: tuple[str, ...] = ()
) -> AsyncIterator[ServedApp]:
    """Serve `app` inside the block."""
    server = HttpServer(
        "test", app, section="control", host="127.0.0.1", port=0, grace=1, limits=limits, proxies=proxies
    )
    running = asyncio.create_task(server.run())
    found = ServedApp(server)
    try:
        yield found
    finally:
        await found.close()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        server.close()
