"""Limits the size of SQLite's write-ahead log while reads overlap.

SQLite copies the log into the database continuously, but restarts the log only at a moment when no reader uses it. With
two requests at a time some reader always does. A checkpoint that waits for the present readers makes the next ones read
from the database alone.
"""

import sqlite3
import time

import structlog

from infra.db.sqlite_file import DatabaseFile

_log = structlog.stdlib.get_logger(__name__)

LIMIT = 16 * 1024 * 1024
"""The size, in bytes, above which the log is truncated. SQLite itself keeps it at about 4 MiB while reads have gaps."""

PATIENCE = 0.08
"""Seconds that a writer waits for readers at that size; the time grows in proportion to the size."""

LONGEST_PATIENCE = 1.0
"""The longest such wait, in seconds. Reads that overlap for longer still let the log grow."""

ATTEMPT = 0.02
"""Seconds that one checkpoint waits for readers. During a long wait new readers start, so that several short attempts
succeed more often."""

RETRY_INTERVAL = 0.5
"""Seconds after a failed truncation before the next one."""

COMMITS = 16
"""The number of commits between two checks of the size."""

WARN_ABOVE = 16 * LIMIT
"""The size, in bytes, above which a failed checkpoint is logged, once each time that the size has doubled."""


class LogLimit:
    """A limit on the log's size, applied after COMMIT in the threads of connections that write."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._commits = 0
        self._not_before = 0.0
        self._warn_above = WARN_ABOVE

    def committed(self, connection: sqlite3.Connection) -> None:
        """Count a COMMIT of `connection`, and check the log every `COMMITS` times; never raises."""
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
    """Copy the whole log into the database and truncate it; return False if readers used the log all the time."""
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
        # The caller has committed already; the next transaction reports a disk error.
        return False
