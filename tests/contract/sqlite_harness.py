"""The SQL driver on SQLite under the contract: one store is one file, one process is one `Database` and `SqlQueue`."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from infra.clock import FakeClock
from infra.db import Database
from infra.db.migrate import History, upgrade
from infra.mq.drivers.sql import SqlQueue
from tests.contract.harness import MAX_BODY
from tests.contract.sql_harness import SqlHarness

HISTORY = History("bus", "infra.db.migrations", "beneath_bus_version")


class SqliteHarness(SqlHarness):
    """Its store is one file."""

    def new_process(self) -> tuple[Database, SqlQueue]:
        db = Database(self.url)
        return db, SqlQueue(db, clock=self.clock, dedupe_window=self.dedupe_window, max_body=MAX_BODY)


@asynccontextmanager
async def open_harness(folder: Path, clock: FakeClock) -> AsyncIterator[SqliteHarness]:
    """Open an empty queue in a file of its own."""
    path = folder / "queue.db"
    template = folder.parent / "sqlite-queue-template.db"
    if not template.exists():
        await migrate(template)
    shutil.copy(template, path)
    harness = SqliteHarness(f"sqlite:///{path}", clock)
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
