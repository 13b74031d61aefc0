"""Publishes within the application's transactions on PostgreSQL, beyond the contract."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from infra.db import Database, TransactionRolledBack
from infra.db.postgresql_driver import Driver, PostgreSQLConnection
from infra.mq import Failure, Outcome, QueueRejected, QueueUnavailable, Settlement
from infra.mq.drivers.sql import SqlQueue
from tests.infra.mq.acting import done, handle_all, ids, message, messages, subscription
from tests.infra.postgres.queues import MAIL, WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

STRICT = pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@pytest.fixture
async def opened(store: Store) -> tuple[SqlQueue, Database]:
    queue, db = await store.open()
    await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
    return queue, db


@pytest.fixture
def queue(opened: tuple[SqlQueue, Database]) -> SqlQueue:
    return opened[0]


@pytest.fixture
def db(opened: tuple[SqlQueue, Database]) -> Database:
    return opened[1]


async def be(db: Database, level: str) -> None:
    """Set the isolation level of the current transaction, and take its snapshot."""
    tx = db.current()
    assert tx is not None
    await tx.session.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
    await tx.session.execute(text("SELECT count(*) FROM beneath_subscription"))


@pytest.mark.parametrize("count", [1, 500])
async def test_publish_of_any_size_takes_one_round_trip(
    queue: SqlQueue, db: Database, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    trips: list[str] = []
    honest = PostgreSQLConnection._do_execute

    async def counted(self: PostgreSQLConnection, query: str, *values: Any, **options: Any) -> object:  # noqa: ANN401 - passed on unchanged
        trips.append(query)
        return await honest(self, query, *values, **options)

    async with db.transaction() as tx:
        await tx.session.execute(text("SELECT 1"))
        await queue.publish(messages(1))
        monkeypatch.setattr(PostgreSQLConnection, "_do_execute", counted)
        await queue.publish(messages(count, keys=7))
        assert len(trips) == 1
        monkeypatch.undo()


async def test_publish_may_be_the_first_statement_of_a_transaction(queue: SqlQueue, db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.transaction():
            await queue.publish([message("phantom")])
            raise KeyError
    async with db.transaction():
        await queue.publish([message("real")])
    assert await handle_all(await consumer(queue), {WORK: 10}) == ["real"]


async def test_a_refused_publish_makes_the_transaction_rollback_only(queue: SqlQueue, db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match="QueueRejected"):
        async with db.transaction():
            await queue.publish([message("before")])
            with pytest.raises(QueueRejected):
                await queue.publish([message("a\x00b")])
    assert await handle_all(await consumer(queue), {WORK: 10}) == []


async def test_a_savepoint_contains_a_refused_publish(queue: SqlQueue, db: Database) -> None:
    async with db.transaction():
        await queue.publish([message("before")])
        with pytest.raises(QueueRejected):
            async with db.savepoint():
                await queue.publish([message("refused", key="a\x00b")])
        await queue.publish([message("after")])
    assert await handle_all(await consumer(queue), {WORK: 10}) == ["before", "after"]


@pytest.mark.parametrize("key", ["a\x00b", "\ud800"], ids=["zero", "surrogate"])
async def test_message_with_unstorable_text_is_rejected_without_the_rest_of_its_group(
    queue: SqlQueue, key: str
) -> None:
    answers = await asyncio.gather(
        queue.publish([message("first")]),
        queue.publish([message("second")]),
        queue.publish([message("refused", key=key)]),
        queue.publish([message("third")]),
        return_exceptions=True,
    )
    assert [type(it) for it in answers] == [type(None), type(None), QueueRejected, type(None)]
    assert sorted(await handle_all(await consumer(queue), {WORK: 10})) == ["first", "second", "third"]


async def test_failure_with_any_text_is_stored(queue: SqlQueue) -> None:
    worker = await consumer(queue)
    await queue.publish([message("a")])
    [claim] = await worker.fetch({WORK: 1}, wait=0)
    failure = Failure(error="zero \x00 and \ud800", traceback="\x00" * 3)
    await worker.settle([Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.DEAD, failure=failure)])
    [letter] = await queue.dead_letters()
    assert letter.error == "zero \N{REPLACEMENT CHARACTER} and ?"


@STRICT
async def test_strictly_isolated_transaction_publishes_if_and_only_if_it_commits(
    queue: SqlQueue, db: Database, level: str
) -> None:
    worker = await consumer(queue)
    with pytest.raises(KeyError):
        async with db.transaction():
            await be(db, level)
            await queue.publish([message("phantom", key="k")])
            raise KeyError
    async with db.transaction():
        await be(db, level)
        await queue.publish([message("a", key="k"), message("b", key="k")])
        with db.hidden():
            assert await worker.fetch({WORK: 10, MAIL: 10}, wait=0) == []
    assert await handle_all(worker, {WORK: 10}) == ["a", "b"]
    assert await handle_all(worker, {MAIL: 10}) == ["a", "b"]


@STRICT
async def test_strictly_isolated_transaction_does_not_conflict_with_concurrent_broadcasts(
    store: Store, queue: SqlQueue, db: Database, level: str
) -> None:
    other, _ = await store.open()
    receiver = await other.receiver(origin="elsewhere")
    with pytest.raises(KeyError):
        async with db.transaction():
            await be(db, level)
            await queue.broadcast([b"phantom"], origin="here")
            raise KeyError
    async with db.transaction():
        await be(db, level)
        with db.hidden():
            await queue.broadcast([b"first"], origin="here")
        await queue.broadcast([b"strict"], origin="here")
        with pytest.raises(KeyError):
            async with db.savepoint():
                await queue.broadcast([b"phantom"], origin="here")
                raise KeyError
        assert await receiver.receive(0) == ([b"first"], False)
    assert await receiver.receive(0) == ([b"strict"], False)


@STRICT
async def test_strictly_isolated_transaction_does_not_conflict_with_workers_of_the_same_mailbox(
    queue: SqlQueue, db: Database, level: str
) -> None:
    worker = await consumer(queue)
    await queue.publish([message("a", key="k")])
    async with db.transaction():
        await be(db, level)
        with db.hidden():
            claims = await worker.fetch({MAIL: 1}, wait=0)
        await queue.publish([message("b", key="k")])
        with db.hidden():
            assert await worker.settle(done(claims)) == []
    assert await handle_all(worker, {MAIL: 10}) == ["b"]


@STRICT
async def test_messages_of_a_strictly_isolated_transaction_precede_messages_published_after_its_commit(
    queue: SqlQueue, db: Database, store: Store, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    async def never(*_: object, **__: object) -> None:
        return

    with monkeypatch.context() as patch:
        patch.setattr(queue_dialect(queue), "_promote_these", never)  # As if the process had died right after COMMIT.
        for name in ("a", "b"):
            async with db.transaction():
                await be(db, level)
                await queue.publish([message(name, key="k")])
    other, _ = await store.open()
    await other.publish([message("c", key="k")])
    assert await handle_all(await consumer(other), {MAIL: 10}) == ["a", "b", "c"]


@STRICT
async def test_strictly_isolated_publisher_killed_right_after_commit_delays_no_delivery(
    queue: SqlQueue, db: Database, store: Store, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    async def never(*_: object, **__: object) -> None:
        return

    monkeypatch.setattr(queue_dialect(queue), "_promote_these", never)
    other, _ = await store.open()
    worker = await consumer(other)
    waiting = asyncio.ensure_future(worker.fetch({MAIL: 1}, wait=20))
    async with db.transaction():
        await be(db, level)
        await queue.publish([message("a", key="k")])
    async with asyncio.timeout(5):
        assert ids(await waiting) == ["a"]


@STRICT
async def test_strictly_isolated_transaction_reaches_listeners_declared_since_its_start(
    queue: SqlQueue, db: Database, store: Store, level: str
) -> None:
    other, _ = await store.open()
    async with db.transaction():
        await be(db, level)
        with db.hidden():
            await other.declare([subscription("new"), subscription("new line", ordered=True)], [])
        await queue.publish([message("a", key="k")])
    worker = await consumer(other, "new", "new line")
    assert await handle_all(worker, {"new": 1}) == ["a"]
    assert await handle_all(worker, {"new line": 1}) == ["a"]


@STRICT
async def test_strictly_isolated_transaction_can_schedule_cancel_and_deduplicate(
    queue: SqlQueue, db: Database, level: str
) -> None:
    async with db.transaction():
        await be(db, level)
        await queue.publish([message("a", due_at=queue.time() + 60), message("b", due_at=queue.time() + 60)])
        assert await queue.cancel("a")
    assert not await queue.scheduled("a")
    assert await queue.scheduled("b")


async def test_declaration_waits_for_publishes_that_used_the_previous_registry(
    queue: SqlQueue, db: Database, store: Store
) -> None:
    other, _ = await store.open()
    async with db.transaction():
        await queue.publish([message("before", key="a")])
        declaring = asyncio.ensure_future(other.declare([subscription("new")], []))
        await asyncio.sleep(0.3)
        assert not declaring.done()
        async with asyncio.timeout(2):
            await other.publish([message("meanwhile", key="b")])
    async with asyncio.timeout(5):
        await declaring
    await queue.publish([message("after")])
    # A publish made meanwhile uses the new registry: no publisher waits for a declaration.
    assert await handle_all(await consumer(other, "new"), {"new": 10}) == ["meanwhile", "after"]


async def test_declaration_fails_after_its_timeout(queue: SqlQueue, db: Database, store: Store) -> None:
    other, _ = await store.open(patience=0.3)
    async with db.transaction():
        await queue.publish([message("before")])
        for _ in range(2):
            with pytest.raises(QueueUnavailable, match="held a needed lock for too long"):
                await other.declare([subscription("new")], [])
    await other.declare([subscription("new")], [])


async def test_publish_fails_if_its_key_is_locked_for_too_long(queue: SqlQueue, db: Database, store: Store) -> None:
    other, _ = await store.open(patience=0.3)
    async with db.transaction():
        await queue.publish([message("first", key="k")])
        with pytest.raises(QueueUnavailable, match="held a needed lock for too long"):
            await other.publish([message("second", key="k")])
    await other.publish([message("third", key="k")])
    assert await handle_all(await consumer(other), {MAIL: 10}) == ["first", "third"]


async def test_retirement_leaves_no_delivery_of_an_open_transaction(
    queue: SqlQueue, db: Database, store: Store
) -> None:
    other, _ = await store.open()
    async with db.transaction():
        await queue.publish([message("a", key="k")])
        retiring = asyncio.ensure_future(other.retire(MAIL, backlog="discard"))
        await asyncio.sleep(0.2)
        assert not retiring.done()
    async with asyncio.timeout(5):
        assert await retiring == 1
    assert await store.count("delivery") == 1
    assert await store.count("mailbox") == 0


async def test_uncommitted_cancellation_blocks_only_its_message(queue: SqlQueue, db: Database) -> None:
    worker = await consumer(queue)
    due = queue.time() + 0.3
    await queue.publish([message("held", key="a", due_at=due), message("free", key="b", due_at=due)])
    with pytest.raises(KeyError):
        async with db.transaction():
            assert await queue.cancel("held")
            await asyncio.sleep(0.4)
            with db.hidden():
                assert await handle_all(worker, {MAIL: 10, WORK: 10}) == ["free", "free"]
            raise KeyError
    claims = [await worker.fetch({name: 1}, wait=5) for name in (MAIL, WORK)]
    assert [ids(it) for it in claims] == [["held"], ["held"]]


async def test_driver_connection_matches_its_declared_type(db: Database) -> None:
    driver: Driver = await db.dialect.connect()  # type: ignore[attr-defined]  # PostgreSQL's own
    assert await driver.fetchval("SELECT $1::int", 7) == 7
    assert await driver.execute("SELECT 1") == "SELECT 1"
    assert not driver.is_in_transaction()
    await driver.close()
    assert driver.is_closed()
