"""The interface to one kind of database, and its choice by the setting `db.url`."""

from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infra.db.errors import DatabaseError
from infra.db.sqlite import SQLite

DialectName = Literal["sqlite", "postgresql"]


class DatabaseDialect(Protocol):
    """One kind of database: everything that differs between SQLite and PostgreSQL."""

    @property
    def name(self) -> DialectName:
        """The name of the dialect, as in SQLAlchemy."""
        ...

    @property
    def path(self) -> Path | None:
        """The database file; None if the database is a server."""
        ...

    @property
    def one_writer(self) -> bool:
        """Whether only one transaction may write at a time, so that the writers of a process wait for `WriteLock`."""
        ...

    @property
    def max_reads(self) -> int:
        """The number of `db.read()` blocks of this process that may use the database at a time."""
        ...

    @property
    def writer(self) -> AsyncEngine:
        """The engine for transactions that may write. BEGIN on it either acquires the needed locks or raises."""
        ...

    @property
    def reader(self) -> AsyncEngine:
        """The engine for read-only transactions, each of which reads one snapshot."""
        ...

    async def open(self) -> None:
        """Connect and check that the database can be read and written.

        Raises:
            DatabaseError: the database cannot be used; the text names the reason.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...

    @property
    def settled(self) -> bool:
        """Whether no work left over from a cancelled transaction still holds the write lock."""
        ...

    async def settle(self) -> None:
        """Wait until `settled` is true."""
        ...

    @property
    def rollback_timeout(self) -> float | None:
        """Seconds that a cancelled task waits for ROLLBACK before its connection is closed; None: no limit."""
        ...

    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction for migrations, which excludes such transactions of all other processes.

        The transaction commits at the end of the block, or rolls back when an exception leaves the block.
        """
        ...

    def explain(self, error: BaseException) -> DatabaseError | None:
        """Return `error` as a `DatabaseError` if it is about the connection, a lock or the disk; else None."""
        ...

    def explain_commit(self, error: BaseException) -> DatabaseError | None:
        """Do the same for an error of COMMIT: `CommitIndeterminate` if the transaction may have been committed."""
        ...

    def warning(self) -> str | None:
        """Return one line about a known risk of this version of the database; None if there is none."""
        ...


def database_dialect_for(url: str, busy_timeout: float) -> DatabaseDialect:
    """Return the dialect for `url`, the setting `db.url`.

    Raises:
        DatabaseError: the URL is invalid, or its kind of database is not supported.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError for a port that is not a number; its text would quote the URL
        raise DatabaseError(
            "db.url is not a database URL; write it like sqlite:///./data/beneath.db (a file below this folder), "
            "or postgresql://user:password@host/name"
        ) from None
    if "@" in (parsed.host or ""):
        raise DatabaseError("db.url: an @ in the user name or the password is written %40, a / is %2F, a % is %25")
    if parsed.drivername in {"sqlite", "sqlite+aiosqlite"}:
        return SQLite(_sqlite_path(parsed), busy_timeout)
    if parsed.drivername in {"postgresql", "postgresql+asyncpg"}:
        return _postgresql(parsed, busy_timeout)
    raise DatabaseError(
        f"db.url: {parsed.drivername!r} is not supported; use sqlite:///path/to/file.db, "
        "or postgresql://user:password@host/name"
    )


def _postgresql(url: URL, busy_timeout: float) -> DatabaseDialect:
    if find_spec("asyncpg") is None:
        raise DatabaseError("db.url: PostgreSQL needs its driver: pip install 'beneath-backend[postgres]'")
    from infra.db.postgresql import PostgreSQL

    return PostgreSQL(url, busy_timeout)


def _sqlite_path(url: URL) -> Path:
    if url.host or url.username or url.password or url.port:
        guess = "/".join(part for part in (url.host, url.database) if part)
        raise DatabaseError(f"db.url: a SQLite URL has three slashes before its path; did you mean sqlite:///{guess}?")
    if not url.database or url.database == ":memory:" or "mode=memory" in str(url):
        raise DatabaseError("db.url: SQLite in memory cannot be shared by connections; use sqlite:///path/to/file.db")
    if url.query:
        raise DatabaseError(f"db.url: unknown option {next(iter(url.query))!r} in a SQLite URL; it takes none")
    try:
        return Path(url.database).expanduser().absolute()
    except RuntimeError as error:
        raise DatabaseError(f"db.url: {error}; write the whole path") from None
