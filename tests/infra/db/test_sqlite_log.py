"""The write-ahead log of SQLite stays small although reads overlap."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from infra.db import Database, sqlite_log
from infra.db.sqlite_file import DatabaseFile
from infra.db.sqlite_log import COMMITS, LogLimit

LIMIT = 256 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "test.db"
    with closing(connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE note (n int, pad blob)")
    return path


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)


@pytest.fixture
def overlapping_readers(path: Path) -> Iterator[None]:
    """Two readers, one of which is always in the middle of a transaction."""
    stop = threading.Event()
    turns = [threading.Semaphore(1), threading.Semaphore(0)]

    def read(me: int) -> None:
        with closing(connect(path)) as db:
            while True:
                turns[me].acquire()
                if stop.is_set():
                    return
                db.execute("BEGIN")
                db.execute("SELECT count(*) FROM note").fetchone()
                turns[1 - me].release()  # The other reader's transaction begins before this one ends.
                stop.wait(0.005)
                db.execute("COMMIT")

    threads = [threading.Thread(target=read, args=(each,)) for each in (0, 1)]
    for each in threads:
        each.start()
    yield
    stop.set()
    for turn in turns:
        turn.release()
    for each in threads:
        each.join()


@pytest.mark.usefixtures("overlapping_readers")
async def test_write_ahead_log_does_not_grow_with_the_amount_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "LIMIT", LIMIT)
    monkeypatch.setattr(sqlite_log, "PATIENCE", 2.0)
    monkeypatch.setattr(sqlite_log, "LONGEST_PATIENCE", 2.0)
    db = Database(f"sqlite:///{path}")
    await db.open()
    largest = written = 0
    while written < 40 * LIMIT:
        async with db.transaction() as tx:
            await tx.session.execute(text("INSERT INTO note VALUES (1, zeroblob(20000))"))
        written += 20000
        largest = max(largest, path.with_name("test.db-wal").stat().st_size)
    await db.close()
    assert largest < 4 * LIMIT


class Counted(sqlite3.Connection):
    """A connection that counts its checkpoints."""

    checkpoints = 0

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401  # as in the base class
        self.checkpoints += "wal_checkpoint" in sql
        return super().execute(sql, parameters)


def test_long_reader_costs_writers_one_checkpoint_attempt_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "LIMIT", LIMIT)
    monkeypatch.setattr(sqlite_log, "PATIENCE", 0.001)
    monkeypatch.setattr(sqlite_log, "RETRY_INTERVAL", 3600.0)
    limit = LogLimit(DatabaseFile(path))
    with closing(connect(path)) as reader, closing(sqlite3.connect(path, isolation_level=None, factory=Counted)) as db:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM note").fetchone()
        for _ in range(10 * COMMITS):
            db.execute("INSERT INTO note VALUES (1, zeroblob(20000))")
            limit.committed(db)
        assert db.checkpoints == 1
        assert db.execute("PRAGMA busy_timeout").fetchone() == (5000,), "as it was before"
