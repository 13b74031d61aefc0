"""Ownership by event loops: a database and a bus refuse other loops, and two of them in a process are independent."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from bus import Bus, Delivery
from dependencies.migrations import HISTORIES
from infra.clock import SystemClock
from infra.db import Database
from infra.db.migrate import upgrade
from infra.mq.drivers.memory import MemoryQueue
from infra.mq.drivers.sql import SqlQueue
from infra.ownership import LoopOwner, WrongEventLoop
from tests import postgres_servers
from tests.elsewhere import Work, in_fork, in_forked_coroutine, in_thread, outcome


@dataclass(frozen=True)
class Noted:
    text: str


@pytest.fixture(params=["sqlite", "postgres"])
async def db(request: pytest.FixtureRequest, migrated_copy: Path) -> AsyncIterator[Database]:
    """An open, migrated database."""
    async with AsyncExitStack() as ends:
        url = f"sqlite:///{migrated_copy}"
        if request.param == "postgres":
            url = await ends.enter_async_context(postgres_servers.shared().database())
        database = Database(url, busy_timeout=5.0)
        await database.open()
        ends.push_async_callback(database.close)
        if request.param == "postgres":
            await upgrade(database, HISTORIES)
        yield database


def uses(db: Database) -> list[Work]:
    """Return functions that use a database, one for each of its methods."""

    async def transaction() -> None:
        async with db.transaction() as tx:
            await tx.session.execute(text("SELECT 1"))

    async def read() -> None:
        async with db.read() as session:
            await session.execute(text("SELECT 1"))

    async def write_lock() -> None:
        async with db.write_lock():
            pass

    async def migrating() -> None:
        async with db.migrating():
            pass

    return [transaction, read, write_lock, migrating, db.open, db.close]


async def test_a_database_in_another_event_loop_is_refused_at_once(db: Database) -> None:
    for use in uses(db):
        said = await in_thread(use)
        assert said.startswith("WrongEventLoop: the database was opened in another event loop"), said
    for use in uses(db)[:4]:
        await use()


async def test_a_database_in_a_forked_child_is_refused_at_once(db: Database) -> None:
    for use in uses(db):
        for said in (in_fork(use), in_forked_coroutine(use)):
            assert said.startswith("WrongEventLoop: the database was opened before this process was forked"), said
    for use in uses(db)[:4]:
        await use()


async def test_a_session_handed_to_another_event_loop_is_refused_at_once(db: Database) -> None:
    async with db.read() as reading:
        await reading.execute(text("SELECT 1"))
        said = await in_thread(lambda: reading.execute(text("SELECT 1")))
        assert said.startswith("WrongEventLoop: "), said
        await reading.execute(text("SELECT 1"))
    async with db.transaction() as tx:
        writing = tx.session
        await writing.execute(text("SELECT 1"))
        said = await in_thread(lambda: writing.execute(text("SELECT 1")))
        assert said.startswith("TransactionNotOwned: "), said
        await writing.execute(text("SELECT 1"))


def test_database_of_an_ended_event_loop_is_refused(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/a.db")
    assert outcome(db.open) == ""
    assert "an event loop that has ended without closing it; make a new one" in outcome(uses(db)[0])
    again = Database(f"sqlite:///{tmp_path}/a.db")

    async def opened_and_closed() -> None:
        await again.open()
        await again.close()

    assert outcome(opened_and_closed) == ""
    assert outcome(opened_and_closed) == ""


async def noted(bus: Bus, heard: list[str]) -> None:
    async def note(event: Noted) -> None:
        heard.append(event.text)

    bus.add_async_listener(note, name="notes.note")
    await bus.start()


async def test_bus_refuses_another_event_loop_but_accepts_coroutines_from_threads() -> None:
    mq, heard = MemoryQueue(clock=SystemClock()), list[str]()
    await mq.open()
    bus = Bus(mq)
    await noted(bus, heard)
    loop = asyncio.get_running_loop()
    calls: list[Work] = [
        lambda: bus.publish(Noted("x")),
        lambda: bus.publish_many([Noted("x")]),
        lambda: bus.publish_delayed(Noted("x"), 1),
        lambda: bus.cancel("x"),
        bus.run,
        bus.close,
    ]
    for call in calls:
        said = await in_thread(call)
        assert said.startswith("WrongEventLoop: the bus was opened in another event loop; hand the coroutine"), said
        said = in_fork(call)
        assert said.startswith("WrongEventLoop: the bus was opened before this process was forked"), said

    def compute() -> None:
        asyncio.run_coroutine_threadsafe(bus.publish(Noted("from a thread")), loop).result(timeout=10)

    await asyncio.to_thread(compute)
    worker = asyncio.create_task(bus.run())
    async with asyncio.timeout(10):
        while not heard:  # noqa: ASYNC110 - the worker has its own pace
            await asyncio.sleep(0.01)
    assert heard == ["from a thread"]
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await bus.close()
    await mq.close()


async def opened(ends: AsyncExitStack, path: Path, migrated: Path) -> tuple[Bus, Database]:
    """Return a bus and its database, a copy of `migrated`; both close at the end of `ends`."""
    db = Database(f"sqlite:///{shutil.copy(migrated, path)}")
    await db.open()
    ends.push_async_callback(db.close)
    mq = SqlQueue(db, clock=SystemClock(), registry_ttl=0)
    await mq.open()
    ends.push_async_callback(mq.close)
    bus = Bus(mq, db)
    ends.push_async_callback(bus.close)
    return bus, db


async def test_two_buses_in_one_process_do_not_share_transactions(tmp_path: Path, migrated: Path) -> None:
    async with AsyncExitStack() as ends:
        (one, db_one), (two, db_two) = [await opened(ends, tmp_path / f"{n}.db", migrated) for n in (1, 2)]
        await noted(one, [])
        await noted(two, [])

        async def roll_back_the_outer() -> None:
            async with db_one.transaction():
                await one.publish(Noted("dropped"))
                await two.publish(Noted("kept: it has a transaction of its own"))
                async with db_two.transaction():
                    await one.publish(Noted("dropped, too"))
                    await two.publish(Noted("kept"))
                raise KeyError

        with pytest.raises(KeyError):
            await roll_back_the_outer()
        assert [it.ready for it in await one.mq.stats()] == [0]
        assert [it.ready for it in await two.mq.stats()] == [2]


async def test_two_buses_in_one_process_share_the_correlation_but_not_the_listener(
    tmp_path: Path, migrated: Path
) -> None:
    async with AsyncExitStack() as ends:
        (one, _), (two, _) = [await opened(ends, tmp_path / f"{n}.db", migrated) for n in (1, 2)]
        heard: list[tuple[str, Delivery]] = []
        both = asyncio.Event()

        async def pass_on(event: Noted, delivery: Delivery) -> None:
            heard.append(("one", delivery))
            await two.publish(event)

        async def receive(event: Noted, delivery: Delivery) -> None:
            heard.append(("two", delivery))
            both.set()

        one.add_async_listener(pass_on, name="notes.pass_on")
        two.add_async_listener(receive, name="notes.receive")
        await one.start()
        await two.start()
        workers = [asyncio.create_task(one.run()), asyncio.create_task(two.run())]
        with one.correlation("request 7"):
            await one.publish(Noted("x"))
        async with asyncio.timeout(20):
            await both.wait()
        (_, first), (_, second) = heard
        assert (first.correlation_id, second.correlation_id) == ("request 7", "request 7")
        assert second.causation_id == first.id
        assert (first.listener, second.listener) == ("notes.pass_on", "notes.receive")
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def test_closed_database_and_bus_belong_to_no_event_loop() -> None:
    owner = LoopOwner("the thing")
    assert not owner.is_here()
    owner.enter()
    assert owner.is_here()
    with pytest.raises(WrongEventLoop, match="the thing was used outside of its event loop"):
        await asyncio.to_thread(owner.is_here)
    owner.leave()
    assert not await asyncio.to_thread(owner.is_here)
