"""Lock files: the lock of a worker's file proves that the worker lives."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.mq import QueueUnavailable
from infra.mq.drivers.sql.sqlite import lockfiles
from infra.mq.drivers.sql.sqlite.lockfiles import LockFolder


@pytest.fixture
def folder(tmp_path: Path) -> LockFolder:
    return LockFolder(tmp_path / "queue.db")


def test_worker_counts_as_live_while_its_lock_is_held(folder: LockFolder) -> None:
    lock = folder.hold("w")
    assert folder.is_alive("w")
    assert folder.seize("w") is None
    lock.release()
    assert not folder.is_alive("w")


def test_a_worker_without_a_file_is_dead(folder: LockFolder) -> None:
    seized = folder.seize("w")
    assert seized is not None
    seized.remove()


def test_seized_lock_cannot_be_seized_again(folder: LockFolder) -> None:
    folder.hold("w").release()
    seized = folder.seize("w")
    assert seized is not None
    assert folder.seize("w") is None
    seized.remove()
    assert folder.workers() == set()


def test_lock_file_of_any_worker_id_is_in_the_folder(folder: LockFolder, tmp_path: Path) -> None:
    lock = folder.hold("../a b/ü")
    assert folder.workers() == {"../a b/ü"}
    assert [it.name for it in tmp_path.iterdir()] == ["queue.db.workers"]
    lock.remove()


def test_lock_on_a_concurrently_removed_file_is_taken_again(
    folder: LockFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue.db.workers" / "w.lock"
    flock, removals = fcntl.flock, iter([True])

    def remove_first(descriptor: int, how: int) -> None:
        if next(removals, False):
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    lock = folder.hold("w")
    assert path.exists()
    assert folder.seize("w") is None
    lock.remove()


def test_two_live_workers_cannot_have_one_id(folder: LockFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfiles, "_PATIENCE", 0.0)
    lock = folder.hold("w")
    with pytest.raises(QueueUnavailable, match="another live worker has the id w"):
        folder.hold("w")
    lock.remove()


def test_folder_that_cannot_be_created_is_unavailable_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "queue.db.workers").write_text("in the way")
    with pytest.raises(QueueUnavailable, match=r"queue\.db\.workers.*: make this folder writable"):
        LockFolder(tmp_path / "queue.db").hold("w")


_WITH_CHILD = """
import os, subprocess, sys, pathlib
from infra.mq.drivers.sql.sqlite.lockfiles import LockFolder
folder = LockFolder(pathlib.Path(sys.argv[1]))
lock = folder.hold("w")
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
else:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"]).pid
print(child, flush=True)
os.close(1)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_child_process_that_outlives_its_worker_does_not_keep_the_lock(
    folder: LockFolder, tmp_path: Path, how: str
) -> None:
    parent = subprocess.Popen(  # noqa: S603  # our own interpreter
        [sys.executable, "-c", _WITH_CHILD, str(tmp_path / "queue.db"), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait(10)
    os.kill(child, 0)  # The child still runs.
    deadline = time.monotonic() + 10
    while folder.is_alive("w"):  # A forked child closes its copy first, but may not have run yet.
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child, 0)  # The child still runs.
    parent.stdin.close()  # The child ends.
    parent.stdout.close()
