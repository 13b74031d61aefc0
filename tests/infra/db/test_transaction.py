"""Transactions and reads on SQLite: begin, commit, rollback, joined blocks and ownership."""

import asyncio
import sqlite3
import traceback

import pytest
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import IntegrityError

from infra.db import (
    Database,
    DatabaseError,
    DatabaseUnavailable,
    NoTransaction,
    TransactionNotOwned,
    TransactionRolledBack,
)
from tests.infra.db.tables import Item, insert, names, until, write_from_outside


async def test_transaction_commits_at_the_end_of_the_block(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        assert await names_seen_from_outside(db) == []
    assert await names(db) == ["a"]


async def test_failed_block_rolls_back_and_raises_the_original_exception(db: Database) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            raise LookupError("mine")
    assert await names(db) == []
    write_from_outside(db.path)


async def test_transaction_begins_at_first_use_only(db: Database) -> None:
    async with db.transaction() as tx:
        begun = [tx.begun]
        write_from_outside(db.path)
        await tx.connection()
        begun.append(tx.begun)
        assert begun == [False, True]
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write_from_outside(db.path)
    write_from_outside(db.path)


async def test_flush_of_the_orm_begins_the_transaction(db: Database) -> None:
    async with db.transaction() as tx:
        tx.session.add(Item(name="a"))
        begun = [tx.begun]
        await tx.session.flush()
        begun.append(tx.begun)
        assert begun == [False, True]
    assert await names(db) == ["a"]


async def test_pending_orm_changes_are_flushed_before_commit(db: Database) -> None:
    async with db.transaction() as tx:
        tx.session.add(Item(name="a"))
    assert await names(db) == ["a"]


async def test_objects_stay_readable_after_commit(db: Database) -> None:
    async with db.transaction() as tx:
        item = Item(name="a")
        tx.session.add(item)
    assert item.name == "a"
    assert item.id == 1


async def test_an_unused_transaction_does_no_io(db: Database) -> None:
    await db.close()  # any use of the database would raise
    async with db.transaction() as tx:
        assert db.current() is tx
        async with db.transaction(), db.savepoint():
            pass
    assert not tx.begun


async def test_nested_block_joins_the_surrounding_transaction(db: Database) -> None:
    async with db.transaction() as outer:
        async with db.transaction() as inner:
            assert inner is outer
            await insert(inner, "a")
        assert db.current() is outer
        assert await names_seen_from_outside(db) == []
    assert db.current() is None
    assert await names(db) == ["a"]


async def test_exception_that_leaves_a_joined_block_fails_the_commit(db: Database) -> None:
    cause = ValueError("inner")
    with pytest.raises(TransactionRolledBack, match="ValueError: inner") as raised:
        async with db.transaction() as tx:
            await insert(tx, "a")
            with pytest.raises(ValueError, match="inner"):
                async with db.transaction():
                    raise cause
            await insert(tx, "b")
    assert raised.value.__cause__ is cause
    assert "\n" not in str(raised.value)
    assert await names(db) == []


async def test_exception_of_the_outermost_block_takes_precedence_over_the_mark(db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.transaction() as tx:
            tx.mark_rollback_only(ValueError("first"))
            raise KeyError("second")


async def test_a_marked_transaction_does_not_commit(db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match="ValueError"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            tx.mark_rollback_only(ValueError("one\nof two lines"))
    assert await names(db) == []


async def test_the_first_mark_is_the_cause(db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match="first"):
        async with db.transaction() as tx:
            tx.mark_rollback_only(ValueError("first"))
            tx.mark_rollback_only(ValueError("second"))


async def test_a_failed_flush_marks_the_transaction(db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match="UNIQUE") as raised:
        async with db.transaction() as tx:
            await insert(tx, "a")
            tx.session.add(Item(name="a"))
            with pytest.raises(IntegrityError):
                await tx.session.flush()
    assert isinstance(raised.value.__cause__, IntegrityError)
    assert await names(db) == []
    write_from_outside(db.path)


async def test_a_failed_flush_at_commit_is_the_error(db: Database) -> None:
    with pytest.raises(IntegrityError):
        async with db.transaction() as tx:
            await insert(tx, "a")
            tx.session.add(Item(name="a"))
    assert await names(db) == []
    write_from_outside(db.path)


async def test_a_statement_error_that_is_caught_leaves_the_transaction_usable(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        with pytest.raises(IntegrityError):
            await insert(tx, "a")
        await insert(tx, "b")
    assert await names(db) == ["a", "b"]


@pytest.mark.parametrize("call", ["commit", "rollback", "close", "begin", "begin_nested", "reset", "invalidate"])
async def test_the_session_cannot_end_the_transaction(db: Database, call: str) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        with pytest.raises(DatabaseError, match=r"session\.\w+\(\) is not allowed inside db\.transaction\(\); use"):
            await getattr(tx.session, call)()
    assert await names(db) == ["a"]


@pytest.mark.parametrize("goes_on", [True, False])
async def test_commit_on_the_connection_itself_is_an_error(db: Database, goes_on: bool) -> None:
    with pytest.raises(DatabaseError, match=r"inside db\.transaction"):
        async with db.transaction() as tx:
            connection = await tx.connection()
            await connection.commit()
            if goes_on:
                await connection.execute(text("INSERT INTO item (name) VALUES ('a')"))
    assert await names(db) == []
    write_from_outside(db.path)


async def test_on_begin_runs_right_after_begin(db: Database) -> None:
    seen: list[bool] = []

    def call(connection: Connection) -> None:
        connection.execute(text("INSERT INTO item (name) VALUES ('first')"))
        seen.append(True)

    async with db.transaction() as tx:
        tx.on_begin(call)
        assert seen == []
        async with db.savepoint():
            await insert(tx, "second")
        with pytest.raises(DatabaseError, match="called after the transaction had begun"):
            tx.on_begin(call)
    assert await names(db) == ["first", "second"]
    assert seen == [True]


async def test_on_begin_that_fails_makes_the_transaction_rollback_only(db: Database) -> None:
    def refuse(_: Connection) -> None:
        raise LookupError("not again")

    with pytest.raises(TransactionRolledBack, match="not again"):
        async with db.transaction() as tx:
            tx.on_begin(refuse)
            with pytest.raises(LookupError):
                await insert(tx, "a")
            await insert(tx, "b")
    assert await names(db) == []


async def test_on_begin_does_not_run_in_a_transaction_that_is_never_used(db: Database) -> None:
    async with db.transaction() as tx:
        tx.on_begin(lambda _: pytest.fail("there was no BEGIN"))


async def test_another_task_cannot_use_the_transaction(db: Database) -> None:
    async with db.transaction() as tx:
        session = tx.session
        await insert(tx, "a")

        async def stranger() -> None:
            with pytest.raises(TransactionNotOwned, match="hidden"):
                db.current()
            with pytest.raises(TransactionNotOwned):
                await db.transaction().__aenter__()
            with pytest.raises(TransactionNotOwned):
                await db.savepoint().__aenter__()
            with pytest.raises(TransactionNotOwned):
                await db.read().__aenter__()
            with pytest.raises(TransactionNotOwned):
                _ = tx.session
            with pytest.raises(TransactionNotOwned):
                await tx.connection()
            with pytest.raises(TransactionNotOwned):
                await session.execute(text("SELECT 1"))
            with pytest.raises(TransactionNotOwned):
                tx.on_begin(lambda _: None)

        await asyncio.gather(stranger(), asyncio.create_task(stranger()))
    assert await names(db) == ["a"]


async def test_a_thread_cannot_use_the_transaction(db: Database) -> None:
    async with db.transaction():
        with pytest.raises(TransactionNotOwned):
            await asyncio.to_thread(db.current)


async def test_hidden_transaction_is_invisible_to_threads_and_tasks(db: Database) -> None:
    async with db.transaction() as tx:
        with db.hidden():
            assert db.current() is None
            assert await asyncio.to_thread(db.current) is None
            child = asyncio.create_task(self_contained(db))
        assert db.current() is tx
        await child
    assert await names(db) == ["child"]


async def self_contained(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "child")


async def test_task_that_outlives_the_transaction_may_open_another(db: Database) -> None:
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        assert db.current() is None
        await self_contained(db)

    async with db.transaction():
        task = asyncio.create_task(later())
    over.set()
    await task
    assert await names(db) == ["child"]


async def test_a_hidden_transaction_in_the_same_task_is_refused_at_once(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "outer")
        with db.hidden(), pytest.raises(DatabaseError, match="would wait for it for ever"):
            async with db.transaction() as second:
                await insert(second, "inner")
    assert await names(db) == ["outer"]


async def test_transaction_is_unusable_after_its_end(db: Database) -> None:
    async with db.transaction() as tx:
        session = tx.session
        await insert(tx, "a")
    with pytest.raises(NoTransaction, match="has ended"):
        _ = tx.session
    with pytest.raises(NoTransaction):
        await session.execute(select(Item))
    with pytest.raises(NoTransaction):
        tx.participant("k", lambda: pytest.fail("not made"))


async def test_two_databases_have_separate_transactions(db: Database, tmp_path: object) -> None:
    other = Database(f"sqlite:///{tmp_path}/other.db")
    await other.open()
    async with db.transaction() as tx:
        assert other.current() is None
        async with other.transaction() as second:
            assert db.current() is tx
            assert other.current() is second
            with db.hidden():
                assert db.current() is None
                assert other.current() is second
    await other.close()


async def test_writers_of_one_process_take_turns_without_losing_updates(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE counter (n INTEGER)"))
        await tx.session.execute(text("INSERT INTO counter VALUES (0)"))

    async def increment() -> None:
        async with db.transaction() as tx:
            n = (await tx.session.execute(text("SELECT n FROM counter"))).scalar_one()
            await asyncio.sleep(0)
            await tx.session.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    await asyncio.gather(*(increment() for _ in range(50)))
    async with db.read() as session:
        assert (await session.execute(text("SELECT n FROM counter"))).scalar_one() == 50


async def test_reads_are_read_only_and_use_one_snapshot_without_waiting_for_writers(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
    async with db.read() as session:
        count = text("SELECT count(*) FROM item")
        assert (await session.execute(count)).scalar_one() == 1
        async with db.transaction() as tx:
            await insert(tx, "b")
            assert (await session.execute(count)).scalar_one() == 1
        assert (await session.execute(count)).scalar_one() == 1
        with pytest.raises(Exception, match="readonly"):
            await session.execute(text("DELETE FROM item"))
    assert await names(db) == ["a", "b"]


async def test_too_many_reads_wait_until_an_error_names_the_limit(tmp_path: object) -> None:
    db = Database(f"sqlite:///{tmp_path}/test.db", busy_timeout=0.05)
    await db.open()
    leave = asyncio.Event()

    async def read() -> None:
        async with db.read() as session:
            await session.execute(text("SELECT 1"))
            await leave.wait()

    tasks = [asyncio.create_task(read()) for _ in range(db._dialect.max_reads)]
    await until(db._reads.locked)
    with pytest.raises(DatabaseUnavailable, match="all 32 read connections were in use"):
        await read()
    leave.set()
    await asyncio.gather(*tasks)
    await read()
    await db.close()


async def test_read_inside_a_transaction_is_its_session(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        async with db.read() as session:
            assert session is tx.session
            assert (await session.execute(select(Item.name))).scalars().all() == ["a"]


async def test_deferred_constraint_refused_at_commit_raises_the_database_error(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.session.execute(
            text("CREATE TABLE part (item INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        async with db.transaction() as tx:
            await tx.session.execute(text("INSERT INTO part VALUES (99)"))
    write_from_outside(db.path)
    assert await names(db) == []


async def test_ddl_rolls_back(db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.transaction() as tx:
            await tx.session.execute(text("CREATE TABLE gone (x)"))
            raise KeyError
    async with db.read() as session:
        assert (await session.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'gone'"))).all() == []


async def test_one_connection_serves_all_writes(db: Database) -> None:
    connects: list[object] = []
    pool = db._dialect.writer.sync_engine.pool
    event.listen(pool, "connect", lambda *_: connects.append(1))
    for n in range(5):
        async with db.transaction() as tx:
            await insert(tx, f"n{n}")
    assert len(connects) <= 1


async def names_seen_from_outside(db: Database) -> list[str]:
    with db.hidden():
        return await names(db)


async def test_error_of_a_statement_shows_no_values(db: Database) -> None:
    value = "".join(("hunter", "2"))  # tracebacks show the source

    async def twice() -> None:
        async with db.transaction() as tx:
            await insert(tx, value)
            await insert(tx, value)

    with pytest.raises(IntegrityError) as caught:
        await twice()
    assert "INSERT INTO item" in str(caught.value)
    assert value not in "".join(traceback.format_exception(caught.value))
