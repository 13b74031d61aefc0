"""The write-ahead log of a SQLite database, kept small under reads that overlap.

SQLite copies the log into the database as it goes, but begins it anew only when no reader is in it at that moment. With
two requests at a time there always is one. A checkpoint that waits for the readers of that moment lets the next ones
read from the database alone.
"""

import sqlite3
import time

import structlog

from infra.db.sqlite_file import DatabaseFile

_log = structlog.stdlib.get_logger(__name__)

LIMIT = 16 * 1024 * 1024
"""From so many bytes on the log is to be begun anew. SQLite alone keeps it at about 4 MiB while reads have gaps."""

PATIENCE = 0.08
"""How long, in seconds, writers wait for readers at that size; with the size this grows."""

LONGEST_PATIENCE = 1.0
"""How long, in seconds, they wait at most. Reads that overlap for longer still let the log grow."""

ATTEMPT = 0.02
"""How long, in seconds, a checkpoint waits for the readers that it met; new ones take the place of those that it waits
for, so that a single long wait may be in vain where the next short one succeeds."""

RETRY_INTERVAL = 0.5
"""After how many seconds what did not succeed is tried again."""

COMMITS = 16
"""After how many commits the size of the log is looked at."""

WARN_ABOVE = 16 * LIMIT
"""From so many bytes on a checkpoint that fails is logged, once for each time that the size has doubled."""


class LogLimit:
    """Begins the log anew when it is large; for the threads of connections that write, after their COMMIT."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._commits = 0
        self._not_before = 0.0
        self._warn_above = WARN_ABOVE

    def committed(self, connection: sqlite3.Connection) -> None:
        """Note a COMMIT of `connection`, and see to the log now and then; never raises."""
        self._commits += 1
        if self._commits % COMMITS == 0:
            self._check_size(connection)

    def _check_size(self, connection: sqlite3.Connection) -> None:
        try:
            size = self._file.log_path.stat().st_size
        except OSError:
            return
        if size <= LIMIT or time.monotonic() < self._not_before:
            return
        if not _truncate(connection, min(PATIENCE * size / LIMIT, LONGEST_PATIENCE)):
            self._not_before = time.monotonic() + RETRY_INTERVAL
            if size > self._warn_above:
                self._warn_above = 2 * size
                _log.warning("write-ahead log not truncated", path=str(self._file.log_path), bytes=size)
        else:
            self._warn_above = WARN_ABOVE


def _truncate(connection: sqlite3.Connection, patience: float) -> bool:
    """Copy all of the log into the database and truncate it; False if readers were in it for all that time."""
    deadline = time.monotonic() + patience
    try:
        (before,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {int(ATTEMPT * 1000)}")
        try:
            while True:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not busy or time.monotonic() >= deadline:
                    return not busy
        finally:
            connection.execute(f"PRAGMA busy_timeout = {before}")
    except sqlite3.Error:
        # It is not what was asked for: what is wrong with the disk, the next transaction says.
        return False
