"""How this process notices what others change: a connection that listens, and a look now and then."""

import asyncio
import contextvars
import secrets

import structlog

from infra.clock import SystemClock
from infra.db import DatabaseError
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver, close
from infra.db.postgresql_errors import CONNECTING
from infra.mq.drivers.sql.postgres.clock import ServerClock
from infra.mq.drivers.sql.postgres.connections import Connections
from infra.mq.errors import QueueError
from infra.supervision import SupervisedTask, Supervisor

CHANNEL = "beneath_queue"

POLL_INTERVAL = 1.0
"""Seconds between two looks where nobody rings; it does for what a ring failed to tell."""

NOTIFY_INTERVAL = 0.02
"""Seconds that this process leaves between two rings: NOTIFY makes every COMMIT of the database queue for a lock."""

CHECK_INTERVAL = 10.0
"""Seconds after which the listening connection is asked for a sign of life."""

CHECK_TIMEOUT = 5.0
"""Seconds that it has for that."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0

_log = structlog.stdlib.get_logger(__name__)


class Notifier:
    """Sets its listeners' events when anything in the queue may have changed, and tells other processes.

    It rings outside transactions, on connections of its own, at most once per `NOTIFY_INTERVAL`. The pace is real time,
    whatever clock the queue goes by. Behind a pooler nobody can listen; there is only the look every second.

    Args:
        db: Where the queue is.
        connections: What rings.
        clock: Compared with the server's on the way.
        longest_silence: Looks that are further apart, in seconds, count as an interruption.
    """

    def __init__(self, db: PostgreSQL, connections: Connections, clock: ServerClock, longest_silence: float) -> None:
        self._db = db
        self._connections = connections
        self._clock = clock
        self._longest_silence = longest_silence
        self._me = secrets.token_hex(6)
        self._waiters: set[asyncio.Event] = set()
        self._supervisor = Supervisor(SystemClock(), transient=(DatabaseError, QueueError, OSError))
        self._tasks: list[SupervisedTask] = []
        self._first: Driver | None = None
        self._notifying: asyncio.Task[None] | None = None
        self._again = False
        self.interruptions = 0
        """How often something may have gone unseen so far."""

    async def open(self) -> None:
        """Listen from now on.

        Raises:
            DatabaseError: the server cannot be reached.
        """
        self._first = None if self._db.mode.pooled else await self._listen()
        start = self._supervisor.start
        for name, work in (("queue poll", self._poll), ("queue notifications", self._keep_listening)):
            self._tasks.append(contextvars.Context().run(start, name, work, max_backoff=_LONGEST_PAUSE))

    async def close(self) -> None:
        """Neither listen nor ring any more."""
        tasks, self._tasks = self._tasks, []  # from now on nothing rings
        notifying = self._notifying
        # All at once: this may itself be cancelled while it waits for them.
        for task in tasks:
            task.cancel()
        if notifying is not None:
            notifying.cancel()
        try:
            if notifying is not None:
                await asyncio.wait((notifying,))
            await self._supervisor.close()
        finally:
            if (driver := self._first) is not None:
                self._first = None
                await close(driver)  # its task was ended before it began
        self._waiters.clear()

    def add(self, event: asyncio.Event) -> None:
        """Set `event` whenever something may have changed, until `remove`."""
        self._waiters.add(event)

    def remove(self, event: asyncio.Event) -> None:
        """Leave `event` alone from now on."""
        self._waiters.discard(event)

    def notify(self) -> None:
        """Tell this process's listeners, and soon other processes, that something has changed."""
        self.wake()
        self._again = True
        if self._notifying is None and self._tasks:
            loop = asyncio.get_running_loop()
            self._notifying = loop.create_task(self._send_notifications(), context=contextvars.Context())

    def wake(self) -> None:
        """Tell this process's listeners alone that something may have changed."""
        for event in self._waiters:
            event.set()

    def _interrupt(self) -> None:
        self.interruptions += 1
        self.wake()

    async def _send_notifications(self) -> None:
        try:
            while self._again:
                self._again = False
                try:
                    await self._connections.run(self._send, writing=False)
                except QueueError as error:
                    _log.debug("notification failed", error=str(error))
                await asyncio.sleep(NOTIFY_INTERVAL)
        finally:
            self._notifying = None

    async def _send(self, driver: Driver) -> None:
        await driver.execute("SELECT pg_notify($1, $2)", CHANNEL, self._me)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            if loop.time() - looked_at > self._longest_silence:
                self.interruptions += 1
            looked_at = loop.time()
            self.wake()

    async def _keep_listening(self) -> None:
        if self._db.mode.pooled:
            await self._compare_clocks()
            return
        driver, self._first = self._first, None
        pause = _FIRST_PAUSE
        while True:
            if driver is not None:
                pause = _FIRST_PAUSE
                try:
                    await self._watch_over(driver)
                finally:
                    await close(driver)
                driver = None
                self._interrupt()
                _log.warning("notification connection lost")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                driver = await self._listen()
            except Exception as error:  # noqa: BLE001  # whatever it was, the next attempt may succeed
                _log.debug("notification connection failed", error=repr(error))
            else:
                self._interrupt()

    async def _listen(self) -> Driver:
        driver = await self._db.connect(limited=False, default_transaction_isolation="read committed")
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await driver.add_listener(CHANNEL, self._heard)
                await self._clock.compare(driver)
        except BaseException as error:
            await close(driver)
            if isinstance(error, CONNECTING):
                raise self._db.explain(error) or DatabaseError(str(error)) from error
            raise
        return driver

    async def _watch_over(self, driver: Driver) -> None:
        """Return when the connection is lost."""
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _: lost.set())
        system = SystemClock()
        while not driver.is_closed() and not await system.wait(lost, CHECK_INTERVAL):
            try:
                async with asyncio.timeout(CHECK_TIMEOUT):
                    await self._clock.compare(driver)
            except Exception as error:  # noqa: BLE001  # whatever it was, another connection may do better
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

    def _heard(self, _: object, __: int, ___: str, sender: str) -> None:
        if sender != self._me:
            self.wake()
