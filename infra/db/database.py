"""The database of the application, and the transaction that surrounds the code that is running."""

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
    directory. `busy_timeout` is how long, in seconds, a transaction waits to begin before `DatabaseUnavailable`.
    Making one does no I/O. From `open` to `close` it belongs to the running event loop: every use in another one, in a
    thread or in a forked process raises `WrongEventLoop`.

    Raises:
        DatabaseError: the URL is invalid or of a kind that is not supported.
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
        """Connect, creating a SQLite file and its folder if need be, and check that it can be read and written.

        Raises:
            DatabaseUnavailable: it is locked by another process, or its disk is full.
            DatabaseError: it is no database, damaged, read-only, or a folder.
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
        """Surround a block by a transaction, joining the one that is around it in this task already.

        It begins at the first use of the database; without any it costs no I/O. It commits when the outermost block
        ends, and rolls back when an exception leaves that. An exception that leaves a joined block makes the innermost
        savepoint, or else the transaction, rollback-only.

        Raises, at the end of the outermost block:
            TransactionRolledBack: the block ended normally, but the transaction was rollback-only.
            DatabaseUnavailable: COMMIT failed; nothing was kept.
            CommitIndeterminate: the connection was lost during COMMIT.
        Raises at once:
            TransactionNotOwned: the surrounding transaction belongs to another task.
        """
        self._owner.is_here()
        return TransactionBlock(self._dialect, self._lock)

    def savepoint(self) -> AbstractAsyncContextManager[Transaction]:
        """Surround a block by a savepoint: an exception that leaves it undoes the block alone, and goes on.

        It undoes rows, the session's objects and what participants took in. The transaction around it stays usable.

        Raises:
            NoTransaction: there is no transaction around it.
            TransactionNotOwned: that transaction belongs to another task.
            TransactionRolledBack: the block ended normally, but was rollback-only; it was undone.
        """
        return SavepointBlock(self._dialect)

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Surround a block by a read-only session that sees one state of the database and waits for no writer.

        Inside a transaction it is that transaction's session, which may have to wait to begin.

        Raises:
            DatabaseUnavailable: too many reads were under way for longer than `busy_timeout`.
            TransactionNotOwned: the surrounding transaction belongs to another task.
        """
        self._owner.is_here()
        return ReadBlock(self._dialect, self._owner, self._reads, self._busy_timeout)

    def current(self) -> Transaction | None:
        """Return the transaction that surrounds the running code, if there is one.

        Raises:
            TransactionNotOwned: it belongs to another task.
        """
        return surrounding(self._dialect)

    def hidden(self) -> AbstractContextManager[None]:
        """Surround a block in which no transaction is ambient, and so for the tasks and threads started in it."""
        return Hidden(self._dialect)

    def write_lock(self) -> AbstractAsyncContextManager[None]:
        """Surround a block by this process's write lock, first come, first served.

        Every transaction takes it by itself when it begins; a task that has it may begin one. Where the database
        allows several writers it is no lock at all.

        Raises:
            DatabaseUnavailable: it could not be had within `busy_timeout`.
        """
        self._owner.is_here()
        return LockBlock(self._lock if self._dialect.one_writer else None)

    def sqlite_warning(self) -> str | None:
        """Return one line to log at start if this version of SQLite has a bug that may corrupt the database."""
        return self._dialect.warning()

    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Surround a block by a transaction for migrations, alone among all processes; see `infra.db.migrate`.

        Raises:
            DatabaseUnavailable: it cannot begin now.
        """
        self._owner.is_here()
        return self._dialect.migrating()
