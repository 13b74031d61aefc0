"""The file of a SQLite database: the one place where it is, and whether it is still the file that was opened."""

import os
import re
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from infra.db.errors import DatabaseError

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How a blank in a path is written there."""

LOOK_EVERY = 0.1
"""After how many seconds a connection looks again whether its write-ahead log is there."""

Identity = tuple[int, int]


class FileReplaced(sqlite3.OperationalError):
    """The path leads to another file than the one that is open, or to none: what is written would be lost."""


class DatabaseFile:
    """A path, as it was given, and the file behind it.

    SQLite finds its write-ahead log by the name of the file, and the queue its lock files. So all processes must come
    to one name: symbolic links are followed, and a file with several names is refused.
    """

    def __init__(self, path: Path) -> None:
        self._named = path
        self.path = path
        """Where it really is, once `locate` has been called."""
        self._identity: Identity | None = None

    @property
    def log_path(self) -> Path:
        """Where its write-ahead log is."""
        return self.path.with_name(f"{self.path.name}-wal")

    def locate(self) -> None:
        """Follow symbolic links. The file need not exist.

        Raises:
            DatabaseError: the links lead in a circle, or other processes may know the file by another name.
        """
        try:
            self.path = self._named.resolve()
            links = self.path.stat().st_nlink if self.path.is_file() else 1
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DatabaseError(f"db.url: cannot find out where {self._named} is: {reason}") from error
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
        """Take the file that is there now for the one that `check` expects."""
        self._identity = _identity(self._named)

    def check(self) -> None:
        """Return if the path still leads to the file that was opened.

        Raises:
            FileReplaced: it does not.
        """
        if self._identity is not None:
            _expect(self._identity, _identity(self._named), "it")


class LogCheck:
    """Whether the write-ahead log of an open connection is still the one beside the database."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._identity: Identity | None = None
        self._looked_at = -LOOK_EVERY

    def __call__(self) -> None:
        """Return if it is, and if the database is; to be called inside a transaction.

        Raises:
            FileReplaced: one of them is not.
        """
        self._file.check()
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY:
            self._looked_at = now
            found = _identity(self._file.log_path)
            if self._identity is None:
                self._identity = found
            else:
                _expect(self._identity, found, "its write-ahead log")


def _expect(identity: Identity, found: Identity | None, what: str) -> None:
    if found is None:
        raise FileReplaced(f"{what} was removed or moved away: put it back, or restart this process")
    if found != identity:
        raise FileReplaced(f"{what} was replaced by another file: restart this process")


def _identity(path: Path) -> Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # for each transaction: a third faster
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _mount_points() -> set[str]:
    with suppress(OSError, UnicodeError):
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
        return {_ESCAPED.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines}
    return set()
