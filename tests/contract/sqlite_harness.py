"""The harness of the SQL driver on SQLite: a store is a file, a process a `Database` and a `SqlQueue`."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dependencies.migrations import BUS
from infra.clock import FakeClock
from infra.db import Database
from infra.db.migrate import upgrade
from infra.mq.drivers.sql import SqlQueue
from tests.contract.harness import MAX_BODY
from tests.contract.sql_harness import SqlHarness


class SqliteHarness(SqlHarness):
    """A harness on one file."""

    def new_process(self) -> tuple[Database, SqlQueue]:
        db = Database(self.url)
        return db, SqlQueue(db, clock=self.clock, dedupe_window=self.dedupe_window, max_body=MAX_BODY)


@asynccontextmanager
async def open_harness(folder: Path, clock: FakeClock) -> AsyncIterator[SqliteHarness]:
    """Open a harness on a new file with an empty queue."""
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
    """Create the file of an empty queue."""
    db = Database(f"sqlite:///{path}")
    await db.open()
    try:
        await upgrade(db, [BUS])
    finally:
        await db.close()
