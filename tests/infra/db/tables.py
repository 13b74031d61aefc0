"""The test table, and helpers that write and read its rows."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from infra.db import Database, Transaction


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


async def insert(tx: Transaction, name: str) -> None:
    await tx.session.execute(text("INSERT INTO item (name) VALUES (:name)"), {"name": name})


async def names(db: Database) -> list[str]:
    async with db.read() as session:
        return list((await session.execute(text("SELECT name FROM item ORDER BY id"))).scalars())


def write_from_outside(path: Path | None, timeout: float = 0.0) -> None:
    """Take and release the write lock as another process would; raise sqlite3.OperationalError if it is held."""
    connection = sqlite3.connect(str(path), isolation_level=None, timeout=timeout)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and the database's threads run until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in a thread
            await asyncio.sleep(0)


class Recorder:
    """A participant that records its calls."""

    def __init__(self, log: list[str] | None = None, name: str = "p") -> None:
        self.log: list[str] = [] if log is None else log
        self.name = name
        self.kept: list[str] = []

    def savepoint(self) -> object:
        return len(self.kept)

    def rollback_to(self, mark: object) -> None:
        assert isinstance(mark, int)
        del self.kept[mark:]

    async def before_commit(self) -> None:
        self.log.append(f"{self.name} before_commit")

    async def after_commit(self) -> None:
        self.log.append(f"{self.name} after_commit")

    async def after_rollback(self) -> None:
        self.log.append(f"{self.name} after_rollback")
