"""The drivers that need no server, and the bare loops beside them."""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from json import dumps
from pathlib import Path

from bus.codec import decode_frame
from bus.events import EventType
from dependencies.migrations import BUS
from infra.clock import SystemClock
from infra.db import Database
from infra.db.migrate import upgrade
from infra.mq import MessageQueue
from infra.mq.drivers.memory import MemoryQueue
from infra.mq.drivers.sql import SqlQueue
from tests.bench.measure import Signed, started

CLAIM = """
UPDATE beneath_delivery SET state = 1, owner = 0 WHERE id IN (
    SELECT id FROM beneath_delivery INDEXED BY beneath_delivery_ready
    WHERE state = 0 AND subscription = ? AND due_at <= ? ORDER BY due_at, id LIMIT 100
) RETURNING id, body
"""
DELETE = "DELETE FROM beneath_delivery WHERE id IN (SELECT value FROM json_each(?))"
INSERT = """
INSERT INTO beneath_delivery (id, subscription, state, due_at, published_at, message_id, event, body)
VALUES (?, 1, 0, ?, ?, ?, 'Signed', ?)
"""


class MemoryBench:
    """The memory driver, which has no bare client to compare with."""

    name = "memory"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[MessageQueue, Database | None]]:
        mq = MemoryQueue(clock=SystemClock(), lease=float("inf"))
        await mq.open()
        yield mq, None
        await mq.close()

    async def bare_consume(self, count: int) -> float | None:
        return None

    async def bare_publish_many(self, count: int) -> float | None:
        return None

    async def bare_publish(self, count: int) -> float | None:
        return None

    async def bare_publish_together(self, count: int) -> float | None:
        return None

    async def bare_latencies(self, count: int, rate: float) -> tuple[float, float] | None:
        return None


class SqliteBench:
    """The SQL driver on SQLite, compared with sqlite3 in this thread, on the same tables, synchronous=FULL."""

    name = "sqlite"

    def __init__(self) -> None:
        self._path = Path()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[MessageQueue, Database | None]]:
        with tempfile.TemporaryDirectory() as folder:
            self._path = Path(folder) / "bench.db"
            db = Database(f"sqlite:///{self._path}")
            await db.open()
            await upgrade(db, [BUS])
            mq = SqlQueue(db, clock=SystemClock())
            await mq.open()
            yield mq, db
            await mq.close()
            await db.close()

    async def bare_consume(self, count: int) -> float | None:
        decode = EventType(Signed).decode
        async with started(self) as (bus, _):
            for at in range(0, count, 100):
                await bus.publish_many([Signed(n=n) for n in range(at, at + 100)])
            with closing(self._connect()) as db:
                (subscription,) = db.execute("SELECT id FROM beneath_subscription WHERE name = 'signed'").fetchone()
                began = time.perf_counter()
                left = count
                while left:
                    db.execute("BEGIN IMMEDIATE")
                    rows = db.execute(CLAIM, (subscription, time.time())).fetchall()
                    db.execute("COMMIT")
                    for _, body in rows:
                        await _handle(decode(decode_frame(body).payload, 1))
                    db.execute("BEGIN IMMEDIATE")
                    db.execute(DELETE, (dumps([number for number, _ in rows]),))
                    db.execute("COMMIT")
                    left -= len(rows)
                return time.perf_counter() - began

    async def bare_publish_many(self, count: int) -> float | None:
        return await self._insert(count, 100)

    async def bare_publish(self, count: int) -> float | None:
        return await self._insert(count, 1)

    async def bare_publish_together(self, count: int) -> float | None:
        return await self._insert(count, 100)

    async def bare_latencies(self, count: int, rate: float) -> tuple[float, float] | None:
        return None

    async def _insert(self, count: int, at_once: int) -> float:
        body = b"x" * 250
        async with started(self):
            with closing(self._connect()) as db:
                began = time.perf_counter()
                for at in range(0, count, at_once):
                    now = time.time()
                    db.execute("BEGIN IMMEDIATE")
                    db.executemany(
                        INSERT, [(n + 1_000_000, now, now, f"message-{n}", body) for n in range(at, at + at_once)]
                    )
                    db.execute("COMMIT")
                return time.perf_counter() - began

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA synchronous = FULL")
        return db


async def _handle(event: object) -> None:
    """Do nothing, as the measured handler."""


async def settle_down() -> None:
    """Let finished tasks and threads end before the next measurement."""
    await asyncio.sleep(0.1)
