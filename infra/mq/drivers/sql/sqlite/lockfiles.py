"""Lock files: each worker holds a lock on its file, which the operating system releases when its process ends."""

import errno
import fcntl
import os
import threading
import time
import weakref
from pathlib import Path
from urllib.parse import quote, unquote

from infra.files import private_folder
from infra.mq.errors import QueueUnavailable

_SUFFIX = ".lock"
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_PATIENCE = 2.0
"""Seconds that a new worker waits for processes that hold its lock only to check it."""


def workers_folder(database: Path) -> Path:
    """Return the folder, beside the database, of the files by which its workers know each other."""
    return database.with_name(database.name + ".workers")


class LockFile:
    """A lock held by this process; without a descriptor, the file does not exist."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._guard = threading.Lock()

    @property
    def held(self) -> bool:
        """Whether the lock is still held."""
        return self._descriptor is not None

    def release(self) -> None:
        """Release the lock; the file stays, so that other processes find it unlocked.

        May be called from any thread, and more than once.
        """
        with self._guard:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def restore(self) -> bool:
        """Create the file again if it was deleted; return whether the lock is held. May be called from any thread.

        Other processes consider a worker dead whose file has been missing for a while.
        """
        with self._guard:
            if self._descriptor is None or _is_at(self._descriptor, self._path):
                return self._descriptor is not None
            self._path.parent.mkdir(exist_ok=True)
            found = _lock(self._path, create=True)
            if found is not None:
                former, self._descriptor = self._descriptor, found.detach()
                os.close(former)
            return True

    def detach(self) -> int | None:
        """Return the descriptor, and with it the ownership of the lock."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def remove(self) -> None:
        """Delete the file, then release the lock."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
        self.release()


class LockFolder:
    """The lock files of all workers on one database, in a folder beside it."""

    def __init__(self, database: Path) -> None:
        self._folder = workers_folder(database)
        self._held: list[LockFile] = []
        # A child forked without exec inherits the descriptors, and would hold the locks after the worker's death.
        itself: weakref.ref[LockFolder] = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(itself))

    def hold(self, worker: str) -> LockFile:
        """Lock the file of a worker of this process, creating it if necessary.

        Raises:
            QueueUnavailable: the folder cannot be used, or another live worker has that id.
        """
        path = self._path(worker)
        deadline = time.monotonic() + _PATIENCE
        try:
            private_folder(self._folder)
            while (lock := _lock(path, create=True)) is None:
                if time.monotonic() > deadline:
                    raise QueueUnavailable(f"{path}: another live worker has the id {worker}")
                time.sleep(0.001)
        except OSError as error:
            advice = "raise the limit of open files" if error.errno in _TOO_MANY else "make this folder writable"
            raise QueueUnavailable(f"{path}: {error.strerror}: {advice}") from error
        self._held = [*(it for it in self._held if it.held), lock]
        return lock

    def seize(self, worker: str) -> LockFile | None:
        """Lock the file of a dead worker; return None if the worker is alive."""
        try:
            return _lock(self._path(worker), create=False)
        except FileNotFoundError:
            return LockFile(self._path(worker), None)
        except OSError:
            # Another user's file, or no more descriptors: a worker in unknown state keeps its claims.
            return None

    def is_alive(self, worker: str) -> bool:
        """Return whether that worker holds its lock."""
        lock = self.seize(worker)
        if lock is None:
            return True
        lock.release()
        return False

    def workers(self) -> set[str]:
        """Return the ids of all workers that have a file."""
        try:
            names = [it.name for it in self._folder.iterdir()]
        except OSError:
            # No folder, or no more descriptors: leftover files are removed later.
            return set()
        return {unquote(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)}

    def forget_in_child(self) -> None:
        """Close the inherited descriptors in a forked child; the parent keeps its locks."""
        for lock in self._held:
            lock.release()

    def _path(self, worker: str) -> Path:
        return self._folder / (quote(worker, safe="") + _SUFFIX)


def _lock(path: Path, *, create: bool) -> LockFile | None:
    """Lock the file at `path`; return None if another process holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return LockFile(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # The file was removed between open and lock: the lock is on a file that no other process can see.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)


def _forget(folder: "weakref.ref[LockFolder]") -> None:
    itself = folder()
    if itself is not None:
        itself.forget_in_child()
