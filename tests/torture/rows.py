"""The test's own way into the database and the queue, kept open beside the processes that it watches."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from sqlalchemy import text

from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue
from tests.stacks import Place
from tests.torture.opening import open_both

T = TypeVar("T")


class Rows:
    """Reads and writes for a test, which is no coroutine; opened at the first use."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stack = AsyncExitStack()
        self._runner = asyncio.Runner()
        self._opened: tuple[Database, MessageQueue] | None = None

    def execute(self, statement: str) -> None:
        """Change something."""

        async def work(db: Database) -> None:
            async with db.transaction() as tx:
                await tx.session.execute(text(statement))

        self._run(lambda db, _: work(db))

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """Return rows."""

        async def work(db: Database) -> list[tuple[Any, ...]]:
            async with db.read() as session:
                return [tuple(row) for row in (await session.execute(text(query))).all()]

        return self._run(lambda db, _: work(db))

    def ask(self, work: Callable[[MessageQueue], Awaitable[T]]) -> T:
        """Ask the queue something."""
        return self._run(lambda _, mq: work(mq))

    def close(self) -> None:
        """Let go of both."""
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def _run(self, work: Callable[[Database, MessageQueue], Awaitable[T]]) -> T:
        async def inside() -> T:
            if self._opened is None:
                db, mq = self._place.build(SystemClock())
                await self._stack.enter_async_context(open_both(db, mq))
                self._opened = (db, mq)
            return await work(*self._opened)

        return self._runner.run(inside())
