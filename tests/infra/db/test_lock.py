"""The write lock of a process on its SQLite database."""

import asyncio

import pytest

from infra.clock import FakeClock
from infra.db import Database, DatabaseUnavailable
from infra.db.lock import WriteLock
from tests.infra.db.tables import insert, names, until, write_from_outside


async def hold(lock: WriteLock, log: list[str], name: str, leave: asyncio.Event | None = None) -> None:
    await lock.acquire()
    log.append(name)
    if leave is not None:
        await leave.wait()
    lock.release()


async def test_lock_is_granted_in_the_order_of_requests() -> None:
    lock = WriteLock(FakeClock(), 10.0)
    log: list[str] = []
    leave = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for n in range(5):
            group.create_task(hold(lock, log, str(n), leave if n == 0 else None))
        await FakeClock.settle()
        assert log == ["0"]
        leave.set()
        late = group.create_task(hold(lock, log, "late"))
        await late
    assert log == ["0", "1", "2", "3", "4", "late"]
    assert not lock.locked


async def test_timeout_of_the_lock_is_an_error_of_one_line() -> None:
    clock = FakeClock()
    lock = WriteLock(clock, 10.0)
    leave = asyncio.Event()
    log: list[str] = []
    holder = asyncio.create_task(hold(lock, log, "holder", leave))
    await FakeClock.settle()
    waiter = asyncio.create_task(hold(lock, log, "waiter"))
    await clock.advance(9.9)
    assert not waiter.done()
    await clock.advance(0.2)
    with pytest.raises(DatabaseUnavailable, match="held the write lock for more than 10 s") as raised:
        await waiter
    assert "\n" not in str(raised.value)
    leave.set()
    await holder
    await hold(lock, log, "next")
    assert log == ["holder", "next"]


@pytest.mark.parametrize("handed_over", [True, False])
async def test_cancelled_waiter_passes_the_lock_to_the_next_waiter(handed_over: bool) -> None:
    lock = WriteLock(FakeClock(), 10.0)
    leave = asyncio.Event()
    log: list[str] = []
    holder = asyncio.create_task(hold(lock, log, "holder", leave))
    await FakeClock.settle()
    waiter = asyncio.create_task(hold(lock, log, "waiter"))
    last = asyncio.create_task(hold(lock, log, "last"))
    await FakeClock.settle()
    leave.set()
    if handed_over:
        await until(lambda: lock._holder is waiter)
    waiter.cancel()
    await asyncio.wait((holder, waiter, last))
    assert waiter.cancelled()
    assert log == ["holder", "last"]
    assert not lock.locked


async def test_task_that_holds_the_lock_may_take_the_lock_again() -> None:
    lock = WriteLock(FakeClock(), 10.0)
    await lock.acquire()
    await lock.acquire()
    states = []
    for _ in range(2):
        lock.release()
        states.append(lock.locked)
    assert states == [True, False]


async def test_a_transaction_may_begin_under_the_lock_of_its_task(db: Database) -> None:
    async with db.write_lock():
        for name in ("a", "b"):
            async with db.transaction() as tx:
                await insert(tx, name)
        states = [db._lock.locked]
    states.append(db._lock.locked)
    assert states == [True, False]
    assert await names(db) == ["a", "b"]


async def test_transactions_wait_for_the_lock_and_not_inside_sqlite(db: Database) -> None:
    async def write(name: str) -> None:
        async with db.transaction() as tx:
            await insert(tx, name)

    async with db.write_lock():
        tasks = [asyncio.create_task(write(name)) for name in "abc"]
        await until(lambda: len(db._lock._waiting) == 3)
        write_from_outside(db.path)
    await asyncio.gather(*tasks)
    assert await names(db) == ["a", "b", "c"]


async def test_transaction_that_waits_too_long_raises_and_leaves_nothing_open(tmp_path: object) -> None:
    clock = FakeClock()
    db = Database(f"sqlite:///{tmp_path}/test.db", busy_timeout=3.0, clock=clock)
    await db.open()

    async def use() -> None:
        async with db.transaction() as tx:
            await tx.connection()

    async with db.write_lock():
        task = asyncio.create_task(use())
        await FakeClock.settle()
        await clock.advance(3.1)
        with pytest.raises(DatabaseUnavailable, match="more than 3 s"):
            await task
    assert not db._lock.locked
    await use()
    await db.close()
