"""The SQL driver on PostgreSQL under the contract: a store is a database, a process a `Database` and a `SqlQueue`."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from infra.clock import FakeClock
from infra.db import Database
from infra.db.migrate import History, upgrade
from infra.mq import Consumer, MessageQueue
from infra.mq.drivers.sql import SqlQueue
from tests import postgres_servers

HISTORY = History("bus", "infra.db.migrations", "beneath_bus_version")
TEMPLATE = "beneath_queue_template"


class PostgresHarness:
    """A harness whose processes are databases and queues of their own in this process, on one server."""

    dedupe_window = 120.0
    lease: float | None = None
    """Leases are by the server's clock, which no test moves."""

    def __init__(self, url: str, clock: FakeClock) -> None:
        self.clock = clock
        self._url = url
        self._databases: dict[MessageQueue, Database] = {}

    async def queue(self) -> MessageQueue:
        db = Database(f"{self._url}?pool_size=3")
        await db.open()
        queue = SqlQueue(db, clock=self.clock, dedupe_window=self.dedupe_window, lease=600)
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
async def open_harness(folder: Path, clock: FakeClock) -> AsyncIterator[PostgresHarness]:
    """Open an empty queue in a database of its own."""
    server = postgres_servers.shared()
    template = await server.template(TEMPLATE, migrate)
    async with server.database(template) as url:
        harness = PostgresHarness(url, clock)
        try:
            yield harness
        finally:
            await harness.close()


async def migrate(url: str) -> None:
    """Make an empty queue's tables."""
    db = Database(url)
    await db.open()
    try:
        await upgrade(db, [HISTORY])
    finally:
        await db.close()
