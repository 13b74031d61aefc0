"""Translation of SQLite's errors to `DatabaseError`: what is wrong, with which file, and what to do."""

import sqlite3
from pathlib import Path

from infra.db.errors import CommitIndeterminate, DatabaseError, DatabaseUnavailable, TransactionRolledBack
from infra.db.sqlite_driver import ConnectionClosed, TransactionLost
from infra.db.sqlite_file import FileReplaced
from infra.files import descriptors_short

_WAL_RESET_FIXED = (3, 51, 3)
_WAL_RESET_BACKPORTS = {(3, 44): 6, (3, 50): 7}


def explain(error: BaseException, path: Path, busy_timeout: float) -> DatabaseError | None:
    """Return the meaning of `error` if it is about the file, its lock or the disk; None for errors of a statement."""
    if isinstance(error, FileReplaced):
        return DatabaseUnavailable(f"the database {path}: {error}")
    match _primary_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return DatabaseUnavailable(
                f"the database {path} was locked by another process for more than {busy_timeout:g} s; "
                "find and end the process that holds the lock, then try again"
            )
        case sqlite3.SQLITE_NOTADB:
            return DatabaseError(f"{path} is not a SQLite database; point db.url at another file or restore a backup")
        case sqlite3.SQLITE_CORRUPT:
            return DatabaseError(f"the database {path} is damaged; restore a backup, or try `.recover` of sqlite3")
        case sqlite3.SQLITE_READONLY:
            return DatabaseError(f"the database {path} is read-only; make the file and its folder writable")
        case sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH | sqlite3.SQLITE_CANTOPEN:
            return DatabaseUnavailable(f"the database {path} cannot be opened: {_obstacle(path)}")
        case sqlite3.SQLITE_FULL:
            return DatabaseUnavailable(f"the disk of the database {path} is full; make room, then try again")
        case sqlite3.SQLITE_IOERR:
            return DatabaseUnavailable(f"the disk of the database {path} fails ({error}); check it, then try again")
        case _:
            return None


def explain_commit(error: BaseException, path: Path, busy_timeout: float) -> DatabaseError | None:
    """Return the meaning of an error of COMMIT: the transaction was rolled back, or its outcome is unknown."""
    if isinstance(error, TransactionLost):
        return TransactionRolledBack(f"SQLite rolled the transaction back: {error}")
    if isinstance(error, ConnectionClosed) or _primary_code(error) == sqlite3.SQLITE_IOERR:
        return CommitIndeterminate(
            f"the database {path} failed during COMMIT ({error}): the transaction may be committed or not"
        )
    return explain(error, path, busy_timeout)


def version_warning(version: tuple[int, int, int]) -> str | None:
    """Return a warning if SQLite `version` can corrupt a database in WAL mode that several connections write."""
    backport = _WAL_RESET_BACKPORTS.get(version[:2])
    fixed = version >= _WAL_RESET_FIXED or (backport is not None and version[2] >= backport)
    if fixed or version < (3, 7, 0):
        return None
    return (
        f"SQLite {'.'.join(map(str, version))} can in rare cases corrupt a database that several processes write "
        "(WAL-reset bug); use 3.51.3 or later, or 3.50.7 or 3.44.6"
    )


def _primary_code(error: BaseException) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _obstacle(path: Path) -> str:
    if (short := descriptors_short()) is not None:
        return short
    if not path.parent.exists():
        return f"its folder {path.parent} does not exist; create it"
    if path.is_dir():
        return "it is a folder; name a file in it"
    if not path.exists():
        return f"it does not exist, or its folder {path.parent} is not writable; check both"
    return "check the permissions of the file and of its folder"
