"""The SQL driver on PostgreSQL, and bare loops of asyncpg on the same tables; every COMMIT is synced to the disk."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types

from bus.codec import decode_frame
from bus.events import EventType
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue
from infra.mq.drivers.sql import SqlQueue
from tests import postgres_servers
from tests.bench.measure import Signed, started
from tests.bench.places import POSTGRES_SETTINGS
from tests.contract.postgres_harness import TEMPLATE, migrate

CLAIM = """
UPDATE beneath_delivery SET state = 1, owner = 0 WHERE id IN (
    SELECT id FROM beneath_delivery WHERE state = 0 AND subscription = $1 AND due_at <= $2
    ORDER BY due_at, id LIMIT 100 FOR UPDATE SKIP LOCKED
) RETURNING id, body
"""
DELETE = "DELETE FROM beneath_delivery WHERE id = ANY ($1::bigint[])"
INSERT = """
INSERT INTO beneath_delivery (subscription, state, due_at, published_at, message_id, event, body)
SELECT 1, 0, $1, $1, m.id, 'Signed', m.body FROM unnest($2::text[], $3::bytea[]) AS m (id, body)
"""


@cache
def _server() -> postgres_servers.PostgresServer:
    return postgres_servers.new_server(**POSTGRES_SETTINGS)


class PostgresBench:
    """The SQL driver on PostgreSQL, compared with asyncpg on one connection."""

    name = "postgres"

    def __init__(self) -> None:
        self.url = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[MessageQueue, Database | None]]:
        server = _server()
        async with server.database(await server.template(TEMPLATE, migrate)) as url:
            self.url = url
            db = Database(url)
            await db.open()
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
            async with self._connected() as db:
                subscription = await db.fetchval("SELECT id FROM beneath_subscription WHERE name = 'signed'")
                began = time.perf_counter()
                left = count
                while left:
                    rows = await db.fetch(CLAIM, subscription, time.time())
                    for _, body in rows:
                        await _handle(decode(decode_frame(body).payload, 1))
                    await db.execute(DELETE, [number for number, _ in rows])
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
        async with started(self), self._connected() as db:
            began = time.perf_counter()
            for at in range(0, count, at_once):
                ids = [f"0193f0de-5bcd-7b3e-8000-{n:012}" for n in range(at, at + at_once)]
                await _transaction(db, ids, [body] * at_once)
            return time.perf_counter() - began

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        db = await asyncpg.connect(self.url)
        try:
            yield db
        finally:
            await db.close()


async def _transaction(db: Any, ids: Sequence[str], bodies: Sequence[bytes]) -> None:  # noqa: ANN401  # asyncpg's
    async with db.transaction():
        await db.execute(INSERT, time.time(), ids, bodies)


async def _handle(event: object) -> None:
    """Do nothing, as the measured handler."""


async def settle_down() -> None:
    """Let the server complete its deferred writes."""
    await asyncio.sleep(0.1)
