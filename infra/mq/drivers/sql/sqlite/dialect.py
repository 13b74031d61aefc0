"""The `QueueDialect` of SQLite: its lifecycle, publishing, broadcasts and the registry."""

import asyncio
import sqlite3
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from infra.clock import Clock
from infra.db import Database
from infra.db.cancellation import finish
from infra.db.sqlite import SQLite
from infra.db.sqlite_file import LogCheck
from infra.mq.drivers.sql.dialect import SqlOptions
from infra.mq.drivers.sql.sqlite import broadcasting, publishing, registry, scheduling
from infra.mq.drivers.sql.sqlite.access import FileAccess
from infra.mq.drivers.sql.sqlite.ambient import NotifyAfterCommit, run_in
from infra.mq.drivers.sql.sqlite.clock import QueueClock
from infra.mq.drivers.sql.sqlite.commands import SqliteCommands
from infra.mq.drivers.sql.sqlite.connection import Operation, connect
from infra.mq.drivers.sql.sqlite.presence import Presence
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from infra.mq.drivers.sql.sqlite.workers import SqliteWorkers
from infra.mq.drivers.sql.sqlite.writer import LIGHT, Weight, Writer
from infra.mq.errors import QueueError, QueueUnavailable
from infra.mq.types import Message, Registry, Subscription

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

OLDEST = (3, 38)
"""The first version of SQLite in which RETURNING and the JSON functions are always available."""


class SqliteQueueDialect:
    """The `QueueDialect` of one SQLite file.

    Changes run in the writer's thread, or in the ambient transaction; lookups that take microseconds run in the event
    loop; long reads run in a thread of their own.
    """

    def __init__(self, db: Database, clock: Clock, options: SqlOptions) -> None:
        if not isinstance(db.dialect, SQLite):
            raise QueueUnavailable(f"{db.url}: the queue needs a file")
        # The resolved path: the lock files are beside the real file, whichever link db.url names.
        self._path: Path = db.dialect.path.resolve()
        self._file = db.dialect
        self._db = db
        self.clock = QueueClock(clock)
        self._options = options
        opener = partial(connect, self._path, synchronous=options.synchronous)
        self._log_check = LogCheck(self._file.file)
        self._watcher = Watcher(self._path, self._file.file.check, options.longest_silence)
        self._writer = Writer(
            self._path,
            opener,
            db.write_lock,
            options.patience,
            check=self._log_check,
            check_if_due=self._log_check.check_if_due,
            committed=self._file.log_limit.committed,
            notify_others=self._watcher.notify_others,
            changed=self._watcher.changed,
        )
        self._access = FileAccess(self._path, self._file.file, self.clock, self._writer, self._watcher)
        presence = Presence(self._path, self._watcher, self._access.in_steps)
        self.workers = SqliteWorkers(self._access, presence)
        self.commands = SqliteCommands(self._access, presence)
        self._probe: asyncio.Task[None] | None = None

    @property
    def interruptions(self) -> int:
        return self._watcher.interruptions

    async def open(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise QueueUnavailable(
                f"this Python has SQLite {sqlite3.sqlite_version}; the queue needs {wanted} or newer"
            )
        if self._file.path != self._path:
            raise QueueUnavailable(f"{self._path}: db.url now leads to {self._file.path}: restart this process")
        self._watcher.open()
        try:
            self._watcher.read(registry.tables_exist)
            self._log_check.reset()
            await self._writer.open()
            if not self._watcher.read(self.clock.resume):
                await self._writer.run(self.clock.start)
        except BaseException:
            self._watcher.close()
            raise
        self._access.open()

    async def close(self) -> None:
        # Completed even if the caller is cancelled: there is no second close, and the threads would stay.
        closed = await finish(self._close())
        if closed.cancelled is not None:
            raise closed.cancelled
        closed.task.result()

    async def _close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
            self._probe = None
        self._watcher.close()
        await self._writer.close()
        self._access.close()

    def watch(self, event: asyncio.Event) -> None:
        self._watcher.add(event)

    def unwatch(self, event: asyncio.Event) -> None:
        self._watcher.remove(event)

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        operation = publishing.Publish(messages, self._options.dedupe_window, self.clock, now=now)
        size = sum([len(it.body) for it in messages])
        await self._join_or_write(operation, Weight(len(messages), size))

    async def cancel(self, message_id: str, now: float) -> bool:
        return await self._join_or_write(self._access.at(now, partial(scheduling.cancel, message_id=message_id)))

    async def scheduled(self, message_id: str, now: float) -> bool:
        operation = partial(scheduling.scheduled, message_id=message_id, now=now)
        if (transaction := self._db.current()) is not None:
            return await run_in(transaction, operation, self._path)
        return self._watcher.read(operation)

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        kept = self._options.broadcast_kept
        size = sum(len(it) for it in frames)
        operation = partial(broadcasting.broadcast, frames=frames, origin=origin, kept=kept)
        await self._join_or_write(self._access.at(now, operation), Weight(len(frames), size))

    async def last_broadcast(self) -> int:
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._probe_writing())
        return self._watcher.read(broadcasting.last_broadcast)

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        found = self._watcher.read(partial(broadcasting.broadcasts_after, after=number, origin=origin))
        if found[0]:
            self._watcher.found_work()
        return found

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        now = self.clock.time()
        if not self._watcher.read(partial(registry.is_declared, subscriptions=subscriptions, broadcasts=broadcasts)):
            operation = partial(registry.declare, subscriptions=subscriptions, broadcasts=broadcasts)
            await self._access.write(self._access.at(now, operation))
        visible_at = self._watcher.read(registry.visible_at)
        if visible_at is None:
            # The process that changed it has not recorded that yet: its COMMIT is slow, or the process has ended.
            visible_at = self.clock.time()
            await self._access.write(partial(registry.mark_visible, now=visible_at))
        return visible_at

    async def registry(self) -> Registry:
        return self._watcher.read(registry.registry)

    async def _join_or_write(self, operation: Operation[T], weight: Weight = LIGHT) -> T:
        transaction = self._db.current()
        if transaction is None:
            return await self._access.write(operation, weight)
        result = await run_in(transaction, operation, self._path)
        transaction.participant(self, lambda: NotifyAfterCommit(self._watcher.notify))
        return result

    async def _probe_writing(self) -> None:
        """Count an interruption when no write succeeds for long, because senders of broadcasts may have failed."""
        # An outage as long as the longest silence always contains half of that time in one probe.
        pause, longest = self._options.longest_silence / 4, self._options.longest_silence / 2
        while True:
            groups = self._writer.groups
            await asyncio.sleep(pause)
            if self._writer.groups != groups:
                continue
            began = time.monotonic()
            try:
                await self._writer.run(_nothing)
            except Exception as error:  # noqa: BLE001  # any error means that writes may fail in all processes
                if not isinstance(error, QueueError):
                    _log.exception("write probe failed")
                self._watcher.interrupt()
            else:
                if time.monotonic() - began > longest:
                    self._watcher.interrupt()


def _nothing(_: sqlite3.Connection) -> None:
    """Do nothing, in a transaction that acquires the write lock."""
