"""The queue's own connections, beside the pool for the application's transactions."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeVar

from infra.db.postgresql import QUEUE_CONNECTIONS, PostgreSQL
from infra.db.postgresql_driver import CLOSE_TIMEOUT, Driver, close
from infra.db.postgresql_errors import CONNECTING, original, sqlstate
from infra.mq.drivers.sql.postgres.errors import RETRYABLE, is_spent, queue_error
from infra.mq.errors import QueueClosed, QueueUnavailable

T = TypeVar("T")

Operation = Callable[[Driver], Awaitable[T]]

SIZE = QUEUE_CONNECTIONS - 2
"""The maximum number of them; one more connection listens, and one renews leases."""

ATTEMPTS = 6
"""The maximum number of attempts of an operation that fails with one of `RETRYABLE`."""

_BEGIN = {
    "write": "BEGIN ISOLATION LEVEL READ COMMITTED",
    "read": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
}


class QueueConnections:
    """A small pool that runs operations, each on a connection that it uses exclusively.

    Args:
        db: The database to connect to.
        patience: Seconds that an operation waits for a lock or for a connection.
    """

    def __init__(self, db: PostgreSQL, patience: float) -> None:
        self._db = db
        self._patience = patience
        self._free: list[Driver] = []
        self._busy_since: dict[Driver, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._slots = asyncio.Semaphore(SIZE)
        self._open = False
        self._closing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Allow operations; connections are opened on demand."""
        self._open = True

    async def close(self) -> None:
        """Close all connections; running operations have `CLOSE_TIMEOUT` to end, and then fail."""
        self._open = False
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._idle.wait()
        self.terminate()
        free, self._free = self._free, []
        await asyncio.gather(*(close(each) for each in free))
        if self._closing:
            await asyncio.wait(self._closing)

    def terminate(self, after: float = 0.0) -> None:
        """End the connections on which an operation has been running for `after` seconds or longer."""
        until = time.monotonic() - after
        for driver, since in self._busy_since.items():
            if since <= until:
                driver.terminate()

    async def run(self, operation: Operation[T], *, writing: bool = True) -> T:
        """Run one statement, which is a transaction by itself, and return its result.

        Raises:
            QueueUnavailable: nothing was changed.
            QueueIndeterminate: the connection was lost, so that the outcome is unknown; only if `writing`.
            QueueError: the statement failed.
        """
        if self._db.mode.pooled:
            # Settings of a pooled session would affect its other clients, so each transaction states its isolation.
            return await self.transaction(operation, "write", writing=writing)
        return await self._attempt(operation, writing=writing)

    async def transaction(
        self, operation: Operation[T], kind: Literal["read", "write"] = "write", *, writing: bool | None = None
    ) -> T:
        """Run several statements in a transaction; "read" is read-only, on one snapshot. Raises as `run`."""

        async def whole(driver: Driver) -> T:
            await driver.execute(_BEGIN[kind])
            try:
                result = await operation(driver)
            except Exception:
                # The first error is the one to raise, even if ROLLBACK fails too.
                with suppress(*CONNECTING):
                    await driver.execute("ROLLBACK")
                raise
            await driver.execute("COMMIT")
            return result

        return await self._attempt(whole, writing=kind == "write" if writing is None else writing)

    async def _attempt(self, operation: Operation[T], *, writing: bool) -> T:
        attempts = 0
        while True:
            attempts += 1
            try:
                async with self._borrowed() as driver:
                    return await operation(driver)
            except Exception as error:  # noqa: BLE001  # every error is translated to a queue error
                if sqlstate(original(error)) not in RETRYABLE or attempts == ATTEMPTS:
                    meaning = queue_error(error, self._db, writing=writing)
                    if isinstance(meaning, QueueUnavailable):
                        self._check()
                    raise meaning from (None if meaning is error else error)
            await asyncio.sleep(random.uniform(0, 0.01 * attempts))  # noqa: S311  # only spreads the attempts

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[Driver]:
        await self._wait_for_slot()
        try:
            driver = await self._take()
            self._busy_since[driver] = time.monotonic()
            self._idle.clear()
            try:
                yield driver
            except asyncio.CancelledError:
                # The statement may still run, and the next operation must not wait for it.
                self._close_soon(driver)
                raise
            except BaseException as error:
                self._return(driver, usable=not is_spent(error))
                raise
            else:
                self._return(driver)
            finally:
                del self._busy_since[driver]
                if not self._busy_since:
                    self._idle.set()
        finally:
            self._slots.release()

    async def _wait_for_slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._slots.acquire()
        except TimeoutError:
            raise QueueUnavailable(
                f"PostgreSQL at {self._db.address.where}: the queue's {SIZE} connections were in use for more than "
                f"{self._patience:g} s"
            ) from None

    async def _take(self) -> Driver:
        while self._open and self._free:
            driver = self._free.pop()
            if not driver.is_closed():
                return driver
        self._check()
        return await self._db.connect(
            lock_timeout=str(int(self._patience * 1000)),
            default_transaction_isolation="read committed",
            # Plans are cached: a sequential scan chosen while the tables were empty would later read whole tables.
            plan_cache_mode="force_generic_plan",
            enable_seqscan="off",
            jit="off",
        )

    def _check(self) -> None:
        if not self._open:
            raise QueueClosed("the queue is not open")

    def _return(self, driver: Driver, *, usable: bool = True) -> None:
        if not self._open:
            self._close_soon(driver)
        elif not driver.is_closed():
            if driver.is_in_transaction() or not usable:
                self._close_soon(driver)
            else:
                self._free.append(driver)

    def _close_soon(self, driver: Driver) -> None:
        task = asyncio.get_running_loop().create_task(close(driver))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
