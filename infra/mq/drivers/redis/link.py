"""A connection to the server that carries one request at a time and reconnects by itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from infra.mq.drivers.redis.address import RedisAddress
from infra.mq.drivers.redis.connection import (
    Argument,
    RedisConnection,
    bounded,
    pack,
    reconnection_backoff,
)
from infra.mq.drivers.redis.errors import ANSWERS, AnswerLost, explain, indeterminate
from infra.mq.drivers.redis.scripts import Script
from infra.mq.errors import QueueClosed, QueueIndeterminate, QueueUnavailable

SMALL = 64 * 1024
"""The largest request, in bytes, whose sending needs no extra time."""

BUFFERED = 8 * 1024 * 1024
"""Number of bytes of a large request that network buffers may hold, where this side sees no progress."""

SLOWEST = 1024 * 1024
"""The rate, in bytes per second, at which `BUFFERED` bytes must arrive; it extends the timeout of a large request."""

_BROKEN = (redis_errors.ConnectionError, OSError)


class Link:
    """A connection that reconnects by itself, and sends each request once.

    An answer may take `timeout` seconds, and longer while a large request or answer makes progress. No request is
    repeated here, since only its caller knows whether that is safe. If the answer is not read to its end, because of an
    error, a timeout or a cancellation, the connection is closed, so that the rest is not read as the next answer.
    """

    def __init__(self, address: RedisAddress, name: str, *, timeout: float, connect_timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._connection = RedisConnection(address, name)
        self._lock = asyncio.Lock()
        self._busy_until: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._unsent = 0
        self._patience = timeout
        self._received_before = 0
        self._closed = False
        self._retry_at = 0.0
        self._backoff = reconnection_backoff()
        self._refusal: QueueUnavailable | None = None
        self.connections = 0
        """Number of times that the link has connected."""

    @property
    def where(self) -> str:
        """The server's address for error messages."""
        return self._address.where

    async def connect(self) -> None:
        """Connect now, unless it is connected.

        Raises:
            QueueUnavailable: the server is unreachable or refused the connection; the message says why.
        """
        async with self._lock:
            self._retry_at = 0.0
            await self._ensure_connected()

    async def command(self, *arguments: Argument) -> Any:  # noqa: ANN401 - the server's answer
        """Send a command once, and return its answer.

        Raises:
            QueueUnavailable: nothing was changed; repeating the call may help.
            QueueRejected: nothing was changed, and repeating the call does not help.
            QueueIndeterminate: the answer was lost, so the command may have been carried out.
        """
        async with self._lock:
            await self._ensure_connected()
            try:
                return await self._exchange(arguments)
            except ANSWERS as error:
                raise explain(error, self.where) from error
            except AnswerLost as error:
                raise indeterminate(error, self.where) from error

    async def query(self, *arguments: Argument) -> Any:  # noqa: ANN401 - the server's answer
        """Send a command that changes nothing, and return its answer.

        Raises:
            QueueUnavailable: the server refused the command, or the answer was lost.
        """
        try:
            return await self.command(*arguments)
        except QueueIndeterminate as error:
            raise QueueUnavailable(str(error)) from error

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:  # noqa: ANN401 - the server's answer
        """Run a script, which is sent in full if the server does not have it. Raises as `command` does."""
        async with self._lock:
            await self._ensure_connected()
            request: tuple[Any, ...] = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
            try:
                try:
                    return await self._exchange(request)
                except redis_errors.NoScriptError:
                    # Sent and run in one request: between two requests the server could lose the script again.
                    return await self._exchange(("EVAL", script.source, *request[2:]))
            except ANSWERS as error:
                if "user_script" in str(error):
                    # The script failed midway, and what it had written stays.
                    raise QueueIndeterminate(
                        f"Redis at {self.where}: the script {script.name} failed: {error}"
                    ) from error
                raise explain(error, self.where) from error
            except AnswerLost as error:
                raise indeterminate(error, self.where) from error

    async def run_repeatable(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:  # noqa: ANN401 - the server's answer
        """Run a script that may be repeated, or whose caller finds out whether it was carried out.

        Raises:
            QueueUnavailable: the script was not carried out, or its answer was lost.
        """
        try:
            return await self.run(script, keys, *arguments)
        except QueueIndeterminate as error:
            raise QueueUnavailable(str(error)) from error

    async def close(self) -> None:
        """Disconnect permanently: later requests raise QueueClosed."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        self._connection.close()

    async def _ensure_connected(self) -> None:
        self._check()
        # If the server has closed the connection since the last request, this one must not be sent on it: its outcome
        # would be unknown.
        if self._connection.is_connected:
            return
        loop = asyncio.get_running_loop()
        if self._refusal is not None and loop.time() < self._retry_at:
            raise type(self._refusal)(str(self._refusal)) from self._refusal
        try:
            async with bounded(self._connect_timeout):
                await self._connection.connect()
            self._check()
        except (redis_errors.RedisError, OSError) as error:
            self._connection.close()
            self._check()
            reason = explain(error, self.where)
            self._refusal = reason if isinstance(reason, QueueUnavailable) else QueueUnavailable(str(reason))
            self._retry_at = loop.time() + self._backoff.failed()
            raise self._refusal from error
        except BaseException:
            self._connection.close()
            raise
        self._refusal = None
        self._backoff.succeeded()
        self.connections += 1

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed")

    async def _exchange(self, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - the server's answer
        packed = pack(arguments)
        self._begin(len(packed))
        try:
            self._connection.send(packed)
            return await self._connection.read()
        except ANSWERS:
            raise
        except _BROKEN as error:
            self._connection.close()
            self._check()
            reason = f"no answer within {self._timeout:g} s" if self._timed_out else str(error)
            raise AnswerLost(reason) from error
        except BaseException:
            self._connection.close()
            raise
        finally:
            self._busy_until = None

    def _begin(self, size: int) -> None:
        # One timer serves many requests, since a timer for each would cost more.
        loop = asyncio.get_running_loop()
        self._timed_out = False
        self._received_before = self._connection.received
        self._unsent = size if size > SMALL else 0
        self._patience = self._timeout + min(self._unsent, BUFFERED) / SLOWEST
        self._busy_until = loop.time() + self._patience
        if self._watch is None:
            self._watch = loop.call_later(self._timeout, self._check_timeout)

    def _check_timeout(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch = None
        if self._busy_until is None:
            return
        if loop.time() >= self._busy_until:
            if not self._has_moved():
                self._timed_out = True
                self._connection.close()
                return
            self._busy_until = loop.time() + self._patience
        self._watch = loop.call_at(self._busy_until, self._check_timeout)

    def _has_moved(self) -> bool:
        """Whether more of a large request was sent, or more of its answer received, since the last call."""
        received, unsent = self._connection.received, self._connection.unsent
        moved = received != self._received_before or unsent < self._unsent
        self._received_before, self._unsent = received, unsent
        return moved
