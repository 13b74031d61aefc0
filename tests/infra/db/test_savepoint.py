"""Savepoints: what they roll back, nesting, and rollback marks."""

# pyright: reportPossiblyUnboundVariable=false
# Blocks of `pytest.raises` end by an exception after their assignments.

import asyncio

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from infra.db import Database, NoTransaction, TransactionRolledBack
from tests.infra.db.tables import Item, Recorder, insert, names


async def test_savepoint_needs_a_transaction(db: Database) -> None:
    with pytest.raises(NoTransaction, match=r"db\.transaction\(\)"):
        async with db.savepoint():
            pass


async def test_savepoint_that_ends_normally_is_kept(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        async with db.savepoint() as same:
            assert same is tx
            await insert(tx, "b")
    assert await names(db) == ["a", "b"]


@pytest.mark.parametrize("used_before", [True, False])
async def test_exception_rolls_back_rows_objects_and_participants_together(db: Database, used_before: bool) -> None:
    async with db.transaction() as tx:
        early = tx.participant("early", Recorder)
        early.kept.append("before")
        if used_before:
            await insert(tx, "a")
        with pytest.raises(LookupError, match="inside"):
            async with db.savepoint():
                early.kept.append("inside")
                late = tx.participant("late", Recorder)
                late.kept.append("inside")
                item = Item(name="b")
                tx.session.add(item)
                await tx.session.flush()
                raise LookupError("inside")
        assert early.kept == ["before"]
        assert late.kept == []
        assert item not in tx.session
        await insert(tx, "c")
    assert await names(db) == (["a", "c"] if used_before else ["c"])


async def test_savepoint_covers_connections_obtained_before(db: Database) -> None:
    async with db.transaction() as tx:
        connection = await tx.connection()
        with pytest.raises(KeyError):
            async with db.savepoint():
                await connection.execute(text("INSERT INTO item (name) VALUES ('a')"))
                raise KeyError
    assert await names(db) == []


async def test_savepoints_nest(db: Database) -> None:
    async with db.transaction() as tx:
        kept = tx.participant("k", Recorder).kept
        async with db.savepoint():
            await insert(tx, "a")
            kept.append("a")
            with pytest.raises(KeyError):
                async with db.savepoint():
                    await insert(tx, "b")
                    kept.append("b")
                    async with db.savepoint():
                        await insert(tx, "c")
                        kept.append("c")
                    raise KeyError
            await insert(tx, "d")
            kept.append("d")
        with pytest.raises(KeyError):
            async with db.savepoint():
                async with db.savepoint():
                    await insert(tx, "e")
                    kept.append("e")
                raise KeyError
        assert kept == ["a", "d"]
    assert await names(db) == ["a", "d"]


async def test_participant_that_joined_inside_is_empty_after_each_rollback(db: Database) -> None:
    async with db.transaction() as tx:
        with pytest.raises(KeyError):
            async with db.savepoint():
                with pytest.raises(KeyError):
                    async with db.savepoint():
                        recorder = tx.participant("k", Recorder)
                        recorder.kept.append("inner")
                        raise KeyError
                recorder.kept.append("outer")
                raise KeyError
        assert recorder.kept == []


async def test_a_failed_joined_block_inside_marks_only_the_savepoint(db: Database) -> None:
    cause = ValueError("a listener failed")
    async with db.transaction() as tx:
        await insert(tx, "a")
        with pytest.raises(TransactionRolledBack, match="a listener failed") as raised:
            async with db.savepoint():
                await insert(tx, "b")
                with pytest.raises(ValueError, match="listener"):
                    async with db.transaction():
                        raise cause
                await insert(tx, "c")
        assert raised.value.__cause__ is cause
        await insert(tx, "d")
    assert await names(db) == ["a", "d"]


async def test_surrounding_joined_block_is_not_marked_by_a_contained_error(db: Database) -> None:
    async with db.transaction() as tx:
        async with db.transaction():
            with pytest.raises(KeyError):
                async with db.savepoint(), db.transaction():
                    raise KeyError
        await insert(tx, "a")
    assert await names(db) == ["a"]


async def test_rollback_mark_set_inside_applies_to_the_savepoint(db: Database) -> None:
    async with db.transaction() as tx:
        with pytest.raises(TransactionRolledBack):
            async with db.savepoint():
                tx.mark_rollback_only(ValueError())
        await insert(tx, "a")
    assert await names(db) == ["a"]


async def test_joined_block_entered_outside_marks_the_outer_transaction(db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match="LookupError"):
        async with db.transaction():
            with pytest.raises(LookupError):
                async with db.transaction(), db.savepoint():
                    raise LookupError("passes both")


async def test_savepoint_contains_a_failed_flush(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        with pytest.raises(IntegrityError):
            async with db.savepoint():
                tx.session.add(Item(name="a"))
                await tx.session.flush()
        tx.session.add(Item(name="b"))
    assert await names(db) == ["a", "b"]


async def test_flush_that_fails_at_the_end_rolls_back_the_savepoint(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        kept = tx.participant("k", Recorder).kept
        with pytest.raises(IntegrityError):
            async with db.savepoint():
                kept.append("inside")
                await insert(tx, "b")
                tx.session.add(Item(name="a"))
        assert kept == []
        assert (await tx.session.execute(select(Item.name))).scalars().all() == ["a"]
    assert await names(db) == ["a"]


async def test_caught_flush_error_inside_rolls_back_the_savepoint(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        with pytest.raises(TransactionRolledBack, match=r"(?i)unique"):
            async with db.savepoint():
                tx.session.add(Item(name="a"))
                with pytest.raises(IntegrityError):
                    await tx.session.flush()
        await insert(tx, "b")
    assert await names(db) == ["a", "b"]


async def test_earlier_session_objects_survive_the_rollback_of_a_savepoint(db: Database) -> None:
    async with db.transaction() as tx:
        tx.session.add(Item(name="a"))
        with pytest.raises(KeyError):
            async with db.savepoint():
                tx.session.add(Item(name="b"))
                raise KeyError
    assert await names(db) == ["a"]


async def test_cancelled_statement_inside_rolls_back_the_whole_transaction(db: Database) -> None:
    endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
    with pytest.raises(TransactionRolledBack, match="CancelledError"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), db.savepoint():
                    await tx.session.execute(endless)
    assert await names(db) == []
