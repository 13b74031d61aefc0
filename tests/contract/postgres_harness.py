"""The harness of the SQL driver on PostgreSQL: a store is a database, a process a `Database` and a `SqlQueue`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dependencies.migrations import BUS
from infra.clock import FakeClock
from infra.db import Database
from infra.db.migrate import upgrade
from infra.mq.drivers.sql import SqlQueue
from tests import postgres_servers
from tests.contract.harness import MAX_BODY
from tests.contract.sql_harness import SqlHarness

TEMPLATE = "beneath_queue_template"


class PostgresHarness(SqlHarness):
    """A harness on one database of a server. Leases use the server's clock, which no test sets."""

    def new_process(self) -> tuple[Database, SqlQueue]:
        db = Database(f"{self.url}?pool_size=3")
        return db, SqlQueue(db, clock=self.clock, dedupe_window=self.dedupe_window, lease=600, max_body=MAX_BODY)


@asynccontextmanager
async def open_harness(folder: Path, clock: FakeClock) -> AsyncIterator[PostgresHarness]:
    """Open a harness on a new database with an empty queue."""
    server = postgres_servers.shared()
    template = await server.template(TEMPLATE, migrate)
    async with server.database(template) as url:
        harness = PostgresHarness(url, clock)
        try:
            yield harness
        finally:
            await harness.close()


async def migrate(url: str) -> None:
    """Create the tables of an empty queue."""
    db = Database(url)
    await db.open()
    try:
        await upgrade(db, [BUS])
    finally:
        await db.close()
