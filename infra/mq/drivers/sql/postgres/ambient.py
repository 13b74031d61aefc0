"""Queue operations inside the ambient transaction."""

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from infra.db import DatabaseUnavailable, Transaction
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres.connections import Operation
from infra.mq.drivers.sql.postgres.errors import queue_error
from infra.mq.errors import QueueUnavailable

T = TypeVar("T")


class AfterCommit:
    """A participant that notifies waiters and runs follow-up work after COMMIT."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce
        self._finish: list[Callable[[], Awaitable[None]]] = []

    def finish_with(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` after COMMIT."""
        self._finish.append(work)

    def savepoint(self) -> object:
        return len(self._finish)

    def rollback_to(self, mark: object) -> None:
        del self._finish[cast("int", mark) :]

    async def before_commit(self) -> None:
        return

    async def after_commit(self) -> None:
        self._announce()
        for work in self._finish:
            await work()

    async def after_rollback(self) -> None:
        return


async def run_in(transaction: Transaction, operation: Operation[T], db: PostgreSQL) -> T:
    """Run `operation` on the connection of `transaction`; if it fails, the transaction is rollback-only.

    Raises:
        QueueUnavailable: the transaction could not begin, or the connection was lost.
        QueueError: the operation failed.
    """
    try:
        connection = await transaction.connection()
    except DatabaseUnavailable as error:
        raise QueueUnavailable(str(error)) from error
    driver = cast("Driver", (await connection.get_raw_connection()).driver_connection)
    try:
        if not driver.is_in_transaction():
            # SQLAlchemy sends BEGIN only before its own first statement.
            await connection.exec_driver_sql("SELECT 1")
        return await operation(driver)
    except Exception as error:  # noqa: BLE001  # every error is translated to a queue error
        meaning = queue_error(error, db, writing=False)
        transaction.mark_rollback_only(meaning)
        raise meaning from (None if meaning is error else error)
