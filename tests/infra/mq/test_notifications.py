"""Notifications between the processes on a file, and polling where there are none."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from infra.db import Database
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import watcher
from infra.mq.drivers.sql.sqlite.notifications import DatagramNotifier, NotificationSocket
from infra.mq.drivers.sql.sqlite.watcher import Watcher
from tests.infra.mq.acting import consumer, ids, message, subscription
from tests.infra.mq.conftest import OpenQueue

WANTS = {"work": 10}


@pytest.fixture
async def receiving(tmp_path: Path) -> AsyncIterator[NotificationSocket]:
    """Return the socket of another process."""
    receiving = NotificationSocket(tmp_path / "queue.db")
    receiving.bind()
    yield receiving
    receiving.close()


@pytest.fixture
async def notifier(tmp_path: Path) -> AsyncIterator[DatagramNotifier]:
    notifier = DatagramNotifier(tmp_path / "queue.db", "own.sock")
    notifier.open()
    yield notifier
    notifier.close()


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no poll help: only a notification wakes up a waiter."""
    monkeypatch.setattr(watcher, "IDLE_INTERVAL", 1000.0)


@pytest.fixture
async def waiter(queue: SqlQueue) -> "asyncio.Task[list[str]]":
    """Return a fetch of `queue` that waits, and has polled already."""
    worker = await consumer(queue)

    async def fetch() -> list[str]:
        return ids(await worker.fetch(WANTS, wait=30))

    waiting = asyncio.create_task(fetch())
    await until(lambda: bool(watcher_of(queue)._waiters))
    return waiting


def watcher_of(queue: SqlQueue) -> Watcher:
    found = queue._dialect._watcher  # type: ignore[attr-defined]  # SQLite's
    assert isinstance(found, Watcher)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)


def arrived(receiving: NotificationSocket) -> int:
    """Return the number of notifications since the last call."""
    count = 0
    assert receiving._socket is not None
    try:
        while receiving._socket.recv(1):
            count += 1
    except BlockingIOError:
        return count
    return count


async def notify_once(database: Path) -> None:
    notifier = DatagramNotifier(database, "own.sock")
    notifier.open()
    notifier.notify()
    notifier.close()


def sockets(folder: Path) -> list[str]:
    return sorted(it.name for it in folder.glob("*.workers/*.sock"))


@pytest.mark.usefixtures("no_polls")
async def test_publish_in_another_process_is_noticed_without_a_poll(
    waiter: "asyncio.Task[list[str]]", open_queue: OpenQueue
) -> None:
    publisher, _ = await open_queue()
    await publisher.publish([message("m")])
    assert await waiter == ["m"]


@pytest.mark.usefixtures("no_polls")
async def test_publish_in_a_transaction_is_notified_at_its_commit(
    waiter: "asyncio.Task[list[str]]", open_queue: OpenQueue
) -> None:
    publisher, db = await open_queue()
    async with db.transaction():
        await publisher.publish([message("m")])
    assert await waiter == ["m"]


@pytest.mark.usefixtures("no_polls")
async def test_publish_of_a_cancelled_caller_is_notified(
    waiter: "asyncio.Task[list[str]]", open_queue: OpenQueue
) -> None:
    publisher, _ = await open_queue()
    publishing = asyncio.create_task(publisher.publish([message("m")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    publishing.cancel()
    assert await waiter == ["m"]


@pytest.mark.usefixtures("no_polls")
async def test_broadcast_of_another_process_is_noticed_without_a_poll(queue: SqlQueue, open_queue: OpenQueue) -> None:
    receiver = await queue.receiver(origin="me")
    waiting = asyncio.create_task(receiver.receive(30))
    await asyncio.sleep(0)
    sender, _ = await open_queue()
    await sender.broadcast([b"hello"], origin="sender")
    assert (await waiting)[0] == [b"hello"]


async def test_idle_process_polls_at_the_slow_pace_only(queue: SqlQueue, waiter: "asyncio.Task[list[str]]") -> None:
    loop = asyncio.get_running_loop()
    for _ in range(5):
        watcher_of(queue)._tick()
        timer = watcher_of(queue)._timer
        assert timer is not None
        assert timer.when() - loop.time() > watcher.UNNOTIFIED_INTERVAL
        timer.cancel()
    waiter.cancel()


async def test_publisher_that_sends_no_notifications_makes_waiters_poll_more_often(
    queue: SqlQueue, waiter: "asyncio.Task[list[str]]", open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, _ = await open_queue()
    monkeypatch.setattr(watcher_of(publisher)._notifier, "notify", lambda: None)
    await publisher.publish([message("m")])
    assert await waiter == ["m"]
    watcher_of(queue).add(asyncio.Event())
    timer = watcher_of(queue)._timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() <= watcher.UNNOTIFIED_INTERVAL


async def test_queue_without_waiters_has_no_socket_and_leaves_none(open_queue: OpenQueue, tmp_path: Path) -> None:
    queue, _ = await open_queue()
    await queue.declare([subscription("work")], [])
    await queue.publish([message("m")])
    assert sockets(tmp_path) == []
    receiver = await queue.receiver(origin="me")
    assert len(sockets(tmp_path)) == 1
    await receiver.close()
    await queue.close()
    assert sockets(tmp_path) == []


async def test_many_changes_at_once_share_two_notifications(
    notifier: DatagramNotifier, receiving: NotificationSocket
) -> None:
    for _ in range(100):
        notifier.notify()
    assert arrived(receiving) == 1
    notifier.close()
    assert arrived(receiving) == 1
    notifier.close()
    assert arrived(receiving) == 0


async def test_later_notification_is_sent_after_the_interval(
    notifier: DatagramNotifier, receiving: NotificationSocket
) -> None:
    notifier.notify()
    notifier.notify()
    assert arrived(receiving) == 1
    await until(lambda: arrived(receiving) == 1)


async def test_unchanged_folder_is_read_once(
    notifier: DatagramNotifier, receiving: NotificationSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "queue.db.workers"
    os.utime(folder, (1.0, 1.0))
    reads: list[object] = []
    honest = os.listdir

    def listdir(path: str) -> list[str]:
        reads.append(path)
        return honest(path)

    monkeypatch.setattr(os, "listdir", listdir)
    for _ in range(3):
        notifier._send_to_all()
    assert (len(reads), arrived(receiving)) == (1, 3)
    second = NotificationSocket(tmp_path / "queue.db")
    second.bind()
    for _ in range(3):
        notifier._send_to_all()
    assert len(reads) == 4, "it changed a moment ago, and may change again without a new time"
    assert (arrived(receiving), arrived(second)) == (3, 3)
    second.close()


async def test_process_that_does_not_receive_holds_up_no_publisher(
    notifier: DatagramNotifier, receiving: NotificationSocket
) -> None:
    for _ in range(1000):
        notifier._send_to_all()
    assert 0 < arrived(receiving) < 1000


async def test_process_does_not_notify_itself(tmp_path: Path, receiving: NotificationSocket) -> None:
    itself = DatagramNotifier(tmp_path / "queue.db", receiving.name)
    itself.open()
    itself._send_to_all()
    itself.close()
    assert arrived(receiving) == 0


async def test_socket_of_a_killed_process_is_removed(notifier: DatagramNotifier, tmp_path: Path) -> None:
    killed = NotificationSocket(tmp_path / "queue.db")
    killed.bind()
    killed.forget()
    notifier._send_to_all()
    assert sockets(tmp_path) == [killed.name], "its process may be about to bind it"
    os.utime(killed._path, (1.0, 1.0))
    notifier._send_to_all()
    assert sockets(tmp_path) == []


async def test_deleted_socket_is_created_anew(
    queue: SqlQueue, waiter: "asyncio.Task[list[str]]", open_queue: OpenQueue, tmp_path: Path
) -> None:
    (name,) = sockets(tmp_path)
    (tmp_path / "queue.db.workers" / name).unlink()
    watcher_of(queue)._checked_socket_at = 0.0
    watcher_of(queue)._tick()
    assert sockets(tmp_path) == [name]
    publisher, _ = await open_queue()
    timer = watcher_of(queue)._timer
    assert timer is not None
    timer.cancel()
    await publisher.publish([message("m")])
    assert await waiter == ["m"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="such a path needs /proc")
async def test_path_longer_than_a_socket_address_is_notified(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    receiving = NotificationSocket(folder / "queue.db")
    receiving.bind()
    assert receiving.exists()
    notifier = DatagramNotifier(folder / "queue.db", "own.sock")
    notifier.open()
    notifier.notify()
    notifier.close()
    assert arrived(receiving) == 1
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # only their number
    notifier._send_to_all()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    receiving.close()
    assert sockets(folder) == []


@pytest.mark.parametrize("what", ["folder", "descriptor"])
async def test_without_a_socket_changes_are_found_by_polls(
    open_queue: OpenQueue, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "folder":
        (tmp_path / "queue.db.workers").write_text("in the way")
    else:

        def none_left(*_: object) -> socket.socket:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("infra.mq.drivers.sql.sqlite.notifications.socket.socket", none_left)
    queue, _ = await open_queue()
    receiver = await queue.receiver(origin="me")
    sender, _ = await open_queue()
    waiting = asyncio.create_task(receiver.receive(30))
    await asyncio.sleep(0)
    timer = watcher_of(queue)._timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() <= watcher.UNNOTIFIED_INTERVAL
    await sender.broadcast([b"hello"], origin="sender")
    assert (await waiting)[0] == [b"hello"]
    await receiver.close()


def test_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        receiving = NotificationSocket(tmp_path / "queue.db")
        receiving.bind()
    finally:
        os.umask(before)
    assert receiving._path.stat().st_mode & 0o777 == 0o600
    receiving.close()


_WITH_CHILD = """
import os, pathlib, sys
from infra.mq.drivers.sql.sqlite.notifications import NotificationSocket
receiving = NotificationSocket(pathlib.Path(sys.argv[1]))
receiving.bind()
child = os.fork()
if child == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdout.close()
os.kill(os.getpid(), 9)
"""


def test_forked_child_does_not_keep_the_socket_of_its_dead_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(  # noqa: S603  # our own interpreter
        [sys.executable, "-c", _WITH_CHILD, str(tmp_path / "queue.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forked\n"
    parent.wait(10)
    (name,) = sockets(tmp_path)
    os.utime(tmp_path / "queue.db.workers" / name, (1.0, 1.0))
    asyncio.run(notify_once(tmp_path / "queue.db"))
    assert sockets(tmp_path) == []
    parent.stdin.close()
    parent.stdout.close()


async def test_database_behind_a_symbolic_link_is_notified(queue: SqlQueue, path: Path, tmp_path: Path) -> None:
    receiver = await queue.receiver(origin="me")
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(path)
    db = Database(f"sqlite:///{link}")
    await db.open()
    sender = SqlQueue(db, clock=queue._clock)
    await sender.open()
    receiving = watcher_of(queue)._socket
    watcher_of(queue)._stop_watching()
    arrived(receiving)
    await sender.broadcast([b"hello"], origin="sender")
    assert arrived(receiving) == 1
    await sender.close()
    await db.close()
    await receiver.close()
