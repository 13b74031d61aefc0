"""The bus's migrations: what a database contains at each revision never changes, on either dialect."""

import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import Connection

from dependencies.migrations import BUS
from infra.db import Database, migrate
from tests import postgres_servers
from tests.infra.schema.catalog import describe_postgres, describe_sqlite, digest

CONTENTS = {
    "0001": ("2677d1acde120586", "e7a2c518dc4eb173"),
    "0002": ("0da03aebcd7f259e", "c743a670eb3f4a98"),
    "0003": ("1f93149228990eae", "079cfa9ebcfc7da8"),
    "0004": ("1f93149228990eae", "bc221b2edb28b055"),
    "0005": ("1f93149228990eae", "aec9ce4e73f947b3"),
    "0006": ("944c633300def33d", "69742795b9a03ea1"),
    "0007": ("944c633300def33d", "fdcdc515960554b0"),
    "0008": ("944c633300def33d", "41dc270b2f2f726d"),
    "0009": ("4904326378b737b3", "1df81d9950db4f3c"),
    "0010": ("4904326378b737b3", "a2b4ec1e09049172"),
    "0011": ("faff5e9c28b3f16e", "0b524931cdb7e800"),
    "0012": ("faff5e9c28b3f16e", "aed6e0814405e2d5"),
    "0013": ("faff5e9c28b3f16e", "5e7cd0c89f2d96f0"),
}
"""Hashes of the schema at each revision, on SQLite and on PostgreSQL.

Databases exist at any of these revisions, so a new one is added, and no entry changes.
"""


async def test_revisions_keep_their_contents_on_sqlite(tmp_path: Path) -> None:
    async def describe() -> list[str]:
        with closing(sqlite3.connect(tmp_path / "queue.db")) as raw:
            return describe_sqlite(raw)

    assert await hashes(f"sqlite:///{tmp_path}/queue.db", describe) == {
        revision: it[0] for revision, it in CONTENTS.items()
    }


async def test_revisions_keep_their_contents_on_postgresql() -> None:
    async with postgres_servers.shared().database() as url:
        assert await hashes(url, lambda: describe_postgres(url)) == {
            revision: it[1] for revision, it in CONTENTS.items()
        }


async def hashes(url: str, describe: Callable[[], Coroutine[Any, Any, list[str]]]) -> dict[str, str]:
    """Apply the migrations one by one to an empty database; return the hash of its schema after each."""
    found: dict[str, str] = {}
    db = Database(url)
    await db.open()
    [state] = await migrate.status(db, [BUS])
    for name in state.pending:
        revision = name.removeprefix("bus/").partition("_")[0]
        await upgrade_to(db, revision)
        found[revision] = digest(await describe())
    await db.close()
    return found


async def upgrade_to(db: Database, revision: str) -> None:
    """Upgrade the bus's tables to a revision, which may be older than the newest."""

    def run(connection: Connection) -> None:
        config = migrate._config(BUS)  # No public function upgrades to an earlier revision.
        config.attributes.update(connection=connection, applied=[])
        command.upgrade(config, revision)

    async with db.migrating() as connection:
        await connection.run_sync(run)
