"""Tests of `publish` with a database, on a queue that joins transactions and on one that does not."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from bus import Bus, BusError, Delivery, InvalidEvent, PublishRejected
from bus.codec import decode_frame
from bus.worker.claim_limits import CLAIM_LIMITS
from infra.clock import FakeClock
from infra.db import Database, DatabaseUnavailable, TransactionNotOwned, TransactionRolledBack
from infra.mq import MessageQueue, QueueUnavailable, WorkerInfo
from infra.mq.drivers.memory import MemoryQueue
from infra.mq.drivers.sql import SqlQueue
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated


class System:
    """A database with one table, a queue, and a bus on both."""

    def __init__(self, db: Database, mq: MessageQueue, clock: FakeClock) -> None:
        self.db = db
        self.mq = mq
        self.clock = clock
        self.bus = Bus(mq, db, clock=clock)
        self.seen: list[object] = []

    async def start(self, *buses: Bus) -> None:
        for bus in buses or (self.bus,):
            starting = asyncio.create_task(bus.start())
            while not starting.done():
                await self.clock.advance(0.5)
                await asyncio.sleep(0.001)  # lets the queue's thread run
            await starting

    async def insert(self, word: str) -> None:
        async with self.db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})

    async def words(self) -> list[str]:
        async with self.db.read() as session:
            return list((await session.scalars(text("SELECT word FROM words ORDER BY rowid"))).all())

    async def queued(self) -> list[str]:
        """Claim all due deliveries as a worker, and return the names of their events."""
        names = [each.name for each in self.bus.listeners if each.durable]
        consumer = await self.mq.consumer(WorkerInfo(id="reader", subscriptions=frozenset(names)), CLAIM_LIMITS)
        events: list[str] = []
        with self.db.hidden():
            while claims := await consumer.fetch(dict.fromkeys(names, 100), wait=0):
                events += [delivery.event for claim in claims for delivery in claim.deliveries]
            await consumer.close()
        return events


@pytest.fixture(params=["memory", "sql"])
async def system(request: pytest.FixtureRequest, migrated_copy: Path) -> AsyncIterator[System]:
    clock = FakeClock()
    db = Database(f"sqlite:///{migrated_copy}", busy_timeout=30)
    await db.open()
    async with db.transaction() as transaction:
        await transaction.session.execute(text("CREATE TABLE words (word TEXT)"))
    mq: MessageQueue = SqlQueue(db, clock=clock) if request.param == "sql" else MemoryQueue(clock=clock)
    await mq.open()
    system = System(db, mq, clock)
    yield system
    await system.bus.close()
    await mq.close()
    await db.close()


async def remember_created(event: UserCreated) -> None: ...


async def remember_updated(event: UserUpdated) -> None: ...


async def remember_tick(event: Ticked) -> None: ...


def subscribe_all(system: System) -> None:
    system.bus.add_async_listener(remember_created, name="created")
    system.bus.add_async_listener(remember_updated, name="updated")
    system.bus.add_async_listener(remember_tick, name="ticked")


async def test_events_of_a_transaction_are_queued_only_at_its_commit(system: System) -> None:
    subscribe_all(system)
    await system.start()
    async with system.db.transaction():
        await system.insert("row")
        await system.bus.publish(UserCreated())
        ready = asyncio.create_task(system.mq.stats(), context=_bare())
        assert [each.ready for each in await ready] == [0, 0, 0]
    assert await system.queued() == ["UserCreated"]
    assert await system.words() == ["row"]


async def test_a_rollback_leaves_neither_rows_nor_events(system: System) -> None:
    subscribe_all(system)
    await system.start()
    with pytest.raises(ZeroDivisionError):
        async with system.db.transaction():
            await system.insert("row")
            await system.bus.publish(UserCreated())
            await system.bus.publish_many([Ticked(1), Ticked(2)])
            raise ZeroDivisionError
    assert (await system.words(), await system.queued()) == ([], [])


async def test_a_sync_listener_takes_part_in_the_transaction(system: System) -> None:
    async def listener(event: UserCreated) -> None:
        system.seen.append(system.db.current())
        await system.insert("by the listener")
        await system.bus.publish(UserUpdated())

    system.bus.add_sync_listener(listener)
    subscribe_all(system)
    await system.start()
    with pytest.raises(ZeroDivisionError):
        async with system.db.transaction() as transaction:
            await system.bus.publish(UserCreated())
            assert system.seen == [transaction]
            raise ZeroDivisionError
    assert (await system.words(), await system.queued()) == ([], [])
    async with system.db.transaction():
        await system.bus.publish(UserCreated())
    assert (await system.words(), await system.queued()) == (["by the listener"], ["UserCreated", "UserUpdated"])


async def test_sync_listeners_outside_a_transaction_share_a_new_transaction(system: System) -> None:
    async def first(event: UserCreated) -> None:
        await system.insert("first")

    async def second(event: UserCreated) -> None:
        await system.insert("second")
        await system.bus.publish(UserUpdated())
        if not system.seen:
            raise ZeroDivisionError

    system.bus.add_sync_listener(first)
    system.bus.add_sync_listener(second)
    subscribe_all(system)
    await system.start()
    with pytest.raises(ZeroDivisionError):
        await system.bus.publish(UserCreated())
    assert (await system.words(), await system.queued()) == ([], [])
    system.seen.append("go on")
    await system.bus.publish(UserCreated())
    assert await system.words() == ["first", "second"]
    assert sorted(await system.queued()) == ["UserCreated", "UserUpdated"]


async def test_implicit_transaction_begins_only_when_a_sync_listener_uses_it(system: System) -> None:
    async def listener(event: UserCreated) -> None:
        current = system.db.current()
        assert current is not None
        system.seen.append(current.begun)

    system.bus.add_sync_listener(listener)
    await system.start()
    async with system.db.write_lock():  # a write transaction would wait for the lock
        other = asyncio.create_task(system.bus.publish(UserCreated()), context=_bare())
        await asyncio.wait_for(other, 1)
    assert system.seen == [False]


async def test_publish_outside_a_transaction_returns_after_the_commit(system: System) -> None:
    subscribe_all(system)
    await system.start()
    await system.bus.publish(UserCreated())
    assert {each.name: each.ready for each in await system.mq.stats()} == {"created": 1, "updated": 0, "ticked": 0}


async def test_caught_error_of_a_sync_listener_still_rolls_the_transaction_back(system: System) -> None:
    async def refuse(event: UserCreated) -> None:
        raise ZeroDivisionError("no")

    system.bus.add_sync_listener(refuse)
    subscribe_all(system)
    await system.start()
    with pytest.raises(TransactionRolledBack, match="ZeroDivisionError: no"):
        async with system.db.transaction():
            await system.insert("row")
            with contextlib.suppress(ZeroDivisionError):
                await system.bus.publish(UserCreated())
            await system.bus.publish(UserUpdated())
    assert (await system.words(), await system.queued()) == ([], [])


async def test_savepoint_rollback_discards_the_events_of_a_failed_publish(system: System) -> None:
    async def refuse(event: UserCreated) -> None:
        await system.insert("by the listener")
        await system.bus.publish(Ticked(1))
        raise ZeroDivisionError

    system.bus.add_sync_listener(refuse)
    subscribe_all(system)
    await system.start()
    async with system.db.transaction():
        await system.bus.publish(UserUpdated())
        with contextlib.suppress(ZeroDivisionError):
            async with system.db.savepoint():
                await system.insert("inside")
                await system.bus.publish(UserCreated())
        await system.insert("after")
        await system.bus.publish(UserUpdated())
    assert (await system.words(), await system.queued()) == (["after"], ["UserUpdated", "UserUpdated"])


async def test_a_released_savepoint_keeps_its_events(system: System) -> None:
    subscribe_all(system)
    await system.start()
    async with system.db.transaction():
        async with system.db.savepoint():
            await system.bus.publish(UserCreated())
        async with system.db.savepoint(), system.db.savepoint():
            await system.insert("deep")
            await system.bus.publish(UserCreated())
    assert (await system.words(), await system.queued()) == (["deep"], ["UserCreated", "UserCreated"])


async def test_events_of_one_transaction_keep_their_publish_order(system: System) -> None:
    async def deposit(event: UserCreated) -> None:
        await system.bus.publish(Deposited(account="a", amount=2))

    async def note(event: Deposited, delivery: Delivery) -> None: ...

    system.bus.add_sync_listener(deposit)
    system.bus.add_async_ordered_listener(note, name="note")
    await system.start()
    async with system.db.transaction():
        await system.bus.publish(Deposited(account="a", amount=1))
        await system.bus.publish(UserCreated())
        await system.bus.publish(Deposited(account="a", amount=3))
    consumer = await system.mq.consumer(WorkerInfo(id="reader", subscriptions=frozenset({"note"})), CLAIM_LIMITS)
    [claim] = await consumer.fetch({"note": 10}, wait=0)
    event_type = system.bus.event_types["Deposited"]
    frames = [decode_frame(delivery.body) for delivery in claim.deliveries]
    assert [event_type.decode(each.payload, 1).amount for each in frames] == [1, 2, 3]
    await consumer.close()


async def test_publish_from_a_task_without_the_transaction_fails_before_any_listener(system: System) -> None:
    async def listener(event: UserCreated) -> None:
        system.seen.append(event)

    system.bus.add_sync_listener(listener)
    subscribe_all(system)
    await system.start()
    async with system.db.transaction():
        await system.insert("row")
        with pytest.raises(TransactionNotOwned):
            await asyncio.gather(system.bus.publish(UserCreated()))
        with pytest.raises(TransactionNotOwned):
            await asyncio.gather(system.bus.cancel("x"))
    assert system.seen == []
    assert (await system.words(), await system.queued()) == (["row"], [])


async def test_unencodable_event_fails_before_any_listener_and_rolls_back_the_transaction(system: System) -> None:
    async def listener(event: UserCreated) -> None:
        system.seen.append(event)

    system.bus.add_sync_listener(listener)
    subscribe_all(system)
    await system.start()
    with pytest.raises(TransactionRolledBack):
        async with system.db.transaction():
            await system.insert("row")
            with pytest.raises(InvalidEvent):
                await system.bus.publish(UserCreated(email=5))  # type: ignore[arg-type]  # the error under test
    assert system.seen == []
    assert await system.words() == []


async def test_cancelled_publisher_rolls_back_and_releases_the_write_lock(system: System) -> None:
    inside = asyncio.Event()

    async def hang(event: UserCreated) -> None:
        await system.insert("by the listener")
        inside.set()
        await asyncio.Event().wait()

    system.bus.add_sync_listener(hang)
    subscribe_all(system)
    await system.start()

    async def create() -> None:
        async with system.db.transaction():
            await system.bus.publish(UserUpdated())
            await system.bus.publish(UserCreated())

    task = asyncio.create_task(create())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await system.insert("the lock is free")
    assert (await system.words(), await system.queued()) == (["the lock is free"], [])


async def test_queue_failure_fails_the_commit_or_is_counted_after_the_commit(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe_all(system)
    await system.start()

    async def fail(_: object) -> None:
        raise QueueUnavailable("disk full")

    monkeypatch.setattr(system.mq, "publish", fail)
    if system.mq.features.transactional:
        with pytest.raises(QueueUnavailable):
            async with system.db.transaction():
                await system.insert("row")
                await system.bus.publish(UserCreated())
        assert await system.words() == []
    else:
        async with system.db.transaction():
            await system.insert("row")
            await system.bus.publish(UserCreated())
        assert await system.words() == ["row"]
        assert system.bus.metrics.publish_failures == 1
    with pytest.raises(PublishRejected, match="disk full"):
        await system.bus.publish(UserCreated())


async def test_broadcasts_are_sent_after_commit_and_handled_locally_before_the_block_ends(system: System) -> None:
    async def listener(event: UserUpdated) -> None:
        assert system.db.current() is None
        system.seen.append(event)

    system.bus.add_broadcast_listener(listener)
    await system.start()
    async with system.db.transaction():
        await system.bus.publish(UserUpdated())
        assert system.seen == []
    assert system.seen == [UserUpdated()]
    with pytest.raises(ZeroDivisionError):
        async with system.db.transaction():
            await system.bus.publish(UserUpdated())
            raise ZeroDivisionError
    assert system.seen == [UserUpdated()]
    await system.bus.publish(UserUpdated())
    assert system.seen == [UserUpdated(), UserUpdated()]


async def test_broadcast_reaches_other_processes_after_the_commit(system: System) -> None:
    other = Bus(system.mq, system.db, clock=system.clock)
    heard = asyncio.Event()

    async def listener(event: UserUpdated) -> None:
        heard.set()

    async def own(event: UserUpdated) -> None:
        system.seen.append(event)

    system.bus.add_broadcast_listener(own)
    other.add_broadcast_listener(listener)
    await system.start(system.bus, other)
    async with system.db.transaction():
        await system.bus.publish(UserUpdated())
    for _ in range(500):
        if heard.is_set():
            break
        await system.clock.advance(0.1)
        await asyncio.sleep(0.001)  # lets the queue's thread run
    assert heard.is_set()
    assert system.seen == [UserUpdated()]
    await other.close()


async def test_cancellation_takes_effect_only_if_its_transaction_commits(system: System) -> None:
    subscribe_all(system)
    await system.start()
    message_id = await system.bus.publish_delayed(Ticked(1), 60)
    with pytest.raises(ZeroDivisionError):
        async with system.db.transaction():
            assert await system.bus.cancel(message_id) is True
            raise ZeroDivisionError
    assert await system.mq.scheduled(message_id) is True
    async with system.db.transaction():
        assert await system.bus.cancel(message_id) is True
    assert await system.mq.scheduled(message_id) is False
    async with system.db.transaction():
        assert await system.bus.cancel(message_id) is False
        assert await system.bus.cancel("unknown") is False


async def test_delayed_event_can_be_cancelled_in_its_own_transaction(system: System) -> None:
    subscribe_all(system)
    await system.start()
    async with system.db.transaction():
        message_id = await system.bus.publish_delayed(Ticked(1), 60)
        kept = await system.bus.publish_delayed(Ticked(2), 60)
        assert await system.bus.cancel(message_id) is True
    assert [await system.mq.scheduled(each) for each in (message_id, kept)] == [False, True]


async def test_explicit_id_can_be_used_again_after_a_rollback(system: System) -> None:
    subscribe_all(system)
    await system.start()
    with pytest.raises(ZeroDivisionError):
        async with system.db.transaction():
            await system.bus.publish(UserCreated(), id="once")
            raise ZeroDivisionError
    async with system.db.transaction():
        await system.bus.publish(UserCreated(), id="once")
    await system.bus.publish(UserCreated(), id="once")
    assert await system.queued() == ["UserCreated"]


async def test_events_of_concurrent_publishers_are_all_queued(system: System) -> None:
    subscribe_all(system)
    await system.start()

    async def one(n: int) -> None:
        if n % 2:
            await system.bus.publish(Ticked(n))
        else:
            async with system.db.transaction():
                await system.insert(str(n))
                await system.bus.publish(Ticked(n))

    await asyncio.gather(*(one(n) for n in range(60)))
    assert len(await system.queued()) == 60
    assert len(await system.words()) == 30


async def test_publish_distinguishes_listener_errors_from_queue_errors(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = DatabaseUnavailable("the listener's own")
    failing: list[Exception] = [raised]

    async def listen(_event: UserCreated) -> None:
        if failing:
            raise failing[0]

    system.bus.add_sync_listener(listen)
    system.bus.add_async_listener(remember_created, name="created")
    await system.start()
    with pytest.raises(DatabaseUnavailable) as caught:
        await system.bus.publish(UserCreated())
    assert caught.value is raised
    failing.clear()

    async def fail(*_: object) -> None:
        raise QueueUnavailable("disk full")

    monkeypatch.setattr(system.mq, "publish", fail)
    if system.mq.features.transactional:
        with pytest.raises(PublishRejected, match="UserCreated was not published: disk full"):
            await system.bus.publish(UserCreated())
    assert await system.queued() == []


async def test_start_fails_when_the_queue_is_down(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: object) -> None:
        raise QueueUnavailable("the database is locked")

    monkeypatch.setattr(system.mq, "declare", down)
    with pytest.raises(BusError, match="the database is locked"):
        await system.bus.start()


def _bare() -> contextvars.Context:
    """Return an empty context, in which no transaction is current, as in another request."""
    return contextvars.Context()
