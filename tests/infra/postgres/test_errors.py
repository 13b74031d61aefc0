"""Errors of PostgreSQL: which queue error each raises, and whether its connection is closed."""

# pyright: reportPossiblyUnboundVariable=false
# Blocks of `pytest.raises` end by an exception after their assignments.

from collections.abc import AsyncIterator

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from sqlalchemy import text

from infra.db import DatabaseUnavailable
from infra.db.postgresql import PostgreSQL
from infra.mq import (
    MessageTooLarge,
    QueueClosed,
    QueueError,
    QueueIndeterminate,
    QueueRejected,
    QueueUnavailable,
)
from infra.mq.drivers.sql.postgres.errors import KeyBusy, is_spent, queue_error
from tests.infra.mq.acting import message, subscription
from tests.infra.postgres.queues import MAIL, WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


def raised(code: str) -> BaseException:
    error: BaseException = asyncpg.PostgresError("said so")
    error.sqlstate = code  # type: ignore[attr-defined]  # asyncpg has no types
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *(
            (code, QueueUnavailable)
            for code in ("57014", "40001", "40P01", "40003", "53000", "53100", "53200", "53300")
        ),
        *(
            (code, QueueUnavailable)
            for code in ("53400", "57P03", "25006", "25P02", "58030", "XX000", "0A000", "26000")
        ),
        *((code, QueueUnavailable) for code in ("42P01", "42883", "42501", "55006")),
        ("55P03", KeyBusy),
        *((code, QueueIndeterminate) for code in ("57P01", "57P02", "57P04", "57P05", "25P03", "25P04", "08006")),
        *((code, QueueRejected) for code in ("22021", "22P05", "22003", "23505", "23514")),
        ("54000", MessageTooLarge),
        ("BN001", QueueClosed),
    ],
)
async def test_error_code_decides_between_unavailable_indeterminate_and_rejected(
    store: Store, code: str, kind: type[QueueError]
) -> None:
    queue, _ = await store.open()
    server = queue_dialect(queue)._server
    assert isinstance(server, PostgreSQL)
    meaning = queue_error(raised(code), server, writing=True)
    assert type(meaning) is kind
    assert "\n" not in str(meaning)


@pytest.mark.parametrize("code", ["25006", "0A000", "26000", "57P01", "25P03"])
def test_unusable_connection_is_closed(code: str) -> None:
    assert is_spent(raised(code))
    assert not is_spent(raised("55P03"))


async def test_demoted_server_is_named_in_the_error_and_its_connections_are_replaced(
    server: PostgresServer, store: Store
) -> None:
    queue, db = await store.open()
    await queue.declare([subscription(WORK)], [])
    insert = text("INSERT INTO beneath_broadcast_event VALUES ('x')")
    await server.execute(f"ALTER DATABASE {store.database} SET default_transaction_read_only = on")
    await server.fetch(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", store.database
    )
    for _ in range(2):  # The first publish may still use a terminated connection.
        with pytest.raises(QueueUnavailable) as refused:
            await queue.publish([message("a")])
    assert "is read-only" in str(refused.value)
    assert "point db.url at the primary" in str(refused.value)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable) as unavailable:
            async with db.transaction() as tx:
                await tx.session.execute(insert)
    assert "is read-only" in str(unavailable.value)
    await server.execute(f"ALTER DATABASE {store.database} RESET default_transaction_read_only")
    await queue.publish([message("b")])
    async with db.transaction() as tx:
        await tx.session.execute(insert)
    assert await store.count("delivery") == 1


async def test_tables_outside_of_the_current_schema_are_used(server: PostgresServer, store: Store) -> None:
    await server.execute("CREATE SCHEMA postgres", store.database)  # First in the role's search path.
    queue, _ = await store.open()
    await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
    worker = await consumer(queue)
    await queue.publish([message("a", key="k")])
    assert len(await worker.fetch({WORK: 1, MAIL: 1}, wait=0)) == 2
    assert await queue.warnings() == []
    assert len(await queue.stats()) == 2
