"""Gaps on SQLite: when a receiver reports that it may have missed broadcasts."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from infra.clock import FakeClock
from infra.db import Database
from infra.mq import QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite.connection import connect
from tests.infra.mq.conftest import OpenQueue


def move(path: Path, to: Path) -> Path:
    return path.rename(to)


async def test_temporarily_moved_database_is_a_gap(queue: SqlQueue, open_queue: OpenQueue, path: Path) -> None:
    receiver = await queue.receiver(origin="me")
    away = move(path, path.with_name("away.db"))
    with pytest.raises(QueueUnavailable, match="removed or moved away"):
        await receiver.receive(5)
    move(away, path)
    async with asyncio.timeout(5):
        while True:
            try:
                assert await receiver.receive(0) == ([], True)
            except QueueUnavailable:
                await asyncio.sleep(0.01)
            else:
                break
    other, _ = await open_queue()
    await other.broadcast([b"hello"], origin="other")
    assert await receiver.receive(5) == ([b"hello"], False)


async def test_temporarily_locked_database_is_a_gap(queue: SqlQueue, path: Path) -> None:
    receiver = await queue.receiver(origin="me")
    with closing(connect(path)) as hog:
        hog.execute("BEGIN EXCLUSIVE")
        assert await receiver.receive(10) == ([], True)
    assert await receiver.receive(0) == ([], False)


async def test_broadcasts_removed_before_they_were_read_are_a_gap(path: Path) -> None:
    clock = FakeClock()
    db = Database(f"sqlite:///{path}")
    await db.open()
    queue = SqlQueue(db, clock=clock, broadcast_kept=60)
    await queue.open()
    receiver = await queue.receiver(origin="me")
    await queue.broadcast([b"old"], origin="other")
    clock.move_to(clock.time() + 61)
    await queue.broadcast([b"new"], origin="other")
    assert await receiver.receive(0) == ([b"new"], True)
    assert await receiver.receive(0) == ([], False)
    await queue.broadcast([b"old"], origin="other")
    clock.move_to(clock.time() + 61)
    await queue.broadcast([b"mine"], origin="me")
    assert await receiver.receive(0) == ([], True)
    await queue.close()
    await db.close()


async def test_blocked_event_loop_is_a_gap(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = await queue.receiver(origin="me")
    loop = asyncio.get_running_loop()
    true_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: true_time() + 60)
    frames, gap = await receiver.receive(5)
    assert (frames, gap) == ([], True)
