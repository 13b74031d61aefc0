"""A connection to SQLite that needs one thread switch per statement and never keeps a lock it lost track of."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

FIRST_ROWS = 1000
"""How many rows come along with the statement itself; the rest of a longer result is fetched when it is asked for."""

BUSY_SLICE = 0.1
"""How long, in seconds, SQLite itself waits for another process's lock before the event loop gets a say again."""

INTERRUPT_AGAIN = 0.005
"""After how many seconds a cancelled statement that still runs is interrupted again."""

BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

_T = TypeVar("_T")


class TransactionLost(sqlite3.OperationalError):
    """SQLite itself rolled the transaction back after an error that it could not contain, such as a full disk."""


class SQLiteConnection(aiosqlite.Connection):
    """An aiosqlite connection, tuned for short transactions under cancellation.

    - A statement and its first rows take one switch to the connection's thread, where aiosqlite takes three.
    - A cancelled statement is interrupted, so that its thread is free again at once.
    - Closing rolls back first. SQLite keeps the locks of a connection that is closed with an unfinished SELECT.
    - Once SQLite has rolled back by itself, nothing runs until `rollback()`: it would commit statement by statement.

    Args:
        opener: Opens it, in its thread.
        read_only: Whether other processes need not wait for the end of its transactions.
        check: Called in each transaction, before its COMMIT or, when it only reads, after its begin; what it raises
            ends the transaction.
        committed: Called in the thread after each COMMIT.
    """

    def __init__(
        self,
        opener: Callable[[], sqlite3.Connection],
        *,
        read_only: bool = False,
        check: Callable[[], None] | None = None,
        committed: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        super().__init__(opener, iter_chunk_size=FIRST_ROWS)
        self._check = check
        self._committed = committed
        self._thread.daemon = True  # a statement that hangs in the file system must not keep the process
        self.broken = False
        """Whether it failed to roll back, and was closed for that: the lock goes before everything."""
        self._read_only = read_only
        self._begin_first = False
        self._lost: sqlite3.Error | None = None
        self._open: set[sqlite3.Cursor] = set()  # with rows left; touched in the thread only
        self._asked = 0
        self._answered = 0
        self._ended: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether the thread has done everything it was asked to do."""
        return self._asked == self._answered

    async def drain(self) -> None:
        """Return once the thread has done everything it was asked to do, also for callers that were cancelled."""
        if self._ended is not None:
            await asyncio.wait((self._ended,))  # unlike `await`, leaves it alone when this task is cancelled
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
                self._post_rollback()
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
            self._post_rollback()  # nobody waits for the end of a read; the next statement queues behind it
        elif self._lost is not None or not self.idle or self.in_transaction:
            await self._hop(partial(self._roll_back, self._conn))

    async def close(self) -> None:
        if self._running:
            self._post_rollback()
            await super().close()
        await self.drain()

    def stop(self) -> None:
        """Close and end the thread without waiting; `drain` waits for that."""
        if self._running:
            self._post_rollback()
            self._running = False
            self._ended = _new_future()
            connection, self._connection = self._connection, None
            self._tx.put_nowait((None, partial(_close, connection, self._ended)))

    def cursor(self) -> "BufferedCursor":  # type: ignore[override]  # no switch to the thread before there is work
        return BufferedCursor(self)

    async def run(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `statement` in the thread, inside the transaction; when cancelled meanwhile, interrupt it."""
        turn = self._asked + 1
        try:
            return await self._hop(partial(self._guarded, statement))
        except asyncio.CancelledError:
            self._interrupt(turn)
            raise

    def _interrupt(self, turn: int) -> None:
        # SQLite forgets an interruption that comes before the statement has started, so one may not be enough.
        if self._answered < turn and self._connection is not None:
            self._connection.interrupt()
            asyncio.get_running_loop().call_later(INTERRUPT_AGAIN, self._interrupt, turn)

    async def _execute(self, fn: Callable[..., _T], *args: object, **kwargs: object) -> _T:
        return await self._hop(partial(fn, *args, **kwargs))

    async def _hop(self, work: Callable[[], _T]) -> _T:
        if not self._running or self._connection is None:
            raise ValueError("Connection closed")
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._ask(work, answer)
        return await answer

    def _post_rollback(self) -> None:
        """Roll back without waiting; whatever is asked of the thread next comes after it."""
        if self._running and self._connection is not None:
            # aiosqlite forgets its connection as soon as closing it is cancelled, which may be before this runs.
            self._ask(partial(self._roll_back, self._connection), None)

    def _ask(self, work: Callable[[], _T], answer: "asyncio.Future[_T] | None") -> None:
        self._asked += 1
        self._tx.put_nowait((None, partial(self._answer, work, answer)))

    def _answer(self, work: Callable[[], _T], answer: "asyncio.Future[_T] | None") -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # it belongs to whoever asked
            failure = error
        self._answered += 1
        if answer is not None:
            _hand_over(answer, result, failure)

    def _guarded(self, statement: Callable[[sqlite3.Connection], _T]) -> _T:
        connection = self._conn
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
        """Note, in the thread, that `cursor` has rows left, so that the transaction's end can close it."""
        self._open.add(cursor)

    def close_cursor(self, cursor: sqlite3.Cursor) -> None:
        """Close `cursor`, in the thread."""
        self._open.discard(cursor)
        cursor.close()

    def _begin_immediate(self) -> None:
        self._conn.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        if self._lost is not None:
            raise TransactionLost(f"the transaction was rolled back by an earlier error: {self._lost}")
        self._begin_first = False
        self._close_cursors()
        writes = self._conn.in_transaction and not self._read_only
        if writes and self._check is not None:
            self._check()
        self._conn.commit()
        if writes and self._committed is not None:
            self._committed(self._conn)

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        self._lost = None
        try:
            self._close_cursors()
            if connection.in_transaction:
                connection.rollback()
        except sqlite3.Error:
            self.broken = True
            connection.close()
            raise

    def _close_cursors(self) -> None:
        # An unfinished SELECT keeps its snapshot after COMMIT; and one that was interrupted keeps the interruption in
        # force, also for the ROLLBACK.
        for cursor in self._open:
            cursor.close()
        self._open.clear()


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
        self._cursor = cursor = connection.execute(operation, parameters)  # type: ignore[arg-type]  # a Sequence it is
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


def _hand_over(answer: "asyncio.Future[Any]", result: object, failure: BaseException | None) -> None:
    with suppress(RuntimeError):  # its loop was closed: nobody is waiting any more
        answer.get_loop().call_soon_threadsafe(_deliver, answer, result, failure)


def _deliver(answer: "asyncio.Future[Any]", result: object, failure: BaseException | None) -> None:
    if answer.done():  # cancelled
        return
    if failure is None:
        answer.set_result(result)
    else:
        answer.set_exception(failure)


def _new_future() -> "asyncio.Future[None] | None":
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:  # a forgotten connection is collected after the loop's end
        return None


def _close(connection: sqlite3.Connection | None, ended: "asyncio.Future[None] | None") -> object:
    if connection is not None:
        connection.close()
    if ended is not None:
        _hand_over(ended, None, None)
    return _STOP_RUNNING_SENTINEL


def _nothing() -> None:
    """Take a turn in the thread's queue."""


def is_busy(error: BaseException) -> bool:
    """Say whether `error` is SQLite's: another connection holds the lock."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in BUSY_CODES
