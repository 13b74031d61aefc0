"""Opening the SQLite file of the queue while other processes open and close it."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from infra.mq.drivers.sql.sqlite.connection import connect

PENDING_BYTE = 0x40000000
"""The byte of a database that SQLite locks to keep new readers out: https://www.sqlite.org/lockingv3.html."""

HOLDER = f"""
import fcntl, sys, time
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, {PENDING_BYTE})
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "queue.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE thing (name TEXT)")
    return path


@contextmanager
def readers_kept_out(path: Path, seconds: float) -> Iterator[None]:
    """Keep new readers out from another process, as closing the last connection briefly does."""
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:  # noqa: S603
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.kill()


@pytest.mark.parametrize("read_only", [False, True])
def test_open_waits_briefly_for_a_process_closing_its_connection(path: Path, read_only: bool) -> None:
    with readers_kept_out(path, 0.2), closing(connect(path, read_only=read_only)) as db:
        assert db.execute("SELECT count(*) FROM thing").fetchone() == (0,)


def test_open_fails_if_the_file_stays_locked(path: Path) -> None:
    with readers_kept_out(path, 60), pytest.raises(sqlite3.OperationalError, match="locked"):
        connect(path)


def test_open_connection_waits_for_no_lock(path: Path) -> None:
    with closing(connect(path)) as db, closing(connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert db.execute("PRAGMA busy_timeout").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            db.execute("BEGIN IMMEDIATE")
