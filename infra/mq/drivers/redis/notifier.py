"""Notifications between processes: one connection per process that only receives them."""

import asyncio
import contextlib
from typing import Protocol

import structlog
from redis import exceptions as redis_errors

from infra.mq.drivers.redis.connection import MAX_BACKOFF, RedisConnection, bounded, reconnection_backoff
from infra.mq.drivers.redis.core import Core
from infra.supervision import SupervisedTask, Supervisor

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PING_EVERY = 2.0
"""Seconds between two PINGs, whose answers show that the connection works."""

SILENCE = 6.0
"""Seconds without any message from the server after which the connection is closed."""


class Waiter(Protocol):
    """A waiting consumer."""

    def notified(self, handed_over: bytes) -> None:
        """Handle a notification; `handed_over` is a delivery that the server assigned to the worker, or empty."""
        ...

    def interrupted(self) -> None:
        """Handle that notifications may have been lost."""
        ...


class RedisNotifier:
    """Receives the notifications of this process and wakes up its waiters.

    Notifications are lost while it is not connected, so it then interrupts all waiters. Its reads are never cancelled:
    `close` closes the connection, which ends them.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiters: dict[bytes, Waiter] = {}
        self._broadcast_events: set[asyncio.Event] = set()
        self._connection = RedisConnection(core.address, f"{core.keys.namespace}-notifications")
        self._supervisor = Supervisor(core.clock, transient=(redis_errors.RedisError, OSError))
        self._tasks: list[SupervisedTask] = []
        self._idle = asyncio.Event()
        """Set while the connection is not being read."""

        self._idle.set()
        self._ready = asyncio.Event()
        self._numbers = 0
        self._received_at = 0.0
        self._closing = asyncio.Event()

    async def start(self) -> None:
        """Start to receive; wait for the connection, but at most `connect_timeout`: without it, consumers poll."""
        if not self._tasks and not self._closing.is_set():
            self._tasks = [
                self._supervisor.start("redis notifications", self._listen, max_backoff=MAX_BACKOFF),
                self._supervisor.start("redis notifications ping", self._ping, max_backoff=MAX_BACKOFF),
            ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._core.options.connect_timeout):
                await self._ready.wait()

    def register(self, worker: str, waiter: Waiter) -> str:
        """Return a new waiter id, by which scripts notify `waiter` or hand over a delivery to its worker."""
        self._numbers += 1
        self._waiters[str(self._numbers).encode()] = waiter
        return f"{self._core.keys.notifications(self._core.process)}\0{self._numbers}\0{worker}"

    def unregister(self, waiter_id: str) -> None:
        """Stop notifying a waiter."""
        self._waiters.pop(waiter_id.split("\0")[1].encode(), None)

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` at every broadcast, until `unwatch`."""
        self._broadcast_events.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        """Stop setting `event`."""
        self._broadcast_events.discard(event)

    async def close(self) -> None:
        """Stop receiving, and disconnect."""
        self._closing.set()
        if not self._tasks:
            return
        listening, pinging = self._tasks
        pinging.cancel()
        self._connection.close()
        await self._idle.wait()
        await listening.stop()
        await pinging.stop()

    async def _listen(self) -> None:
        """Receive until `close`. Errors other than of the connection end the task, and the supervisor restarts it."""
        self._idle.clear()
        try:
            await self._listen_until_closed()
        finally:
            # From now on notifications are lost, and a connection whose read was interrupted cannot be used again.
            self._ready.clear()
            self._wake_up_all()
            self._idle.set()
            self._connection.close()

    async def _listen_until_closed(self) -> None:
        backoff = reconnection_backoff()
        while not self._closing.is_set():
            try:
                async with bounded(self._core.options.connect_timeout):
                    await self._subscribe()
                backoff.succeeded()
                while True:
                    self._dispatch(await self._connection.read())
            except (redis_errors.RedisError, OSError) as error:
                log.debug("notification connection failed", error=str(error))
            was_ready = self._ready.is_set()
            self._ready.clear()
            self._connection.close()
            if was_ready:
                self._wake_up_all()
            await self._core.clock.wait(self._closing, backoff.failed())

    async def _subscribe(self) -> None:
        keys = self._core.keys
        await self._connection.connect()
        if self._closing.is_set():
            # `close` came before there was a connection that it could break.
            raise redis_errors.ConnectionError("closed")
        channels = (keys.notifications(self._core.process), keys.changes, keys.broadcasts)
        self._connection.send_command("SUBSCRIBE", *channels)
        for _ in channels:
            await self._connection.read()
        self._received_at = self._core.clock.monotonic()
        self._ready.set()
        self._wake_up_all()

    def _dispatch(self, message: list[bytes]) -> None:
        self._received_at = self._core.clock.monotonic()
        if message[0] != b"message":
            return
        channel, keys = message[1].decode(), self._core.keys
        if channel == keys.changes:
            for waiter in self._waiters.values():
                waiter.notified(b"")
        elif channel == keys.broadcasts:
            for event in self._broadcast_events:
                event.set()
        else:
            number, _, handed_over = message[2].partition(b" ")
            if (addressed := self._waiters.get(number)) is not None:
                addressed.notified(handed_over)

    def _wake_up_all(self) -> None:
        for waiter in self._waiters.values():
            waiter.interrupted()
        for event in self._broadcast_events:
            event.set()

    async def _ping(self) -> None:
        while True:
            await self._core.clock.sleep(PING_EVERY)
            if not self._ready.is_set():
                continue
            if self._core.clock.monotonic() - self._received_at > SILENCE:
                self._connection.close()
                continue
            with contextlib.suppress(redis_errors.ConnectionError):
                self._connection.send_command("PING")
