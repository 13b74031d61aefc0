"""Operations on the queue's file, each in the thread for its kind."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from infra.db.sqlite_file import DatabaseFile
from infra.mq.drivers.sql.sqlite.clock import QueueClock
from infra.mq.drivers.sql.sqlite.connection import Operation, connect, queue_error, starting_a_thread
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from infra.mq.drivers.sql.sqlite.writer import LIGHT, Weight, Writer

T = TypeVar("T")

Step = Callable[..., tuple[int, Any]]
"""A step of long work from `place` on; it returns its count, and the next place or a false value at the end."""

TimedOperation = Callable[..., T]
"""An operation with the keyword argument `now`, the queue's time."""

PAUSE = 0.005
"""Seconds that long work leaves the write lock free after each of its steps."""


class FileAccess:
    """The ways to run an operation on one file.

    Args:
        path: The file.
        file: The file's identity, which long reads check.
        clock: The queue's clock.
        writer: Runs changes, in its thread.
        watcher: Reads the file in the event loop.
    """

    def __init__(self, path: Path, file: DatabaseFile, clock: QueueClock, writer: Writer, watcher: Watcher) -> None:
        self._path = path
        self._file = file
        self._reader: ThreadPoolExecutor | None = None
        self.clock = clock
        self.writer = writer
        self.watcher = watcher

    def open(self) -> None:
        """Use the file, and allow long reads."""
        self._file.use()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="beneath-queue-reader")

    def close(self) -> None:
        """Undo `open`; a read that is running continues in its thread."""
        if self._reader is not None:
            self._reader.shutdown(wait=False)
            self._reader = None
            self._file.release()

    async def read(self, operation: Operation[T]) -> T:
        """Run a long read in a thread of its own."""
        with starting_a_thread(self._path):
            reading = asyncio.get_running_loop().run_in_executor(self._reader, self._read_apart, operation)
        return await reading

    async def write(self, operation: Operation[T], weight: Weight = LIGHT) -> T:
        """Run a change in the writer's thread, and notify waiting consumers."""
        return await self.writer.run(operation, weight, notifies=True)

    async def in_steps(self, step: Step, start: object = None) -> int:
        """Run `step` in transaction after transaction, each from where the last ended; return the sum of its counts."""
        total, place = 0, start
        while True:
            count, place = await self.write(partial(step, place=place))
            total += count
            if not place:
                return total
            # In real time: other processes poll the file's lock, and acquire it in between.
            await asyncio.sleep(PAUSE)

    def at(self, now: float, operation: TimedOperation[T]) -> Operation[T]:
        """Bind an operation to the time at which it gets the write lock, which decides what is due."""

        def run(db: sqlite3.Connection) -> T:
            return operation(db, now=self.clock.reach(db, now))

        return run

    def _read_apart(self, operation: Operation[T]) -> T:
        try:
            with closing(connect(self._path, read_only=True)) as db:
                self._file.check()
                return operation(db)
        except sqlite3.Error as error:
            raise queue_error(error, self._path) from error
