"""The SQL driver on SQLite under the contract: one store is one file, one process is one `Database` and `SqlQueue`."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from infra.clock import FakeClock
from infra.db import Database
from infra.db.migrate import History, upgrade
from infra.mq import Consumer, MessageQueue
from infra.mq.drivers.sql import SqlQueue

HISTORY = History("bus", "infra.db.migrations", "beneath_bus_version")


class SqliteHarness:
    """A harness whose processes are databases and queues of their own in this process, on one file."""

    dedupe_window = 120.0
    lease: float | None = None

    def __init__(self, path: Path, clock: FakeClock) -> None:
        self.clock = clock
        self._url = f"sqlite:///{path}"
        self._databases: dict[MessageQueue, Database] = {}

    async def queue(self) -> MessageQueue:
        db = Database(self._url)
        await db.open()
        queue = SqlQueue(db, clock=self.clock, dedupe_window=self.dedupe_window)
        await queue.open()
        self._databases[queue] = db
        return queue

    async def reopen(self) -> MessageQueue:
        await self.close()
        return await self.queue()

    async def crash(self, consumer: Consumer) -> None:
        consumer.abandon()

    def transaction(self, queue: MessageQueue) -> AbstractAsyncContextManager[object]:
        return self._databases[queue].transaction()

    async def close(self) -> None:
        """End all processes."""
        for queue, db in self._databases.items():
            await queue.close()
            await db.close()
        self._databases.clear()


@asynccontextmanager
async def open_harness(folder: Path, clock: FakeClock) -> AsyncIterator[SqliteHarness]:
    """Open an empty queue in a file of its own."""
    path = folder / "queue.db"
    template = folder.parent / "sqlite-queue-template.db"
    if not template.exists():
        await migrate(template)
    shutil.copy(template, path)
    harness = SqliteHarness(path, clock)
    try:
        yield harness
    finally:
        await harness.close()


async def migrate(path: Path) -> None:
    """Make an empty queue's file."""
    db = Database(f"sqlite:///{path}")
    await db.open()
    try:
        await upgrade(db, [HISTORY])
    finally:
        await db.close()
