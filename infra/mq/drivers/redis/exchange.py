"""The shortest way to an answer on a connection that the client has made.

It goes past the client's own timeouts, retries and health checks, which are all switched off here, and cost as much as
the request itself.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection


async def connect(connection: AbstractConnection) -> None:
    """Connect, and complete the client's handshake.

    Raises:
        RedisError: the server cannot be reached, refused the connection, or closed it during the handshake.
        OSError: the server cannot be reached.
    """
    await connection.connect()  # type: ignore[no-untyped-call]  # of the client
    if not connection.is_connected:
        # The client passes over errors of some of its requests, also when the connection is lost with them.
        raise redis_errors.ConnectionError("the connection was lost during the handshake")


async def send(connection: AbstractConnection, packed: bytes) -> None:
    """Send a request.

    Raises:
        OSError: the connection is lost.
    """
    writer = connection._writer  # noqa: SLF001 - the client's own way takes three more coroutines
    if writer is None:
        raise redis_errors.ConnectionError("not connected")
    writer.write(packed)
    await writer.drain()


async def read(connection: AbstractConnection) -> Any:  # noqa: ANN401 - what the server says
    """Return the next answer.

    Raises:
        ResponseError: it is an error.
        ConnectionError: the connection is lost; of the client, or an OSError.
    """
    parser: Any = connection._parser  # noqa: SLF001 - as above
    answer = await parser.read_response()
    if isinstance(answer, redis_errors.ResponseError):
        raise answer from None
    return answer


def count_answers(connection: AbstractConnection, heard: Callable[[int], None]) -> None:
    """Have `heard` called with the size of every piece of an answer that arrives."""
    reader: Any = connection._reader  # noqa: SLF001 - its answers are read whole, so that nothing else tells of a part
    feed = reader.feed_data

    def count(data: bytes) -> None:
        heard(len(data))
        feed(data)

    reader.feed_data = count


def unsent_bytes(connection: AbstractConnection) -> int:
    """Return how much of what was sent has not reached the other side, as far as this side can know."""
    writer = connection._writer  # noqa: SLF001 - as above
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
    """Give up what the block waits for after so many seconds.

    Raises:
        TimeoutError: it says so.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error
