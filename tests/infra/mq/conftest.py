"""Fixtures of the SQLite driver's tests: a migrated file, and open queues on it."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from infra.clock import SystemClock
from infra.db import Database
from infra.mq.drivers.sql import SqlQueue
from tests.contract.sqlite_harness import migrate
from tests.infra.mq.acting import subscription

OpenQueue = Callable[[], Awaitable[tuple[SqlQueue, Database]]]


@pytest.fixture
async def path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file with an empty queue."""
    template = tmp_path_factory.getbasetemp() / "empty-queue.db"
    if not template.exists():
        await migrate(template)
    return Path(shutil.copy(template, tmp_path / "queue.db"))


@pytest.fixture
async def open_queue(path: Path) -> AsyncIterator[OpenQueue]:
    """Return a function that opens another queue on the file, as another process would."""
    async with AsyncExitStack() as ends:

        async def open_one() -> tuple[SqlQueue, Database]:
            db = Database(f"sqlite:///{path}", busy_timeout=0.3)
            await db.open()
            ends.push_async_callback(db.close)
            queue = SqlQueue(db, clock=SystemClock(), registry_ttl=0, patience=0.3, longest_silence=0.5)
            await queue.open()
            ends.push_async_callback(queue.close)
            return queue, db

        yield open_one


@pytest.fixture
async def opened(open_queue: OpenQueue) -> tuple[SqlQueue, Database]:
    queue, db = await open_queue()
    await queue.declare([subscription("work"), subscription("mail", ordered=True)], ["Dropped"])
    return queue, db


@pytest.fixture
def queue(opened: tuple[SqlQueue, Database]) -> SqlQueue:
    return opened[0]


@pytest.fixture
def db(opened: tuple[SqlQueue, Database]) -> Database:
    return opened[1]
