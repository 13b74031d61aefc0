"""The outbox on PostgreSQL: locked rows do not delay other rows."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from bus.publishing.outbox import Outbox
from bus.publishing.outbox_entries import EntryKind
from infra.clock import FakeClock
from infra.db import Database
from infra.mq import Message
from tests import postgres_servers
from tests.contract.postgres_harness import TEMPLATE, migrate


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    server = postgres_servers.shared()
    async with server.database(await server.template(TEMPLATE, migrate)) as url:
        db = Database(url)
        await db.open()
        yield db
        await db.close()


def delayed(message_id: str) -> Message:
    return Message(id=message_id, event="ticked", body=b"x", published_at=1.0, due_at=1e10)


async def test_row_being_cancelled_in_a_transaction_delays_no_other_row(db: Database) -> None:
    outbox = Outbox(db, FakeClock())
    async with db.transaction() as transaction:
        await outbox.put(transaction, [(EntryKind.PUBLISH, delayed("a")), (EntryKind.PUBLISH, delayed("b"))], [])
    entries = await outbox.ordered(10)
    async with db.transaction() as transaction:
        assert await outbox.delete_unsent(transaction, "a")
        with db.hidden():
            claiming = asyncio.create_task(outbox.claim("relay", entries))
        assert [each.message_id for each in await claiming] == ["b"]
    async with db.transaction() as transaction:
        assert not await outbox.delete_unsent(transaction, "b")
    async with db.read() as session:
        rows = (await session.execute(text("SELECT message_id, sending FROM beneath_outbox"))).all()
    assert [tuple(row) for row in rows] == [("b", "relay")]


async def test_time_of_the_database_is_the_time_of_its_server(db: Database) -> None:
    query = text("SELECT extract(epoch FROM clock_timestamp())")
    async with db.read() as session:
        before = float(await session.scalar(query))
        now = await Outbox(db, FakeClock()).time()
        assert before <= now <= float(await session.scalar(query))
