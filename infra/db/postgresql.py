"""The PostgreSQL dialect: settings, checks at the start, and one connection pool for transactions and reads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

from sqlalchemy import URL, AdaptedConnection, AsyncAdaptedQueuePool, NullPool, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from infra.db import postgresql_errors
from infra.db.cancellation import finish
from infra.db.errors import DatabaseError, DatabaseUnavailable
from infra.db.postgresql_driver import (
    CLOSE_TIMEOUT,
    ROLLBACK_TIMEOUT,
    ConnectionMode,
    Driver,
    close,
    connect,
    is_pooled,
)
from infra.db.postgresql_errors import OLDEST
from infra.db.postgresql_url import Address, parse

MIGRATING = int.from_bytes(b"beneath", "big")
"""The key of the advisory lock that a migration holds."""

QUEUE_CONNECTIONS = 7
"""The number of connections that the queue of a process may open beside the pool."""

_STATE = """
SELECT pg_is_in_recovery() AS replica, current_setting('default_transaction_read_only') = 'on' AS read_only,
    current_schema() AS schema, current_user AS role,
    (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()) AS encoding,
    least(
        current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
        nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1),
        nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1)
    ) AS connections
"""
# By visibility, not by the current schema: a schema added in front of theirs does not hide the tables.
_FORBIDDEN = """
SELECT relname, relnamespace::regnamespace::text AS schema FROM pg_class
WHERE pg_table_is_visible(oid) AND relname LIKE 'beneath\\_%' AND NOT CASE relkind
    WHEN 'r' THEN has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
        AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')
    WHEN 'S' THEN has_sequence_privilege(oid, 'USAGE') AND has_sequence_privilege(oid, 'SELECT')
    ELSE true
END
ORDER BY relname LIMIT 1
"""


class PostgreSQL:
    """A PostgreSQL database; its writers wait for each other only if they change the same rows.

    Transactions are READ COMMITTED; a stricter one executes `SET TRANSACTION ISOLATION LEVEL ...` as its first
    statement. A statement that fails ends the transaction, unless it is inside a `db.savepoint()`.
    """

    name: Literal["postgresql"] = "postgresql"
    path: Path | None = None
    one_writer = False
    settled = True
    rollback_timeout = ROLLBACK_TIMEOUT

    def __init__(self, url: URL, busy_timeout: float) -> None:
        self.address: Address = parse(url)
        self._busy_timeout = busy_timeout
        self._mode: ConnectionMode | None = None
        self._writer: AsyncEngine | None = None
        self._reader: AsyncEngine | None = None
        self._drivers: WeakSet[Driver] = WeakSet()

    @property
    def max_reads(self) -> int:
        return self.address.pool_size

    @property
    def writer(self) -> AsyncEngine:
        return _opened(self._writer)

    @property
    def reader(self) -> AsyncEngine:
        return _opened(self._reader)

    @property
    def mode(self) -> ConnectionMode:
        """The mode of new connections, found by `open`."""
        if self._mode is None:
            raise DatabaseError("the database is not open; call `await db.open()` first")
        return self._mode

    async def open(self) -> None:
        if self._writer is not None:
            return
        probe = await self._connect()
        try:
            self._mode = await self._examine(probe)
        except postgresql_errors.CONNECTING as error:
            raise self.explain(error) or _unusable(self.address, error) from error
        finally:
            await close(probe)
        self._writer = self._engine(self._mode)
        self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def close(self) -> None:
        if self._writer is not None:
            # Concurrently: SQLAlchemy would wait for each of them in turn if the server did not answer.
            idle = [it for it in self._drivers if not it.is_closed() and not it.is_in_transaction()]
            await asyncio.gather(*(close(it) for it in idle))
            await self._writer.dispose()
        self._writer = self._reader = None

    async def settle(self) -> None:
        """Return at once: a cancelled transaction leaves no lock for which other tasks of this process would wait."""

    async def connect(self, *, limited: bool = True, **settings: str) -> Driver:
        """Open a connection outside of the pool, for the queue.

        Raises:
            DatabaseError: the connection cannot be opened; the text names the reason.
        """
        return await self._connect(self.mode, limited=limited, **settings)

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        async def unlimited() -> Driver:
            return await self.connect(limited=False)

        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=unlimited,
            poolclass=NullPool,
            connect_args={} if self.mode.prepared else _uncached(),
        )
        try:
            async with engine.connect() as connection, connection.begin():
                await self._lock_migrations(connection)
                yield connection
        finally:
            await engine.dispose()

    def explain(self, error: BaseException) -> DatabaseError | None:
        return postgresql_errors.explain(error, self.address)

    def explain_commit(self, error: BaseException) -> DatabaseError | None:
        return postgresql_errors.explain_commit(error, self.address)

    def warning(self) -> str | None:
        return None

    async def _connect(self, mode: ConnectionMode | None = None, *, limited: bool = True, **settings: str) -> Driver:
        connected = await finish(connect(self.address, mode, limited=limited, **settings), patience=CLOSE_TIMEOUT)
        if connected.cancelled is not None:
            if connected.failure is None:
                await finish(close(connected.task.result()))
            raise connected.cancelled
        try:
            return connected.task.result()
        except Exception as error:
            raise postgresql_errors.explain_connect(error, self.address) or error from error

    async def _examine(self, probe: Driver) -> ConnectionMode:
        version = probe.get_server_version()
        if version.major < OLDEST:
            raise DatabaseError(
                f"PostgreSQL at {self.address.where} is version {version.major}; version {OLDEST} or newer is required"
            )
        pooled = await is_pooled(probe)
        state = await probe.fetchrow(_STATE)
        self._check_writable(replica=state["replica"], read_only=state["read_only"])
        self._check_encoding(state["encoding"])
        await self._check_permission(probe, state["role"], state["schema"])
        needed = self.address.pool_size + QUEUE_CONNECTIONS
        if not pooled and state["connections"] < needed:
            raise DatabaseError(
                f"PostgreSQL at {self.address.where} allows {state['connections']} connections, and each process "
                f"of this application may need {needed}; raise max_connections or the role's limit, or lower pool_size "
                "in db.url"
            )
        switch = self.address.prepared_statements
        prepared = switch == "on" or (switch == "auto" and not pooled)
        return ConnectionMode(pooled=pooled, prepared=prepared, version=(version.major, version.minor))

    def _check_writable(self, *, replica: bool, read_only: bool) -> None:
        if replica:
            raise DatabaseError(
                f"PostgreSQL at {self.address.where} is a read-only replica; point db.url at the primary"
            )
        if read_only:
            raise DatabaseError(
                f"the database {self.address.database!r} at {self.address.where} is read-only "
                "(default_transaction_read_only is on); switch that off, or point db.url at another database"
            )

    def _check_encoding(self, encoding: str) -> None:
        if encoding != "UTF8":
            raise DatabaseError(
                f"the database {self.address.database!r} at {self.address.where} is encoded in {encoding}, which "
                "cannot store every text; create it again with ENCODING 'UTF8' TEMPLATE template0"
            )

    async def _check_permission(self, probe: Driver, role: str, schema: str | None) -> None:
        if schema is None:
            raise DatabaseError(
                f"the role {role!r} may use no schema of the database {self.address.database!r}; "
                f'GRANT USAGE, CREATE ON SCHEMA public TO "{role}"'
            )
        if (forbidden := await probe.fetchrow(_FORBIDDEN)) is not None:
            raise DatabaseError(
                f"the role {role!r} has no permission to read and write {forbidden['relname']!r} in the database "
                f"{self.address.database!r}; GRANT ALL ON ALL TABLES IN SCHEMA {forbidden['schema']} (and SEQUENCES) "
                f'TO "{role}"'
            )

    def _engine(self, mode: ConnectionMode) -> AsyncEngine:
        async def creator() -> Driver:
            driver = await self._connect(mode)
            self._drivers.add(driver)
            return driver

        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=creator,
            hide_parameters=True,  # errors are logged and stored; values may be secrets or personal data
            poolclass=_pool_class_for(self.address),
            pool_size=self.address.pool_size,
            max_overflow=0,
            pool_timeout=self._busy_timeout,
            pool_use_lifo=True,
            isolation_level="READ COMMITTED",
            connect_args=_uncached() if not mode.prepared else {},
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        event.listen(engine.sync_engine, "handle_error", self._mark_if_lost)
        return engine

    def _mark_if_lost(self, context: ExceptionContext) -> BaseException | None:
        error = postgresql_errors.original(context.original_exception)
        if postgresql_errors.is_lost(error) and not isinstance(error, TimeoutError):
            # SQLAlchemy would notice only when the end of the connection has arrived too.
            context.is_disconnect = True
        elif postgresql_errors.sqlstate(error) == postgresql_errors.READ_ONLY and not _only_reads(context):
            # The server was demoted; db.url may lead to the new primary already.
            context.is_disconnect = True
        # Errors of COMMIT are translated by `explain_commit`.
        if context.statement is None or not context.is_disconnect:
            return None
        return self.explain(context.original_exception)

    async def _lock_migrations(self, connection: AsyncConnection) -> None:
        patience = f"{int(self._busy_timeout * 1000)}"
        await connection.execute(text("SELECT set_config('lock_timeout', :patience, true)"), {"patience": patience})
        try:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
        except Exception as error:
            if postgresql_errors.sqlstate(postgresql_errors.original(error)) != postgresql_errors.LOCK_TIMEOUT:
                raise
            raise DatabaseUnavailable(
                f"another process has been migrating the database for more than {self._busy_timeout:g} s; "
                "wait for it, then try again"
            ) from error


def _pool_class_for(at: Address) -> type[AsyncAdaptedQueuePool]:
    class Pool(AsyncAdaptedQueuePool):
        """A pool that raises `DatabaseError` with the reason why there is no connection."""

        def connect(self) -> PoolProxiedConnection:
            try:
                return super().connect()
            except PoolTimeout:
                raise DatabaseUnavailable(
                    f"all {self.size()} connections to the database were in use for more than {self.timeout():g} s; "
                    "keep slow work, such as network calls, out of transactions, or raise pool_size in db.url"
                ) from None
            except postgresql_errors.CONNECTING as error:
                # SQLAlchemy queries a new connection and passes the driver's errors on unchanged.
                raise postgresql_errors.explain_connect(error, at) or error from error

    return Pool


def _uncached() -> dict[str, Any]:
    # An unnamed statement lasts until the next one; a pooler may assign another server connection after that.
    return {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}


def _refuse_closed(connection: AdaptedConnection, _: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
    # The server may have closed an idle connection of the pool; asyncpg has noticed that, so no query is needed.
    if connection.driver_connection.is_closed():
        raise DisconnectionError("the server has closed this connection")


def _only_reads(context: ExceptionContext) -> bool:
    return context.connection is not None and "postgresql_readonly" in context.connection.get_execution_options()


def _unusable(at: Address, error: BaseException) -> DatabaseError:
    return DatabaseError(f"cannot use PostgreSQL at {at.where}: {postgresql_errors.line(error)}")


def _opened(engine: AsyncEngine | None) -> AsyncEngine:
    if engine is None:
        raise DatabaseError("the database is not open; call `await db.open()` first")
    return engine
