"""Failures of BEGIN, COMMIT and ROLLBACK: which error is raised, and what remains of the transaction."""

import sqlite3
from collections.abc import Callable

import pytest
from sqlalchemy import text

from infra.db import CommitIndeterminate, Database, DatabaseUnavailable, TransactionRolledBack
from infra.db.sqlite_driver import ConnectionClosed, SQLiteConnection
from tests.infra.db.tables import Recorder, insert, names, write_from_outside


def _error(code: int, message: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def _raising(error: Exception) -> Callable[[SQLiteConnection], None]:
    def commit(_: SQLiteConnection) -> None:
        raise error

    return commit


async def test_begin_blocked_by_another_process_is_unavailable(tmp_path: object) -> None:
    db = Database(f"sqlite:///{tmp_path}/test.db", busy_timeout=0.15)
    await db.open()
    other = sqlite3.connect(str(db.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match=r"locked by another process for more than 0\.15 s") as raised:
        async with db.transaction() as tx:
            await tx.session.execute(text("SELECT 1"))
    assert "\n" not in str(raised.value)
    assert not db._lock.locked
    other.close()
    async with db.transaction() as tx:
        await tx.session.execute(text("SELECT 1"))
    await db.close()


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        (sqlite3.SQLITE_FULL, DatabaseUnavailable, "is full"),
        (sqlite3.SQLITE_BUSY, DatabaseUnavailable, "locked by another process"),
        (sqlite3.SQLITE_IOERR | (4 << 8), CommitIndeterminate, "may be committed or not"),
    ],
)
async def test_error_of_commit_is_unavailable_rejected_or_indeterminate(
    db: Database,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    expected: type[Exception],
    message: str,
) -> None:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(SQLiteConnection, "_commit", _raising(_error(code, "as SQLite says it")))
        with pytest.raises(expected, match=message) as raised:
            async with db.transaction() as tx:
                tx.participant("p", lambda: recorder)
                await insert(tx, "a")
    assert "\n" not in str(raised.value)
    assert recorder.log == ["p before_commit", "p after_rollback"]
    write_from_outside(db.path)
    assert await names(db) == []
    async with db.transaction() as tx:
        await insert(tx, "b")
    assert await names(db) == ["b"]


async def test_connection_lost_at_commit_is_indeterminate(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(CommitIndeterminate):
        patch.setattr(SQLiteConnection, "_commit", _raising(ConnectionClosed("the connection was closed")))
        async with db.transaction() as tx:
            await insert(tx, "a")


async def test_full_disk_rolls_back_the_whole_transaction(db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match="full"):
        async with db.transaction() as tx:
            await insert(tx, "a")
            await tx.session.execute(text("PRAGMA max_page_count = 1"))
            with pytest.raises(Exception, match="full"):
                await tx.session.execute(text("INSERT INTO item (name) VALUES (hex(zeroblob(3000000)))"))
            with pytest.raises(Exception, match="rolled back by an earlier error"):
                await insert(tx, "b")
    write_from_outside(db.path)
    assert await names(db) == []


async def test_statement_that_rolls_back_the_transaction_prevents_its_commit(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
    with pytest.raises(TransactionRolledBack, match="UNIQUE"):
        async with db.transaction() as tx:
            await insert(tx, "b")
            with pytest.raises(Exception, match="UNIQUE"):
                await tx.session.execute(text("INSERT OR ROLLBACK INTO item (name) VALUES ('a')"))
            with pytest.raises(Exception, match="rolled back"):
                await insert(tx, "c")
    assert await names(db) == ["a"]
    async with db.transaction() as tx:
        await insert(tx, "d")
    assert await names(db) == ["a", "d"]


async def test_streaming_gives_every_row_once(db: Database) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n"
    for count in (0, 1, 999, 1000, 1001, 2500):
        statement = text(rows.format(count) + (" WHERE 0" if count == 0 else ""))
        expected = list(range(1, count + 1))
        async with db.read() as session:
            assert list((await session.execute(statement)).scalars()) == expected
            assert [row async for row in (await session.stream(statement)).scalars()] == expected
            result = await session.stream(statement)
            assert [row.i for row in await result.fetchmany(3)] == expected[:3]
            assert [row.i for row in await result.fetchall()] == expected[3:]


async def test_rowcount_lastrowid_and_returning(db: Database) -> None:
    async with db.transaction() as tx:
        connection = await tx.connection()
        inserted = await connection.exec_driver_sql("INSERT INTO item (name) VALUES (?), (?)", ("a", "b"))
        assert (inserted.rowcount, inserted.lastrowid) == (2, 2)
        many = await connection.execute(text("INSERT INTO item (name) VALUES (:n)"), [{"n": "c"}, {"n": "d"}])
        assert many.rowcount == 2
        returned = await connection.execute(text("DELETE FROM item WHERE name > 'b' RETURNING name"))
        assert sorted(returned.scalars()) == ["c", "d"]
    assert await names(db) == ["a", "b"]


async def test_failed_rollback_closes_the_connection_and_releases_the_lock(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: SQLiteConnection) -> None:
        raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")

    with pytest.raises(KeyError):
        async with db.transaction() as tx:
            await insert(tx, "a")
            monkeypatch.setattr(SQLiteConnection, "_close_cursors", fail)
            raise KeyError
    write_from_outside(db.path)
    monkeypatch.undo()
    async with db.transaction() as tx:
        await insert(tx, "b")
    assert await names(db) == ["b"]


async def test_failed_begin_closes_the_connection(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
    with monkeypatch.context() as patch, pytest.raises(DatabaseUnavailable, match="fails"):
        patch.setattr(SQLiteConnection, "_begin_immediate", _raising(_error(sqlite3.SQLITE_IOERR, "disk I/O error")))
        async with db.transaction() as tx:
            await insert(tx, "b")
    async with db.transaction() as tx:
        await insert(tx, "c")
    assert await names(db) == ["a", "c"]
