"""The application's database and its ambient transaction."""

import asyncio
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from infra.clock import Clock, SystemClock
from infra.db.ambient import Hidden, LockBlock, ReadBlock, SavepointBlock, TransactionBlock, surrounding
from infra.db.dialect import DatabaseDialect, database_dialect_for
from infra.db.lock import WriteLock
from infra.db.transaction import Transaction
from infra.ownership import LoopOwner


class Database:
    """A database and its ambient transaction.

    `url` is the setting `db.url`, such as `sqlite:///./data/beneath.db`; a relative path is relative to the working
    directory. `busy_timeout` is the time, in seconds, that a transaction waits to begin before it raises
    `DatabaseUnavailable`. The constructor does no I/O. From `open` to `close` the database belongs to the running event
    loop: every use in another event loop, in a thread or in a forked process raises `WrongEventLoop`.

    Raises:
        DatabaseError: the URL is invalid, or its kind of database is not supported.
    """

    def __init__(self, url: str, *, busy_timeout: float = 10.0, clock: Clock | None = None) -> None:
        self.url = url
        self._dialect = database_dialect_for(url, busy_timeout)
        self._busy_timeout = busy_timeout
        self._owner = LoopOwner("the database")
        self._reads = asyncio.Semaphore(self._dialect.max_reads)
        self._lock = WriteLock(clock or SystemClock(), busy_timeout)

    @property
    def dialect(self) -> DatabaseDialect:
        """The kind of this database: its name, engines and errors."""
        return self._dialect

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database, absolute; else None."""
        return self._dialect.path

    async def open(self) -> None:
        """Connect, and check that the database can be read and written; create a missing SQLite file and its folder.

        Raises:
            DatabaseUnavailable: another process has locked the database, or its disk is full.
            DatabaseError: the file is not a database, is damaged or read-only, or is a folder.
        """
        self._owner.is_here()
        await self._dialect.open()
        self._owner.enter()

    async def close(self) -> None:
        """Close every connection."""
        self._owner.is_here()
        await self._dialect.close()
        self._owner.leave()

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Return a block inside a transaction; it joins the transaction that is already open in this task.

        The transaction begins at the first use of the database; a block that does not use it costs no I/O. It commits
        when the outermost block ends, and rolls back when an exception leaves the outermost block. An exception that
        leaves a joined block makes the innermost savepoint, or else the transaction, rollback-only.

        Raises, at the end of the outermost block:
            TransactionRolledBack: the block ended normally, but the transaction was rollback-only.
            DatabaseUnavailable: COMMIT failed; nothing was committed.
            CommitIndeterminate: the connection was lost during COMMIT.
        Raises at once:
            TransactionNotOwned: the surrounding transaction belongs to another task.
        """
        self._owner.is_here()
        return TransactionBlock(self._dialect, self._lock)

    def savepoint(self) -> AbstractAsyncContextManager[Transaction]:
        """Return a block inside a savepoint: an exception that leaves the block rolls back the block alone.

        The rollback covers rows, the session's objects and the state of participants; the exception is raised further.
        The surrounding transaction stays usable.

        Raises:
            NoTransaction: no transaction is open in this task.
            TransactionNotOwned: the surrounding transaction belongs to another task.
            TransactionRolledBack: the block ended normally, but was rollback-only and was rolled back.
        """
        return SavepointBlock(self._dialect)

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Return a block with a read-only session that reads one snapshot and waits for no writer.

        Inside a transaction the session is that of the transaction, which may have to wait to begin.

        Raises:
            DatabaseUnavailable: too many reads were open for longer than `busy_timeout`.
            TransactionNotOwned: the surrounding transaction belongs to another task.
        """
        self._owner.is_here()
        return ReadBlock(self._dialect, self._owner, self._reads, self._busy_timeout)

    def current(self) -> Transaction | None:
        """Return the transaction that is open around the running code; None if there is none.

        Raises:
            TransactionNotOwned: the transaction belongs to another task.
        """
        return surrounding(self._dialect)

    def hidden(self) -> AbstractContextManager[None]:
        """Return a block in which no transaction is ambient, nor in the tasks and threads started in the block."""
        return Hidden(self._dialect)

    def write_lock(self) -> AbstractAsyncContextManager[None]:
        """Return a block that holds this process's write lock, which is granted in the order of the requests.

        Every transaction acquires the lock when it begins; the task that holds the lock may begin one. On a database
        that allows several writers the block holds no lock.

        Raises:
            DatabaseUnavailable: the lock was not granted within `busy_timeout`.
        """
        self._owner.is_here()
        return LockBlock(self._lock if self._dialect.one_writer else None)

    def sqlite_warning(self) -> str | None:
        """Return one line to log at the start if this version of SQLite has a bug that may corrupt the database."""
        return self._dialect.warning()

    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Return a block inside a transaction that excludes all other migrations; see `infra.db.migrate`.

        Raises:
            DatabaseUnavailable: the transaction cannot begin now.
        """
        self._owner.is_here()
        return self._dialect.migrating()
