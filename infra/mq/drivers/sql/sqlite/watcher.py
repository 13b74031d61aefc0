"""Detection of changes by other processes: by their notifications, and by a cheap poll of the file."""

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from infra.mq.drivers.sql.sqlite.connection import Operation, connect, queue_error
from infra.mq.drivers.sql.sqlite.notifications import DatagramNotifier, NotificationSocket
from infra.mq.errors import QueueClosed, QueueUnavailable

T = TypeVar("T")

IDLE_INTERVAL = 0.25
"""Seconds between two polls while all processes send notifications."""

BUSY_INTERVAL = 0.005
UNNOTIFIED_INTERVAL = 0.05
"""Seconds between two polls without notifications: right after a change, and when nothing has changed for a while."""

UNNOTIFIED_FOR = 60.0
"""Seconds without notifications after a poll has found work of which there was none."""

REBIND_EVERY = 1.0
"""Seconds between two checks that the socket's file still exists."""

_FILE_CHECK_INTERVAL = 0.05
"""Seconds between two checks, by reads, that the path still leads to the open file."""

_SLOWDOWN = 1.15
"""The factor between two intervals: from the first to the last in 17 polls, about 0.4 s."""


class Watcher:
    """Sets the events of waiters when the database has changed, and has a connection for short reads.

    Each process notifies the others after its changes. A poll finds what came without a notification: changes by
    processes of an earlier release, or by one that was killed right after COMMIT. A poll is `PRAGMA data_version`,
    which takes microseconds and no lock. It runs in the event loop, like the reads, which must therefore be index
    lookups. Polls follow real time, whatever the queue's clock: a test's clock cannot control when other processes
    write.

    Args:
        path: The database.
        check: Raises sqlite3.OperationalError when the path leads to another file than the one that was opened.
        longest_silence: The longest time, in seconds, between two polls; more, or a failed poll, is an interruption.
    """

    def __init__(self, path: Path, check: Callable[[], None], longest_silence: float) -> None:
        self._path = path
        self._check_file = check
        self._longest_silence = longest_silence
        self._db: sqlite3.Connection | None = None
        self._socket = NotificationSocket(path)
        self._notifier = DatagramNotifier(path, self._socket.name)
        self._listening: tuple[asyncio.AbstractEventLoop, int] | None = None
        """The loop and the descriptor with which this process waits for notifications."""
        self._checked_socket_at = -math.inf
        self._waiters: set[asyncio.Event] = set()
        self._interval = BUSY_INTERVAL
        self._found_by_poll = False
        self._unnotified_until = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._version = -1
        self._polled_at = 0.0
        self._checked_at = 0.0
        self._failure: QueueUnavailable | None = None
        self.interruptions = 0
        """The number of times so far that changes may have been missed."""

    def open(self) -> None:
        """Connect.

        Raises:
            QueueUnavailable: the file cannot be read.
        """
        try:
            self._db = connect(self._path, read_only=True)
            self._check_file()
            self._version = self._data_version()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise queue_error(error, self._path) from error
        self._notifier.open()

    def close(self) -> None:
        """Disconnect, and notify no waiter any more."""
        self._stop_watching()
        self._waiters.clear()
        self._socket.close()
        self._notifier.close()
        if self._db is not None:
            self._db.close()
            self._db = None

    def read(self, operation: Operation[T]) -> T:
        """Run a short read at once, in this thread.

        Raises:
            QueueUnavailable: the file cannot be read now.
        """
        if self._db is None:
            raise QueueClosed(f"{self._path}: the queue is not open")
        if self._failure is not None:
            raise self._failure
        try:
            # An open connection would continue with a file that was moved away, and miss all other changes.
            if time.monotonic() - self._checked_at >= _FILE_CHECK_INTERVAL:
                self._check_file()
                self._checked_at = time.monotonic()
            return operation(self._db)
        except sqlite3.Error as error:
            raise queue_error(error, self._path) from error

    def add(self, event: asyncio.Event) -> None:
        """Set `event` whenever something changes, until `remove`."""
        if not self._waiters and self._db is not None:
            # There was no waiter to notify of earlier changes; each new waiter reads the present state itself.
            self._polled_at = asyncio.get_running_loop().time()
            self._listen()
            self._schedule()
        self._waiters.add(event)

    def remove(self, event: asyncio.Event) -> None:
        """Stop setting `event`."""
        self._waiters.discard(event)
        if not self._waiters:
            self._stop_watching()

    def notify(self) -> None:
        """Wake up all waiters, also those of other processes, after a change by this process."""
        self._notifier.notify()
        self.changed()

    def notify_others(self) -> None:
        """Notify the waiters of other processes; may be called in any thread."""
        self._notifier.notify()

    def changed(self) -> None:
        """Wake up the waiters of this process after a change by this process."""
        self._interval = BUSY_INTERVAL
        self._wake_up()

    def found_work(self) -> None:
        """Poll more often for a while if a poll, and no notification, woke up the waiter that has found work."""
        if self._found_by_poll:
            self._unnotified_until = asyncio.get_running_loop().time() + UNNOTIFIED_FOR

    def interrupt(self) -> None:
        """Count an interruption: changes may have been missed."""
        self.interruptions += 1
        self._wake_up()

    def poll(self) -> bool:
        """Poll now; wake up the waiters if the database has changed or can no longer be read, and return whether so."""
        now = asyncio.get_running_loop().time()
        if now - self._polled_at > self._longest_silence:
            self.interrupt()
        self._polled_at = now
        failed_before = self._failure is not None
        try:
            self._check_file()
            version = self._data_version()
        except (sqlite3.Error, OSError) as error:
            self._failure = QueueUnavailable(str(queue_error(error, self._path)))
            if not failed_before:
                self.interrupt()
            return not failed_before
        self._failure = None
        if version == self._version and not failed_before:
            return False
        self._version = version
        self._wake_up()
        return True

    def _wake_up(self) -> None:
        for event in self._waiters:
            event.set()

    def _tick(self) -> None:
        try:
            self._found_by_poll = self.poll()
            if self._found_by_poll:
                self._interval = BUSY_INTERVAL
            self._listen()
        finally:
            self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._socket.descriptor is not None and loop.time() >= self._unnotified_until:
            interval = IDLE_INTERVAL
        else:
            interval = self._interval
            self._interval = min(interval * _SLOWDOWN, UNNOTIFIED_INTERVAL)
        self._timer = loop.call_later(interval, self._tick)

    def _listen(self) -> None:
        """Receive notifications, on a new socket if there is none or its file was deleted."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._checked_socket_at >= REBIND_EVERY:
            self._checked_socket_at = now
            if not self._socket.exists():
                self._stop_listening()
                self._socket.bind()
        if self._listening is None and (descriptor := self._socket.descriptor) is not None:
            loop.add_reader(descriptor, self._notified)
            self._listening = loop, descriptor

    def _notified(self) -> None:
        self._socket.drain()
        self._found_by_poll = False
        self._wake_up()

    def _stop_watching(self) -> None:
        self._stop_listening()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_listening(self) -> None:
        if self._listening is not None:
            loop, descriptor = self._listening
            loop.remove_reader(descriptor)
            self._listening = None

    def _data_version(self) -> int:
        if self._db is None:
            raise QueueClosed(f"{self._path}: the queue is not open")
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])
