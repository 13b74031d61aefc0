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
        """Its file, if it is one."""
        ...

    @property
    def one_writer(self) -> bool:
        """Whether only one transaction may write at a time, so that this process's writers queue for a lock."""
        ...

    @property
    def max_reads(self) -> int:
        """How many `db.read()` blocks of this process may use the database at a time."""
        ...

    @property
    def writer(self) -> AsyncEngine:
        """The engine whose transactions may write; a transaction begun on it has its locks, or raised."""
        ...

    @property
    def reader(self) -> AsyncEngine:
        """The engine whose transactions see one state of the database and cannot write."""
        ...

    async def open(self) -> None:
        """Connect and check that the database can be read and written.

        Raises:
            DatabaseError: it cannot be used, and why.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...

    @property
    def settled(self) -> bool:
        """Whether nothing that a cancelled transaction left behind still holds the write lock."""
        ...

    async def settle(self) -> None:
        """Return once `settled`."""
        ...

    @property
    def rollback_timeout(self) -> float | None:
        """Seconds that a cancelled task waits for the answer to a ROLLBACK; then its connection is given up."""
        ...

    def migrating(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction for migrations, of which there is one at a time among all processes.

        It commits at the end of the block, or rolls back when an exception leaves it.
        """
        ...

    def explain(self, error: BaseException) -> DatabaseError | None:
        """Say in one line what is wrong with the connection, a lock or the disk; None for any other error."""
        ...

    def explain_commit(self, error: BaseException) -> DatabaseError | None:
        """Do the same for an error that COMMIT raised, telling the known from the indeterminate."""
        ...

    def warning(self) -> str | None:
        """Say in one line what is risky about this version of the database, if anything is."""
        ...


def database_dialect_for(url: str, busy_timeout: float) -> DatabaseDialect:
    """Return the dialect that `url`, the setting `db.url`, asks for.

    Raises:
        DatabaseError: the URL is invalid, or nothing here supports it.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number, which it quotes
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
