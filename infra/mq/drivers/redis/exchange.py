"""Requests and answers on a connection of the client library, without its overhead.

The client's own timeouts, retries and health checks are disabled for our connections, but calling them costs as much as
a request. So these functions use the connection's streams and parser directly.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from infra.backoff import Backoff

FIRST_BACKOFF = 0.05
"""Seconds after a first failed attempt to connect before the next attempt; doubled by each further failure."""

MAX_BACKOFF = 1.0
"""The longest delay, in seconds, between two attempts to connect."""


def reconnection_backoff() -> Backoff:
    """Return the pauses between attempts to connect."""
    return Backoff(FIRST_BACKOFF, MAX_BACKOFF, jitter=Random())  # noqa: S311 - it protects no secret


async def connect(connection: AbstractConnection) -> None:
    """Connect, and complete the client's handshake.

    Raises:
        RedisError: the server cannot be reached, refused the connection, or closed it during the handshake.
        OSError: the server cannot be reached.
    """
    await connection.connect()  # type: ignore[no-untyped-call]  # untyped in the client
    if not connection.is_connected:
        # The client ignores errors of some requests of its handshake, also a lost connection.
        raise redis_errors.ConnectionError("the connection was lost during the handshake")


async def send(connection: AbstractConnection, packed: bytes) -> None:
    """Send a packed request.

    Raises:
        OSError: the connection is lost.
    """
    writer = connection._writer  # noqa: SLF001 - the client's method needs three more coroutines
    if writer is None:
        raise redis_errors.ConnectionError("not connected")
    writer.write(packed)
    await writer.drain()


async def read(connection: AbstractConnection) -> Any:  # noqa: ANN401 - the server's answer
    """Return the next answer.

    Raises:
        ResponseError: the answer is an error.
        ConnectionError: the connection is lost; the client's class, or an OSError.
    """
    parser: Any = connection._parser  # noqa: SLF001 - the client's method adds its own timeout
    answer = await parser.read_response()
    if isinstance(answer, redis_errors.ResponseError):
        raise answer from None
    return answer


def count_answers(connection: AbstractConnection, received: Callable[[int], None]) -> None:
    """Call `received` with the number of bytes whenever a part of an answer arrives."""
    reader: Any = connection._reader  # noqa: SLF001 - the client reports whole answers only
    feed = reader.feed_data

    def count(data: bytes) -> None:
        received(len(data))
        feed(data)

    reader.feed_data = count


def unsent_bytes(connection: AbstractConnection) -> int:
    """Return the number of bytes written to the connection that the server's system has not acknowledged yet."""
    writer = connection._writer  # noqa: SLF001 - the client does not expose its socket
    if writer is None:
        return 0
    waiting = writer.transport.get_write_buffer_size()
    sock = writer.transport.get_extra_info("socket")
    if sock is not None and hasattr(termios, "TIOCOUTQ"):
        with contextlib.suppress(OSError):
            waiting += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return waiting


@asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[None]:
    """Limit the block to `seconds`.

    Raises:
        TimeoutError: the block took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error
