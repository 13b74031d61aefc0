"""Fixtures of the database tests: an open SQLite database with one table."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from infra.db import Database


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/data/test.db", busy_timeout=5.0)
    await database.open()
    async with database.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)"))
    yield database
    await database.close()
