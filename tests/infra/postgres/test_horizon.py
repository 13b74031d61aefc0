"""Warnings of `beneath bus stats`: transactions left open by other clients, and dead rows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest

from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres import horizon
from tests.infra.postgres.queues import Store, new_store
from tests.postgres_servers import PostgresServer


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@pytest.fixture
async def queue(store: Store) -> SqlQueue:
    return (await store.open())[0]


@asynccontextmanager
async def left_open(store: Store, level: str) -> AsyncIterator[int]:
    """Hold a transaction open that has read something; yield the process id of its server process."""
    connection = await asyncpg.connect(store.url, server_settings={"application_name": "report"})
    try:
        await connection.execute(f"BEGIN ISOLATION LEVEL {level}")
        await connection.execute("SELECT count(*) FROM beneath_delivery")
        yield connection.get_server_pid()
    finally:
        await connection.close()


async def test_young_transaction_and_few_dead_rows_cause_no_warning(store: Store, queue: SqlQueue) -> None:
    async with left_open(store, "REPEATABLE READ"):
        assert await queue.warnings() == []


async def test_transaction_that_keeps_dead_rows_is_named_with_its_remedy(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "LONG", 0.0)
    async with left_open(store, "REPEATABLE READ") as process:
        [line] = await queue.warnings()
    assert f"transaction of 'report' (pid {process}, idle in transaction) has been open for 0 s" in line
    assert "beneath_delivery has 0" in line or "has 0)" in line
    assert line.endswith(f"SELECT pg_terminate_backend({process})")
    assert "\n" not in line


async def test_transaction_that_keeps_no_dead_rows_causes_no_warning(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "LONG", 0.0)
    async with left_open(store, "READ COMMITTED"):
        assert await queue.warnings() == []


async def test_invisible_age_of_a_transaction_is_counted_in_transactions(
    store: Store, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in ("TABLES", "SEQUENCES"):
        await server.execute(f"GRANT ALL ON ALL {what} IN SCHEMA public TO plain", store.database)
    plain = Store(server, server.url(store.database, user="plain"), store.ends)
    queue, _ = await plain.open()
    async with left_open(store, "REPEATABLE READ") as process:
        assert await queue.warnings() == []
        monkeypatch.setattr(horizon, "MANY_TRANSACTIONS", 0)
        [line] = await queue.warnings()
    assert f"(pid {process}) has been open for" in line
    assert "transactions" in line


async def test_prepared_transaction_is_named_with_its_remedy(queue: SqlQueue) -> None:
    holder = {"what": "prepared transaction", "pid": None, "name": "x1", "state": None, "seconds": 90.0, "xids": 3}
    assert horizon._is_old(holder)
    assert horizon._described(holder) == "the prepared transaction of 'x1' has been open for 90 s"
    assert horizon._remedy(holder) == "COMMIT PREPARED or ROLLBACK PREPARED 'x1'"


async def test_many_removable_dead_rows_cause_a_warning_about_autovacuum(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "MANY_DEAD", 0)
    [line] = await queue.warnings()
    assert "dead rows: check that autovacuum is on and keeps up, or run VACUUM beneath_" in line
