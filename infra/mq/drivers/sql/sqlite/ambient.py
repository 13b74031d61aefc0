"""Queue operations inside the ambient transaction."""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from infra.db import DatabaseUnavailable, Transaction
from infra.db.sqlite_driver import SQLiteConnection
from infra.mq.drivers.sql.sqlite.connection import Operation, queue_error
from infra.mq.errors import QueueUnavailable

T = TypeVar("T")


class NotifyAfterCommit:
    """A participant that wakes up the waiters of this process after COMMIT."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce

    def savepoint(self) -> object:
        return None

    def rollback_to(self, mark: object) -> None:
        """Do nothing: the rows belong to the transaction, and a notification without a change is harmless."""

    async def before_commit(self) -> None:
        return

    async def after_commit(self) -> None:
        self._announce()

    async def after_rollback(self) -> None:
        return


async def run_in(transaction: Transaction, operation: Operation[T], path: Path) -> T:
    """Run `operation` in `transaction` with one thread switch; if it fails, its changes are rolled back.

    Raises:
        QueueUnavailable: the transaction could not begin, or the database failed.
        QueueError: what the operation raised.
    """
    try:
        connection = await transaction.connection()
    except DatabaseUnavailable as error:
        raise QueueUnavailable(str(error)) from error
    driver = (await connection.get_raw_connection()).driver_connection
    if not isinstance(driver, SQLiteConnection):
        raise TypeError(f"{path}: expected a SQLite connection, not {type(driver).__name__}")
    try:
        return await driver.run(lambda db: _whole(db, operation))
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise queue_error(error, path) from error


def _whole(db: sqlite3.Connection, operation: Operation[T]) -> T:
    db.execute("SAVEPOINT beneath_queue")
    try:
        result = operation(db)
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back everything by itself
            db.execute("ROLLBACK TO beneath_queue")
            db.execute("RELEASE beneath_queue")
        raise
    db.execute("RELEASE beneath_queue")
    return result
