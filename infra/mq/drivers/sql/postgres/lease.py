"""The leases of this process's workers, renewed by a thread that a busy event loop cannot delay."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelled
from contextlib import suppress
from typing import Any, TypeVar

from infra.clock import Clock
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver, close
from infra.mq.drivers.sql.postgres.errors import queue_error
from infra.mq.drivers.sql.postgres.observing import LeaseObserver
from infra.mq.drivers.sql.postgres.owned_claims import OwnedClaims
from infra.mq.errors import QueueError, QueueUnavailable
from infra.mq.leases import RENEW_EVERY

T = TypeVar("T")

RENEW_TIMEOUT = 1.0
"""Seconds that a renewal may take, or a third of the lease if that is longer, so that a second one is possible."""

ABANDON_TIMEOUT = 2.0
"""Seconds that an abandoned lease may take to be recorded on the server."""

# It also returns the leases of all workers, with their ends before this statement.
_RENEW = """
WITH renewed AS (
    UPDATE beneath_worker SET lease_until = extract(epoch FROM clock_timestamp()) + $2
    WHERE id = ANY ($1::bigint[]) AND lease_until > 0 RETURNING id
)
SELECT w.id, w.lease_until, r.id IS NOT NULL AS renewed FROM beneath_worker AS w LEFT JOIN renewed AS r ON r.id = w.id
"""
_ABANDON = "UPDATE beneath_worker SET lease_until = 0 WHERE id = $1"


class LeaseMembership:
    """A worker of this process: the number that marks its claims as owner, and its lease."""

    def __init__(self, number: int, epoch: int, keeper: "LeaseKeeper", clock: Clock, joined: float) -> None:
        self.number = number
        self.epoch = epoch
        """The epoch of its claims; claims of earlier epochs are void."""

        self.valid_until = joined + keeper.lease
        """The end of its lease by this machine's monotonic clock; not later than on the server at equal clock speed."""

        self.owned = OwnedClaims(number)
        self._keeper = keeper
        self._clock = clock
        self._alive = True

    @property
    def alive(self) -> bool:
        return self._alive

    def renew(self) -> bool:
        asked = self._clock.monotonic()
        if self._alive and self._keeper.renew(self.number):
            self.valid_until = asked + self._keeper.lease
        else:
            self._alive = False
        return self._alive

    def abandon(self) -> None:
        # Also after `left`: a worker with kept claims still has its lease.
        self._alive = False
        self._keeper.abandon(self.number)

    def left(self) -> None:
        """Record that the worker has left; with kept claims its lease is still renewed."""
        self._alive = False


class LeaseKeeper:
    """The renewal of leases, in a thread with its own event loop and connection.

    Args:
        db: The database with the leases.
        lease: The lease time, in seconds by the server's clock.
        on_silence: Called in any thread when a renewal fails and none has succeeded for a whole lease.
    """

    def __init__(self, db: PostgreSQL, lease: float, on_silence: Callable[[], object]) -> None:
        self._db = db
        self.lease = lease
        self._patience = max(lease / 3, RENEW_TIMEOUT)
        self._on_silence = on_silence
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._driver: Driver | None = None
        self._turn: asyncio.Lock | None = None
        self._lingering: set[int] = set()
        self._renewed_at = time.monotonic()
        self.observer = LeaseObserver(lease)

    @staticmethod
    def now() -> float:
        """Return the monotonic time by which leases are observed."""
        return time.monotonic()

    def start(self) -> None:
        """Start the thread, once.

        Raises:
            OSError, RuntimeError: the thread cannot be started; a later call tries again.
        """
        with self._starting:
            if self._thread is not None:
                return
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(loop,), name="beneath-queue-lease", daemon=True)
            try:
                thread.start()
            except BaseException:
                loop.close()
                raise
            self._loop, self._thread, self._turn = loop, thread, asyncio.Lock()

    def stop(self) -> None:
        """Disconnect, and end the thread; kept claims are recovered once their lease has expired."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with suppress(QueueError):
            self._call(self._disconnect(), ABANDON_TIMEOUT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(ABANDON_TIMEOUT)
        self._loop = self._thread = None

    def renew(self, number: int) -> bool:
        """Renew a worker's lease; return False if the worker is not registered any more.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        asking = self._ask(lambda driver: driver.fetch(_RENEW, [number, *self._lingering], self.lease))
        asked_at = time.monotonic()
        try:
            rows = self._call(asking, self._patience)
        except QueueUnavailable:
            if time.monotonic() - self._renewed_at > self.lease:
                self._on_silence()
            raise
        self._renewed_at = time.monotonic()
        self.observer.observe(((row[0], row[1]) for row in rows), asked_at, self._renewed_at)
        return any(row[0] == number and row[2] for row in rows)

    def abandon(self, number: int) -> None:
        """Record on the server that a worker is dead; if the server is unreachable, the lease expires by itself."""
        self._lingering.discard(number)
        if self._loop is not None:
            with suppress(QueueError):
                self._call(self._ask(lambda driver: driver.execute(_ABANDON, number)), ABANDON_TIMEOUT)

    def linger(self, number: int) -> None:
        """Renew the lease of a worker that has left with kept claims, until this process ends."""
        first = not self._lingering
        self._lingering.add(number)
        if first and self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._keep_lingering(), self._loop)

    async def _keep_lingering(self) -> None:
        while self._lingering:
            with suppress(QueueError, TimeoutError):
                async with asyncio.timeout(self._patience):
                    await self._ask(lambda driver: driver.fetch(_RENEW, list(self._lingering), self.lease))
            await asyncio.sleep(self.lease * RENEW_EVERY)

    def _call(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        if self._loop is None:
            work.close()
            raise QueueUnavailable("the queue is not open")
        answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return answer.result(timeout)
        except (TimeoutError, FutureCancelled) as error:
            answer.cancel()
            raise QueueUnavailable(f"PostgreSQL at {self._db.address.where} does not answer") from error

    async def _ask(self, work: Callable[[Driver], Awaitable[T]]) -> T:
        if self._turn is None:
            raise QueueUnavailable("the queue is not open")
        async with self._turn:
            try:
                if self._driver is None or self._driver.is_closed():
                    self._driver = await self._db.connect(default_transaction_isolation="read committed")
                return await work(self._driver)
            except asyncio.CancelledError:
                await self._drop()
                raise
            except Exception as error:
                await self._drop()
                raise queue_error(error, self._db, writing=False) from error

    async def _drop(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await close(driver)

    async def _disconnect(self) -> None:
        self._lingering.clear()
        await self._drop()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
