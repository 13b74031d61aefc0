"""Permissions of files with personal data: only their owner has access, for any umask."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from dependencies.migrations import HISTORIES
from infra.clock import SystemClock
from infra.db import Database, DatabaseUnavailable
from infra.db.migrate import upgrade
from infra.files import descriptors_short, private_file, private_folder
from infra.mail import FolderMailer, Mail, MailUnavailable
from infra.mq import QueueUnavailable, WorkerInfo
from infra.mq.drivers.redis import RedisQueue
from infra.mq.drivers.sql import SqlQueue


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of all files and folders below `folder`."""
    return {str(each.relative_to(folder)): stat.S_IMODE(each.stat().st_mode) for each in folder.rglob("*")}


@pytest.mark.usefixtures("umask")
async def test_database_files_and_folders_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data" / "beneath.db"
    db = Database(f"sqlite:///{path}")
    await db.open()
    await upgrade(db, HISTORIES)
    queue = SqlQueue(db, clock=SystemClock())
    await queue.open()
    await queue.consumer(WorkerInfo(id="w", subscriptions=frozenset(), host="h", pid=1), CLAIM_LIMITS)
    found = modes(tmp_path)
    assert {"new/data/beneath.db-wal", "new/data/beneath.db-shm", "new/data/beneath.db.workers"} <= found.keys()
    assert {name: oct(mode) for name, mode in found.items() if mode & 0o077} == {}
    assert (found["new"], found["new/data"], found["new/data/beneath.db"]) == (0o700, 0o700, 0o600)
    await queue.close()
    await db.close()


@pytest.mark.usefixtures("umask")
async def test_mails_and_their_folder_are_private(tmp_path: Path) -> None:
    mailer = FolderMailer(tmp_path / "data" / "mail", "a@example.com")
    await mailer.send(Mail(to="b@example.com", subject="s", text="t", id="1"))
    await mailer.send(Mail(to="b@example.com", subject="s", text="again", id="1"))
    assert modes(tmp_path) == {"data": 0o700, "data/mail": 0o700, "data/mail/1.eml": 0o600}


def test_existing_files_keep_their_permissions(tmp_path: Path) -> None:
    folder, file = tmp_path / "shared", tmp_path / "shared" / "file"
    folder.mkdir()
    folder.chmod(0o750)
    file.touch()
    file.chmod(0o640)
    private_folder(folder)
    private_file(file)
    assert modes(tmp_path) == {"shared": 0o750, "shared/file": 0o640}


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        private_folder(tmp_path / "file" / "folder")


async def test_mail_stays_in_its_folder_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mailer = FolderMailer(Path("mail"), "a@example.com")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await mailer.send(Mail(to="b@example.com", subject="s", text="t", id="1"))
    assert (tmp_path / "mail" / "1.eml").is_file()


async def test_a_home_folder_is_found_in_a_database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Database("sqlite:///~/data/x.db").path == tmp_path / "data" / "x.db"


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files inside the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_unused = os.dup(0)
    os.close(lowest_unused)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_unused, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_too_few_file_descriptors_are_named_and_end_with_their_cause(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/x.db")
    with no_more_files(), pytest.raises(DatabaseUnavailable, match="too many files are open; raise the limit"):
        await db.open()
    await db.open()
    mailer = FolderMailer(tmp_path, "a@example.com")
    message = Mail(to="b@example.com", subject="s", text="t", id="1")
    with no_more_files(), pytest.raises(MailUnavailable, match="Too many open files"):
        await mailer.send(message)
    await mailer.send(message)
    await db.close()


async def test_too_few_file_descriptors_are_distinguished_from_an_unreachable_server(tmp_path: Path) -> None:
    db = Database("postgresql://ada@127.0.0.1:1/app")
    with (
        no_more_files(),
        pytest.raises(DatabaseUnavailable, match="too many files are open; raise the limit"),
    ):
        await db.open()
    queue = RedisQueue(f"unix://{tmp_path}/missing.sock", clock=SystemClock())
    with no_more_files(), pytest.raises(QueueUnavailable, match="cannot be reached: too many files are open"):
        await queue.open()


def test_a_lack_of_file_descriptors_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    opened: list[int] = []

    def limited(path: str, flags: int) -> int:
        if len(opened) == 2:
            raise OSError(24, "Too many open files")
        opened.append(real(path, flags))
        return opened[-1]

    monkeypatch.setattr(os, "open", limited)
    assert "raise the limit" in (descriptors_short() or "")
    for each in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)
