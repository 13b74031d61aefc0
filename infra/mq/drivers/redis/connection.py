"""A connection to the server: requests are written packed, and answers are parsed by hiredis.

The client library's connection would cost as much for each request as the request itself. It does not report how much
of a large request or answer has been transferred, or that the server has closed an idle connection.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final, cast

from hiredis import ProtocolError, Reader, pack_command
from redis import exceptions as redis_errors
from redis.asyncio.connection import DefaultParser

from infra.backoff import Backoff
from infra.keepalive import enable_keepalive
from infra.mq.drivers.redis.address import RedisAddress

Argument = bytes | str | int | float

_INCOMPLETE: Final = object()
"""The parser's result while an answer is incomplete."""

_CLOSED_BY_SERVER: Final = "the server closed the connection"

FIRST_BACKOFF: Final = 0.05
"""Seconds after a first failed attempt to connect before the next attempt; doubled by each further failure."""

MAX_BACKOFF: Final = 1.0
"""The longest delay, in seconds, between two attempts to connect."""

PIECE: Final = 64 * 1024
"""The size in bytes of the pieces in which a large request is handed to the transport, which holds about two."""

KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""TCP's options of a connection, where the system has them, as the client library sets them: seconds until the first
probe of an idle connection (by two names) and between probes, and the number of lost probes that end it."""


def reconnection_backoff() -> Backoff:
    """Return the delays between attempts to connect, for one connection."""
    return Backoff(FIRST_BACKOFF, MAX_BACKOFF, jitter=Random())  # noqa: S311 - it protects no secret


class RedisConnection:
    """One connection at a time to the server at `address`, for one reading task.

    It repeats no request, and does not limit how long an answer takes. A cancelled read may lose a part of its answer:
    the caller must close the connection then.
    """

    def __init__(self, address: RedisAddress, name: str) -> None:
        """Store the address, and the name that the server lists for the connection; `connect` connects."""
        self._address = address
        self._name = name
        self._stream: _Stream | None = None

    @property
    def is_connected(self) -> bool:
        """Whether a request can be sent: False once the server has closed the connection or sent an unread answer."""
        return self._stream is not None and self._stream.is_ready

    @property
    def received(self) -> int:
        """The number of bytes received since it was connected."""
        return 0 if self._stream is None else self._stream.received

    @property
    def unsent(self) -> int:
        """The number of written bytes that the server's system has not acknowledged yet."""
        return 0 if self._stream is None else self._stream.unsent

    async def connect(self) -> None:
        """Connect, log in, and select the database, unless it is connected.

        Raises:
            RedisError: the server cannot be reached, refused the connection, or closed it.
            OSError: the server cannot be reached.
        """
        if self.is_connected:
            return
        self.close()
        self._stream = await self._open()
        commands = [*self._address.login, ("CLIENT", "SETNAME", self._name)]
        for command in commands:
            self.send_command(*command)
        for _ in commands:
            await self.read()

    def send(self, packed: bytes) -> None:
        """Send packed requests, without waiting.

        Raises:
            ConnectionError: the connection is lost; the client's class.
        """
        if self._stream is None:
            raise redis_errors.ConnectionError("not connected")
        self._stream.send(packed)

    def send_command(self, *arguments: Argument) -> None:
        """Pack a request and send it. Raises as `send` does."""
        self.send(pack(arguments))

    async def read(self) -> Any:  # noqa: ANN401 - the server's answer
        """Return the next answer.

        Raises:
            ResponseError: the answer is an error.
            ConnectionError: the connection is lost; the client's class.
        """
        if self._stream is None:
            raise redis_errors.ConnectionError("not connected")
        return await self._stream.read()

    def close(self) -> None:
        """Close the connection at once, so that a waiting `read` raises; what is unsent is dropped."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.lose("the connection was closed")

    async def _open(self) -> "_Stream":
        loop, address = asyncio.get_running_loop(), self._address
        if address.socket is not None:
            _, stream = await loop.create_unix_connection(_Stream, address.socket)
        else:
            transport, stream = await loop.create_connection(_Stream, address.host, address.port, ssl=address.tls())
            _keep_alive(transport.get_extra_info("socket"))
        return stream


def pack(arguments: tuple[Argument, ...]) -> bytes:
    """Return a request as it is sent."""
    packed: bytes = pack_command(arguments)  # type: ignore[arg-type]  # declared as a tuple of one element
    return packed


def _keep_alive(sock: socket.socket) -> None:
    # Otherwise a router may forget an idle connection, and the next request would get no answer.
    with contextlib.suppress(OSError):  # a connection lost already, as its first request will tell
        enable_keepalive(sock, KEEPALIVE)


class _Stream(asyncio.Protocol):
    """The bytes and answers of one established connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = 0
        self.lost = ""
        """Why the connection is lost; empty if it is not."""

        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[Any] | None = None
        self._pieces: deque[memoryview] = deque()  # of large requests, not handed to the transport yet
        self._paused = False
        self._parser = Reader(replyError=DefaultParser.parse_error, notEnoughData=_INCOMPLETE)

    @property
    def is_ready(self) -> bool:
        # The next request would read an unread answer as its own.
        return not (self.lost or self._parser.has_data())

    @property
    def unsent(self) -> int:
        waiting = self.transport.get_write_buffer_size() + sum(map(len, self._pieces))
        sock = self.transport.get_extra_info("socket")
        if sock is not None and hasattr(termios, "TIOCOUTQ"):
            with contextlib.suppress(OSError):
                waiting += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        return waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(PIECE)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_pieces()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose(_CLOSED_BY_SERVER if exc is None else str(exc) or type(exc).__name__)

    def eof_received(self) -> None:
        self.lose(_CLOSED_BY_SERVER)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._parser.feed(data)
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (answer := self._next()) is not _INCOMPLETE:
            waiter.set_result(answer)

    def send(self, packed: bytes) -> None:
        if self.lost:
            raise redis_errors.ConnectionError(self.lost)
        if len(packed) <= PIECE and not self._pieces:
            self.transport.write(packed)
            return
        # A TLS transport would encrypt a large request at once, and not tell how much of that it has sent.
        whole = memoryview(packed)
        self._pieces.extend(whole[start : start + PIECE] for start in range(0, len(whole), PIECE))
        self._send_pieces()

    def _send_pieces(self) -> None:
        while self._pieces and not self._paused:
            self.transport.write(self._pieces.popleft())

    async def read(self) -> Any:  # noqa: ANN401 - the server's answer
        answer = self._next()
        if answer is _INCOMPLETE:
            if self.lost:
                raise redis_errors.ConnectionError(self.lost)
            self._waiter = self._loop.create_future()
            answer = await self._waiter
        if isinstance(answer, redis_errors.RedisError):
            raise answer
        return answer

    def _next(self) -> Any:  # noqa: ANN401 - the server's answer
        try:
            return self._parser.gets()
        except ProtocolError as error:
            self.lose(str(error))
            return _INCOMPLETE

    def lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        self._pieces.clear()
        self.transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(redis_errors.ConnectionError(self.lost))


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
