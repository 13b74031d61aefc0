"""One connection to the server, and one request on it at a time."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from hiredis import pack_command
from redis import exceptions as redis_errors

from infra.mq.drivers.redis.address import Address
from infra.mq.drivers.redis.errors import ANSWERS, Lost, explain, lost
from infra.mq.drivers.redis.exchange import bounded, connect, count_answers, read, send, unsent_bytes
from infra.mq.drivers.redis.scripts import Script
from infra.mq.errors import QueueClosed, QueueIndeterminate, QueueUnavailable

Argument = bytes | str | int | float

FIRST_BACKOFF = 0.05
"""How long, in seconds, no second attempt to connect is made after a failed one."""

MAX_BACKOFF = 1.0
"""The longest such pause, in seconds."""

SMALL = 64 * 1024
"""Up to what size, in bytes, a request is taken to leave at once."""

BUFFERED = 8 * 1024 * 1024
"""How much of a large request, in bytes, may be on its way without this side seeing it move."""

SLOWEST = 1024 * 1024
"""How many bytes of that arrive at least in a second."""

_BROKEN = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError, EOFError, asyncio.IncompleteReadError)


class Link:
    """A connection that comes back by itself, and answers or fails each request once.

    An answer may take `timeout` seconds, and longer while a large request or answer is on its way and moves.
    Nothing is ever sent twice here: whoever asks knows whether that is safe. An answer that is not waited for to the
    end, because of an error, a timeout or a cancellation, costs the connection, so that it can not be taken for the
    answer to the next request.
    """

    def __init__(self, address: Address, name: str, *, timeout: float, connect_timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._connection = address.connection(name, connect_timeout=connect_timeout)
        self._lock = asyncio.Lock()
        self._busy_until: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._unsent = 0
        self._patience = timeout
        self._heard = 0
        self._heard_before = 0
        self._closed = False
        self._retry_at = 0.0
        self._backoff = FIRST_BACKOFF
        self._refusal: QueueUnavailable | None = None
        self._random = Random()  # noqa: S311 - it spreads reconnections, it keeps no secret
        self.connections = 0
        """How often it has connected."""

    @property
    def where(self) -> str:
        """The server, for people."""
        return self._address.where

    async def connect(self) -> None:
        """Connect now, if it is not connected.

        Raises:
            QueueUnavailable: with one line that says why.
        """
        async with self._lock:
            self._retry_at = 0.0
            await self._ensure_connected()

    async def command(self, *arguments: Argument) -> Any:  # noqa: ANN401 - what the server answers
        """Ask once; the answer is read to the end.

        Raises:
            QueueUnavailable: nothing was done.
            QueueRejected: the server does not want to do it.
            QueueIndeterminate: no answer came: it may have been done.
        """
        async with self._lock:
            await self._ensure_connected()
            try:
                return await self._exchange(arguments)
            except ANSWERS as error:
                raise explain(error, self.where) from error
            except Lost as error:
                raise lost(error, self.where) from error

    async def ask(self, *arguments: Argument) -> Any:  # noqa: ANN401 - as above
        """Ask what changes nothing.

        Raises:
            QueueUnavailable: there is no answer.
        """
        try:
            return await self.command(*arguments)
        except QueueIndeterminate as error:
            raise QueueUnavailable(str(error)) from error

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:  # noqa: ANN401 - as above
        """Run a script; the server learns it when it does not know it yet. Raises as `command` does."""
        async with self._lock:
            await self._ensure_connected()
            request: tuple[Any, ...] = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
            try:
                try:
                    return await self._exchange(request)
                except redis_errors.NoScriptError:
                    # In one step: by the next request it may have forgotten the script again.
                    return await self._exchange(("EVAL", script.source, *request[2:]))
            except ANSWERS as error:
                if "user_script" in str(error):
                    # An error in the middle of it: what was written before stays written.
                    raise QueueIndeterminate(
                        f"Redis at {self.where}: the script {script.name} failed: {error}"
                    ) from error
                raise explain(error, self.where) from error
            except Lost as error:
                raise lost(error, self.where) from error

    async def safely(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:  # noqa: ANN401 - as above
        """Run a script whose repetition does no harm, or that its caller looks after.

        Raises:
            QueueUnavailable: it was not done, or nobody knows.
        """
        try:
            return await self.run(script, keys, *arguments)
        except QueueIndeterminate as error:
            raise QueueUnavailable(str(error)) from error

    async def close(self) -> None:
        """Disconnect for good."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        await self._drop()

    async def _ensure_connected(self) -> None:
        self._check()
        if self._connection.is_connected:
            if not self._has_ended():
                return
            await self._drop()
        loop = asyncio.get_running_loop()
        if self._refusal is not None and loop.time() < self._retry_at:
            raise type(self._refusal)(str(self._refusal)) from self._refusal
        try:
            # The client bounds the way to the server, not the greetings once it is reached.
            async with bounded(self._connect_timeout):
                await connect(self._connection)
            count_answers(self._connection, self._hear)
            self._check()
        except (redis_errors.RedisError, OSError) as error:
            await self._drop()
            self._check()
            said = explain(error, self.where)
            self._refusal = said if isinstance(said, QueueUnavailable) else QueueUnavailable(str(said))
            self._retry_at = loop.time() + self._backoff * self._random.uniform(0.5, 1.0)
            self._backoff = min(self._backoff * 2, MAX_BACKOFF)
            raise self._refusal from error
        except BaseException:
            await self._drop()
            raise
        self._refusal = None
        self._backoff = FIRST_BACKOFF
        self.connections += 1

    def _check(self) -> None:
        if self._closed:
            raise QueueClosed("the queue was closed")

    def _has_ended(self) -> bool:
        """Whether the server has closed the connection while nothing was asked: then asking on it would be in doubt."""
        reader = self._connection._reader  # noqa: SLF001 - the client only tells by reading, which takes a task
        return reader is not None and reader.at_eof()

    async def _exchange(self, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - what the server answers
        packed = pack_command(arguments)
        self._begin(len(packed))
        try:
            await send(self._connection, packed)
            return await read(self._connection)
        except ANSWERS:
            raise
        except _BROKEN as error:
            await self._drop()
            self._check()
            reason = f"no answer within {self._timeout:g} s" if self._timed_out else str(error)
            raise Lost(reason) from error
        except BaseException:
            await self._drop()
            raise
        finally:
            self._busy_until = None

    def _begin(self, size: int) -> None:
        # One timer looks after many requests, instead of each having its own.
        loop = asyncio.get_running_loop()
        self._timed_out = False
        self._heard_before = self._heard
        self._unsent = size if size > SMALL else 0
        self._patience = self._timeout + min(self._unsent, BUFFERED) / SLOWEST
        self._busy_until = loop.time() + self._patience
        if self._watch is None:
            self._watch = loop.call_later(self._timeout, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch = None
        if self._busy_until is None:
            return
        if loop.time() >= self._busy_until:
            if not self._has_moved():
                self._timed_out = True
                self._abort()
                return
            self._busy_until = loop.time() + self._patience
        self._watch = loop.call_at(self._busy_until, self._look)

    def _has_moved(self) -> bool:
        """Whether more of a large request left, or more of a large answer came, since this was asked last."""
        heard, self._heard_before = self._heard != self._heard_before, self._heard
        unsent = unsent_bytes(self._connection)
        sent, self._unsent = unsent < self._unsent, unsent
        return heard or sent

    def _hear(self, count: int) -> None:
        self._heard += count

    def _abort(self) -> None:
        writer = self._connection._writer  # noqa: SLF001 - the one way to end a read without cancelling its task
        if writer is not None:
            writer.transport.abort()

    async def _drop(self) -> None:
        with contextlib.suppress(*_BROKEN):
            await self._connection.disconnect(nowait=True)


LinkFactory = Callable[[str], Link]
"""Makes a link for a purpose."""
