"""QueueConnections that the server has terminated while the client has not received their end yet."""

import asyncio

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from sqlalchemy import text

from infra.clock import SystemClock
from infra.db import Database, DatabaseUnavailable
from infra.db.postgresql_driver import PostgreSQLConnection
from infra.mq import Message, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from tests.breakable_proxy import BreakableProxy
from tests.infra.db.tables import insert, names
from tests.infra.postgres.queues import new_store
from tests.postgres_servers import PostgresServer

TERMINATE = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend'
"""


async def end_all(server: PostgresServer, url: str, proxy: BreakableProxy) -> None:
    """Terminate every connection to a database; return when the server's last messages have arrived."""
    proxy.keep_ends()
    await server.fetch(TERMINATE, url.rpartition("/")[2])
    async with asyncio.timeout(5):
        while proxy.ended < proxy.opened:  # noqa: ASYNC110  # it happens on the server
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    proxy.keep_ends(keep=False)


async def test_transaction_on_an_ended_connection_is_unavailable_and_the_next_one_succeeds(
    server: PostgresServer, url: str, db: Database
) -> None:
    with BreakableProxy(server.port) as proxy:
        far = Database(proxy.instead_of(url))
        await far.open()
        assert await names(far) == []
        await end_all(server, url, proxy)
        with pytest.raises(DatabaseUnavailable, match="was lost"):
            async with far.transaction() as tx:
                await insert(tx, "a")
        async with far.transaction() as tx:
            await insert(tx, "b")
        assert await names(far) == ["b"]
        await far.close()


async def test_transaction_whose_connection_ends_meanwhile_changes_nothing(
    server: PostgresServer, url: str, db: Database
) -> None:
    with BreakableProxy(server.port) as proxy:
        far = Database(proxy.instead_of(url))
        await far.open()
        for statement in ("COMMIT", "SELECT 1"):
            with pytest.raises(DatabaseUnavailable, match="was lost"):
                async with far.transaction() as tx:
                    await insert(tx, "a")
                    await end_all(server, url, proxy)
                    if statement != "COMMIT":
                        await tx.session.execute(text(statement))
        assert await names(far) == []
        await far.close()


async def test_ended_connection_keeps_rows_already_read_and_frees_its_pool_slot(
    server: PostgresServer, url: str, db: Database
) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
    with BreakableProxy(server.port) as proxy:
        far = Database(f"{proxy.instead_of(url)}?pool_size=1", busy_timeout=0.5)
        await far.open()
        for _ in range(3):
            async with far.read() as session:
                found = (await session.execute(text("SELECT name FROM item"))).scalars().all()
                await end_all(server, url, proxy)
            assert found == ["a"]
        await far.close()


async def test_connection_that_ends_during_its_setup_is_unavailable(
    url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(self: PostgreSQLConnection, *_: object, **__: object) -> None:
        raise asyncpg.InterfaceError("connection is closed")

    other = Database(url)
    await other.open()
    with monkeypatch.context() as patch:
        patch.setattr(PostgreSQLConnection, "set_type_codec", ended)
        with pytest.raises(DatabaseUnavailable, match=r"cannot connect to .*: connection is closed"):
            await names(other)
    assert await names(other) == []
    await other.close()


async def test_publish_on_an_ended_connection_is_unavailable_and_the_next_one_succeeds(server: PostgresServer) -> None:
    with BreakableProxy(server.port) as proxy:
        async with new_store(server) as store:
            far = Database(proxy.instead_of(store.url))
            await far.open()
            queue = SqlQueue(far, clock=SystemClock())
            await queue.open()
            await queue.publish([message("a")])
            await end_all(server, store.url, proxy)
            with pytest.raises(QueueUnavailable, match="was lost"):
                await queue.publish([message("b")])
            await queue.publish([message("c")])
            await queue.close()
            await far.close()


def message(name: str) -> Message:
    return Message(id=name, event="E", body=b"", published_at=0.0)
