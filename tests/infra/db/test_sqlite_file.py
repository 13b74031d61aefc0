"""Identity of the SQLite file: one name per file, and no use of a file that was exchanged meanwhile."""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from infra.db import Database, DatabaseError, DatabaseUnavailable, sqlite_file
from tests.elsewhere import in_fork


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "test.db")) as db:
        db.execute("CREATE TABLE note (n int)")
    return folder / "test.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[Database]:
    db = Database(f"sqlite:///{path}", busy_timeout=0.3)
    await db.open()
    yield db
    await db.close()


async def insert(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.session.execute(text("INSERT INTO note VALUES (1)"))


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM note").fetchone()[0])


def exchange(path: Path) -> None:
    """Put a copy in the place of the file."""
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def move(path: Path, to: Path) -> Path:
    return path.replace(to)


@pytest.mark.parametrize("kind", ["link to the file", "link to its folder", "relative path", "way round"])
async def test_every_path_to_the_file_resolves_to_one_name(
    path: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "folder").symlink_to(path.parent)
    way = {
        "link to the file": f"{tmp_path}/link.db",
        "link to its folder": f"{tmp_path}/folder/test.db",
        "relative path": "folder/test.db",
        "way round": f"{tmp_path}/folder/../data/./test.db",
    }[kind]
    db = Database(f"sqlite:///{way}")
    await db.open()
    assert db.path == path
    await db.close()


async def test_file_with_two_names_is_refused(path: Path) -> None:
    path.with_name("other.db").hardlink_to(path)
    with pytest.raises(DatabaseError, match=r"test\.db has 2 names \(hard links\)"):
        await Database(f"sqlite:///{path}").open()


async def test_separately_mounted_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = path.with_name("mount points")
    blank = path.with_name("with blank.db")
    shutil.copy(path, blank)
    points = [str(it).replace(" ", "\\040") for it in (path.parent, blank)]
    mounts.write_text("\n".join(f"36 35 98:0 / {it} rw - ext3" for it in points))
    monkeypatch.setattr(sqlite_file, "_MOUNTS", mounts)
    with pytest.raises(DatabaseError, match="mounted as a single file, without its write-ahead log; mount its folder"):
        await Database(f"sqlite:///{blank}").open()
    db = Database(f"sqlite:///{path}")
    await db.open()
    await db.close()


async def test_circular_links_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.db").symlink_to(tmp_path / "b.db")
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(DatabaseError, match=r"cannot resolve the path .*a\.db"):
        await Database(f"sqlite:///{tmp_path}/a.db").open()


async def test_transaction_on_an_exchanged_file_is_refused(db: Database, path: Path) -> None:
    await insert(db)
    exchange(path)
    with pytest.raises(
        DatabaseUnavailable, match=r"test\.db: the file was replaced by another file: restart this process"
    ):
        await insert(db)


async def test_file_exchanged_during_a_transaction_is_not_committed(db: Database, path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="replaced by another file"):
        async with db.transaction() as tx:
            await tx.session.execute(text("INSERT INTO note VALUES (1)"))
            exchange(path)
    assert count(path) == 0


async def test_read_of_an_exchanged_file_is_refused(db: Database, path: Path) -> None:
    async with db.read() as session:
        await session.execute(text("SELECT * FROM note"))
    exchange(path)
    async with db.read() as session:
        with pytest.raises(OperationalError, match="replaced by another file"):
            await session.execute(text("SELECT * FROM note"))


async def test_restored_file_is_used_again(db: Database, path: Path) -> None:
    await insert(db)
    away = move(path, path.with_name("away.db"))
    with pytest.raises(DatabaseUnavailable, match="removed or moved away"):
        await insert(db)
    move(away, path)
    await insert(db)


async def test_removed_write_ahead_log_is_noticed(db: Database, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "CHECK_INTERVAL", 0.0)
    await insert(db)
    path.with_name("test.db-wal").unlink()
    with pytest.raises(DatabaseUnavailable, match="its write-ahead log was removed"):
        await insert(db)


async def test_removed_index_of_the_write_ahead_log_is_noticed(
    db: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index contains the locks: a process that creates a new index would write at the same time."""
    monkeypatch.setattr(sqlite_file, "CHECK_INTERVAL", 0.0)
    await insert(db)
    path.with_name("test.db-shm").unlink()
    with pytest.raises(DatabaseUnavailable, match="the index of its write-ahead log was removed"):
        await insert(db)
    assert count(path) == 1


async def test_forked_child_cannot_open_a_file_that_its_parent_has_open(db: Database, path: Path) -> None:
    async def in_child() -> None:
        own = Database(f"sqlite:///{path}", busy_timeout=0.3)
        await own.open()
        await insert(own)
        await own.close()

    async with db.transaction() as tx:
        await tx.session.execute(text("INSERT INTO note VALUES (2)"))
        said = in_fork(in_child)
    assert said.startswith(f"DatabaseError: db.url: {path} was open in the process that this one was forked from"), said
    await db.close()
    assert in_fork(in_child) == "", "nothing is left of the parent's locks"
    await db.open()
    assert count(path) == 2


async def test_changed_link_is_noticed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "current.db"
    link.symlink_to(path)
    db = Database(f"sqlite:///{link}")
    await db.open()
    await insert(db)
    shutil.copy(path, tmp_path / "next.db")
    (tmp_path / "new link").symlink_to(tmp_path / "next.db")
    move(tmp_path / "new link", link)
    with pytest.raises(DatabaseUnavailable, match="replaced by another file"):
        await insert(db)
    await db.close()
