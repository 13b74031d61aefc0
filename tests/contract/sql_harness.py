"""The harness of the SQL driver on any dialect: a process is a `Database` and a `SqlQueue`."""

from contextlib import AbstractAsyncContextManager

from infra.clock import FakeClock
from infra.db import Database
from infra.mq import Consumer, MessageQueue
from infra.mq.drivers.sql import SqlQueue


class SqlHarness:
    """A harness whose simulated processes are databases and queues in this process, on one store."""

    dedupe_window = 120.0
    lease: float | None = None

    def __init__(self, url: str, clock: FakeClock) -> None:
        self.clock = clock
        self.url = url
        self._databases: dict[MessageQueue, Database] = {}

    def new_process(self) -> tuple[Database, SqlQueue]:
        """Return another database and queue on the store, not open yet."""
        raise NotImplementedError

    async def queue(self) -> MessageQueue:
        db, queue = self.new_process()
        await db.open()
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
        """Close all queues and databases."""
        for queue, db in self._databases.items():
            await queue.close()
            await db.close()
        self._databases.clear()
