"""Commands that tests send to a Redis server themselves, and calls that they repeat until the server answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from infra.mq import QueueClosed, QueueError
from tests import servers

T = TypeVar("T")


async def eventually(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call while it raises `QueueError`, for at most 10 s, and return its result.

    Raises:
        QueueClosed: at once, as no repetition helps.
    """
    async with asyncio.timeout(10):
        while True:
            try:
                return await call()
            except QueueClosed:
                raise
            except QueueError:
                await asyncio.sleep(0.02)


async def flush(server: servers.RedisServer) -> None:
    """Delete all keys of the server."""
    await command(server, "FLUSHALL")


async def command(server: servers.RedisServer, text: str) -> str:
    """Send a command to the server, and return its simple, integer or bulk reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(text.encode() + b"\r\n")
    reply = (await reader.readline()).strip()
    if reply.startswith(b"$"):
        reply = await reader.readexactly(int(reply[1:]))
    writer.close()
    await writer.wait_closed()
    return reply.decode()


async def calls_of(server: servers.RedisServer, name: str) -> int:
    """Return how often a command was called since the start of the server or its last `CONFIG RESETSTAT`."""
    stats = await command(server, "INFO commandstats")
    line = next((it for it in stats.splitlines() if it.startswith(f"cmdstat_{name}:")), "")
    return int(line.partition("calls=")[2].partition(",")[0] or 0)
