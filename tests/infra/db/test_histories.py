"""The check without Alembic that a database has all migrations: it agrees with Alembic, or leaves the answer to it."""

import pytest

from dependencies.migrations import HISTORIES
from infra.db import Database
from infra.db.histories import History, is_current
from infra.db.migrate import pending, upgrade
from tests.infra.db.test_migrate import CREATE, SHOP, Package, empty, package  # noqa: F401  # fixtures


async def test_migrated_database_is_current(empty: Database) -> None:  # noqa: F811
    assert not await is_current(empty, HISTORIES)
    await upgrade(empty, HISTORIES)
    assert await is_current(empty, HISTORIES)


async def test_database_that_lacks_migrations_of_one_history_is_not_current(empty: Database, package: Package) -> None:  # noqa: F811
    await upgrade(empty, HISTORIES)
    assert not await is_current(empty, [*HISTORIES, SHOP])
    await upgrade(empty, [SHOP])
    assert await is_current(empty, [*HISTORIES, SHOP])
    package.add("prices", CREATE.format("prices"))
    assert not await is_current(empty, [*HISTORIES, SHOP])


async def test_database_with_a_newer_migration_is_not_current(empty: Database, package: Package) -> None:  # noqa: F811
    package.add("prices", CREATE.format("prices"))
    await upgrade(empty, [SHOP])
    package.forget_last()
    assert not await is_current(empty, [SHOP])


async def test_migration_as_alembic_writes_it_is_recognised(empty: Database, package: Package) -> None:  # noqa: F811
    package.add("prices", CREATE.format("prices"))
    file = package.versions / "0002_prices.py"
    file.write_text(file.read_text().replace('"0002"', "'0002'").replace("'0001'", '"0001"'))
    await upgrade(empty, [SHOP])
    assert await is_current(empty, [SHOP])


@pytest.mark.parametrize(
    ("written", "replaced"),
    [
        ("down_revision = '0002'", "down_revision = '0001'"),
        ("down_revision = '0002'", "down_revision = ('0001', '0002')"),
        ("down_revision = '0002'", "down_revision = '0003'"),
        ("down_revision = '0002'", "down_revision = '0004'"),
        ("down_revision = '0002'", "down_revision = None"),
        ("down_revision = '0002'", "before = '0002'"),
        ('revision = "0003"', 'revision = "0002"'),
        ('revision = "0003"', "revision = NUMBER"),
        ('revision = "0003"', 'revision = "0003"\nrevision = "0009"'),
    ],
)
async def test_history_that_is_no_plain_sequence_is_left_to_alembic(
    empty: Database,  # noqa: F811
    package: Package,  # noqa: F811
    written: str,
    replaced: str,
) -> None:
    for name in ("prices", "orders"):
        package.add(name, CREATE.format(name))
    await upgrade(empty, [SHOP])
    assert await is_current(empty, [SHOP])
    file = package.versions / "0003_orders.py"
    source = file.read_text()
    assert source.count(written) == 1
    file.write_text(source.replace(written, replaced))
    assert not await is_current(empty, [SHOP])


async def test_branch_that_was_merged_below_the_applied_migration_is_not_overlooked(
    empty: Database,  # noqa: F811
    package: Package,  # noqa: F811
) -> None:
    package.add("prices", CREATE.format("prices"))
    later = package.versions / "0002_prices.py"
    source = later.read_text()
    later.write_text(source.replace('"0002"', '"0003"'))
    await upgrade(empty, [SHOP])
    (package.versions / "0002_orders.py").write_text(source.replace("prices", "orders"))
    assert await pending(empty, [SHOP]) == ["shop/0002_orders"]
    assert not await is_current(empty, [SHOP])


async def test_missing_package_is_left_to_alembic(empty: Database) -> None:  # noqa: F811
    for package_name in ("no_such_package", "no_such_package.migrations", "models.email"):
        assert not await is_current(empty, [History("x", package_name, "x_version")])
