"""The watcher: how a process notices commits of other processes, and interruptions."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from infra.db.sqlite_file import DatabaseFile
from infra.mq import QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite.connection import connect
from infra.mq.drivers.sql.sqlite.watcher import IDLE_INTERVAL, UNNOTIFIED_INTERVAL, Watcher
from tests.infra.mq.acting import consumer
from tests.infra.mq.conftest import OpenQueue


@pytest.fixture
async def watcher(path: Path) -> AsyncIterator[Watcher]:
    file = DatabaseFile(path)
    file.remember()
    watcher = Watcher(path, file.check, longest_silence=5)
    watcher.open()
    yield watcher
    watcher.close()


def write(path: Path) -> None:
    with closing(connect(path)) as db:
        db.execute("UPDATE beneath_registry SET version = version + 1")


def move(path: Path, to: Path) -> Path:
    return path.rename(to)


async def test_poll_notices_commits_of_other_connections_only(watcher: Watcher, path: Path) -> None:
    event = asyncio.Event()
    watcher.add(event)
    watcher.poll()
    assert not event.is_set()
    write(path)
    watcher.poll()
    assert event.is_set()


async def test_watcher_polls_while_a_waiter_exists(watcher: Watcher, path: Path) -> None:
    event = asyncio.Event()
    watcher.add(event)
    write(path)
    async with asyncio.timeout(5):
        await event.wait()


async def test_commit_without_a_waiter_notifies_the_next_waiter(watcher: Watcher, path: Path) -> None:
    write(path)
    event = asyncio.Event()
    watcher.add(event)
    watcher.poll()
    assert event.is_set()


async def test_poll_interval_grows_without_notifications_while_nothing_changes(path: Path) -> None:
    path.with_name(f"{path.name}.workers").write_text("in the way")
    watcher = Watcher(path, lambda: None, longest_silence=5)
    watcher.open()
    watcher.add(asyncio.Event())
    for _ in range(50):
        watcher._tick()
    assert watcher._interval == UNNOTIFIED_INTERVAL
    watcher.notify()
    assert watcher._interval < UNNOTIFIED_INTERVAL
    watcher.close()


async def test_delayed_poll_is_an_interruption(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    event = asyncio.Event()
    watcher.add(event)
    loop = asyncio.get_running_loop()
    late = loop.time() + 6
    monkeypatch.setattr(loop, "time", lambda: late)
    watcher.poll()
    watcher.poll()
    assert watcher.interruptions == 1
    assert event.is_set()


async def test_missing_file_is_an_interruption_until_the_file_returns(watcher: Watcher, path: Path) -> None:
    event = asyncio.Event()
    watcher.add(event)
    away = move(path, path.with_name("away.db"))
    watcher.poll()
    watcher.poll()
    assert watcher.interruptions == 1
    with pytest.raises(QueueUnavailable, match=r"queue\.db: the file was removed or moved away"):
        watcher.read(lambda db: db.execute("SELECT 1"))
    move(away, path)
    event.clear()
    watcher.poll()
    assert event.is_set()
    assert watcher.read(lambda db: db.execute("SELECT 1").fetchone()) == (1,)


async def test_replaced_file_is_not_mistaken_for_the_original(watcher: Watcher, path: Path) -> None:
    move(path, path.with_name("away.db"))
    shutil.copy(path.with_name("away.db"), path)
    watcher.add(asyncio.Event())
    watcher.poll()
    with pytest.raises(QueueUnavailable, match="replaced by another file: restart"):
        watcher.read(lambda db: db.execute("SELECT 1"))


async def test_a_fetch_with_nothing_due_takes_no_lock(queue: SqlQueue, path: Path) -> None:
    worker = await consumer(queue)
    with closing(connect(path)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        assert await worker.fetch({"work": 1, "mail": 1}, wait=0.01) == []


async def test_idle_polls_cost_less_than_a_hundredth_of_a_processor(watcher: Watcher) -> None:
    watcher.add(asyncio.Event())
    began = time.process_time()
    for _ in range(1000):
        watcher.poll()
    used = time.process_time() - began
    assert used < 1000 * IDLE_INTERVAL / 100


async def test_a_publish_in_another_process_is_noticed(queue: SqlQueue, open_queue: OpenQueue) -> None:
    receiver = await queue.receiver(origin="me")
    waiting = asyncio.ensure_future(receiver.receive(10))
    await asyncio.sleep(0)
    other, _ = await open_queue()
    await other.broadcast([b"hello"], origin="other")
    assert await waiting == ([b"hello"], False)
