"""QueueConnections of the queue to its SQLite file, and the translation of SQLite's errors to queue errors."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote

from infra.files import THREADS_SHORT, descriptors_short
from infra.mq.errors import MessageTooLarge, QueueError, QueueRejected, QueueUnavailable

T = TypeVar("T")

Operation = Callable[[sqlite3.Connection], T]
"""A function of a connection that runs in the connection's open transaction."""

Synchronous = Literal["FULL", "NORMAL"]

OPEN_PATIENCE = 1.0
"""Seconds that opening waits for another process that is opening or closing the file."""

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process has locked it for a long time; find and end that process",
    sqlite3.SQLITE_LOCKED: "another connection has locked it for a long time; find and end that transaction",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_PERM: "make the file and its folder writable",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_CANTOPEN: "check that the file and its folder exist and may be read and written",
    sqlite3.SQLITE_CORRUPT: "restore it from a backup",
    sqlite3.SQLITE_NOTADB: "check `db.url`: the file is not a SQLite database",
}


def connect(path: Path, *, synchronous: Synchronous = "FULL", read_only: bool = False) -> sqlite3.Connection:
    """Open the existing file at `path`, for use by one thread at a time. The open connection waits for no lock.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=OPEN_PATIENCE,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        db.execute(f"PRAGMA synchronous = {synchronous}")
        if read_only:
            db.execute("PRAGMA query_only = ON")
        # Only the first read can find the file locked; later ones never wait while the connection is open.
        db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        db.execute("PRAGMA busy_timeout = 0")
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextmanager
def starting_a_thread(path: Path) -> Iterator[None]:
    """Return a block around the start of a thread, which translates its error.

    Raises:
        QueueUnavailable: the system cannot start another thread.
    """
    try:
        yield
    except RuntimeError as error:
        raise QueueUnavailable(f"{path}: {THREADS_SHORT}") from error


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether the error is only that another connection holds the lock."""
    return _primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_disk_error(error: Exception) -> bool:
    """Return whether the disk failed, so that the outcome of a COMMIT is unknown."""
    return _primary_code(error) == sqlite3.SQLITE_IOERR


def queue_error(error: Exception, path: Path) -> QueueError:
    """Return the queue error for `error`, with a text of one line."""
    if isinstance(error, OSError):
        return QueueUnavailable(f"{path}: {error.strerror or error}")
    code = _primary_code(error)
    if isinstance(error, MemoryError):
        return QueueUnavailable(f"{path}: out of memory")
    if code == sqlite3.SQLITE_TOOBIG or (isinstance(error, OverflowError) and "BLOB" in str(error)):
        return MessageTooLarge(f"{path}: a message is larger than SQLite can hold")
    if code in _ADVICE:
        short = descriptors_short() if code == sqlite3.SQLITE_CANTOPEN else None
        return QueueUnavailable(f"{path}: {error}: {short or _ADVICE[code]}")
    if str(error).startswith("no such table: beneath_"):
        return QueueUnavailable(f"{path}: the queue's tables are missing: run `beneath migrate up`")
    if str(error).startswith("no such column: "):
        return QueueUnavailable(f"{path}: the queue's tables are of another release: run `beneath migrate up`")
    if not isinstance(error, sqlite3.Error):
        return QueueRejected(f"{path}: {error}")
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError):
        return QueueRejected(f"{path}: {error}")
    if isinstance(error, sqlite3.ProgrammingError) and "bind" in str(error):
        return QueueRejected(f"{path}: {error}")
    return QueueUnavailable(f"{path}: {error}")


def _primary_code(error: Exception) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else int(code) & 0xFF
