"""This process's ear for what others did: one connection that only listens."""

import asyncio
import contextlib
from random import Random
from typing import Protocol

import structlog
from redis import exceptions as redis_errors

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.exchange import bounded, connect, read
from infra.supervision import SupervisedTask, Supervisor

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PING_EVERY = 2.0
"""How often, in seconds, the server is asked to say something, so that a dead connection is noticed."""

SILENCE = 6.0
"""After how many seconds without a word the connection counts as dead."""

MAX_BACKOFF = 1.0
"""The longest wait, in seconds, between two attempts to connect."""


class Sleeper(Protocol):
    """Someone who sleeps until something comes."""

    def wake_up(self, said: bytes) -> None:
        """Hear that something came, or what."""
        ...

    def interrupted(self) -> None:
        """Hear that something may have gone unheard."""
        ...


class Bells:
    """Wakes the sleepers of this process. What is said while it is not connected goes unheard, so all are woken then.

    Its reads are never cancelled: it ends when its connection is closed under it.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sleepers: dict[bytes, Sleeper] = {}
        self._curious: set[asyncio.Event] = set()
        self._connection = core.address.connection(
            f"{core.keys.namespace}-bells", connect_timeout=core.options.connect_timeout
        )
        self._supervisor = Supervisor(core.clock, transient=(redis_errors.RedisError, OSError, EOFError))
        self._tasks: list[SupervisedTask] = []
        self._idle = asyncio.Event()
        """Set while the connection is not being read."""

        self._idle.set()
        self._ready = asyncio.Event()
        self._numbers = 0
        self._heard = 0.0
        self._closing = asyncio.Event()
        self._random = Random()  # noqa: S311 - it spreads reconnections, it keeps no secret

    async def start(self) -> None:
        """Begin to listen, and wait for that, but not for ever: without it everything only takes longer."""
        if not self._tasks and not self._closing.is_set():
            self._tasks = [
                self._supervisor.start("redis bells", self._listen, max_backoff=MAX_BACKOFF),
                self._supervisor.start("redis bells ping", self._ping, max_backoff=MAX_BACKOFF),
            ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._core.options.connect_timeout):
                await self._ready.wait()

    def sleeper(self, worker: str, sleeper: Sleeper) -> str:
        """Return the bell by which others wake this sleeper, or hand something over to its worker."""
        self._numbers += 1
        self._sleepers[str(self._numbers).encode()] = sleeper
        return f"{self._core.keys.bell(self._core.process)}\0{self._numbers}\0{worker}"

    def forget(self, bell: str) -> None:
        """Leave a sleeper alone from now on."""
        self._sleepers.pop(bell.split("\0")[1].encode(), None)

    def watch(self, event: asyncio.Event) -> None:
        """Have `event` set when there are broadcasts."""
        self._curious.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Leave `event` alone from now on."""
        self._curious.discard(event)

    async def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        if not self._tasks:
            return
        listening, pinging = self._tasks
        pinging.cancel()
        self._abort()
        await self._idle.wait()
        await listening.stop()
        await pinging.stop()

    async def _listen(self) -> None:
        """Listen until this is closed. A failure that is not the connection's is the supervisor's to log and retry."""
        self._idle.clear()
        try:
            await self._listen_until_closed()
        finally:
            # Whatever ended it: what is said from now on goes unheard, and a connection that was being read is spent.
            self._ready.clear()
            self._wake_all()
            self._idle.set()
            await self._disconnect()

    async def _listen_until_closed(self) -> None:
        backoff = 0.05
        while not self._closing.is_set():
            try:
                async with bounded(self._core.options.connect_timeout):
                    await self._subscribe()
                backoff = 0.05
                while True:
                    self._hear(await read(self._connection))
            except (redis_errors.RedisError, OSError, EOFError) as error:
                log.debug("notification connection failed", error=str(error))
            was_heard = self._ready.is_set()
            self._ready.clear()
            await self._disconnect()
            if was_heard:
                self._wake_all()
            await self._core.clock.wait(self._closing, backoff * self._random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, MAX_BACKOFF)

    async def _subscribe(self) -> None:
        keys = self._core.keys
        await connect(self._connection)
        if self._closing.is_set():
            # Closing found nothing to cut, for there was no connection yet.
            raise redis_errors.ConnectionError("closed")
        channels = (keys.bell(self._core.process), keys.changes, keys.broadcasts)
        await self._connection.send_command("SUBSCRIBE", *channels, check_health=False)
        for _ in channels:
            await read(self._connection)
        self._heard = self._core.clock.monotonic()
        self._ready.set()
        self._wake_all()

    def _hear(self, message: list[bytes]) -> None:
        self._heard = self._core.clock.monotonic()
        if message[0] != b"message":
            return
        channel, keys = message[1].decode(), self._core.keys
        if channel == keys.changes:
            for sleeper in self._sleepers.values():
                sleeper.wake_up(b"")
        elif channel == keys.broadcasts:
            for event in self._curious:
                event.set()
        else:
            number, _, said = message[2].partition(b" ")
            if (addressed := self._sleepers.get(number)) is not None:
                addressed.wake_up(said)

    def _wake_all(self) -> None:
        for sleeper in self._sleepers.values():
            sleeper.interrupted()
        for event in self._curious:
            event.set()

    async def _ping(self) -> None:
        while True:
            await self._core.clock.sleep(PING_EVERY)
            if not self._ready.is_set():
                continue
            if self._core.clock.monotonic() - self._heard > SILENCE:
                self._abort()
                continue
            with contextlib.suppress(redis_errors.RedisError, OSError):
                await self._connection.send_command("PING", check_health=False)

    def _abort(self) -> None:
        writer = self._connection._writer  # noqa: SLF001 - the one way to end a read without cancelling its task
        if writer is not None:
            writer.transport.abort()

    async def _disconnect(self) -> None:
        with contextlib.suppress(redis_errors.RedisError, OSError):
            await self._connection.disconnect(nowait=True)
