"""Upgrade of a SQLite queue that an earlier release filled."""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from dependencies.migrations import BUS
from infra.clock import SystemClock
from infra.db import Database, migrate
from infra.mq import Message, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import presence
from tests.infra.mq.acting import consumer, handle_all, message, subscription
from tests.infra.schema.test_revisions import upgrade_to

EARLY, LATEST = "0005", "0011"
"""Revisions of earlier releases; before 0006 the release had other tables and indexes on SQLite."""

HELD = """
INSERT INTO beneath_subscription (id, name, ordered) VALUES (1, 'work', 0), (2, 'mail', 1);
INSERT INTO beneath_route (event, subscription) VALUES ('Happened', 1), ('Happened', 2), ('Newer', 1), ('Newer', 2);
INSERT INTO beneath_worker (id, name, host, pid, subscriptions, joined_at) VALUES (3, 'dead', 'h', 1, '[]', {now});
INSERT INTO beneath_delivery
    (id, subscription, state, owner, due_at, published_at, message_id, event, ordering_key, mailbox, body)
VALUES
    (10, 1, 0, NULL, {now}, {now}, 'ready', 'Happened', NULL, NULL, x'00'),
    (11, 1, 1, 3, {now}, {now}, 'claimed', 'Happened', NULL, NULL, x'00'),
    (12, 1, 2, NULL, {now}, {now}, 'parked', 'Newer', NULL, NULL, x'00'),
    (13, 1, 3, NULL, {now} - 1, {now}, 'scheduled', 'Happened', NULL, NULL, x'00'),
    (14, 1, 3, NULL, {now} + 3600, {now}, 'later', 'Happened', NULL, NULL, x'00'),
    (20, 2, 4, NULL, {now}, {now}, 'first of a', 'Happened', 'a', 'a', x'00'),
    (21, 2, 4, NULL, {now}, {now}, 'claimed of b', 'Happened', 'b', 'b', x'00'),
    (22, 2, 4, NULL, {now}, {now}, 'parked of c', 'Newer', 'c', 'c', x'00'),
    (23, 2, 3, NULL, {now} - 1, {now}, 'scheduled of a', 'Happened', 'a', 'a', x'00');
INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, fence, owner, last_id, parked_event)
VALUES
    (2, 'a', 0, {now}, 20, 0, NULL, NULL, NULL),
    (2, 'b', 1, {now}, 21, 30, 3, 21, NULL),
    (2, 'c', 2, {now}, 22, 0, NULL, NULL, 'Newer');
INSERT INTO beneath_dead_letter
    (id, subscription, message_id, event, error, traceback, failures, crashes, published_at, died_at, body)
VALUES (40, 'work', 'died', 'Happened', 'E', '', 3, 0, {now}, {now}, x'00');
INSERT INTO beneath_dedupe (id, at) VALUES ('accepted', {now});
UPDATE beneath_counter SET value = 50 WHERE name = 'beneath_number';
UPDATE beneath_registry SET version = 7, changed_at = {now} - 60;
"""


@pytest.fixture(params=[EARLY, LATEST])
async def before(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a file of an earlier release, with deliveries in every state."""
    path = tmp_path / "queue.db"
    db = Database(f"sqlite:///{path}")
    await db.open()
    await upgrade_to(db, request.param)
    await db.close()
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(HELD.format(now=time.time()))
    return path


@pytest.fixture
async def queue(before: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqlQueue]:
    monkeypatch.setattr(presence, "MISSING_PATIENCE", 0.0)
    db = Database(f"sqlite:///{before}")
    await db.open()
    assert await migrate.upgrade(db, [BUS])
    queue = SqlQueue(db, clock=SystemClock(), registry_ttl=0)
    await queue.open()
    yield queue
    await queue.close()
    await db.close()


async def test_all_contents_of_an_upgraded_queue_are_handled(queue: SqlQueue) -> None:
    await queue.declare([subscription("work"), subscription("mail", ordered=True)], [])
    worker = await consumer(queue)
    assert await worker.recover() == 2
    assert await worker.unpark({"work": ["Newer"], "mail": ["Newer"]}) == 2
    assert await queue.retry_dead(["40"]) == 1
    handled = await handle_all(worker, {"work": 100, "mail": 100})
    assert sorted(handled) == sorted(
        [
            "ready",
            "claimed",
            "parked",
            "scheduled",
            "died",
            "claimed of b",
            "first of a",
            "parked of c",
            "scheduled of a",
        ]
    )
    assert handled.index("first of a") < handled.index("scheduled of a")
    assert {it.name: it.scheduled for it in await queue.stats()} == {"work": 1, "mail": 0}
    assert await queue.cancel("later")


async def test_ids_accepted_before_an_upgrade_are_still_deduplicated(queue: SqlQueue) -> None:
    await queue.publish([repeatable("accepted"), repeatable("new")])
    worker = await consumer(queue)
    assert (await handle_all(worker, {"work": 100})).count("new") == 1
    assert "accepted" not in await handle_all(worker, {"work": 100, "mail": 100})


async def test_previous_release_works_on_an_upgraded_file(queue: SqlQueue, before: Path) -> None:
    """The test runs the statements of the previous release, whose processes run until they are replaced."""
    with closing(sqlite3.connect(before, isolation_level=None)) as raw:
        raw.execute("INSERT INTO beneath_dedupe (id, at) VALUES ('x', 1.0) ON CONFLICT (id) DO UPDATE SET at = 1.0")
        due = """
            SELECT message_id FROM beneath_delivery INDEXED BY beneath_delivery_scheduled
            WHERE state = 3 AND due_at <= ? ORDER BY due_at, id LIMIT ?
        """
        assert raw.execute(due, (time.time(), 10)).fetchall() == [("scheduled",), ("scheduled of a",)]
        raw.execute("UPDATE beneath_delivery SET state = 2 WHERE message_id = 'ready'")
        raw.execute("UPDATE beneath_registry SET version = version + 1, changed_at = ?", (time.time(),))
    assert await (await consumer(queue)).unpark({"work": ["Happened"]}) == 1
    await queue.declare([subscription("work")], [])


def repeatable(name: str) -> Message:
    made = message(name)
    return Message(
        id=made.id, event=made.event, body=made.body, published_at=made.published_at, ordering_key=name, dedupe=True
    )


@pytest.mark.parametrize("before", [EARLY], indirect=True)
async def test_file_without_the_upgrade_is_refused_with_the_migrate_command(before: Path) -> None:
    db = Database(f"sqlite:///{before}")
    await db.open()
    with pytest.raises(QueueUnavailable, match="tables are of another release: run `beneath migrate up`"):
        await SqlQueue(db, clock=SystemClock()).open()
    await db.close()
