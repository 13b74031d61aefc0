"""A silent server or network: requests get no answer, and connections do not end."""

import asyncio
import socket
from contextlib import nullcontext

import pytest
from sqlalchemy import text

from infra.db import Database
from infra.db.postgresql import PostgreSQL
from infra.db.postgresql_driver import Driver, PostgreSQLConnection
from infra.mq import QueueIndeterminate, QueueUnavailable
from infra.mq.drivers.sql.postgres import dialect as dialect_module
from infra.mq.drivers.sql.postgres import lease, notifier, workers
from infra.mq.drivers.sql.postgres.clock import ServerClock
from tests.breakable_proxy import BreakableProxy
from tests.infra.db.tables import insert, names
from tests.infra.mq.acting import message, subscription
from tests.infra.postgres.queues import WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

LEASE = 0.5
PATIENCE = 15.0
"""Seconds for an operation that would take 65 with the timeout of ordinary statements."""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts of the code."""
    monkeypatch.setattr(dialect_module, "CLOSE_PATIENCE", 0.2)
    monkeypatch.setattr(workers, "LEAVE_TIMEOUT", 0.2)
    monkeypatch.setattr(lease, "ABANDON_TIMEOUT", 0.2)


async def test_silent_server_does_not_block_close_of_a_database(
    server: PostgresServer, url: str, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with BreakableProxy(server.port) as proxy:
        far = Database(f"{proxy.instead_of(url)}?pool_size=20")
        await far.open()
        every = asyncio.Barrier(20)

        async def read() -> None:
            async with far.read() as session:
                await session.execute(text("SELECT 1"))
                await every.wait()

        await asyncio.gather(*(read() for _ in range(20)))
        proxy.black_out()
        async with asyncio.timeout(PATIENCE):
            await far.close()
    assert caplog.records == []


@pytest.mark.parametrize("at", ["waiting", "asking", "waiting in a savepoint", "asking in a savepoint"])
async def test_cancelled_transaction_on_a_silent_server_ends(
    server: PostgresServer, url: str, db: Database, at: str
) -> None:
    with BreakableProxy(server.port) as proxy:
        far = Database(proxy.instead_of(url))
        await far.open()
        begun = asyncio.Event()

        async def work() -> None:
            async with far.transaction() as tx, far.savepoint() if "savepoint" in at else nullcontext():
                await insert(tx, "a")
                begun.set()
                while "asking" in at:
                    await tx.session.execute(text("SELECT 1"))
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        await begun.wait()
        proxy.black_out()
        async with asyncio.timeout(PATIENCE):
            await asyncio.sleep(0.05)
            working.cancel()
            await asyncio.wait([working])
            assert working.cancelled()
            await far.close()
    assert await names(db) == []


async def test_close_on_a_silent_server_makes_an_unfinished_publish_indeterminate(
    server: PostgresServer,
) -> None:
    with BreakableProxy(server.port) as proxy:
        async with new_store(server) as store:
            queue, _ = await distant(store, proxy).open()
            await queue.publish([message("a")])
            # A notification takes the connection that there is, and the next publish would have to make another one.
            if notifying := queue_dialect(queue)._notifier._sender._task:
                await asyncio.wait([notifying])
            proxy.black_out()
            publishing = asyncio.create_task(queue.publish([message("b")]))
            while not queue_dialect(queue)._connections._busy_since:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await queue.close()
            with pytest.raises(QueueIndeterminate, match="was lost"):
                await publishing


async def test_close_waits_for_operations_on_a_server_that_answers(
    server: PostgresServer,
) -> None:
    async with new_store(server) as store:
        queue, _ = await store.open()
        connections = queue_dialect(queue)._connections
        begun, gate = asyncio.Event(), asyncio.Event()

        async def operation(driver: Driver) -> object:
            begun.set()
            await gate.wait()
            return await driver.fetchval("SELECT 'answer'")

        asking = asyncio.create_task(connections.run(operation))
        await begun.wait()
        closing = asyncio.create_task(queue.close())
        while connections._open:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        gate.set()
        assert await asking == "answer"
        await closing


async def test_worker_waits_for_no_answer_longer_than_its_lease(server: PostgresServer) -> None:
    with BreakableProxy(server.port) as proxy:
        async with new_store(server) as store:
            queue, _ = await distant(store, proxy).open(lease=LEASE)
            await queue.declare([subscription(WORK)], [])
            worker = await consumer(queue)
            assert await worker.fetch({WORK: 1}, wait=0) == []
            proxy.black_out()
            fetching = asyncio.create_task(worker.fetch({WORK: 1}, wait=0))
            async with asyncio.timeout(PATIENCE):
                while not fetching.done():
                    with pytest.raises(QueueUnavailable):
                        await asyncio.to_thread(worker.renew)
            with pytest.raises(QueueUnavailable, match="was lost"):
                await fetching
            proxy.open_up()
            assert await asyncio.to_thread(worker.renew)
            assert await worker.fetch({WORK: 1}, wait=0) == []


async def test_worker_that_cannot_close_loses_its_lease(server: PostgresServer) -> None:
    with BreakableProxy(server.port) as proxy:
        async with new_store(server) as store:
            queue, _ = await distant(store, proxy).open(lease=LEASE)
            worker = await consumer(queue)
            proxy.black_out()
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(QueueUnavailable, match="does not answer"):
                    await worker.close()
            assert worker.lost


async def test_kept_claim_is_renewed_although_a_connection_is_lost_silently(
    server: PostgresServer,
) -> None:
    lease_until = "SELECT lease_until FROM beneath_worker"
    with BreakableProxy(server.port) as proxy:
        async with new_store(server) as store:
            queue, _ = await distant(store, proxy).open(lease=LEASE)
            await queue.declare([subscription(WORK)], [])
            worker = await consumer(queue)
            await queue.publish([message("a")])
            [claim] = await worker.fetch({WORK: 1}, wait=0)
            worker.keep(claim)
            await worker.close()
            for _ in range(proxy.opened):
                proxy.fail("hole")
            # The first failed renewal has reached the server, too.
            seen = {(await server.fetch(lease_until, database=store.database))[0][0]}
            async with asyncio.timeout(PATIENCE):
                while len(seen) < 4:
                    await asyncio.sleep(0.05)
                    seen.add((await server.fetch(lease_until, database=store.database))[0][0])


async def test_queue_that_cannot_listen_is_not_opened(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "CHECK_TIMEOUT", 0.2)
    with BreakableProxy(server.port) as proxy:
        compare = ServerClock.compare

        async def too_late(clock: ServerClock, driver: Driver) -> None:
            proxy.black_out()
            await compare(clock, driver)

        monkeypatch.setattr(ServerClock, "compare", too_late)
        async with new_store(server) as store, asyncio.timeout(PATIENCE):
            with pytest.raises(QueueUnavailable, match="was lost"):
                await distant(store, proxy).open()


async def test_unmapped_error_does_not_end_listening(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "CHECK_INTERVAL", 0.05)
    honest, failures = ServerClock.compare, [RuntimeError(), RuntimeError()]

    async def fail(clock: ServerClock, driver: Driver) -> None:
        if failures:
            raise failures.pop()
        await honest(clock, driver)

    async with new_store(server) as store:
        queue, _ = await store.open()
        before = queue_dialect(queue).interruptions
        monkeypatch.setattr(ServerClock, "compare", fail)
        async with asyncio.timeout(PATIENCE):
            while queue_dialect(queue).interruptions < before + 2:  # noqa: ASYNC110  # the loss, and the new connection
                await asyncio.sleep(0.02)
    assert not failures


async def test_both_ends_of_a_connection_use_tcp_keepalives(server: PostgresServer, db: Database) -> None:
    assert isinstance(db.dialect, PostgreSQL)
    connection = await db.dialect.connect()
    assert isinstance(connection, PostgreSQLConnection)
    here = connection._transport.get_extra_info("socket")
    assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
    there = [await connection.fetchval(f"SHOW tcp_keepalives_{it}") for it in ("idle", "interval", "count")]
    assert [*there, await connection.fetchval("SHOW tcp_user_timeout")] == ["5", "5", "3", "20000"]
    await connection.close()


def distant(store: Store, proxy: BreakableProxy) -> Store:
    """Return the same store with connections through the proxy."""
    return Store(store.server, proxy.instead_of(store.url), store.ends)
