"""Registration and close of a worker on SQLite: a cancellation leaves no lock and no claim behind."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from infra.clock import SystemClock
from infra.db import Database, DatabaseUnavailable
from infra.mq import QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite.lockfiles import LockFile, LockFolder
from tests.infra.db.everywhere import cancel_this, cancelling_all, count_awaits, interrupted
from tests.infra.mq.acting import consumer, handle_all, messages

WANTS = {"work": 100, "mail": 100}


async def test_cancelled_join_releases_its_lock(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    honest = LockFolder.hold

    def slow(self: LockFolder, worker: str) -> LockFile:
        begun.set()
        assert go_on.wait(5)
        return honest(self, worker)

    with monkeypatch.context() as patch:
        patch.setattr(LockFolder, "hold", slow)
        joining = asyncio.ensure_future(consumer(queue, "same"))
        assert await asyncio.to_thread(begun.wait, 5)
        joining.cancel()
        await asyncio.wait([joining])
        go_on.set()
    async with asyncio.timeout(10):
        await (await consumer(queue, "same")).close()


@pytest.mark.parametrize("all_tasks", [False, True], ids=["one task", "all tasks"])
async def test_close_cancelled_at_any_await_releases_all_claims_and_counts_nothing(
    queue: SqlQueue, all_tasks: bool
) -> None:
    await queue.publish(messages(3, keys=3))

    async def close() -> None:
        await worker.close()

    worker = await consumer(queue)
    await worker.fetch(WANTS, wait=0)
    awaits = await count_awaits(close)
    spared = set(asyncio.all_tasks())
    for at in range(1, awaits + 1):
        worker = await consumer(queue)
        assert len(await worker.fetch(WANTS, wait=0)) == 6
        await interrupted(close, at, cancelling_all(spared) if all_tasks else cancel_this)
        other = await consumer(queue)
        async with asyncio.timeout(10):
            while len(claims := await other.fetch(WANTS, wait=0.1)) < 6:
                assert await other.recover() == 0, "taken over from a dead worker"
        assert {it.takeovers for claim in claims for it in claim.deliveries} == {0}
        await other.close()
    assert len(await handle_all(await consumer(queue), WANTS)) == 6


async def test_closed_queue_can_be_opened_again(queue: SqlQueue, db: Database, path: Path) -> None:
    """SQLite creates a new log when no process has the file open."""
    await queue.publish(messages(1))
    await queue.close()
    await db.close()
    assert not path.with_name(f"{path.name}-wal").exists()
    await db.open()
    await queue.open()
    await queue.publish(messages(1))
    assert len(await handle_all(await consumer(queue), WANTS)) == 4


async def test_failure_to_start_a_thread_is_unavailable_and_transient(
    queue: SqlQueue, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    fresh = Database(db.url)
    other = SqlQueue(db, clock=SystemClock())
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for call in (other.open, queue.stats, partial(consumer, queue, "late")):
            with pytest.raises(QueueUnavailable, match="no thread could be started"):
                await call()
        with pytest.raises(DatabaseUnavailable, match="no thread could be started"):
            await fresh.open()
    await fresh.open()
    await fresh.close()
    await other.open()
    await other.close()
    assert len(await queue.stats()) == 2
    await (await consumer(queue, "late")).close()
