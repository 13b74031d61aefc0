"""Queues on a test database, each opened as another process would open one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.clock import Clock, SystemClock
from infra.db import Database
from infra.mq import Consumer, Outcome, QueueError, QueueUnavailable, Settlement, WorkerInfo
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres.dialect import PostgresQueueDialect
from tests.contract.postgres_harness import TEMPLATE, migrate
from tests.postgres_servers import PostgresServer

WORK, MAIL, POST = "work", "mail", "post"
"""One unordered subscription, and two ordered ones, of the same event."""

_ids = itertools.count(1)


@dataclass
class Store:
    """One database with an empty queue."""

    server: PostgresServer
    url: str
    ends: AsyncExitStack

    @property
    def database(self) -> str:
        """The name of the database."""
        return self.url.rpartition("/")[2]

    async def open(
        self,
        *,
        options: str = "pool_size=5",
        clock: Clock | None = None,
        lease: float = 10.0,
        patience: float = 5.0,
        longest_silence: float = 5.0,
        busy_timeout: float = 10.0,
    ) -> tuple[SqlQueue, Database]:
        """Open another queue on the database, as another process would."""
        db = Database(f"{self.url}?{options}", busy_timeout=busy_timeout)
        await db.open()
        self.ends.push_async_callback(db.close)
        queue = SqlQueue(
            db,
            clock=clock or SystemClock(),
            registry_ttl=0,
            lease=lease,
            patience=patience,
            longest_silence=longest_silence,
        )
        await queue.open()
        self.ends.push_async_callback(queue.close)
        return queue, db

    async def count(self, table: str, condition: str = "true") -> int:
        """Count rows of a table over a separate connection."""
        query = f"SELECT count(*) FROM beneath_{table} WHERE {condition}"  # noqa: S608  # of this package's tests
        number: int = (await self.server.fetch(query, database=self.database))[0][0]
        return number


@asynccontextmanager
async def new_store(server: PostgresServer) -> AsyncIterator[Store]:
    """Create a database with an empty queue; delete it at the end of the block."""
    async with server.database(await server.template(TEMPLATE, migrate)) as url, AsyncExitStack() as ends:
        yield Store(server, url, ends)


def queue_dialect(queue: SqlQueue) -> PostgresQueueDialect:
    """Return the PostgreSQL dialect of a queue."""
    assert isinstance(queue._dialect, PostgresQueueDialect)
    return queue._dialect


async def consumer(queue: SqlQueue, *names: str) -> Consumer:
    """Register another worker."""
    info = WorkerInfo(id=f"pg-{next(_ids)}", subscriptions=frozenset(names or (WORK, MAIL, POST)))
    return await queue.consumer(info, CLAIM_LIMITS)


@dataclass
class Handled:
    """The handled messages by subscription, in the order of handling."""

    messages: dict[str, list[tuple[str | None, str]]] = field(default_factory=lambda: {WORK: [], MAIL: [], POST: []})
    """Ordering key and message id."""

    fenced: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, name: str, key: str) -> list[str]:
        """Return the messages of one key."""
        return [message for its_key, message in self.messages[name] if its_key == key]

    async def until(self, condition: Callable[["Handled"], bool], seconds: float = 60.0) -> None:
        """Return once `condition` holds."""
        async with asyncio.timeout(seconds):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()


async def work_off(worker: Consumer, handled: Handled, limit: int = 10) -> None:
    """Fetch and settle until cancelled; continue after every error of the server."""
    wants = dict.fromkeys(handled.messages, limit)
    while True:
        try:
            claims = await worker.fetch(wants, wait=1)
        except QueueUnavailable:
            await asyncio.sleep(0.05)
            continue
        done = [
            Settlement(claim=claim, delivery=it, outcome=Outcome.DONE, close=it is claim.deliveries[-1])
            for claim in claims
            for it in claim.deliveries
        ]
        for it in done:
            handled.messages[it.claim.subscription].append((it.delivery.ordering_key, it.delivery.message_id))
        while done:
            try:
                fenced = await worker.settle(done)
            except QueueError:
                await asyncio.sleep(0.05)
            else:
                handled.fenced += len(fenced)
                break
        handled.changed.set()


@asynccontextmanager
async def working(handled: Handled, *queues: SqlQueue, limit: int = 10) -> AsyncIterator[None]:
    """Run one worker per queue inside the block."""
    workers = [await consumer(it) for it in queues]
    tasks = [asyncio.ensure_future(work_off(it, handled, limit)) for it in workers]
    try:
        yield
    finally:
        for worker in workers:
            worker.wake()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
