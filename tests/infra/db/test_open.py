"""Opening and closing a SQLite database, and the errors for unusable files."""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from infra.db import Database, DatabaseError, DatabaseUnavailable
from infra.db.sqlite_errors import explain, version_warning


def test_constructing_a_database_does_no_io(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/data/test.db")
    assert not (tmp_path / "data").exists()
    assert db.dialect.name == "sqlite"
    assert db.path == tmp_path / "data" / "test.db"
    assert db.url == f"sqlite:///{tmp_path}/data/test.db"


async def test_open_creates_the_folder_and_the_file(tmp_path: Path) -> None:
    db = Database(f"sqlite+aiosqlite:///{tmp_path}/deep/er/test.db")
    await db.open()
    assert db.path is not None
    assert db.path.exists()
    await db.close()


async def test_second_open_does_nothing(db: Database) -> None:
    engine = db._dialect.writer
    await db.open()
    assert db._dialect.writer is engine


async def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/a b%41#c&d=é/x;y.db")
    await db.open()
    assert db.path is not None
    assert db.path.exists()
    async with db.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE t (x)"))
    async with db.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM t"))).scalar_one() == 0
    await db.close()


async def test_a_relative_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    db = Database("sqlite:///./data/test.db")
    assert db.path == tmp_path / "data" / "test.db"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("not a url", "db.url is not a database URL"),
        ("", "db.url is not a database URL"),
        ("mysql://host/db", "db.url: 'mysql' is not supported"),
        ("postgres://user:hush@host/db", "db.url: 'postgres' is not supported"),
        ("sqlite+pysqlite:///x.db", "db.url: 'sqlite+pysqlite' is not supported"),
        ("sqlite://data/x.db", "did you mean sqlite:///data/x.db?"),
        ("sqlite://", "db.url: SQLite in memory"),
        ("sqlite:///:memory:", "db.url: SQLite in memory"),
        ("sqlite:///file:x?mode=memory", "db.url: SQLite in memory"),
        ("sqlite:///x.db?timeout=3", "db.url: unknown option 'timeout'"),
        ("sqlite:///~unknown-user/x.db", "write the whole path"),
    ],
)
def test_a_bad_url_is_one_line_that_names_the_setting(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=re.escape(message)) as raised:
        Database(url)
    assert "\n" not in str(raised.value)
    assert "hush" not in str(raised.value)


async def _open_error(path: Path, busy_timeout: float = 0.05) -> DatabaseError:
    db = Database(f"sqlite:///{path}", busy_timeout=busy_timeout)
    with pytest.raises(DatabaseError) as raised:
        await db.open()
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value) or str(path.parent) in str(raised.value)
    return raised.value


async def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    path.write_text("something else entirely\n" * 100)
    assert "is not a SQLite database" in str(await _open_error(path))
    assert path.read_text().startswith("something else")


async def test_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (x); CREATE INDEX i ON t (x)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 2000)
    assert "is damaged" in str(await _open_error(path))


async def test_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    assert "is a folder; name a file in it" in str(await _open_error(tmp_path))


async def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "cannot create the folder" in str(await _open_error(tmp_path / "data" / "test.db"))


async def test_locked_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    error = await _open_error(path)
    assert isinstance(error, DatabaseUnavailable)
    assert "locked by another process for more than 0.05 s" in str(error)
    other.close()


async def test_briefly_locked_database_opens(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    other.execute("CREATE TABLE t (x)")
    db = Database(f"sqlite:///{path}", busy_timeout=10)
    opening = asyncio.create_task(db.open())
    await asyncio.sleep(0.05)
    assert not opening.done()
    other.execute("COMMIT")
    other.close()
    await opening
    await db.close()


READ_ONLY = """
import asyncio, os, sys
from infra.db import Database, DatabaseError
import alembic, encodings.idna, infra.db.sqlite_dialect, sqlalchemy.ext.asyncio
if os.geteuid() == 0:
    os.setuid(65534)  # permissions do not stop root
async def main():
    try:
        await Database("sqlite:///" + sys.argv[1], busy_timeout=0.1).open()
    except DatabaseError as error:
        print(error)
asyncio.run(main())
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


def _make(path: Path, mode: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.execute("CREATE TABLE t (x)")
    connection.close()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: _make(path, "delete"), "is read-only; make the file and its folder writable"),
        (lambda path: _make(path, "wal"), "is read-only; make the file and its folder writable"),
        (lambda path: None, "cannot be opened: it does not exist, or its folder"),
    ],
    ids=["file", "file in WAL mode", "folder"],
)
def test_unwritable_file_or_folder_is_refused(
    public_folder: Path, prepare: Callable[[Path], None], message: str
) -> None:
    path = public_folder / "test.db"
    prepare(path)
    if path.exists():
        path.chmod(0o444)
    public_folder.chmod(0o555)
    root = Path(__file__).parents[3]
    done = subprocess.run(  # noqa: S603  # our own interpreter and script
        [sys.executable, "-W", "error", "-c", READ_ONLY, str(path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.stderr == ""
    assert message in done.stdout
    assert done.stdout.count("\n") == 1


async def test_use_before_open_is_an_error(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/test.db")
    with pytest.raises(DatabaseError, match="not open"):
        async with db.transaction() as tx:
            await tx.connection()
    with pytest.raises(DatabaseError, match="not open"):
        async with db.read():
            pass
    assert not db._lock.locked


async def test_closed_database_is_unusable_until_opened_again(db: Database) -> None:
    await db.close()
    await db.close()
    with pytest.raises(DatabaseError, match="not open"):
        async with db.read():
            pass
    await db.open()
    async with db.read() as session:
        assert (await session.execute(text("SELECT 1"))).scalar_one() == 1


async def test_connections_have_the_expected_settings(db: Database) -> None:
    async def pragmas(*names: str) -> list[object]:
        session = tx.session if (tx := db.current()) else reader
        return [(await session.execute(text(f"PRAGMA {name}"))).scalar_one() for name in names]

    async with db.read() as reader:
        assert await pragmas("journal_mode", "synchronous", "query_only", "busy_timeout") == ["wal", 2, 1, 5000]
        async with db.transaction():
            assert await pragmas("journal_mode", "synchronous", "foreign_keys") == ["wal", 2, 1]


async def test_deleted_file_is_not_created_again_empty(db: Database) -> None:
    assert db.path is not None
    await db.close()
    await db.open()
    db.path.unlink()
    with pytest.raises(DatabaseUnavailable, match="cannot be opened"):
        async with db.transaction() as tx:
            await tx.connection()
    assert not db.path.exists()


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_sqlite_versions_that_can_corrupt_files_cause_a_warning(version: tuple[int, int, int], warned: bool) -> None:
    warning = version_warning(version)
    assert (warning is not None) is warned
    if warning is not None:
        assert ".".join(map(str, version)) in warning
        assert "\n" not in warning


async def test_the_warning_is_about_the_library_in_use(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/test.db")
    assert db.sqlite_warning() == version_warning(sqlite3.sqlite_version_info)


def test_errors_of_statements_are_raised_unchanged(tmp_path: Path) -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as raised:
        connection.execute("SELECT * FROM nowhere")
    connection.close()
    assert explain(raised.value, tmp_path, 1.0) is None
