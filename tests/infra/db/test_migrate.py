"""Migrations on SQLite: histories, upgrades, failures and concurrent processes."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from dependencies.migrations import BUS
from infra.db import Database, DatabaseError, DatabaseUnavailable, MigrationNewer, MigrationPending
from infra.db.histories import History
from infra.db.migrate import Status, pending, require_current, status, upgrade, write_migration
from tests.infra.db.tables import write_from_outside

SHOP = History("shop", "shop_migrations", "shop_version")
ROOT = Path(__file__).parents[3]

MODELS = """
import sqlalchemy as sa
from infra.db.migrate import run_environment

class Cents(sa.TypeDecorator):
    impl = sa.Integer
    cache_ok = True

metadata = sa.MetaData()
sa.Table("goods", metadata, sa.Column("id", sa.Integer, primary_key=True))
sa.Table("prices", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("cents", Cents, nullable=False))
run_environment(metadata)
"""
"""An `env.py` whose models have one table more than the database, with a type of their own."""

STEP = """
import sqlalchemy as sa
from alembic import op
revision = "{number}"
down_revision = {before}
branch_labels = depends_on = None
def upgrade():
    {body}
"""
CREATE = 'op.create_table("{0}", sa.Column("id", sa.Integer(), primary_key=True))'


class Package:
    """A package of migrations to which a test adds files."""

    def __init__(self, folder: Path) -> None:
        self.versions = folder / "shop_migrations" / "versions"
        self.versions.mkdir(parents=True)
        (folder / "shop_migrations" / "__init__.py").write_text("")
        (folder / "shop_migrations" / "env.py").write_text(
            "from infra.db.migrate import run_environment\nrun_environment()\n"
        )
        self._steps: list[str] = []

    def add(self, name: str, body: str) -> None:
        number = f"{len(self._steps) + 1:04}"
        before = repr(self._steps[-1]) if self._steps else "None"
        self._steps.append(number)
        path = self.versions / f"{number}_{name}.py"
        path.write_text(STEP.format(number=number, before=before, body=body))

    def write_models(self, source: str) -> None:
        folder = self.versions.parent
        (folder / "env.py").write_text(source)
        (folder / "script.py.mako").write_text((ROOT / "models/migrations/script.py.mako").read_text())

    def forget_last(self) -> None:
        for path in self.versions.glob(f"{self._steps.pop()}_*.py"):
            path.unlink()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    package = Package(tmp_path / "code %40")
    monkeypatch.syspath_prepend(tmp_path / "code %40")
    monkeypatch.delitem(sys.modules, "shop_migrations", raising=False)
    package.add("goods", CREATE.format("goods"))
    return package


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Database]:
    db = Database(f"sqlite:///{tmp_path}/test.db")
    await db.open()
    yield db
    await db.close()


async def tables(db: Database) -> set[str]:
    async with db.read() as session:
        found = await session.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        return set(found.scalars()) - {"sqlite_sequence"}


async def test_two_histories_have_separate_version_tables(empty: Database, package: Package) -> None:
    histories = [BUS, SHOP]
    missing = await pending(empty, histories)
    assert missing[:2] == ["bus/0001_queue", "bus/0002_inbox"]
    assert missing[-1] == "shop/0001_goods"
    assert await tables(empty) == set()
    assert await upgrade(empty, histories) == missing
    assert await pending(empty, histories) == []
    assert await upgrade(empty, histories) == []
    assert await tables(empty) >= {"beneath_inbox", "beneath_bus_version", "goods", "shop_version"}
    write_from_outside(empty.path)


async def test_migrations_create_the_inbox(empty: Database) -> None:
    await upgrade(empty, [BUS])
    async with empty.transaction() as tx:
        insert = text("INSERT INTO beneath_inbox (listener, message_id, handled_at) VALUES ('l', 'm', 1.5)")
        await tx.session.execute(insert)
        with pytest.raises(Exception, match="UNIQUE"):
            await tx.session.execute(insert)
    async with empty.read() as session:
        plan = await session.execute(text("EXPLAIN QUERY PLAN DELETE FROM beneath_inbox WHERE handled_at < 1"))
        assert "ix_beneath_inbox_handled_at" in str(plan.all())


async def test_status_shows_the_revisions_of_the_database(empty: Database, package: Package) -> None:
    assert await status(empty, [SHOP]) == [Status("shop", (), ("shop/0001_goods",), ())]
    await upgrade(empty, [SHOP])
    package.add("prices", CREATE.format("prices"))
    assert await status(empty, [SHOP]) == [Status("shop", ("shop/0001",), ("shop/0002_prices",), ())]
    assert await upgrade(empty, [SHOP]) == ["shop/0002_prices"]
    package.forget_last()
    assert await status(empty, [SHOP]) == [Status("shop", ("shop/0002",), (), ("shop/0002",))]


async def test_pending_migrations_are_refused_by_name(empty: Database, package: Package) -> None:
    package.add("prices", CREATE.format("prices"))
    with pytest.raises(MigrationPending) as raised:
        await require_current(empty, [SHOP])
    assert str(raised.value) == (
        "the database lacks 2 migration(s): shop/0001_goods, shop/0002_prices; run `beneath migrate up`"
    )
    assert raised.value.revisions == ("shop/0001_goods", "shop/0002_prices")
    await upgrade(empty, [SHOP])
    await require_current(empty, [SHOP])


async def test_a_newer_database_is_refused_and_unchanged(empty: Database, package: Package) -> None:
    package.add("prices", CREATE.format("prices"))
    await upgrade(empty, [SHOP])
    package.forget_last()
    for call in (require_current, pending, upgrade):
        with pytest.raises(MigrationNewer, match="it is at shop/0002, which this code does not have") as raised:
            await call(empty, [BUS, SHOP])
        assert "\n" not in str(raised.value)
    assert await tables(empty) == {"goods", "prices", "shop_version"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('op.execute("INSERT INTO nowhere VALUES (1)")', "OperationalError: no such table: nowhere"),
        ('raise LookupError("in two\\nlines")', "LookupError: in two"),
    ],
)
async def test_a_failing_migration_changes_nothing_of_either_history(
    empty: Database, package: Package, body: str, reason: str
) -> None:
    package.add("half", f"{CREATE.format('half')}\n    {body}")
    with pytest.raises(DatabaseError) as raised:
        await upgrade(empty, [BUS, SHOP])
    assert str(raised.value) == f"the migration shop/0002_half failed: {reason}; nothing was changed"
    assert await tables(empty) == set()
    write_from_outside(empty.path)


async def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(empty: Database, package: Package) -> None:
    package.add(
        "parts",
        'op.execute("CREATE TABLE part (goods INTEGER REFERENCES goods (id) ON DELETE CASCADE)")\n'
        '    op.execute("INSERT INTO goods VALUES (1)")\n'
        '    op.execute("INSERT INTO part VALUES (1)")',
    )
    await upgrade(empty, [SHOP])
    package.add(
        "rebuild",
        'with op.batch_alter_table("goods", recreate="always") as table:\n'
        '        table.add_column(sa.Column("name", sa.Text()))',
    )
    await upgrade(empty, [SHOP])
    async with empty.read() as session:
        assert (await session.execute(text("SELECT goods FROM part"))).scalars().all() == [1]


async def test_a_migration_that_breaks_a_reference_is_refused(empty: Database, package: Package) -> None:
    package.add("parts", 'op.execute("CREATE TABLE part (goods INTEGER REFERENCES goods (id))")')
    await upgrade(empty, [SHOP])
    package.add("orphan", 'op.execute("INSERT INTO part VALUES (99)")')
    with pytest.raises(DatabaseError, match="rows of 'part' without their 'goods'; nothing was changed"):
        await upgrade(empty, [SHOP])
    assert await pending(empty, [SHOP]) == ["shop/0002_parts", "shop/0003_orphan"][1:]


async def test_missing_history_is_refused(empty: Database) -> None:
    with pytest.raises(DatabaseError, match="the migrations of no_such_package cannot be read"):
        await pending(empty, [History("x", "no_such_package", "x_version")])


async def test_upgrade_waits_for_a_locked_database_until_its_timeout(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/test.db", busy_timeout=0.1)
    await db.open()
    with closing(sqlite3.connect(str(db.path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="locked by another process"):
            await upgrade(db, [BUS])
    assert await upgrade(db, [BUS]) != []
    await db.close()


async def test_concurrent_upgrades_in_one_process_succeed(tmp_path: Path, package: Package) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/{n}.db") for n in range(2)]
    for db in databases:
        await db.open()
    applied = await asyncio.gather(*(upgrade(db, [SHOP]) for db in databases * 2))
    assert sorted(applied) == [[], [], ["shop/0001_goods"], ["shop/0001_goods"]]
    for db in databases:
        await db.close()


UPGRADE = """
import asyncio, sys
from infra.db import Database
from infra.db.histories import History
from infra.db.migrate import upgrade
async def main():
    db = Database(sys.argv[1])
    await db.open()
    sys.stdin.readline()
    print(*await upgrade(db, [History("shop", "shop_migrations", "shop_version")]))
    await db.close()
asyncio.run(main())
"""


async def test_several_processes_run_each_migration_once(tmp_path: Path, package: Package) -> None:
    package.add("count", 'op.execute("INSERT INTO goods DEFAULT VALUES")')
    package.add("wait", 'import time; time.sleep(0.3)\n    op.execute("INSERT INTO goods DEFAULT VALUES")')
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'code %40'}"}
    processes = [
        subprocess.Popen(  # noqa: ASYNC220, S603  # our own interpreter and script
            [sys.executable, "-c", UPGRADE, f"sqlite:///{tmp_path}/test.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for _ in range(3)
    ]
    answers = await asyncio.gather(*(asyncio.to_thread(process.communicate, "go\n", 50) for process in processes))
    assert [error for _, error in answers] == ["", "", ""]
    assert sorted(answer for answer, _ in answers) == ["\n", "\n", "shop/0001_goods shop/0002_count shop/0003_wait\n"]
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
        assert connection.execute("SELECT count(*) FROM goods").fetchone() == (2,)


async def test_migrations_do_not_change_the_logging_configuration(empty: Database) -> None:
    import logging

    before = (logging.getLogger().level, list(logging.getLogger().handlers), logging.getLogger("alembic").level)
    await upgrade(empty, [BUS])
    assert before == (logging.getLogger().level, list(logging.getLogger().handlers), logging.getLogger("alembic").level)


async def test_written_migration_creates_the_missing_table_in_both_directions(
    empty: Database, package: Package
) -> None:
    package.write_models(MODELS)
    await upgrade(empty, [BUS, SHOP])
    path = await write_migration(empty, [BUS, SHOP], "shop", "Add  prices, in cents")
    assert path is not None
    assert path == package.versions / "0002_add_prices_in_cents.py"
    source = path.read_text()
    assert source.startswith('"""Add prices, in cents."""')
    assert "sa.Column('cents', sa.Integer(), nullable=False)" in source
    assert "drop_table('prices')" in source
    assert "beneath_" not in source
    assert await upgrade(empty, [BUS, SHOP]) == ["shop/0002_add_prices_in_cents"]
    assert "prices" in await tables(empty)
    assert await write_migration(empty, [BUS, SHOP], "shop", "Again") is None
    assert sorted(each.name for each in package.versions.glob("*.py")) == ["0001_goods.py", path.name]


async def test_migration_is_not_written_against_a_database_with_pending_migrations(
    empty: Database, package: Package
) -> None:
    package.write_models(MODELS)
    with pytest.raises(MigrationPending, match=r"shop/0001_goods"):
        await write_migration(empty, [BUS, SHOP], "shop", "Add prices")
    assert len(list(package.versions.glob("*.py"))) == 1


@pytest.mark.parametrize("message", ["", " \t", "...", 'Add "prices"', "Add \\ prices"])
async def test_message_that_fits_no_file_or_docstring_is_refused(
    empty: Database, package: Package, message: str
) -> None:
    await upgrade(empty, [BUS, SHOP])
    with pytest.raises(ValueError, match="the message must contain"):
        await write_migration(empty, [BUS, SHOP], "shop", message)
    assert len(list(package.versions.glob("*.py"))) == 1


async def test_migration_in_a_folder_without_permission_is_refused(
    empty: Database, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    package.write_models(MODELS)
    await upgrade(empty, [BUS, SHOP])
    monkeypatch.setattr("alembic.script.base.ScriptDirectory.generate_revision", refuse)
    with pytest.raises(DatabaseError, match=r"the migration cannot be written: .*Permission denied"):
        await write_migration(empty, [BUS, SHOP], "shop", "Add prices")
