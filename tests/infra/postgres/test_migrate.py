"""Migrations on PostgreSQL: atomic, run once, and refused without permission."""

import asyncio

import pytest
from sqlalchemy import text

from dependencies.migrations import BUS, HISTORIES
from infra.db import Database, DatabaseError, DatabaseUnavailable, MigrationNewer, MigrationPending
from infra.db.histories import is_current
from infra.db.migrate import pending, require_current, status, upgrade
from infra.db.postgresql import MIGRATING
from tests.infra.db.test_migrate import CREATE, SHOP, Package, package  # noqa: F401  # a fixture
from tests.postgres_servers import PostgresServer


@pytest.fixture
async def empty(url: str) -> Database:
    return await opened(url)


async def opened(url: str, busy_timeout: float = 10.0) -> Database:
    db = Database(url, busy_timeout=busy_timeout)
    await db.open()
    return db


async def tables(db: Database) -> set[str]:
    async with db.read() as session:
        found = await session.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"))
        return set(found.scalars())


async def test_every_history_of_the_application_runs(empty: Database) -> None:
    missing = await pending(empty, HISTORIES)
    with pytest.raises(MigrationPending, match="run `beneath migrate up`"):
        await require_current(empty, HISTORIES)
    assert not await is_current(empty, HISTORIES)
    assert await upgrade(empty, HISTORIES) == missing
    await require_current(empty, HISTORIES)
    assert await is_current(empty, HISTORIES)
    assert await upgrade(empty, HISTORIES) == []
    assert {"beneath_delivery", "users"} <= await tables(empty)
    await empty.close()


async def test_a_failing_migration_is_named_and_changes_nothing(empty: Database, package: Package) -> None:  # noqa: F811
    package.add("half", CREATE.format("half") + "\n    op.execute('DROP TABLE nowhere')")
    with pytest.raises(DatabaseError) as raised:
        await upgrade(empty, [BUS, SHOP])
    reason = 'UndefinedTableError: table "nowhere" does not exist'
    assert str(raised.value) == f"the migration shop/0002_half failed: {reason}; nothing was changed"
    assert await tables(empty) == set()
    await empty.close()


async def test_a_newer_database_is_refused_and_unchanged(empty: Database, package: Package) -> None:  # noqa: F811
    package.add("prices", CREATE.format("prices"))
    await upgrade(empty, [SHOP])
    package.forget_last()
    with pytest.raises(MigrationNewer, match="it is at shop/0002, which this code does not have"):
        await require_current(empty, [SHOP])
    await empty.close()


async def test_role_without_permission_to_create_is_refused(server: PostgresServer, url: str) -> None:
    db = await opened(server.url(url.rpartition("/")[2], user="plain"))
    with pytest.raises(DatabaseError, match="failed: InsufficientPrivilegeError: permission denied for schema") as said:
        await upgrade(db, [BUS])
    assert "\n" not in str(said.value)
    await db.close()


@pytest.mark.usefixtures("package")
async def test_role_without_permission_to_read_versions_is_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    await server.execute("CREATE TABLE shop_version (version_num text)", name)
    db = await opened(server.url(name, user="plain"))
    with pytest.raises(DatabaseError, match="which migrations the database has: permission denied for table"):
        await status(db, [SHOP])
    await db.close()


async def test_concurrent_upgrades_run_each_migration_once(url: str, package: Package) -> None:  # noqa: F811
    package.add("wait", "op.execute('SELECT pg_sleep(0.2)')")
    databases = [await opened(url) for _ in range(4)]
    applied = await asyncio.gather(*(asyncio.to_thread(upgrade_apart, url) for _ in databases))
    assert sorted(applied) == [[], [], [], ["shop/0001_goods", "shop/0002_wait"]]
    for db in databases:
        await db.close()


def upgrade_apart(url: str) -> list[str]:
    async def work() -> list[str]:
        db = await opened(url)
        try:
            return await upgrade(db, [SHOP])
        finally:
            await db.close()

    return asyncio.run(work())


async def test_upgrade_waits_for_another_upgrade_until_its_timeout(url: str) -> None:
    db, other = await opened(url, 0.1), await opened(url)
    async with other.transaction() as tx:
        await tx.session.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATING})"))
        with db.hidden(), pytest.raises(DatabaseUnavailable, match="another process has been migrating"):
            await upgrade(db, [BUS])
    assert await upgrade(db, [BUS]) != []
    await db.close()
    await other.close()
