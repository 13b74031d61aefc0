"""Positions of claims: their cost stays equal while an open transaction prevents the removal of handled rows."""

import asyncio
from collections.abc import AsyncIterator, Collection

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest

from infra.db.postgresql_driver import Driver
from infra.mq import Consumer
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres import claiming, connections, positions
from infra.mq.drivers.sql.postgres.positions import Positions
from tests.infra.mq.acting import done, handle_all, ids, message, messages, subscription
from tests.infra.postgres.queues import MAIL, WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

_TOUCHED = """
SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint FROM pg_statio_user_tables
WHERE relname = 'beneath_delivery'
"""


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@pytest.fixture
async def queue(store: Store, monkeypatch: pytest.MonkeyPatch) -> SqlQueue:
    monkeypatch.setattr(connections, "SIZE", 1)  # The statistics of this process are flushed.
    queue, _ = await store.open()
    # Once a minute it would read the whole table, which would be counted as cost of the claims.
    await store.server.execute("ALTER TABLE beneath_delivery SET (autovacuum_enabled = off)", store.database)
    await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
    return queue


async def touched(store: Store, queue: SqlQueue) -> int:
    """Return how many blocks of the delivery table and its indexes were touched so far."""

    async def flush(driver: Driver) -> None:
        await driver.execute("SELECT pg_stat_force_next_flush()")

    await queue_dialect(queue)._connections.run(flush)
    number: int = (await store.server.fetch(_TOUCHED, database=store.database))[0][0]
    return number


async def cost_of_a_hundred(store: Store, queue: SqlQueue, worker: Consumer) -> int:
    await queue.publish(messages(100, keys=3))
    before = await touched(store, queue)
    assert len(await handle_all(worker, {WORK: 50, MAIL: 50})) == 200
    return await touched(store, queue) - before


@pytest.mark.timeout(120)
async def test_handled_deliveries_cost_nothing_while_vacuum_cannot_remove_them(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "SLOW", -1.0)
    monkeypatch.setattr(positions, "SCAN_INTERVAL", 3600.0)
    monkeypatch.setattr(positions, "MARGIN", 0.0)
    worker = await consumer(queue, WORK, MAIL)
    elsewhere = await asyncpg.connect(store.url)
    await elsewhere.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM beneath_delivery")
    costs = [await cost_of_a_hundred(store, queue, worker) for _ in range(40)]
    await elsewhere.close()
    assert max(costs[-5:]) < 2 * min(costs[:5]), costs


async def test_delivery_due_before_the_latest_claim_is_found_by_the_next_poll(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "SLOW", -1.0)
    monkeypatch.setattr(positions, "SCAN_INTERVAL", 0.2)
    monkeypatch.setattr(positions, "MARGIN", 0.0)
    worker, other = await consumer(queue, WORK), await consumer(queue, WORK)
    await queue.publish([message("early")])
    claims = await other.fetch({WORK: 1}, wait=0)
    await asyncio.sleep(0.001)  # So that the server's clock has advanced, too.
    await queue.publish([message("late")])
    assert await handle_all(worker, {WORK: 10}) == ["late"]
    await other.close()  # Releases the claim unchanged.
    again = await worker.fetch({WORK: 10}, wait=30)
    assert ids(again) == ids(claims) == ["early"]
    assert await worker.settle(done(again)) == []


async def test_slow_poll_delays_no_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, _ = await store.open()
    await queue.declare([subscription(WORK)], [])
    began = asyncio.Event()

    async def never(_: Driver, names: Collection[str]) -> tuple[float, dict[str, float]]:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(claiming, "scan", never)
    worker = await consumer(queue, WORK)
    await queue.publish([message("a"), message("b")])
    async with asyncio.timeout(10):
        assert await handle_all(worker, {WORK: 1}) == ["a", "b"]
        await began.wait()
        assert await worker.fetch({WORK: 1}, wait=0.01) == []


def test_fast_polls_search_from_the_start() -> None:
    assert Positions().scan_due
    kept = Positions()
    kept.claimed({"a": 50.0})
    kept.scanned(0.0001, {})
    assert not kept.scan_due
    assert kept.scan_in is None
    assert kept.starts(["a", "b"]) == [float("-inf"), float("-inf")]


def test_slow_polls_search_from_the_latest_claim_or_the_earliest_due_delivery() -> None:
    kept = Positions()
    kept.claimed({"a": 50.0, "b": 60.0})
    kept.claimed({"a": 40.0})
    kept.scanned(1.0, {"a": 50.0, "b": 7.0})
    assert kept.starts(["a", "b", "c"]) == [50.0 - positions.MARGIN, float("-inf"), float("-inf")]
    assert kept.scan_in is not None
    assert positions.SCAN_INTERVAL < kept.scan_in <= 1.0 / positions.SHARE


@pytest.mark.timeout(120)
async def test_plan_made_on_empty_tables_does_not_read_the_whole_backlog(store: Store, queue: SqlQueue) -> None:
    worker = await consumer(queue, WORK, MAIL)
    await store.server.execute("VACUUM ANALYZE", store.database)
    await queue.publish([message("the first")])
    assert len(await handle_all(worker, {WORK: 50, MAIL: 50})) == 2
    costs: list[int] = []
    for backlog in (0, 20_000):
        await queue.publish([message(f"{backlog}-{n}", key=f"k{n + 100}") for n in range(backlog)])
        await queue.publish([message(f"more-{backlog}-{n}", key=f"k{n}") for n in range(100)])
        before = await touched(store, queue)
        for _ in range(2):
            claims = await worker.fetch({WORK: 50, MAIL: 50}, wait=0)
            assert await worker.settle(done(claims)) == []
        costs.append(await touched(store, queue) - before)
    assert costs[1] < 3 * costs[0], costs
