"""Participants of a transaction: order of their steps, errors and cancellation."""

# pyright: reportPossiblyUnboundVariable=false
# Blocks of `pytest.raises` end by an exception after their assignments.

import asyncio

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from infra.db import Database, DatabaseError, TransactionRolledBack
from tests.infra.db.tables import Item, Recorder, insert, names


async def test_participant_is_created_once_per_key_and_transaction(db: Database) -> None:
    async with db.transaction() as tx:
        first = tx.participant("a", Recorder)
        assert tx.participant("a", Recorder) is first
        assert tx.participant("b", Recorder) is not first
    async with db.transaction() as tx:
        assert tx.participant("a", Recorder) is not first


async def test_steps_of_a_commit_run_in_order(db: Database) -> None:
    log: list[str] = []

    class Watching(Recorder):
        async def before_commit(self) -> None:
            tx = db.current()
            assert tx is not None
            log.append(f"{self.name} sees {await self.count()}, ambient")
            await insert(tx, f"by {self.name}")

        async def after_commit(self) -> None:
            assert db.current() is None
            assert not db._lock.locked
            log.append(f"{self.name} after, sees {await self.count()}")

        async def count(self) -> int:
            async with db.read() as session:
                return int((await session.execute(text("SELECT count(*) FROM item"))).scalar_one())

    async with db.transaction() as tx:
        tx.participant("p", lambda: Watching(name="p"))
        tx.participant("q", lambda: Watching(name="q"))
        tx.session.add(Item(name="flushed first"))
    log.append("left")
    assert log == ["p sees 1, ambient", "q sees 2, ambient", "p after, sees 3", "q after, sees 3", "left"]


async def test_unused_transaction_calls_its_participants(db: Database) -> None:
    await db.close()
    async with db.transaction() as tx:
        recorder = tx.participant("p", Recorder)
    assert recorder.log == ["p before_commit", "p after_commit"]


async def test_work_added_while_preparing_is_prepared_too(db: Database) -> None:
    class Chained(Recorder):
        rounds = 0

        async def before_commit(self) -> None:
            self.rounds += 1
            tx = db.current()
            assert tx is not None
            if self.rounds <= 3:
                tx.participant(f"made {self.rounds}", lambda: recorder)
                tx.session.add(Item(name=f"round {self.rounds}"))

    recorder = Recorder()
    async with db.transaction() as tx:
        chained = tx.participant("c", Chained)
    assert chained.rounds == 4
    assert recorder.log.count("p before_commit") >= 3
    assert await names(db) == ["round 1", "round 2", "round 3"]


async def test_endless_preparation_is_refused(db: Database) -> None:
    class Endless(Recorder):
        async def before_commit(self) -> None:
            tx = db.current()
            assert tx is not None
            tx.participant("e", Recorder)

    with pytest.raises(DatabaseError, match="still add work after 32 rounds"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            endless = tx.participant("e", Endless)
    assert endless.log == ["p after_rollback"]
    assert await names(db) == []


async def test_error_in_before_commit_rolls_back_and_is_raised(db: Database) -> None:
    class FailingParticipant(Recorder):
        async def before_commit(self) -> None:
            raise LookupError("the queue failed")

    with pytest.raises(LookupError, match="the queue failed"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            failing = tx.participant("f", FailingParticipant)
            later = tx.participant("l", Recorder)
    assert failing.log == later.log == ["p after_rollback"]
    assert await names(db) == []


async def test_rollback_mark_set_in_before_commit_prevents_the_commit(db: Database) -> None:
    class Marking(Recorder):
        async def before_commit(self) -> None:
            tx = db.current()
            assert tx is not None
            tx.mark_rollback_only(ValueError("late"))

    with pytest.raises(TransactionRolledBack, match="late"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            tx.participant("m", Marking)
    assert await names(db) == []


async def test_transaction_marked_for_rollback_skips_before_commit(db: Database) -> None:
    with pytest.raises(TransactionRolledBack):
        async with db.transaction() as tx:
            recorder = tx.participant("p", Recorder)
            tx.mark_rollback_only(ValueError())
    assert recorder.log == ["p after_rollback"]


async def test_rollback_calls_every_participant(db: Database) -> None:
    with pytest.raises(KeyError):
        async with db.transaction() as tx:
            await insert(tx, "a")
            recorder = tx.participant("p", Recorder)
            raise KeyError
    assert recorder.log == ["p after_rollback"]


class FailingParticipant(Recorder):
    async def after_commit(self) -> None:
        raise LookupError("boom")

    after_rollback = after_commit


async def test_errors_after_commit_are_logged_and_other_participants_run(db: Database) -> None:
    with capture_logs() as logs:
        async with db.transaction() as tx:
            await insert(tx, "a")
            tx.participant("f", FailingParticipant)
            later = tx.participant("l", Recorder)
    assert later.log[-1] == "p after_commit"
    assert [(entry["log_level"], entry["committed"]) for entry in logs] == [("error", True)]
    assert await names(db) == ["a"]


async def test_errors_after_rollback_are_logged_and_other_participants_run(db: Database) -> None:
    with capture_logs() as logs, pytest.raises(KeyError):
        async with db.transaction() as tx:
            tx.participant("f", FailingParticipant)
            later = tx.participant("l", Recorder)
            raise KeyError
    assert later.log == ["p after_rollback"]
    assert [(entry["log_level"], entry["committed"]) for entry in logs] == [("error", False)]


async def test_cancellation_in_after_commit_is_raised_after_all_participants_ran(db: Database) -> None:
    class Waiting(Recorder):
        async def after_commit(self) -> None:
            entered.set()
            await asyncio.Event().wait()

    entered = asyncio.Event()
    later = Recorder()

    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "a")
            tx.participant("w", Waiting)
            tx.participant("l", lambda: later)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert later.log == ["p before_commit", "p after_commit"]
    assert await names(db) == ["a"]


async def test_after_commit_may_open_a_new_transaction(db: Database) -> None:
    class Following(Recorder):
        async def after_commit(self) -> None:
            async with db.transaction() as tx:
                await insert(tx, "b")

    async with db.transaction() as tx:
        await insert(tx, "a")
        tx.participant("f", Following)
    assert await names(db) == ["a", "b"]
