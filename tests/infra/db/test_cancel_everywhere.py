"""Cancellation at every await: a transaction is committed whole or not at all, and all resources are released."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, text

from infra.db import CommitIndeterminate, Database
from tests import postgres_servers
from tests.infra.db.everywhere import cancel_this, cancelling_all, count_awaits, interrupted
from tests.infra.db.tables import Item, Recorder, insert, names

Scenario = Callable[[Database, list[str], Recorder], Awaitable[None]]
"""Coroutine function that writes the given names in one transaction, with a participant."""


class ScenarioError(Exception):
    """An error inside a block."""


@pytest.fixture(params=["sqlite", "postgres"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with AsyncExitStack() as ends:
        url, number = f"sqlite:///{tmp_path}/a.db", "INTEGER PRIMARY KEY"
        if request.param == "postgres":
            server = postgres_servers.shared()
            url, number = await ends.enter_async_context(server.database()), "SERIAL PRIMARY KEY"
        database = Database(url, busy_timeout=5.0)
        await database.open()
        ends.push_async_callback(database.close)
        async with database.transaction() as tx:
            await tx.session.execute(text(f"CREATE TABLE item (id {number}, name TEXT NOT NULL UNIQUE)"))
        yield database


async def two_statements(db: Database, wanted: list[str], recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        for name in wanted:
            await insert(tx, name)


async def a_flush_before_commit(db: Database, wanted: list[str], recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        tx.session.add_all([Item(name=name) for name in wanted])


async def a_savepoint_that_is_kept(db: Database, wanted: list[str], recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        await insert(tx, wanted[0])
        async with db.savepoint():
            for name in wanted[1:]:
                await insert(tx, name)


async def a_savepoint_that_is_undone(db: Database, wanted: list[str], recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        await insert(tx, wanted[0])
        with suppress(ScenarioError):
            async with db.savepoint():
                await insert(tx, f"{wanted[0]} undone")
                raise ScenarioError
        for name in wanted[1:]:
            await insert(tx, name)


async def a_statement_that_fails_in_a_savepoint(db: Database, wanted: list[str], recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        await insert(tx, wanted[0])
        try:
            async with db.savepoint():
                await insert(tx, wanted[0])
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - whatever the database says of a duplicate
            await insert(tx, wanted[1])


async def joined_blocks(db: Database, wanted: list[str], recorder: Recorder) -> None:
    async with db.transaction() as outer:
        outer.participant("p", lambda: recorder)
        for name in wanted:
            async with db.transaction() as tx, db.read() as session:
                await insert(tx, name)
                await session.execute(text("SELECT 1"))


async def behind_another_writer(db: Database, wanted: list[str], recorder: Recorder) -> None:
    first = asyncio.Event()

    async def write() -> None:
        async with db.transaction() as tx:
            await tx.session.execute(text("SELECT 1"))
            first.set()
            await asyncio.sleep(0)

    other = asyncio.create_task(write())
    try:
        await first.wait()
        await two_statements(db, wanted, recorder)
    finally:
        await asyncio.gather(other, return_exceptions=True)


def cause_of(error: BaseException | None) -> BaseException | None:
    """Return the cause of an exception."""
    return None if error is None else error.__cause__


KEPT = [
    two_statements,
    a_flush_before_commit,
    a_savepoint_that_is_kept,
    a_savepoint_that_is_undone,
    a_statement_that_fails_in_a_savepoint,
    joined_blocks,
    behind_another_writer,
]


async def check_free(db: Database) -> None:
    """Check that no connection, lock or slot is left in use, and that new transactions and reads succeed."""
    async with asyncio.timeout(10):
        async with db.transaction() as tx:
            await tx.session.execute(text("SELECT 1"))
        async with db.read() as session:
            await session.execute(text("SELECT 1"))
    for engine in (db.dialect.writer, db.dialect.reader):
        assert cast("AsyncAdaptedQueuePool", engine.pool).checkedout() == 0
    assert not db._lock.locked
    assert not db._lock.occupied
    assert db._reads._value == db.dialect.max_reads


@pytest.mark.parametrize("scenario", KEPT, ids=lambda it: it.__name__)
@pytest.mark.parametrize("all_tasks", [False, True], ids=["one task", "all tasks"])
@pytest.mark.timeout(180)
async def test_transaction_cancelled_at_any_await_is_committed_whole_or_not_at_all(
    db: Database, scenario: Scenario, all_tasks: bool
) -> None:
    await scenario(db, ["warm", "up"], Recorder())
    awaits = await count_awaits(lambda: scenario(db, ["a", "b"], Recorder()))
    assert awaits >= 3
    spared = set(asyncio.all_tasks())
    interrupt = cancelling_all(spared) if all_tasks else cancel_this
    outcomes = set()
    for at in range(1, awaits + 1):
        recorder, wanted = Recorder(), [f"{at} one", f"{at} two"]
        raised = await interrupted(lambda: scenario(db, wanted, recorder), at, interrupt)  # noqa: B023 - done with at once
        await check_free(db)
        found = [name for name in await names(db) if name.startswith(f"{at} ")]
        assert found in ([], wanted), (at, raised, found)
        told = [each for each in recorder.log if "after" in each]
        kept = f"{recorder.name} after_commit" in told
        assert len(told) <= 1, (at, told)
        if not isinstance(raised, CommitIndeterminate) and not isinstance(cause_of(raised), CommitIndeterminate):
            assert kept == bool(found), (at, raised, found, told)
        assert isinstance(raised, asyncio.CancelledError | CommitIndeterminate), (at, raised)
        outcomes.add(bool(found))
    assert False in outcomes


@pytest.mark.parametrize("all_tasks", [False, True], ids=["one task", "all tasks"])
async def test_rollback_cancelled_at_any_await_leaves_no_rows(db: Database, all_tasks: bool) -> None:
    async def fail() -> None:
        async with db.transaction() as tx:
            await insert(tx, "dropped")
            raise ScenarioError

    with pytest.raises(ScenarioError):
        await fail()
    awaits = 0
    with pytest.raises(ScenarioError):
        awaits = await count_awaits(fail)
    spared = set(asyncio.all_tasks())
    interrupt = cancelling_all(spared) if all_tasks else cancel_this
    for at in range(1, 40):
        raised = await interrupted(fail, at, interrupt)
        await check_free(db)
        assert await names(db) == []
        awaits = at
        if isinstance(raised, ScenarioError):
            break
        assert isinstance(raised, asyncio.CancelledError)
    assert 3 <= awaits < 39


@pytest.mark.parametrize("all_tasks", [False, True], ids=["one task", "all tasks"])
async def test_a_read_cancelled_at_any_await_leaves_its_connection_free(db: Database, all_tasks: bool) -> None:
    async def read() -> None:
        async with db.read() as session:
            await session.execute(text("SELECT 1"))
            await session.execute(text("SELECT 2"))

    await read()
    spared = set(asyncio.all_tasks())
    interrupt = cancelling_all(spared) if all_tasks else cancel_this
    for at in range(1, await count_awaits(read) + 1):
        raised = await interrupted(read, at, interrupt)
        await check_free(db)
        assert isinstance(raised, asyncio.CancelledError), (at, raised)


@pytest.mark.parametrize("all_tasks", [False, True], ids=["one task", "all tasks"])
async def test_database_can_be_opened_after_open_was_cancelled_at_any_await(db: Database, all_tasks: bool) -> None:
    async def open_and_close() -> None:
        other = Database(db.url, busy_timeout=5.0)
        await other.open()
        await other.close()

    spared = set(asyncio.all_tasks())
    interrupt = cancelling_all(spared) if all_tasks else cancel_this
    for at in range(1, await count_awaits(open_and_close) + 1):
        await interrupted(open_and_close, at, interrupt)
        await check_free(db)
        await open_and_close()
