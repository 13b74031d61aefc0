"""Transactions on PostgreSQL: concurrent writers, isolation, failed statements, lost connections, cancellation."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from infra.db import CommitIndeterminate, Database, DatabaseUnavailable, TransactionRolledBack
from infra.db.postgresql_driver import PostgreSQLConnection
from tests.infra.db.tables import Recorder, insert, names
from tests.postgres_servers import PostgresServer

WHO = text("SELECT pg_backend_pid()")
BUSY = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()
"""


@pytest.fixture
def database(url: str) -> str:
    return url.rpartition("/")[2]


async def kill(server: PostgresServer, pid: int) -> None:
    assert await server.fetch("SELECT pg_terminate_backend($1, 5000)", pid)


async def idle(server: PostgresServer, database: str) -> None:
    """Wait until the test's database has no open transaction or running statement."""
    async with asyncio.timeout(5):
        while (await server.fetch(BUSY, database))[0][0]:  # noqa: ASYNC110  # it happens on the server
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
async def nothing_is_left_behind(server: PostgresServer, database: str, db: Database) -> AsyncIterator[None]:
    yield
    await idle(server, database)


async def test_writers_do_not_wait_for_each_other(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        with db.hidden():
            async with db.transaction() as other:
                await insert(other, "b")
        assert await seen(db) == ["b"]
    assert await names(db) == ["a", "b"]


async def seen(db: Database) -> list[str]:
    with db.hidden():
        return await names(db)


async def test_write_lock_does_not_exclude_writers(db: Database) -> None:
    async with db.write_lock(), asyncio.timeout(5):
        await asyncio.create_task(take(db))


async def take(db: Database) -> None:
    async with db.write_lock():
        return


async def test_transactions_are_read_committed(db: Database) -> None:
    async with db.transaction() as tx:
        assert (await tx.session.execute(text("SHOW transaction_isolation"))).scalar_one() == "read committed"


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_isolation_of_a_transaction_can_be_raised(db: Database, level: str) -> None:
    for _ in range(2):
        async with db.transaction() as tx:
            await tx.session.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
            assert (await tx.session.execute(text("SHOW transaction_isolation"))).scalar_one() == level.lower()
        async with db.transaction() as tx:
            assert (await tx.session.execute(text("SHOW transaction_isolation"))).scalar_one() == "read committed"
        async with db.transaction() as tx:
            connection = await tx.session.connection(execution_options={"isolation_level": level})
            assert (await connection.execute(text("SHOW transaction_isolation"))).scalar_one() == level.lower()


async def test_reads_are_read_only_and_use_one_snapshot(db: Database) -> None:
    count = text("SELECT count(*) FROM item")
    async with db.read() as session:
        assert (await session.execute(count)).scalar_one() == 0
        async with db.transaction() as tx:
            await insert(tx, "a")
        assert (await session.execute(count)).scalar_one() == 0
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await session.execute(text("DELETE FROM item"))
    assert await names(db) == ["a"]


async def test_a_failed_statement_that_is_caught_ends_the_transaction_in_rollback(db: Database) -> None:
    with pytest.raises(TransactionRolledBack, match=r"put `async with db\.savepoint\(\):` around") as raised:
        async with db.transaction() as tx:
            await insert(tx, "a")
            with pytest.raises(IntegrityError):
                await insert(tx, "a")
    assert "\n" not in str(raised.value)
    assert await names(db) == []


async def test_a_savepoint_contains_a_failed_statement(db: Database) -> None:
    async with db.transaction() as tx:
        await insert(tx, "a")
        with pytest.raises(IntegrityError):
            async with db.savepoint():
                await insert(tx, "a")
        await insert(tx, "b")
    assert await names(db) == ["a", "b"]


async def test_deferred_constraint_refused_at_commit_raises_the_database_error(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.session.execute(
            text("CREATE TABLE part (item INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    with pytest.raises(IntegrityError, match="foreign key"):
        async with db.transaction() as tx:
            await tx.session.execute(text("INSERT INTO part VALUES (99)"))


async def test_too_few_connections_for_all_transactions_is_unavailable(url: str, db: Database) -> None:
    small = Database(f"{url}?pool_size=1", busy_timeout=0.05)
    await small.open()
    async with small.transaction() as tx:
        await insert(tx, "a")
        with small.hidden(), pytest.raises(DatabaseUnavailable, match=r"all 1 connections .* raise pool_size"):
            async with small.transaction() as other:
                await insert(other, "b")
    await small.close()


async def test_a_statement_that_takes_too_long_is_cancelled(url: str, db: Database) -> None:
    hasty = Database(f"{url}?command_timeout=0.1")
    await hasty.open()
    with pytest.raises(DBAPIError, match="statement timeout"):
        async with hasty.transaction() as tx:
            await tx.session.execute(text("SELECT pg_sleep(60)"))
    await hasty.close()


# --- lost connections -----------------------------------------------------------------------------------------------


async def test_connection_lost_within_a_transaction_changes_nothing(server: PostgresServer, db: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="was lost") as raised:
        async with db.transaction() as tx:
            await insert(tx, "a")
            await kill(server, (await tx.session.execute(WHO)).scalar_one())
            await insert(tx, "b")
    assert "\n" not in str(raised.value)
    assert await names(db) == []


async def test_connection_lost_before_commit_changes_nothing(server: PostgresServer, db: Database) -> None:
    recorder = Recorder()
    with pytest.raises(DatabaseUnavailable, match="before COMMIT; nothing was kept"):
        async with db.transaction() as tx:
            tx.participant("p", lambda: recorder)
            await insert(tx, "a")
            await kill(server, (await tx.session.execute(WHO)).scalar_one())
            await asyncio.sleep(0.05)
    assert recorder.log == ["p before_commit", "p after_rollback"]
    assert await names(db) == []


@pytest.mark.parametrize("kept", [True, False])
async def test_a_commit_whose_answer_is_lost_is_indeterminate(
    server: PostgresServer, db: Database, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    honest = PostgreSQLConnection.execute

    async def lost(self: PostgreSQLConnection, query: str, *values: object, timeout: float | None = None) -> str:
        if query.startswith("COMMIT"):
            if kept:
                await honest(self, query, *values, timeout=timeout)
            raise ConnectionResetError("Connection reset by peer")
        return await honest(self, query, *values, timeout=timeout)

    recorder = Recorder()
    with monkeypatch.context() as patch, pytest.raises(CommitIndeterminate, match="may be committed or not") as raised:
        patch.setattr(PostgreSQLConnection, "execute", lost)
        async with db.transaction() as tx:
            tx.participant("p", lambda: recorder)
            await insert(tx, "a")
    assert "\n" not in str(raised.value)
    assert recorder.log == ["p before_commit", "p after_rollback"]
    assert await names(db) == (["a"] if kept else [])


async def test_a_server_that_ends_the_connection_during_commit_is_indeterminate(
    server: PostgresServer, db: Database
) -> None:
    async with db.transaction() as tx:
        for statement in SLOW_COMMIT:
            await tx.session.execute(text(statement))
    killing: list[asyncio.Task[None]] = []
    with pytest.raises(CommitIndeterminate):
        async with db.transaction() as tx:
            await insert(tx, "a")
            victim = (await tx.session.execute(WHO)).scalar_one()
            killing.append(asyncio.create_task(kill_sleeping(server, victim)))
    await asyncio.gather(*killing)
    assert await names(db) == []


SLOW_COMMIT = (
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END'",
    """
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION slow()
    """,
)
SLEEPS = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'"


async def kill_sleeping(server: PostgresServer, pid: int) -> None:
    async with asyncio.timeout(10):
        while not (await server.fetch(SLEEPS, pid))[0][0]:  # noqa: ASYNC110  # it happens on the server
            await asyncio.sleep(0.01)
    await kill(server, pid)


async def test_dead_connections_of_the_pool_are_replaced_without_an_error(
    server: PostgresServer, db: Database, database: str
) -> None:
    await asyncio.gather(*(names(db) for _ in range(5)))
    await server.fetch("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", database)
    await asyncio.sleep(0.05)
    for name in "abcde":
        async with db.transaction() as tx:
            await insert(tx, name)
    assert await names(db) == list("abcde")


# --- cancellation ---------------------------------------------------------------------------------------------------


async def test_a_cancelled_statement_is_ended_and_its_locks_are_free(
    server: PostgresServer, db: Database, database: str
) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "a")
            await tx.session.execute(text("SELECT pg_sleep(60)"))

    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    task.cancel()
    async with asyncio.timeout(3):
        await asyncio.wait((task,))
    assert task.cancelled()
    await idle(server, database)
    async with db.transaction() as tx:
        await insert(tx, "a")


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_cancelled_transaction_that_waits_for_a_lock_releases_its_locks(
    server: PostgresServer, db: Database, database: str, times: int
) -> None:
    async with db.transaction() as tx:
        await insert(tx, "wanted")

    async def work() -> None:
        async with db.transaction() as tx:
            await insert(tx, "held")
            await tx.session.execute(text("UPDATE item SET name = 'mine' WHERE name = 'wanted'"))

    async with db.transaction() as tx:
        await tx.session.execute(text("SELECT * FROM item FOR UPDATE"))
        with db.hidden():
            task = asyncio.create_task(work())
            await asyncio.sleep(0.1)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.wait((task,))
            async with asyncio.timeout(2), db.transaction() as other:
                await insert(other, "held")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(3))
async def test_no_random_cancellation_leaves_a_lock(
    server: PostgresServer, db: Database, database: str, seed: int
) -> None:
    rng = random.Random(seed)
    committed: list[str] = []
    for n in range(40):
        recorder = Recorder()
        task = asyncio.create_task(_busy(db, f"item {n}", recorder))
        for _ in range(rng.randrange(30)):
            await asyncio.sleep(0 if rng.random() < 0.5 else rng.random() / 1000)
        for _ in range(rng.choice((1, 1, 2, 3))):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait((task,))
        if "p after_commit" in recorder.log:
            committed.append(f"item {n}")
        assert recorder.log[-1:] != ["p before_commit"]
    await idle(server, database)
    assert await names(db) == committed


async def _busy(db: Database, name: str, recorder: Recorder) -> None:
    async with db.transaction() as tx:
        tx.participant("p", lambda: recorder)
        await tx.session.execute(text("SELECT * FROM item"))
        await insert(tx, name)
        async with db.savepoint():
            await tx.session.execute(text("SELECT pg_sleep(0.001)"))
        result = await tx.session.stream(text("SELECT * FROM generate_series(1, 3000)"))
        await result.fetchmany(10)


async def test_a_cancellation_during_commit_waits_for_its_outcome(db: Database) -> None:
    async with db.transaction() as tx:
        for statement in SLOW_COMMIT:
            await tx.session.execute(text(statement.replace("30", "0.3")))
    recorder = Recorder()

    async def work() -> None:
        async with db.transaction() as tx:
            tx.participant("p", lambda: recorder)
            await insert(tx, "a")

    task = asyncio.create_task(work())
    await until(lambda: "p before_commit" in recorder.log)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.log == ["p before_commit", "p after_commit"]
    assert await names(db) == ["a"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for happens on a server
            await asyncio.sleep(0.005)
