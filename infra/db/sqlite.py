"""The SQLite dialect: settings, connections, and one writer at a time."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from sqlalchemy import AdaptedConnection, Connection, NullPool, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util.concurrency import await_

from infra.db import sqlite_errors
from infra.db.cancellation import finish
from infra.db.errors import DatabaseError, DatabaseUnavailable
from infra.db.sqlite_dialect import engine_url
from infra.db.sqlite_driver import BUSY_SLICE, SQLiteConnection, is_busy
from infra.db.sqlite_file import DatabaseFile, LogCheck
from infra.db.sqlite_log import LogLimit
from infra.files import THREADS_SHORT, private_file, private_folder

SYNC = "PRAGMA synchronous = FULL"

READERS = 16
"""The number of read connections that are kept open; twice as many may be in use at a time."""


class SQLite:
    """A SQLite file in WAL mode: readers and the one writer do not wait for each other.

    Writing transactions begin with BEGIN IMMEDIATE, so that a transaction that reads first and writes later can neither
    lose an update nor fail halfway. There is one write connection; only the holder of `WriteLock` begins on it.
    """

    name: Literal["sqlite"] = "sqlite"
    one_writer = True
    rollback_timeout = None
    max_reads = 2 * READERS

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self.file = DatabaseFile(path)
        self.log_limit = LogLimit(self.file)
        """The limit on the write-ahead log's size, shared with the queue, which also writes to the file."""
        self._busy_timeout = busy_timeout
        self._writing: SQLiteConnection | None = None
        self._writer: AsyncEngine | None = None
        self._reader: AsyncEngine | None = None

    @property
    def path(self) -> Path:
        """The path of the file; once the database is open, with symbolic links resolved."""
        return self.file.path

    @property
    def writer(self) -> AsyncEngine:
        return _opened(self._writer)

    @property
    def reader(self) -> AsyncEngine:
        return _opened(self._reader)

    async def open(self) -> None:
        if self._writer is not None:
            return
        self.file.locate()
        self._prepare_path()
        try:
            await self._check()
        except sqlite3.Error as error:
            raise self.explain(error) or DatabaseError(f"cannot use the database {self.path}: {error}") from error
        self.file.remember()
        self.file.use()
        self._writer = self._engine(self._connect_writer, size=1, extra=0)
        self._reader = self._engine(self._connect_reader, size=READERS, extra=READERS)
        event.listen(self._writer.sync_engine, "begin", self._begin_writing)
        event.listen(self._writer.sync_engine, "checkin", _discard_broken)
        event.listen(self._reader.sync_engine, "begin", _begin_reading)

    async def close(self) -> None:
        for engine in (self._writer, self._reader):
            if engine is not None:
                await engine.dispose()
        if self._writer is not None:
            self.file.release()
        self._writer = self._reader = None

    @property
    def settled(self) -> bool:
        return self._writing is None or self._writing.idle

    async def settle(self) -> None:
        if self._writing is not None:
            await self._writing.drain()

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        engine = create_async_engine(
            engine_url(self.path), async_creator=self._connect_migrator, poolclass=NullPool, pool_reset_on_return=None
        )
        event.listen(engine.sync_engine, "begin", self._begin_writing)
        try:
            async with engine.connect() as connection, connection.begin():
                yield connection
                await self._check_foreign_keys(connection)
        finally:
            await engine.dispose()

    def explain(self, error: BaseException) -> DatabaseError | None:
        return sqlite_errors.explain(_original(error), self.path, self._busy_timeout)

    def explain_commit(self, error: BaseException) -> DatabaseError | None:
        return sqlite_errors.explain_commit(_original(error), self.path, self._busy_timeout)

    def warning(self) -> str | None:
        return sqlite_errors.version_warning(sqlite3.sqlite_version_info)

    def _prepare_path(self) -> None:
        try:
            private_folder(self.path.parent)
        except OSError as error:
            reason = error.strerror or error
            raise DatabaseError(f"cannot create the folder {self.path.parent} of db.url: {reason}") from error
        if self.path.is_dir():
            raise DatabaseError(f"db.url: {self.path} is a folder; name a file in it")
        # SQLite would create the file with the permissions of the umask; its log and index inherit the mode.
        with suppress(OSError):  # SQLite reports the problem in more detail
            private_file(self.path)

    async def _check(self) -> None:
        """Create a missing file, switch it to WAL mode, and acquire its write lock once."""
        connection = await self._connect(self._opener("rwc", self._slice()))
        try:
            await self._retry_while_busy(connection, _switch_to_wal)
            await connection.begin_immediate(self._busy_timeout)
            await connection.run(_read_schema)
        finally:
            closed = await finish(connection.close())
        if closed.cancelled is not None:
            raise closed.cancelled

    async def _retry_while_busy(
        self, connection: SQLiteConnection, work: Callable[[sqlite3.Connection], object]
    ) -> None:
        # SQLite does not wait while another process changes the journal mode.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._busy_timeout
        while True:
            try:
                await connection.run(work)
            except sqlite3.OperationalError as error:
                if not is_busy(error) or loop.time() >= deadline:
                    raise
                await asyncio.sleep(0.005)
            else:
                return

    def _engine(self, connect: Callable[[], object], *, size: int, extra: int) -> AsyncEngine:
        return create_async_engine(
            engine_url(self.path),
            async_creator=connect,
            hide_parameters=True,  # errors are logged and stored; values may be secrets or personal data
            pool_size=size,
            max_overflow=extra,
            pool_timeout=self._busy_timeout,
            pool_use_lifo=True,
            pool_reset_on_return=None,  # the code that begins a transaction always ends it
        )

    async def _connect_writer(self) -> SQLiteConnection:
        connection = await self._connect(
            self._opener("rw", SYNC, "PRAGMA foreign_keys = ON", self._slice()),
            check=LogCheck(self.file),
            committed=self.log_limit.committed,
        )
        self._writing = connection
        return connection

    async def _connect_reader(self) -> SQLiteConnection:
        opener = self._opener("rw", SYNC, "PRAGMA query_only = ON")
        return await self._connect(opener, read_only=True, check=self.file.check)

    async def _connect_migrator(self) -> SQLiteConnection:
        # SQLite changes most of a table by rebuilding it, which would cascade into tables that refer to it. The foreign
        # keys are checked before COMMIT instead.
        return await self._connect(self._opener("rw", SYNC, self._slice()), check=self.file.check)

    async def _connect(
        self,
        opener: Callable[[], sqlite3.Connection],
        *,
        read_only: bool = False,
        check: Callable[[], None] | None = None,
        committed: Callable[[sqlite3.Connection], None] | None = None,
    ) -> SQLiteConnection:
        connection = SQLiteConnection(opener, read_only=read_only, check=check, committed=committed)
        opened = await finish(_open(connection))
        if opened.cancelled is not None:
            if opened.failure is None:
                await finish(connection.close())
            raise opened.cancelled
        try:
            return opened.task.result()
        except sqlite3.Error as error:
            raise self.explain(error) or error from error

    def _slice(self) -> str:
        return f"PRAGMA busy_timeout = {int(min(BUSY_SLICE, self._busy_timeout) * 1000)}"

    def _opener(self, mode: str, *pragmas: str) -> Callable[[], sqlite3.Connection]:
        # mode=rw: a file removed while the application runs must not be created again as an empty database.
        uri = f"{self.path.as_uri()}?mode={mode}"

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                uri, uri=True, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
            )
            try:
                for pragma in pragmas:
                    connection.execute(pragma)
            except BaseException:
                connection.close()
                raise
            return connection

        return connect

    def _begin_writing(self, connection: Connection) -> None:
        try:
            await_(_driver(connection).begin_immediate(self._busy_timeout))
        except sqlite3.Error as error:
            if not is_busy(error):
                connection.invalidate(error)  # the next transaction gets a new connection
            explained = self.explain(error)
            if explained is None:
                raise
            raise explained from error

    async def _check_foreign_keys(self, connection: AsyncConnection) -> None:
        broken = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).first()
        if broken is not None:
            raise DatabaseError(
                f"the migrations would leave rows of {broken.table!r} without their {broken.parent!r}; "
                "nothing was changed"
            )


async def _open(connection: SQLiteConnection) -> SQLiteConnection:
    try:
        await connection.open()
    except RuntimeError as error:
        raise DatabaseUnavailable(f"cannot use the database: {THREADS_SHORT}") from error
    return connection


def _begin_reading(connection: Connection) -> None:
    _driver(connection).begin_deferred()


def _driver(connection: Connection) -> SQLiteConnection:
    driver = connection.connection.driver_connection
    if not isinstance(driver, SQLiteConnection):
        raise TypeError(f"expected SQLiteConnection, not {type(driver).__name__}")
    return driver


def _discard_broken(connection: AdaptedConnection | None, entry: ConnectionPoolEntry) -> None:
    driver = None if connection is None else connection.driver_connection
    if isinstance(driver, SQLiteConnection) and driver.broken:
        entry.invalidate()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise DatabaseError(
            f"db.url: SQLite cannot use its write-ahead log here (journal mode {mode!r}); use a file on a local disk"
        )


def _read_schema(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _opened(engine: AsyncEngine | None) -> AsyncEngine:
    if engine is None:
        raise DatabaseError("the database is not open; call `await db.open()` first")
    return engine


def _original(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
