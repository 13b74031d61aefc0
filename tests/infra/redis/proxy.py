"""A proxy to a Redis server that can lose answers and cut connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """A TCP proxy that forwards all data until a test asks for a fault."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fatal: list[bytes] = []
        self._reachable = True
        self.silent = False
        """Whether new connections never get an answer."""

        self._held_back: list[bytes] = []
        self._late: list[bytes] = []
        self.port = 0
        self.silenced = 0
        self.cut = 0

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def lose_answer_to(self, request: bytes) -> None:
        """Cut the connection of the next request that contains these bytes, after the request and before its answer."""
        self._fatal.append(request)

    def hold_back(self, request: bytes) -> None:
        """Keep the next request that contains these bytes until `deliver_late`, and cut its connection."""
        self._held_back.append(request)

    async def deliver_late(self) -> None:
        """Send the kept requests to the server, and wait until the server has carried them out."""
        while self._late:
            data = self._late.pop(0)
            reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
            # The answer to this shows that everything before it was carried out.
            writer.write(data + b"*2\r\n$4\r\nECHO\r\n$9\r\nit is out\r\n")
            async with asyncio.timeout(10):
                while b"it is out" not in await reader.readline():
                    pass
            writer.close()
            await writer.wait_closed()

    def cut_all(self, *, reachable: bool = True) -> None:
        """Cut every connection; without `reachable` refuse new ones too."""
        self._reachable = reachable
        for writer in self._pairs:
            writer.transport.abort()

    def allow(self) -> None:
        """Accept connections again."""
        self._reachable = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect one client to the server."""
        if not self._reachable:
            writer.transport.abort()
            return
        silent = self.silent
        self.silenced += silent
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        mute = asyncio.Event()
        self._pairs |= {writer, server_writer}
        forth = asyncio.create_task(self._forth(reader, server_writer, mute))
        back = asyncio.create_task(self._back(server_reader, writer, mute, silent=silent))
        self._tasks |= {forth, back}
        await asyncio.wait({forth, back})
        self._tasks -= {forth, back}
        for each in (writer, server_writer):
            each.transport.abort()
        self._pairs -= {writer, server_writer}

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mute: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                held = next((it for it in self._held_back if it in data), None)
                if held is not None:
                    self._held_back.remove(held)
                    self._late.append(data)
                    break
                found = next((it for it in self._fatal if it in data), None)
                if found is not None:
                    self._fatal.remove(found)
                    mute.set()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mute: asyncio.Event, *, silent: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if mute.is_set():
                    self.cut += 1
                    break
                if silent:
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    """Run a proxy to the server at this port."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut_all(reachable=False)
        if proxy._tasks:
            await asyncio.wait(proxy._tasks)
