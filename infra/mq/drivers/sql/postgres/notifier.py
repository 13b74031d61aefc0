"""Notifications on PostgreSQL: LISTEN and NOTIFY between processes, and a regular poll."""

import asyncio
import contextvars
import secrets
from functools import partial

import structlog

from infra.backoff import Backoff
from infra.clock import SystemClock
from infra.db import DatabaseError
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver, close
from infra.db.postgresql_errors import CONNECTING
from infra.mq.drivers.sql.postgres.clock import ServerClock
from infra.mq.drivers.sql.postgres.connections import QueueConnections
from infra.mq.drivers.sql.postgres.notification_sender import NotificationSender
from infra.mq.errors import QueueError
from infra.supervision import SupervisedTask, Supervisor

CHANNEL = "beneath_queue"

POLL_INTERVAL = 1.0
"""Seconds between two polls, which find the changes of lost notifications."""

CHECK_INTERVAL = 10.0
"""Seconds between two checks of the listening connection."""

CHECK_TIMEOUT = 5.0
"""Seconds after which such a check fails."""

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0

_log = structlog.stdlib.get_logger(__name__)


class Notifier:
    """Notifications of this process's waiters when the queue may have changed, and of other processes.

    Notifications are sent outside of transactions, by a `NotificationSender`, in real time whatever the queue's clock.
    Behind a pooler LISTEN is impossible; there the queue is only polled every second.

    Args:
        db: The database of the queue.
        connections: The connections on which notifications are sent.
        clock: The queue's clock, which this object compares with the server's regularly.
        longest_silence: The longest time, in seconds, between two polls; more is an interruption.
    """

    def __init__(
        self, db: PostgreSQL, connections: QueueConnections, clock: ServerClock, longest_silence: float
    ) -> None:
        self._db = db
        self._connections = connections
        self._clock = clock
        self._longest_silence = longest_silence
        self._me = secrets.token_hex(6)
        self._waiters: set[asyncio.Event] = set()
        self._supervisor = Supervisor(SystemClock(), transient=(DatabaseError, QueueError, OSError))
        self._tasks: list[SupervisedTask] = []
        self._first: Driver | None = None
        # Without writes, so that its COMMIT does not wait for the disk while all others wait for its lock.
        self._sender = NotificationSender(
            partial(connections.run, self._send_notification, writing=False), SystemClock()
        )
        self.interruptions = 0
        """The number of times so far that changes may have been missed."""

    async def open(self) -> None:
        """Start to listen and to poll.

        Raises:
            DatabaseError: the server cannot be reached.
        """
        self._first = None if self._db.mode.pooled else await self._listen()
        start = self._supervisor.start
        for name, work in (("queue poll", self._poll), ("queue notifications", self._keep_listening)):
            self._tasks.append(contextvars.Context().run(start, name, work, max_backoff=_LONGEST_DELAY))
        self._sender.open()

    async def close(self) -> None:
        """Stop listening, polling and notifying."""
        tasks, self._tasks = self._tasks, []
        # Cancel all before waiting for any: this call may be cancelled while it waits.
        for task in tasks:
            task.cancel()
        try:
            await self._sender.close()
            await self._supervisor.close()
        finally:
            if (driver := self._first) is not None:
                self._first = None
                await close(driver)  # its task was cancelled before it took the connection
        self._waiters.clear()

    def add(self, event: asyncio.Event) -> None:
        """Set `event` whenever something may have changed, until `remove`."""
        self._waiters.add(event)

    def remove(self, event: asyncio.Event) -> None:
        """Stop setting `event`."""
        self._waiters.discard(event)

    def notify(self) -> None:
        """Wake up the waiters of this process, and soon those of other processes."""
        self.wake()
        self._sender.request()

    def wake(self) -> None:
        """Wake up the waiters of this process only."""
        for event in self._waiters:
            event.set()

    def _interrupt(self) -> None:
        self.interruptions += 1
        self.wake()

    async def _send_notification(self, driver: Driver) -> None:
        await driver.execute("SELECT pg_notify($1, $2)", CHANNEL, self._me)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        polled_at = loop.time()
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            if loop.time() - polled_at > self._longest_silence:
                self.interruptions += 1
            polled_at = loop.time()
            self.wake()

    async def _keep_listening(self) -> None:
        if self._db.mode.pooled:
            await self._compare_clocks()
            return
        driver, self._first = self._first, None
        backoff = Backoff(_FIRST_DELAY, _LONGEST_DELAY)
        while True:
            if driver is not None:
                backoff.succeeded()
                try:
                    await self._watch_over(driver)
                finally:
                    await close(driver)
                driver = None
                self._interrupt()
                _log.warning("notification connection lost")
            await asyncio.sleep(backoff.failed())
            try:
                driver = await self._listen()
            except Exception as error:  # noqa: BLE001  # after any error the next attempt may succeed
                _log.debug("notification connection failed", error=repr(error))
            else:
                self._interrupt()

    async def _listen(self) -> Driver:
        driver = await self._db.connect(limited=False, default_transaction_isolation="read committed")
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await driver.add_listener(CHANNEL, self._notified)
                await self._clock.compare(driver)
        except BaseException as error:
            await close(driver)
            if isinstance(error, CONNECTING):
                raise self._db.explain(error) or DatabaseError(str(error)) from error
            raise
        return driver

    async def _watch_over(self, driver: Driver) -> None:
        """Check the connection regularly, and return when it is lost."""
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _: lost.set())
        system = SystemClock()
        while not driver.is_closed() and not await system.wait(lost, CHECK_INTERVAL):
            try:
                async with asyncio.timeout(CHECK_TIMEOUT):
                    await self._clock.compare(driver)
            except Exception as error:  # noqa: BLE001  # after any error a new connection may succeed
                _log.debug("notification connection failed", error=repr(error))
                return

    async def _compare_clocks(self) -> None:
        while True:
            try:
                await self._connections.run(self._clock.compare, writing=False)
            except QueueError as error:
                self._interrupt()
                _log.debug("clock comparison failed", error=str(error))
            await asyncio.sleep(CHECK_INTERVAL)

    def _notified(self, _: object, __: int, ___: str, sender: str) -> None:
        if sender != self._me:
            self.wake()
