"""Notifications between the processes on one file: after a change, a datagram to the socket of each other process.

A notification is best effort: it carries nothing but the fact, and a process that misses one polls. A process that
waits for changes has a socket in the folder of the lock files, under a name of its own.
"""

import asyncio
import os
import secrets
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.files import PRIVATE_FILE, private_folder
from infra.mq.drivers.sql.sqlite.lockfiles import workers_folder

_SUFFIX = ".sock"
_LONGEST_FOLDER = 70
"""The largest length of a folder's path, in bytes, with which the address of a socket in it fits on every system."""

NOTIFY_INTERVAL = 0.001
"""Seconds between two notifications of a process; changes in between share the second one."""

_AT_ONCE = 100
"""The maximum number of notifications that are discarded at once; Linux keeps 10 for each socket."""

_SETTLED = 1.0
"""Seconds after which a folder or a socket no longer counts as just changed, coarser than any file system's clock."""


class NotificationSocket:
    """The socket of this process, which gets the notifications of all others."""

    def __init__(self, database: Path) -> None:
        self._folder = workers_folder(database)
        self.name = secrets.token_hex(8) + _SUFFIX
        self._path = self._folder / self.name
        self._socket: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        # A forked child would keep the socket in use after the end of this process, and read its notifications.
        itself: weakref.ref[NotificationSocket] = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(itself))

    @property
    def descriptor(self) -> int | None:
        """The descriptor to wait for; None while there is no socket."""
        return None if self._socket is None else self._socket.fileno()

    def exists(self) -> bool:
        """Return whether the socket is at its path, where other processes find it."""
        return self._socket is not None and self._identity == _identity(self._path)

    def bind(self) -> None:
        """Create the socket anew; without a writable folder or a free descriptor there is none."""
        self.close()
        created = None
        try:
            private_folder(self._folder)
            created = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            created.setblocking(False)
            with _addressable(self._folder) as folder:
                created.bind(f"{folder}/{self.name}")
            self._path.chmod(PRIVATE_FILE)
        except OSError:
            if created is not None:
                created.close()
        else:
            self._socket, self._identity = created, _identity(self._path)

    def drain(self) -> None:
        """Discard the notifications that have arrived."""
        if self._socket is not None:
            with suppress(OSError):
                for _ in range(_AT_ONCE):
                    self._socket.recv(1)

    def close(self) -> None:
        """Close the socket and delete its file."""
        if self.exists():
            with suppress(OSError):
                self._path.unlink()
        self.forget()

    def forget(self) -> None:
        """Close the socket, without its file: in a forked child the parent still uses it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = self._identity = None


class DatagramNotifier:
    """Notifies the other processes on a file.

    Args:
        database: The file.
        own: The name of this process's socket, which gets no notification.
    """

    def __init__(self, database: Path, own: str) -> None:
        self._folder = workers_folder(database)
        self._own = own
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self._next_at = 0.0
        self._found: list[str] = []
        self._found_at: int | None = None

    def open(self) -> None:
        """Make ready to send."""
        self._loop = asyncio.get_running_loop()
        with suppress(OSError):  # without a descriptor the other processes poll
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def close(self) -> None:
        """Send the notification that is due later, and undo `open`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_late:
            self._send_to_all()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._loop = None

    def notify(self) -> None:
        """Notify each other process now, or `NOTIFY_INTERVAL` later if the last time was less than that ago.

        Never waits, and never raises; may be called in any thread.
        """
        if time.monotonic() >= self._next_at:
            self._send_to_all()
        elif not self._is_late and self._loop is not None:
            self._is_late = True
            with suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._send_later)

    def _send_later(self) -> None:
        if self._loop is not None:
            self._timer = self._loop.call_later(NOTIFY_INTERVAL, self._send_to_all)

    def _send_to_all(self) -> None:
        self._is_late = False
        self._next_at = time.monotonic() + NOTIFY_INTERVAL
        names = self._names()
        if not names or self._socket is None:
            return
        with suppress(OSError), _addressable(self._folder) as folder:
            for name in names:
                self._send(self._socket, f"{folder}/{name}")

    def _send(self, sender: socket.socket, address: str) -> None:
        try:
            sender.sendto(b"\0", address)
        except ConnectionRefusedError:
            # Its process has ended. A process that is just creating its socket has not bound it yet.
            with suppress(OSError):
                if time.time() - os.stat(address).st_mtime > _SETTLED:  # noqa: PTH116  # the address is text
                    os.unlink(address)  # noqa: PTH108
        except OSError:
            # Full, so that its process will be woken up anyway; or deleted, or not permitted: then the process polls.
            return

    def _names(self) -> list[str]:
        """Return the sockets of the other processes; the folder is read again only after it has changed."""
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116  # after each change: faster than Path.stat
            if changed != self._found_at:
                self._found = [it for it in os.listdir(self._folder) if it.endswith(_SUFFIX) and it != self._own]  # noqa: PTH208
                # A folder may change again without a change of its time, as long as that time is the present.
                self._found_at = changed if time.time_ns() - changed > _SETTLED * 1e9 else None
        except OSError:
            # No folder: no process waits for changes.
            return []
        return self._found


@contextmanager
def _addressable(folder: Path) -> Iterator[str]:
    """Return a path to `folder` that fits into the address of a socket, which holds about 100 bytes.

    Raises:
        OSError: the folder cannot be opened.
    """
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _forget(one: "weakref.ref[NotificationSocket]") -> None:
    itself = one()
    if itself is not None:
        itself.forget()
