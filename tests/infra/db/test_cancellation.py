"""Cancellation of transactions: the write lock is released, and every participant learns the outcome."""

import asyncio
import contextlib
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from infra.db import CommitIndeterminate, Database
from infra.db.sqlite_driver import SQLiteConnection
from tests.infra.db.tables import Item, Recorder, insert, names, until, write_from_outside

ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
MANY = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(4))
async def test_no_random_cancellation_leaves_the_write_lock_held(db: Database, seed: int) -> None:
    rng = random.Random(seed)
    committed: list[str] = []
    for n in range(60):
        recorder = Recorder()
        task = asyncio.create_task(_busy(db, f"item {n}", recorder))
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(0 if rng.random() < 0.7 else rng.random() / 2000)
        for _ in range(rng.choice((1, 1, 2, 3))):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait((task,))
        write_from_outside(db.path)
        assert not db._lock.locked
        if "p after_commit" in recorder.log:
            committed.append(f"item {n}")
        assert recorder.log[-1:] != ["p before_commit"]
    assert await names(db) == committed


async def _busy(db: Database, name: str, recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        await tx.session.execute(text("SELECT * FROM item"))
        await insert(tx, name)
        async with db.savepoint():
            await tx.session.execute(MANY)
            item = Item(name=f"{name} again")
            tx.session.add(item)
            await tx.session.flush()
        await tx.session.delete(item)
        result = await tx.session.stream(MANY)
        await result.fetchmany(10)


async def test_many_tasks_cancelled_at_random_leave_no_lock_or_connection(db: Database) -> None:
    rng = random.Random(7)
    recorders = [Recorder() for _ in range(60)]
    tasks = [asyncio.create_task(_busy(db, f"item {n}", recorder)) for n, recorder in enumerate(recorders)]
    while any(not task.done() for task in tasks):
        rng.choice(tasks).cancel()
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
    write_from_outside(db.path)
    kept = [n for n, recorder in enumerate(recorders) if "p after_commit" in recorder.log]
    assert await names(db) == [f"item {n}" for n in kept]


async def test_a_running_statement_is_interrupted(db: Database) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "a")
            await tx.session.execute(ENDLESS)

    task = asyncio.create_task(work())
    await until(lambda: _driver(db) is not None and not _settled(db))
    await asyncio.sleep(0.02)
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait((task,))
    assert task.cancelled()
    write_from_outside(db.path)
    assert await names(db) == []


async def test_a_statement_that_was_cancelled_before_it_started_is_interrupted(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = _Gate()
    original = SQLiteConnection._guarded

    def guarded(self: SQLiteConnection, statement: Callable[[sqlite3.Connection], object]) -> object:
        gate.hold()
        return original(self, statement)

    monkeypatch.setattr(SQLiteConnection, "_guarded", guarded)

    async def work() -> None:
        async with db.read() as session:
            await session.execute(ENDLESS)

    task = asyncio.create_task(work())
    await until(gate.entered.is_set)
    task.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    async with asyncio.timeout(5):
        await asyncio.wait((task,))
    assert task.cancelled()


async def test_a_cancelled_read_frees_its_connection(db: Database) -> None:
    for _ in range(40):  # more than there are read connections
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), db.read() as session:
                await session.execute(ENDLESS)
    assert await names(db) == []


async def test_read_connection_whose_rollback_failed_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[sqlite3.Error] = []

    class Failing(sqlite3.Connection):
        def rollback(self) -> None:
            if failures:
                raise failures.pop()
            super().rollback()

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **options, factory=Failing))
    db = Database(f"sqlite:///{tmp_path}/test.db", busy_timeout=5.0)
    await db.open()
    async with db.read() as session:
        await session.execute(text("SELECT 1"))
        failures.append(sqlite3.OperationalError("disk I/O error"))
    await until(lambda: not failures)
    with contextlib.suppress(DBAPIError):  # this read may still get the failed connection
        async with db.read() as session:
            await session.execute(text("SELECT 1"))
    async with db.read() as session:
        assert (await session.execute(text("SELECT 2"))).scalar() == 2
    await db.close()


async def test_a_cancellation_during_commit_waits_for_its_outcome(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = _hold_commit(monkeypatch)
    recorder = Recorder()

    async def work() -> None:
        async with db.transaction() as tx:
            tx.participant("p", lambda: recorder)
            await insert(tx, "a")

    task = asyncio.create_task(work())
    await until(gate.entered.is_set)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.log == ["p before_commit", "p after_commit"]
    assert await names(db) == ["a"]


async def test_a_timeout_during_commit_is_still_a_timeout(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = _hold_commit(monkeypatch)

    limit = asyncio.timeout(None)

    async def work() -> None:
        async with limit, db.transaction() as tx:
            await insert(tx, "a")

    task = asyncio.create_task(work())
    await until(gate.entered.is_set)
    limit.reschedule(asyncio.get_running_loop().time())
    await until(limit.expired)
    gate.opened.set()
    with pytest.raises(TimeoutError):
        await task
    assert await names(db) == ["a"]


async def test_commit_interrupted_by_the_end_of_its_loop_is_indeterminate(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = _hold_commit(monkeypatch)
    recorder = Recorder()

    async def work() -> None:
        async with db.transaction() as tx:
            tx.participant("p", lambda: recorder)
            await insert(tx, "a")

    before = asyncio.all_tasks()
    task = asyncio.create_task(work())
    await until(gate.entered.is_set)
    for other in asyncio.all_tasks() - before:  # as `asyncio.run` does at its end
        other.cancel()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert isinstance(raised.value.__cause__, CommitIndeterminate)
    assert recorder.log == ["p before_commit", "p after_rollback"]
    write_from_outside(db.path)


async def test_cancellation_during_rollback_is_raised_after_the_rollback(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = _Gate()
    original = SQLiteConnection._roll_back

    def roll_back(self: SQLiteConnection) -> None:
        gate.hold()
        original(self)

    monkeypatch.setattr(SQLiteConnection, "_roll_back", roll_back)

    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "a")
            raise KeyError

    task = asyncio.create_task(work())
    await until(gate.entered.is_set)
    task.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert isinstance(raised.value.__cause__, KeyError)
    write_from_outside(db.path)


async def test_cancellation_while_the_connection_settles_is_raised_afterwards(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling = asyncio.Event()
    leave = asyncio.Event()

    async def settle(_: object) -> None:
        settling.set()
        await leave.wait()

    monkeypatch.setattr(type(db._dialect), "settled", property(lambda _: leave.is_set()))
    monkeypatch.setattr(type(db._dialect), "settle", settle)

    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "a")

    task = asyncio.create_task(work())
    await settling.wait()
    task.cancel()
    await asyncio.sleep(0)
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(db) == ["a"]


async def test_cancelled_begin_does_not_keep_the_lock(db: Database) -> None:
    other = sqlite3.connect(str(db.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "a")

    for _ in range(5):
        task = asyncio.create_task(work())
        await until(lambda: db._lock.locked)
        await asyncio.sleep(0.01)
        task.cancel()
        async with asyncio.timeout(2):
            await asyncio.wait((task,))
        assert task.cancelled()
    other.execute("ROLLBACK")
    other.close()
    write_from_outside(db.path)
    async with db.transaction() as tx:
        await insert(tx, "b")
    assert await names(db) == ["b"]


class _Gate:
    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def hold(self) -> None:
        self.entered.set()
        assert self.opened.wait(10)


def _hold_commit(monkeypatch: pytest.MonkeyPatch) -> _Gate:
    gate = _Gate()
    original = SQLiteConnection._commit

    def commit(self: SQLiteConnection) -> None:
        gate.hold()
        original(self)

    monkeypatch.setattr(SQLiteConnection, "_commit", commit)
    return gate


def _driver(db: Database) -> SQLiteConnection | None:
    writing = db._dialect._writing  # type: ignore[attr-defined]  # SQLite's own
    assert writing is None or isinstance(writing, SQLiteConnection)
    return writing


def _settled(db: Database) -> bool:
    driver = _driver(db)
    return driver is None or driver.idle
