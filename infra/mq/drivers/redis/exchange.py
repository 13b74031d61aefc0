"""The shortest way to an answer on a connection that the client has made.

It goes past the client's own timeouts, retries and health checks, which are all switched off here, and cost as much as
the request itself.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection


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
