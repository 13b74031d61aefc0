"""A SQLite connection that needs one thread switch per statement and releases its locks under cancellation."""

import asyncio
import sqlite3
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

from infra.db.sqlite_thread import Jobs, JobThread, hand_over

FIRST_ROWS = 1000
"""The number of rows fetched together with the statement; the rest of a longer result is fetched on request."""

BUSY_SLICE = 0.1
"""Seconds that SQLite itself waits for another process's lock before it returns to the event loop."""

INTERRUPT_AGAIN = 0.005
"""Seconds after which a cancelled statement that still runs is interrupted again."""

BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

_T = TypeVar("_T")


class TransactionLost(sqlite3.OperationalError):
    """SQLite itself rolled the transaction back after a severe error, such as a full disk."""


class ConnectionClosed(sqlite3.OperationalError):
    """A statement, or COMMIT, on a closed connection."""


class SQLiteConnection:
    """A connection whose statements run in a thread of its own, made for short transactions under cancellation.

    - A statement and its first rows take one switch to the thread.
    - A cancelled statement is interrupted, so that its thread is free at once.
    - Closing rolls back first, because SQLite keeps the locks of a connection closed with an unfinished SELECT.
    - Once SQLite has rolled back by itself, no statement runs until `rollback()`: each would commit by itself.

    Args:
        opener: Opens the connection; called in its thread, by `open`.
        read_only: Whether the connection only reads, so that no caller needs to wait for its ROLLBACK.
        check: Called in each transaction, before its COMMIT or, when it only reads, after BEGIN; an exception of it
            ends the transaction.
        committed: Called in the thread after each COMMIT.
        jobs: Runs the statements, by default in a new thread.
    """

    def __init__(
        self,
        opener: Callable[[], sqlite3.Connection],
        *,
        read_only: bool = False,
        check: Callable[[], None] | None = None,
        committed: Callable[[sqlite3.Connection], None] | None = None,
        jobs: Jobs | None = None,
    ) -> None:
        self._opener = opener
        self._jobs = jobs or JobThread()
        self._connection: sqlite3.Connection | None = None  # set and closed in the thread
        self._running = False
        self._check = check
        self._committed = committed
        self.broken = False
        """Whether a ROLLBACK failed, so that the connection was closed to release its lock."""
        self._read_only = read_only
        self._begin_first = False
        self._lost: sqlite3.Error | None = None
        self._unfinished: set[sqlite3.Cursor] = set()  # cursors with rows left; used in the thread only
        self._asked = 0
        self._answered = 0
        self._ended: asyncio.Future[None] | None = None

    def __del__(self) -> None:
        if self._running:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=1, source=self)
            self.stop()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open in SQLite; to be called while the thread is idle."""
        return self._connection is not None and self._connection.in_transaction

    @property
    def idle(self) -> bool:
        """Whether the thread has completed all submitted work, also that of closing, which may lock the file."""
        return self._asked == self._answered

    async def drain(self) -> None:
        """Wait until the thread has completed all submitted work, including that of cancelled callers."""
        if self._ended is not None:
            await asyncio.wait((self._ended,))  # unlike `await`, does not cancel the future with this task
        elif not self.idle:
            await self._hop(_nothing)

    async def open(self) -> None:
        """Open the connection in its thread.

        Raises:
            sqlite3.Error: SQLite cannot open the file.
            RuntimeError: the operating system allows no more threads.
        """
        self._jobs.start()
        self._running = True
        try:
            await self._hop(self._open)
        except BaseException:
            self.stop()
            raise

    async def begin_immediate(self, timeout: float) -> None:
        """Begin a transaction that holds the write lock, waiting up to `timeout` seconds for other processes.

        Raises:
            sqlite3.OperationalError: the lock was not granted in time, or the file is not writable.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                await self._hop(self._begin_immediate)
            except asyncio.CancelledError:
                self._post_rollback()
                raise
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0)
            else:
                return

    def begin_deferred(self) -> None:
        """Begin a transaction together with the next statement, in one thread switch."""
        self._begin_first = True

    async def commit(self) -> None:
        await self._hop(self._commit)

    async def rollback(self) -> None:
        if self._begin_first:
            self._begin_first = False
        elif not self._running:
            return  # closing has rolled back
        elif self._read_only:
            self._post_rollback()  # no caller needs the result of this; the next statement runs after it
        elif self._lost is not None or not self.idle or self.in_transaction:
            await self._hop(self._roll_back)

    async def close(self) -> None:
        """Roll back and close; the thread does so even if the caller is cancelled while it waits."""
        self.stop()
        await self.drain()

    def stop(self) -> None:
        """Close the connection and end the thread without waiting; `drain` waits for both."""
        if self._running:
            self._post_rollback()
            self._running = False
            self._ended = _new_future()
            self._ask(self._close, self._ended)
            self._jobs.end()

    def cursor(self) -> "BufferedCursor":
        """Return a cursor, which needs no thread switch."""
        return BufferedCursor(self)

    async def run(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `statement` in the thread, inside the transaction; interrupt it if the caller is cancelled."""
        turn = self._asked + 1
        try:
            return await self._hop(partial(self._guarded, statement))
        except asyncio.CancelledError:
            self._interrupt(turn)
            raise

    def _interrupt(self, turn: int) -> None:
        # SQLite ignores an interruption before the statement has started, so one may not be enough.
        connection = self._connection
        if self._answered < turn and connection is not None:
            with suppress(sqlite3.ProgrammingError):  # closed by the thread meanwhile
                connection.interrupt()
            asyncio.get_running_loop().call_later(INTERRUPT_AGAIN, self._interrupt, turn)

    async def _hop(self, work: Callable[[], _T]) -> _T:
        if not self._running:
            raise ConnectionClosed("the connection was closed")
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._ask(work, answer)
        return await answer

    def _post_rollback(self) -> None:
        """Roll back without waiting; all work submitted later runs after the rollback."""
        if self._running:
            self._ask(self._roll_back, None)

    def _ask(self, work: Callable[[], _T], answer: "asyncio.Future[_T] | None") -> None:
        self._asked += 1
        self._jobs.submit(partial(self._answer, work, answer))

    def _answer(self, work: Callable[[], _T], answer: "asyncio.Future[_T] | None") -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # raised in the caller
            failure = error
        self._answered += 1
        if answer is not None:
            hand_over(answer, result, failure)

    def _guarded(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        connection = self._opened()
        if self._lost is not None:
            raise TransactionLost(f"the transaction was rolled back by an earlier error: {self._lost}")
        if self._begin_first:
            self._begin_first = False
            connection.execute("BEGIN DEFERRED")
            if self._check is not None:
                self._check()
        inside = connection.in_transaction
        try:
            return statement(connection)
        except sqlite3.Error as error:
            if inside and not connection.in_transaction:
                self._lost = error
            raise

    def keep_open(self, cursor: sqlite3.Cursor) -> None:
        """Record that `cursor` has rows left, so that the end of the transaction closes it; called in the thread."""
        self._unfinished.add(cursor)

    def close_cursor(self, cursor: sqlite3.Cursor) -> None:
        """Close `cursor`; called in the thread."""
        self._unfinished.discard(cursor)
        cursor.close()

    def _open(self) -> None:
        self._connection = self._opener()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ConnectionClosed("the connection was closed")
        return self._connection

    def _begin_immediate(self) -> None:
        self._opened().execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        connection = self._opened()
        if self._lost is not None:
            raise TransactionLost(f"the transaction was rolled back by an earlier error: {self._lost}")
        self._begin_first = False
        self._close_cursors()
        writes = connection.in_transaction and not self._read_only
        if writes and self._check is not None:
            self._check()
        connection.commit()
        if writes and self._committed is not None:
            self._committed(connection)

    def _roll_back(self) -> None:
        if (connection := self._connection) is None:
            return
        self._lost = None
        try:
            self._close_cursors()
            if connection.in_transaction:
                connection.rollback()
        except sqlite3.Error:
            self.broken = True
            self._close()  # the next statement reports it, so that the pool replaces the connection
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _close_cursors(self) -> None:
        # An unfinished SELECT keeps its snapshot after COMMIT, and an interrupted one makes ROLLBACK fail too.
        for cursor in self._unfinished:
            cursor.close()
        self._unfinished.clear()


class BufferedCursor:
    """The result of one statement, with its first rows already fetched."""

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
            self._rows += await self._rest(max(wanted, FIRST_ROWS))
        rows, self._rows = self._rows[:wanted], self._rows[wanted:]
        return rows

    async def fetchall(self) -> Sequence[Any]:
        if self._more:
            self._rows += await self._rest(None)
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        if self._more and self._cursor is not None:
            self._more = False
            await self._connection.run(partial(self._close, self._cursor))

    async def _rest(self, size: int | None) -> list[Any]:
        if self._cursor is None:
            return []
        return await self._connection.run(partial(self._fetch, self._cursor, size))

    async def __aiter__(self) -> AsyncIterator[Any]:
        while rows := await self.fetchmany(FIRST_ROWS):
            for row in rows:
                yield row

    def _execute(self, operation: str, parameters: Iterable[Any], connection: sqlite3.Connection) -> None:
        self._cursor = cursor = connection.execute(operation, parameters)  # type: ignore[arg-type]  # always a Sequence
        if cursor.description is not None:
            self._rows = self._fetch(cursor, FIRST_ROWS, connection)

    def _executemany(self, operation: str, rows: Iterable[Iterable[Any]], connection: sqlite3.Connection) -> None:
        self._cursor = connection.executemany(operation, rows)  # type: ignore[arg-type]  # the same

    def _fetch(self, cursor: sqlite3.Cursor, size: int | None, _: sqlite3.Connection) -> list[Any]:
        self._connection.keep_open(cursor)
        rows = cursor.fetchall() if size is None else cursor.fetchmany(size)
        self._more = size is not None and len(rows) == size
        if not self._more:
            self._connection.close_cursor(cursor)
        return rows

    def _close(self, cursor: sqlite3.Cursor, _: sqlite3.Connection) -> None:
        self._connection.close_cursor(cursor)


def _new_future() -> "asyncio.Future[None] | None":
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:  # an unclosed connection is garbage-collected after the end of the loop
        return None


def _nothing() -> None:
    """Do nothing; its answer shows that all earlier work is complete."""


def is_busy(error: BaseException) -> bool:
    """Return whether `error` means that another connection holds the lock."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in BUSY_CODES
