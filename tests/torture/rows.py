"""The test's own connections to the database and the queue."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy import Column, Integer, MetaData, Table, Text, inspect, text
from sqlalchemy.schema import CreateTable

from infra.clock import SystemClock
from infra.mq import MessageQueue
from tests.stacks import Place

T = TypeVar("T")

_metadata = MetaData()

LEDGER = Table("ledger", _metadata, Column("key", Text, primary_key=True), Column("n", Integer, primary_key=True))
"""The rows that publishers commit with their events."""

EFFECT = Table("effect", _metadata, Column("id", Integer, primary_key=True), Column("key", Text), Column("n", Integer))
"""The rows that handlers write, in their order."""


class Rows:
    """Queries database and queue for a test that is not a coroutine. Each is opened at its first use."""

    def __init__(self, place: Place) -> None:
        self._db, self._mq = place.build(SystemClock())
        self._runner = asyncio.Runner()
        self._open: set[object] = set()

    def create(self, table: Table) -> None:
        """Create a table."""

        async def work() -> None:
            async with self._db.transaction() as tx:
                await tx.session.execute(CreateTable(table))

        self._run(work())

    def tables(self) -> list[str]:
        """Return the names of all tables."""

        async def work() -> list[str]:
            async with self._db.read() as session:
                connection = await session.connection()
                return sorted(await connection.run_sync(lambda it: inspect(it).get_table_names()))

        return self._run(work())

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""

        async def work() -> list[tuple[Any, ...]]:
            async with self._db.read() as session:
                return [tuple(row) for row in (await session.execute(text(query))).all()]

        return self._run(work())

    def ask(self, work: Callable[[MessageQueue], Awaitable[T]]) -> T:
        """Run `work` with the queue."""

        async def inside() -> T:
            if self._mq not in self._open:
                await self._mq.open()
                self._open.add(self._mq)
            return await work(self._mq)

        return self._run(inside())

    def disconnect(self) -> None:
        """Close both until the next use, because faults break their connections meanwhile."""

        async def work() -> None:
            for each in (self._mq, self._db):
                if each in self._open:
                    await each.close()

        self._runner.run(work())
        self._open.clear()

    def close(self) -> None:
        """Close both."""
        self.disconnect()
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def inside() -> T:
            if self._db not in self._open:
                await self._db.open()
                self._open.add(self._db)
            return await work

        return self._runner.run(inside())
