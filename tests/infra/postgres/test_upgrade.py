"""Upgrade of a PostgreSQL queue that the previous release filled, and whose workers run on beside the new release."""

import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest

from dependencies.migrations import BUS
from infra.clock import SystemClock
from infra.db import Database
from infra.db.migrate import upgrade
from infra.mq import QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from tests.infra.mq.acting import handle_all, message, subscription
from tests.infra.postgres.queues import MAIL, WORK, consumer
from tests.infra.schema.test_revisions import upgrade_to

BEFORE = "0012"
WANTS = {WORK: 100, MAIL: 100}

DECLARED = """
INSERT INTO beneath_subscription (name, ordered) VALUES ('work', 0), ('mail', 1);
INSERT INTO beneath_route (event, subscription) SELECT 'Happened', id FROM beneath_subscription;
UPDATE beneath_registry SET version = 1;
"""
JOIN = """
INSERT INTO beneath_worker (name, host, pid, subscriptions, joined_at, lease_until)
VALUES ('former', 'h', 1, '["mail", "work"]', $1, $1::double precision + $2::double precision) RETURNING id
"""
PUBLISH = """
SELECT beneath_publish_2(
    $1, array_fill('Happened'::text, ARRAY[cardinality($1::text[])]), $2, $3,
    array_fill($4::double precision, ARRAY[cardinality($1::text[])]), NULL,
    array_fill(''::bytea, ARRAY[cardinality($1::text[])]), $4, $4, NULL, NULL, NULL, NULL
)
"""
CLAIM = """
SELECT name, id, fence, message_id FROM beneath_claim_3(
    $1, 0, ARRAY['work', 'mail'], ARRAY[$2, $2]::integer[], ARRAY['-infinity', '-infinity']::double precision[],
    '-infinity', 10, 1000000, 2, $3
)
"""
SETTLE = """
SELECT beneath_settle_2(
    $1, $2, ARRAY[$3::bigint], ARRAY['mail'], ARRAY['a'], ARRAY[$4::bigint], ARRAY[true], ARRAY[1], ARRAY[$5::bigint],
    ARRAY[0], ARRAY[0], ARRAY[0], ARRAY[0], ARRAY[0], ARRAY[0]::double precision[], ARRAY[NULL], ARRAY[NULL],
    ARRAY[NULL]
)
"""
"""Settles one delivery of `work`, and the only one of the mailbox `a` of `mail`."""


class FormerWorker:
    """A worker of the previous release: its statements, on a connection of its own."""

    def __init__(self, connection: Any) -> None:  # noqa: ANN401  # asyncpg has no types
        self._connection = connection
        self._number = 0

    async def join(self, lease: float) -> None:
        self._number = await self._connection.fetchval(JOIN, time.time(), lease)

    async def publish(self, names: list[str], keys: list[str | None], dues: list[float | None]) -> None:
        assert await self._connection.fetchval(PUBLISH, names, keys, dues, time.time()) == 0

    async def claim(self, limit: int) -> dict[str, Any]:
        """Claim at most `limit` of each subscription; return the rows by subscription."""
        rows = await self._connection.fetch(CLAIM, self._number, limit, time.time())
        return {row["name"]: row for row in rows if row["name"] is not None}

    async def settle(self, claimed: dict[str, Any]) -> list[int]:
        """Settle a claim of both subscriptions; return the positions of effective settlements."""
        mail = claimed[MAIL]
        values = (claimed[WORK]["id"], mail["fence"], mail["id"])
        effective: list[int] = await self._connection.fetchval(SETTLE, self._number, time.time(), *values)
        return effective


@pytest.fixture
async def former(url: str) -> AsyncIterator[FormerWorker]:
    """Return a live worker of the previous release, on a database that is not upgraded yet."""
    db = Database(url)
    await db.open()
    await upgrade_to(db, BEFORE)
    await db.close()
    connection = await asyncpg.connect(url)
    await connection.execute(DECLARED)
    worker = FormerWorker(connection)
    await worker.join(lease=600.0)
    yield worker
    await connection.close()


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    db = Database(url)
    await db.open()
    yield db
    await db.close()


async def upgraded(db: Database) -> SqlQueue:
    assert await upgrade(db, [BUS])
    queue = SqlQueue(db, clock=SystemClock(), registry_ttl=0, lease=600.0)
    await queue.open()
    await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
    return queue


async def test_all_contents_of_an_upgraded_queue_are_handled(former: FormerWorker, db: Database) -> None:
    now = time.time()
    await former.publish(["a1", "a2", "b1", "later"], ["a", "a", "b", "b"], [None, None, None, now + 3600])
    queue = await upgraded(db)
    worker = await consumer(queue, WORK, MAIL)
    assert await handle_all(worker, {MAIL: 100}) == ["a1", "a2", "b1"]
    assert sorted(await handle_all(worker, {WORK: 100})) == ["a1", "a2", "b1"]
    assert {it.name: it.scheduled for it in await queue.stats()} == {WORK: 1, MAIL: 1}
    assert await queue.cancel("later")
    await queue.close()


async def test_previous_release_claims_and_settles_beside_the_new_one(former: FormerWorker, db: Database) -> None:
    await former.publish(["a1", "b1"], ["a", "b"], [None, None])
    before = await former.claim(1)
    queue = await upgraded(db)
    worker = await consumer(queue, WORK, MAIL)
    assert await handle_all(worker, {MAIL: 100}) == ["b1"], "the mailbox `a` is claimed by the former worker"
    assert await handle_all(worker, {WORK: 100}) == ["b1"]
    assert await former.settle(before) == [1]
    await queue.publish([message("a2", key="a")])
    after = await former.claim(10)
    assert {name: row["message_id"] for name, row in after.items()} == {WORK: "a2", MAIL: "a2"}
    assert await former.settle(after) == [1]
    assert await handle_all(worker, WANTS) == []
    assert [it.in_flight for it in await queue.stats()] == [0, 0]
    await queue.close()


async def test_database_without_the_upgrade_is_refused(former: FormerWorker, db: Database) -> None:
    queue = SqlQueue(db, clock=SystemClock())
    await queue.open()
    worker = await consumer(queue, WORK)
    await former.publish(["m"], [None], [None])
    with pytest.raises(QueueUnavailable, match="run `beneath migrate up`"):
        await worker.fetch({WORK: 1}, wait=0)
    await queue.close()
