"""The file of a SQLite database: its real path, and checks that the path still leads to the opened file."""

import os
import re
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from infra.db.errors import DatabaseError

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""The octal escapes of blanks and similar characters in that file."""

CHECK_INTERVAL = 0.1
"""Seconds between two checks that the write-ahead log of a connection still exists."""

_BESIDE = {"-wal": "its write-ahead log", "-shm": "the index of its write-ahead log"}

Identity = tuple[int, int]

_used: Counter[Identity] = Counter()
"""The files that this process has open, with the number of times."""

_inherited: set[Identity] = set()
"""The files that were open when this process was forked. The child has a copy of SQLite's list of locks, in which the
parent's locks look like its own: it would wait for some of them for ever, and read without holding others."""


class FileReplaced(sqlite3.OperationalError):
    """The path leads to another file than the open one, or to none: anything written would be lost."""


class DatabaseFile:
    """A database path as given in the setting, and the file behind it.

    SQLite derives the name of the write-ahead log from the name of the file, and the queue those of its lock files. So
    all processes must use one name: symbolic links are followed, and a file with several names is refused.
    """

    def __init__(self, path: Path) -> None:
        self._named = path
        self._name = str(path)  # used in each transaction, where a Path would be slower
        self.path = path
        """The real path, once `locate` has been called."""
        self._identity: Identity | None = None

    @property
    def log_path(self) -> Path:
        """The path of the write-ahead log."""
        return self.path.with_name(f"{self.path.name}-wal")

    def locate(self) -> None:
        """Follow symbolic links. The file need not exist.

        Raises:
            DatabaseError: the links form a cycle, or other processes may use the file under another name.
        """
        try:
            self.path = self._named.resolve()
            links = self.path.stat().st_nlink if self.path.is_file() else 1
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DatabaseError(f"db.url: cannot resolve the path {self._named}: {reason}") from error
        if _identity(self.path) in _inherited:
            raise DatabaseError(
                f"db.url: {self.path} was open in the process that this one was forked from, and SQLite's locks do not "
                "outlive a fork; fork before it is opened, or start the process anew (as multiprocessing's spawn does)"
            )
        if links > 1:
            raise DatabaseError(
                f"db.url: {self.path} has {links} names (hard links); SQLite loses data when processes use different "
                "ones, so copy the file and use the copy"
            )
        if self.path.as_posix() in _mount_points():
            raise DatabaseError(
                f"db.url: {self.path} is mounted as a single file, without its write-ahead log; mount its folder"
            )

    def remember(self) -> None:
        """Record the file at the path now as the one that `check` expects."""
        self._identity = _identity(self._named)

    def use(self) -> None:
        """Record that this process has the file open until `release`: before that a forked child must not open it."""
        if self._identity is not None:
            _used[self._identity] += 1

    def release(self) -> None:
        """Undo one `use`."""
        if self._identity is not None:
            _used[self._identity] -= 1

    def check(self) -> None:
        """Check that the path still leads to the file that was opened.

        Raises:
            FileReplaced: the file was removed, moved or replaced.
        """
        if self._identity is not None:
            _expect(self._identity, _identity(self._name), "the file")


class LogCheck:
    """A check that the write-ahead log of an open connection and its index are still beside the database."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._identities: dict[str, Identity | None] = {}
        self._checked_at = -CHECK_INTERVAL

    def reset(self) -> None:
        """Accept the files that the next check finds; to be called when the first connection is opened."""
        self._identities.clear()
        self._checked_at = -CHECK_INTERVAL

    def __call__(self) -> None:
        """Check the database file, and from time to time the log and its index; to be called inside a transaction.

        Raises:
            FileReplaced: one of the files was removed, moved or replaced.
        """
        self._file.check()
        self._check_log(time.monotonic())

    def check_if_due(self) -> None:
        """Check the same, but only if the last check was more than `CHECK_INTERVAL` ago, to save system calls.

        Raises:
            FileReplaced: as above.
        """
        now = time.monotonic()
        if now - self._checked_at >= CHECK_INTERVAL:
            self._file.check()
            self._check_log(now)

    def _check_log(self, now: float) -> None:
        if now - self._checked_at >= CHECK_INTERVAL:
            # The locks are in the index: two processes with different indexes would both write.
            for ending, what in _BESIDE.items():
                found = _identity(f"{self._file.path}{ending}")
                identity = self._identities.get(ending)
                if identity is None:
                    self._identities[ending] = found
                else:
                    _expect(identity, found, what)
            self._checked_at = now


def _inherit() -> None:
    _inherited.update(+_used)
    _used.clear()


os.register_at_fork(after_in_child=_inherit)


def _expect(identity: Identity, found: Identity | None, what: str) -> None:
    if found is None:
        raise FileReplaced(f"{what} was removed or moved away: put it back, or restart this process")
    if found != identity:
        raise FileReplaced(f"{what} was replaced by another file: restart this process")


def _identity(path: Path | str) -> Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # used in each transaction: a third faster than Path.stat
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _mount_points() -> set[str]:
    with suppress(OSError, UnicodeError):
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
        return {_ESCAPED.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines}
    return set()
