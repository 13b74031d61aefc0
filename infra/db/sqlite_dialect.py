"""SQLAlchemy's SQLite dialect over connections of this package."""

import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sqlalchemy import URL, AsyncAdaptedQueuePool
from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteExecutionContext
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util.concurrency import await_, in_greenlet

from infra.db.sqlite_driver import ConnectionClosed, SQLiteConnection


def engine_url(path: Path) -> URL:
    """Return the URL of an engine whose `async_creator` opens connections of the class `SQLiteConnection`."""
    registry.register("sqlite.thread", __name__, ThreadDialect.__name__)
    return URL.create("sqlite+thread", database=str(path))


class _ExecutionContext(SQLiteExecutionContext):
    def create_server_side_cursor(self) -> Any:  # noqa: ANN401  # SQLAlchemy's protocol of cursors
        return self.root_connection.connection.cursor(server_side=True)


class ThreadDialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's dialect for the `sqlite3` module, with asynchronous connections."""

    driver = "thread"
    is_async = True
    has_terminate = True
    supports_server_side_cursors = True
    supports_statement_cache = True
    execution_ctx_cls = _ExecutionContext

    @classmethod
    def import_dbapi(cls) -> Any:  # noqa: ANN401  # SQLAlchemy's protocol of modules
        return _Module()

    @classmethod
    def get_pool_class(cls, url: URL) -> type[AsyncAdaptedQueuePool]:
        return AsyncAdaptedQueuePool

    def is_disconnect(self, e: Exception, connection: object, cursor: object) -> bool:
        return isinstance(e, ConnectionClosed)

    def get_driver_connection(self, connection: Any) -> Any:  # noqa: ANN401  # SQLAlchemy's protocol of connections
        return connection.driver_connection

    def do_terminate(self, dbapi_connection: Any) -> None:  # noqa: ANN401  # the same
        dbapi_connection.terminate()


class _Module:
    """The DB-API module of the dialect: `sqlite3`, except that it makes asynchronous connections."""

    def connect(self, *, async_creator_fn: Callable[[], Coroutine[Any, Any, Any]]) -> "_Adapted":
        """Return a connection that `async_creator_fn` opens."""
        return _Adapted(self, await_(async_creator_fn()))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # of the module
        return getattr(sqlite3, name)


class _Adapted(AsyncAdapt_dbapi_connection):
    """A DB-API connection, whose methods await those of a `SQLiteConnection`."""

    driver_connection: SQLiteConnection  # pyright: ignore[reportIncompatibleMethodOverride]  # narrows the property

    def create_function(self, *values: Any, **options: Any) -> None:  # noqa: ANN401  # those of `sqlite3`
        """Add a function to SQL; the dialect does so for each new connection."""
        await_(self.driver_connection.run(lambda db: db.create_function(*values, **options)))

    def terminate(self) -> None:
        """Close a connection that has failed or is garbage; wait for its end where that is possible."""
        self.driver_connection.stop()
        if in_greenlet():
            await_(self.driver_connection.drain())
