"""The queue's present schema: the SQL driver's files define what a database with all migrations has."""

import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # it has no types

from dependencies.migrations import BUS
from infra.db import Database
from infra.db.migrate import upgrade
from tests import postgres_servers
from tests.infra.schema.catalog import describe_postgres, describe_sqlite

DRIVER = Path(__file__).parents[3] / "infra" / "mq" / "drivers" / "sql"
FUNCTIONS = sorted((DRIVER / "postgres" / "functions").glob("*.sql"))
FORMER = sorted((DRIVER / "migrations" / "former").glob("*.sql"))

OTHERS = ("beneath_inbox", "beneath_outbox", "beneath_relay")
"""The bus's tables that do not belong to the queue."""


def of_the_queue(described: list[str]) -> list[str]:
    return [line for line in described if not any(name in line for name in OTHERS)]


async def migrated(url: str) -> None:
    db = Database(url)
    await db.open()
    await upgrade(db, [BUS])
    await db.close()


async def test_tables_on_sqlite_equal_their_definition(tmp_path: Path) -> None:
    await migrated(f"sqlite:///{tmp_path}/migrated.db")
    with closing(sqlite3.connect(":memory:")) as raw:
        raw.executescript((DRIVER / "sqlite" / "tables.sql").read_text())
        defined = describe_sqlite(raw)
    with closing(sqlite3.connect(tmp_path / "migrated.db")) as raw:
        assert of_the_queue(describe_sqlite(raw)) == defined


async def test_tables_and_functions_on_postgresql_equal_their_definition() -> None:
    server = postgres_servers.shared()
    async with server.database() as url, server.database() as other:
        await migrated(url)
        connection = await asyncpg.connect(other)
        for path in (DRIVER / "postgres" / "tables.sql", *FUNCTIONS):
            await connection.execute(path.read_text())
        await connection.close()
        former = tuple(f"function ('beneath_{path.stem}'," for path in FORMER)
        kept = [line for line in of_the_queue(await describe_postgres(url)) if not line.startswith(former)]
        assert kept == await describe_postgres(other)


async def test_functions_of_earlier_releases_stay_in_a_migrated_database() -> None:
    async with postgres_servers.shared().database() as url:
        await migrated(url)
        described = await describe_postgres(url)
    functions = {line.split("'")[1] for line in described if line.startswith("function ")}
    assert functions == {f"beneath_{path.stem}" for path in (*FUNCTIONS, *FORMER)}


def test_the_driver_calls_no_function_of_an_earlier_release() -> None:
    sources = "\n".join(path.read_text() for path in [*(DRIVER / "postgres").glob("*.py"), *FUNCTIONS])
    calls = sources.replace("CREATE FUNCTION beneath_", "")
    assert [path.stem for path in FORMER if f"beneath_{path.stem}(" in calls] == []
    assert [path.stem for path in FUNCTIONS if f"beneath_{path.stem}(" not in calls] == []
