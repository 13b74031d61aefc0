"""Publishes within the application's transactions on SQLite, beyond the contract."""

import asyncio
import sqlite3
from typing import Any

import pytest
from sqlalchemy import text

from infra.db import Database, TransactionNotOwned
from infra.db.sqlite_driver import SQLiteConnection
from infra.mq import QueueRejected, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import publishing
from tests.infra.mq.acting import consumer, handle_all, ids, message, messages
from tests.infra.mq.conftest import OpenQueue


@pytest.mark.parametrize("count", [1, 500])
async def test_publish_of_any_size_takes_one_switch_to_the_transaction_thread(
    queue: SqlQueue, db: Database, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    switches = 0
    hop = SQLiteConnection._hop

    async def counted(self: SQLiteConnection, work: Any) -> Any:  # noqa: ANN401  # handed on as it came
        nonlocal switches
        switches += 1
        return await hop(self, work)

    async with db.transaction() as tx:
        await tx.connection()
        monkeypatch.setattr(SQLiteConnection, "_hop", counted)
        await queue.publish(messages(count, keys=7))
        assert switches == 1


async def test_failed_publish_leaves_nothing_in_a_continued_transaction(
    queue: SqlQueue, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.IntegrityError("refused")

    async with db.transaction():
        await queue.publish([message("before")])
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "open_mailboxes", fail)
            with pytest.raises(QueueRejected):
                await queue.publish([message("refused", key="k")])
        await queue.publish([message("after")])
    assert await handle_all(await consumer(queue), {"work": 10}) == ["before", "after"]


async def test_rolled_back_savepoint_discards_its_publishes(queue: SqlQueue, db: Database) -> None:
    async with db.transaction():
        await queue.publish([message("kept")])
        with pytest.raises(ValueError, match="inner"):
            async with db.savepoint():
                await queue.publish([message("dropped")])
                raise ValueError("inner")
    assert await handle_all(await consumer(queue), {"work": 10, "mail": 10}) == ["kept", "kept"]


async def test_rows_and_deliveries_become_visible_together(
    queue: SqlQueue, db: Database, open_queue: OpenQueue
) -> None:
    other, other_db = await open_queue()
    worker = await consumer(other)
    async with db.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE thing (id INTEGER)"))
        await queue.publish([message("m")])
        assert await worker.fetch({"work": 1}, wait=0) == []
    assert ids(await worker.fetch({"work": 1}, wait=0)) == ["m"]
    async with other_db.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM thing"))).scalar() == 0


async def test_commit_wakes_up_a_waiting_consumer_of_this_process_at_once(queue: SqlQueue, db: Database) -> None:
    worker = await consumer(queue)
    waiting = asyncio.ensure_future(worker.fetch({"work": 1}, wait=20))
    await asyncio.sleep(0)
    async with db.transaction():
        await queue.publish([message("m")])
    assert ids(await waiting) == ["m"]


async def test_another_task_cannot_publish_into_a_transaction(queue: SqlQueue, db: Database) -> None:
    async with db.transaction():
        with pytest.raises(TransactionNotOwned):
            await asyncio.create_task(queue.publish([message("foreign")]))
        with db.hidden():
            stranger = asyncio.create_task(queue.publish([message("own")]))
        await stranger
    assert await handle_all(await consumer(queue), {"work": 10}) == ["own"]


async def test_queue_write_fails_inside_an_open_transaction_of_the_same_task(queue: SqlQueue, db: Database) -> None:
    async with db.transaction() as tx:
        await tx.connection()
        with pytest.raises(QueueUnavailable, match="held the write lock"):
            await queue.pause("work")


async def test_publish_is_unavailable_if_the_transaction_cannot_begin(
    queue: SqlQueue,
    db: Database,
    path: Any,  # noqa: ANN401
) -> None:
    hog = sqlite3.connect(path, isolation_level=None)
    hog.execute("BEGIN IMMEDIATE")
    async with db.transaction():
        with pytest.raises(QueueUnavailable):
            await queue.publish([message("m")])
    hog.close()
