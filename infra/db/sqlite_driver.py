"""A connection to SQLite that needs one thread switch per statement and never keeps a lock it lost track of."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import aiosqlite

FIRST_ROWS = 1000
"""How many rows come along with the statement itself; the rest of a longer result is fetched when it is asked for."""

BUSY_SLICE = 0.1
"""How long, in seconds, SQLite itself waits for another process's lock before the event loop gets a say again."""

_T = TypeVar("_T")


class TransactionLost(sqlite3.OperationalError):
    """SQLite itself rolled the transaction back after an error that it could not contain, such as a full disk."""


class SQLiteConnection(aiosqlite.Connection):
    """An aiosqlite connection, tuned for short transactions under cancellation.

    - A statement and its first rows take one switch to the connection's thread, where aiosqlite takes three.
    - A cancelled statement is interrupted, so that its thread is free again at once.
    - Closing rolls back first. SQLite keeps the locks of a connection that is closed with an unfinished SELECT.
    - Once SQLite has rolled back by itself, nothing runs until `rollback()`: it would commit statement by statement.
    """

    def __init__(self, opener: Callable[[], sqlite3.Connection], *, read_only: bool = False) -> None:
        super().__init__(opener, iter_chunk_size=FIRST_ROWS)
        self._thread.daemon = True  # a statement that hangs in the file system must not keep the process
        self._read_only = read_only
        self._begin_first = False
        self._lost: sqlite3.Error | None = None
        self._asked = 0
        self._answered = 0
        self._stopped: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether the thread has done everything it was asked to do."""
        return self._asked == self._answered

    async def drain(self) -> None:
        """Return once the thread has done everything it was asked to do, also for callers that were cancelled."""
        if self._stopped is not None:
            await asyncio.shield(self._stopped)
        elif not self.idle:
            await self._hop(_nothing)

    async def begin_immediate(self, timeout: float) -> None:
        """Begin a transaction that holds the write lock, waiting up to `timeout` seconds for other processes.

        Raises:
            sqlite3.OperationalError: the lock could not be had, or the file cannot be written.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                await self._hop(self._begin_immediate)
            except asyncio.CancelledError:
                self._post(self._roll_back)
                raise
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0)
            else:
                return

    def begin_deferred(self) -> None:
        """Begin a transaction at the next statement, in the same switch to the thread."""
        self._begin_first = True

    async def commit(self) -> None:
        await self._hop(self._commit)

    async def rollback(self) -> None:
        if self._begin_first:
            self._begin_first = False
        elif self._read_only:
            self._post(self._roll_back)  # nobody waits for the end of a read; the next statement queues behind it
        elif self._lost is not None or not self.idle or self.in_transaction:
            await self._hop(self._roll_back)

    async def close(self) -> None:
        self._post(self._roll_back)
        await super().close()

    def stop(self) -> "asyncio.Future[Any] | None":
        if self._running and self._connection is not None:
            self._post(self._roll_back)
            self._stopped = _new_future()
            self._tx.put_nowait((self._stopped, _nothing))
        return super().stop()

    def cursor(self) -> "BufferedCursor":  # type: ignore[override]  # no switch to the thread before there is work
        return BufferedCursor(self)

    async def run(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `statement` in the thread, inside the transaction; when cancelled meanwhile, interrupt it."""
        try:
            return await self._hop(partial(self._guarded, statement))
        except asyncio.CancelledError:
            if not self.idle and self._connection is not None:
                self._connection.interrupt()
            raise

    async def _execute(self, fn: Callable[..., _T], *args: object, **kwargs: object) -> _T:
        return await self._hop(partial(fn, *args, **kwargs))

    async def _hop(self, work: Callable[[], _T]) -> _T:
        if not self._running or self._connection is None:
            raise ValueError("Connection closed")
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._asked += 1
        self._tx.put_nowait((future, partial(self._answer, work)))
        return await future

    def _post(self, work: Callable[[], object]) -> None:
        if not self._running or self._connection is None:
            return
        self._asked += 1
        self._tx.put_nowait((None, partial(self._answer, work)))

    def _answer(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        finally:
            self._answered += 1

    def _guarded(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        connection = self._conn
        if self._lost is not None:
            raise TransactionLost(f"the transaction was rolled back by an earlier error: {self._lost}")
        if self._begin_first:
            self._begin_first = False
            connection.execute("BEGIN DEFERRED")
        inside = connection.in_transaction
        try:
            return statement(connection)
        except sqlite3.Error as error:
            if inside and not connection.in_transaction:
                self._lost = error
            raise

    def _begin_immediate(self) -> None:
        self._conn.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        if self._lost is not None:
            raise TransactionLost(f"the transaction was rolled back by an earlier error: {self._lost}")
        self._begin_first = False
        self._conn.commit()

    def _roll_back(self) -> None:
        self._lost = None
        if self._connection is not None and self._connection.in_transaction:
            self._connection.rollback()


class BufferedCursor:
    """The result of one statement, its first rows already here."""

    arraysize = 1

    def __init__(self, connection: SQLiteConnection) -> None:
        self._connection = connection
        self._cursor: sqlite3.Cursor | None = None
        self._rows: list[Any] = []
        self._more = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def description(self) -> Any:  # noqa: ANN401  # the DB-API's loose shape
        return None if self._cursor is None else self._cursor.description

    @property
    def rowcount(self) -> int:
        return -1 if self._cursor is None else self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return None if self._cursor is None else self._cursor.lastrowid

    async def execute(self, operation: str, parameters: Iterable[Any] = ()) -> Self:
        await self._connection.run(partial(self._execute, operation, parameters))
        return self

    async def executemany(self, operation: str, parameters: Iterable[Iterable[Any]]) -> Self:
        await self._connection.run(partial(self._executemany, operation, parameters))
        return self

    async def fetchone(self) -> Any:  # noqa: ANN401  # a row
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        wanted = self.arraysize if size is None else size
        if self._more and len(self._rows) < wanted:
            self._rows += await self._connection.run(partial(self._fetch, max(wanted, FIRST_ROWS)))
        rows, self._rows = self._rows[:wanted], self._rows[wanted:]
        return rows

    async def fetchall(self) -> Sequence[Any]:
        if self._more:
            self._rows += await self._connection.run(partial(self._fetch, None))
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        if self._more and self._cursor is not None:
            self._more = False
            await self._connection.run(partial(self._close, self._cursor))

    async def __aiter__(self) -> AsyncIterator[Any]:
        while rows := await self.fetchmany(FIRST_ROWS):
            for row in rows:
                yield row

    def _execute(self, operation: str, parameters: Iterable[Any], connection: sqlite3.Connection) -> None:
        self._cursor = connection.execute(operation, parameters)  # type: ignore[arg-type]  # typeshed wants a Sequence
        if self._cursor.description is not None:
            self._rows = self._cursor.fetchmany(FIRST_ROWS)
            self._more = len(self._rows) == FIRST_ROWS

    def _executemany(self, operation: str, rows: Iterable[Iterable[Any]], connection: sqlite3.Connection) -> None:
        self._cursor = connection.executemany(operation, rows)  # type: ignore[arg-type]  # the same

    def _fetch(self, size: int | None, _: sqlite3.Connection) -> list[Any]:
        if self._cursor is None:
            return []
        rows = self._cursor.fetchall() if size is None else self._cursor.fetchmany(size)
        self._more = size is not None and len(rows) == size
        return rows

    @staticmethod
    def _close(cursor: sqlite3.Cursor, _: sqlite3.Connection) -> None:
        cursor.close()


def _new_future() -> "asyncio.Future[None] | None":
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:  # the last reference was dropped after the loop's end
        return None


def _nothing() -> None:
    """Take a turn in the thread's queue."""


def is_busy(error: BaseException) -> bool:
    """Say whether `error` is SQLite's: another connection holds the lock."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
