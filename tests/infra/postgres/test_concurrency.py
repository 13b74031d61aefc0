"""Many concurrent transactions on few ordering keys: no deadlock, one order, and no stranded delivery."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.db import Database
from infra.mq.drivers.sql import SqlQueue
from tests.infra.mq.acting import message, subscription
from tests.infra.postgres.queues import MAIL, POST, WORK, Handled, Store, new_store, queue_dialect, working
from tests.postgres_servers import PostgresServer

KEYS: tuple[str, ...] = ("a", "b", "c")
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@pytest.fixture
async def opened(store: Store) -> list[tuple[SqlQueue, Database]]:
    """Return two open queues with their databases, as of two processes."""
    two = [await store.open(options="pool_size=40", busy_timeout=60.0) for _ in range(2)]
    subscriptions = [subscription(WORK), subscription(MAIL, ordered=True), subscription(POST, ordered=True)]
    await two[0][0].declare(subscriptions, [])
    return two


class Log:
    """The times at which each publish began and its COMMIT returned."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.returned: dict[str, float] = {}
        self.keys: dict[str, str] = {}

    def of(self, key: str) -> list[str]:
        return [it for it in self.returned if self.keys[it] == key]

    def check(self, handled: Handled) -> None:
        """Check that all ordered subscriptions have one order, which agrees with the times of the publishes."""
        assert sorted(it for _, it in handled.messages[WORK]) == sorted(self.returned)
        for key in sorted(set(self.keys.values())):
            order = handled.of(MAIL, key)
            assert sorted(order) == sorted(self.of(key))
            assert handled.of(POST, key) == order
            latest = 0.0
            for name in order:
                latest = max(latest, self.began[name])
                assert self.returned[name] >= latest, f"{name} came after something that began when it had returned"


async def publish(queue: SqlQueue, db: Database, log: Log, name: str, keys: list[str], level: str = LEVELS[0]) -> None:
    """Publish one message for each key in a transaction that also writes an application row."""
    ids = [f"{name}-{key}" for key in keys]
    for it, key in zip(ids, keys, strict=True):
        log.began[it], log.keys[it] = time.monotonic(), key
    async with db.transaction() as tx:
        await tx.session.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
        await tx.session.execute(text("INSERT INTO thing (name) VALUES (:name)"), {"name": name})
        await queue.publish([message(it, key=key) for it, key in zip(ids, keys, strict=True)])
    for it in ids:
        log.returned[it] = time.monotonic()


async def make_table(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.session.execute(text("CREATE TABLE thing (name TEXT)"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("level", [LEVELS[0], *(pytest.param(it, marks=pytest.mark.thorough) for it in LEVELS[1:])])
async def test_thousand_concurrent_transactions_on_the_same_keys_keep_one_order(
    opened: list[tuple[SqlQueue, Database]], level: str
) -> None:
    await make_table(opened[0][1])
    log, handled, rng = Log(), Handled(), random.Random(1)
    async with working(handled, *(queue for queue, _ in opened)):
        calls = []
        for n in range(1000):
            queue, db = opened[n % 2]
            keys = rng.sample(KEYS, rng.randint(1, 3))
            calls.append(publish(queue, db, log, f"t{n}", keys, level))
        await asyncio.gather(*calls)
        await handled.until(lambda it: all(len(done) == len(log.returned) for done in it.messages.values()))
    log.check(handled)


@pytest.mark.timeout(240)
async def test_no_notification_is_lost_between_publishers_and_workers_on_few_keys(
    store: Store, opened: list[tuple[SqlQueue, Database]]
) -> None:
    """Transactions of every kind, and publishes outside of them, empty and refill every mailbox continuously."""
    await make_table(opened[0][1])
    log, handled, rng = Log(), Handled(), random.Random(2)

    async def publisher(number: int) -> None:
        queue, db = opened[number % 2]
        for n in range(60):
            keys = rng.sample(KEYS, rng.randint(1, 3))
            level = rng.choice((LEVELS[0], LEVELS[0], LEVELS[1], LEVELS[2], "none"))
            if level == "none":
                name = f"p{number}.{n}-{keys[0]}"
                log.began[name], log.keys[name] = time.monotonic(), keys[0]
                await queue.publish([message(name, key=keys[0])])
                log.returned[name] = time.monotonic()
            else:
                await retrying(queue, db, log, f"p{number}.{n}", keys, level)

    async with working(handled, *(queue for queue, _ in opened), limit=2):
        await asyncio.gather(*(publisher(it) for it in range(8)))
        await handled.until(lambda it: all(len(done) == len(log.returned) for done in it.messages.values()), 20)
    log.check(handled)
    assert await store.count("delivery") == 0
    assert await store.count("mailbox", "due_at < extract(epoch FROM now())") == 0


async def retrying(queue: SqlQueue, db: Database, log: Log, name: str, keys: list[str], level: str) -> None:
    for attempt in range(20):
        try:
            await publish(queue, db, log, f"{name}.{attempt}", keys, level)
        except DBAPIError:
            for it in [it for it in log.began if it.startswith(f"{name}.{attempt}-")]:
                del log.began[it], log.keys[it]
        else:
            return
    raise AssertionError("it never commits")


async def test_transaction_stalled_before_its_commit_blocks_no_worker(
    opened: list[tuple[SqlQueue, Database]],
) -> None:
    (queue, db), (other, _) = opened
    handled = Handled()
    async with working(handled, other):
        await queue.publish([message(f"m{n}", key="a") for n in range(CLAIM_LIMITS.mailbox_batch)])
        async with db.transaction():
            await queue.publish([message("late", key="a")])
            with db.hidden():
                await queue.publish([message("elsewhere", key="b")])
                await handled.until(lambda it: len(it.messages[MAIL]) == CLAIM_LIMITS.mailbox_batch + 1, 5)
                await asyncio.sleep(0.2)  # The workers poll the emptied mailbox repeatedly.
        await handled.until(lambda it: it.of(POST, "a")[-1:] == ["late"], 5)
    assert handled.of(MAIL, "a") == [*(f"m{n}" for n in range(CLAIM_LIMITS.mailbox_batch)), "late"]


async def test_publishers_wait_only_for_publishers_to_the_same_key(
    opened: list[tuple[SqlQueue, Database]],
) -> None:
    (queue, db), (other, _) = opened
    async with db.transaction():
        await queue.publish([message("first", key="a")])
        waiting = asyncio.ensure_future(other.publish([message("second", key="a")]))
        async with asyncio.timeout(5):
            await other.publish([message("aside", key="b")])
        assert not waiting.done()
    await waiting
    handled = Handled()
    async with working(handled, queue):
        await handled.until(lambda it: len(it.messages[MAIL]) == 3, 5)
    assert handled.of(MAIL, "a") == ["first", "second"]


async def test_publisher_that_waited_for_due_messages_to_be_placed_blocks_no_worker(
    store: Store, opened: list[tuple[SqlQueue, Database]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (queue, db), (other, other_db) = opened

    async def nothing(*_: object) -> None: ...

    await make_table(db)
    monkeypatch.setattr(queue_dialect(queue), "_promote_these", nothing)
    await publish(queue, db, Log(), "early", ["a"], LEVELS[1])
    handled, waits = Handled(), "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"

    async def wait_and_linger() -> None:
        async with other_db.transaction():
            await other.publish([message("late", key="a")])
            await handled.until(lambda it: it.of(MAIL, "a") == ["early-a", "middle"] == it.of(POST, "a"), 5)

    async with db.transaction():
        await queue.publish([message("middle", key="a")])
        lingering = asyncio.ensure_future(wait_and_linger())
        while not (await store.server.fetch(waits, store.database))[0][0]:  # noqa: ASYNC110  # it happens on the server
            await asyncio.sleep(0.01)
    async with working(handled, queue):
        await lingering
        await handled.until(lambda it: it.of(POST, "a")[-1:] == ["late"], 5)
