"""`publish` with a database, over a queue that joins transactions and one that cannot."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from bus import Bus, BusError, Delivery, InvalidEvent, PublishRejected
from bus.codec import decode_frame
from infra.clock import FakeClock
from infra.db import Database, DatabaseUnavailable, TransactionNotOwned, TransactionRolledBack
from infra.db.migrate import History, upgrade
from infra.mq import MessageQueue, QueueUnavailable, WorkerInfo
from infra.mq.drivers.memory import MemoryQueue
from infra.mq.drivers.sql import SqlQueue
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated

BUS_HISTORY = History("bus", "infra.db.migrations", "beneath_bus_version")


class Home:
    """A database with one table of its own, a queue, and a bus over both."""

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
                await asyncio.sleep(0.001)  # the queue's own thread needs a moment, not a time
            await starting

    async def insert(self, word: str) -> None:
        async with self.db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})

    async def words(self) -> list[str]:
        async with self.db.read() as session:
            return list((await session.scalars(text("SELECT word FROM words ORDER BY rowid"))).all())

    async def queued(self) -> list[str]:
        """Take what the queue holds now, as a worker would."""
        names = [each.name for each in self.bus.listeners if each.durable]
        consumer = await self.mq.consumer(WorkerInfo(id="reader", subscriptions=frozenset(names)))
        events: list[str] = []
        with self.db.hidden():
            while claims := await consumer.fetch(dict.fromkeys(names, 100), wait=0):
                events += [delivery.event for claim in claims for delivery in claim.deliveries]
            await consumer.close()
        return events


@pytest.fixture(params=["memory", "sql"])
async def home(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Home]:
    clock = FakeClock()
    db = Database(f"sqlite:///{tmp_path / 'beneath.db'}", busy_timeout=2)
    await db.open()
    await upgrade(db, [BUS_HISTORY])
    async with db.transaction() as transaction:
        await transaction.session.execute(text("CREATE TABLE words (word TEXT)"))
    mq: MessageQueue = SqlQueue(db, clock=clock) if request.param == "sql" else MemoryQueue(clock=clock)
    await mq.open()
    home = Home(db, mq, clock)
    yield home
    await home.bus.close()
    await mq.close()
    await db.close()


async def remember_created(event: UserCreated) -> None: ...


async def remember_updated(event: UserUpdated) -> None: ...


async def remember_tick(event: Ticked) -> None: ...


def subscribe_all(home: Home) -> None:
    home.bus.add_async_listener(remember_created, name="created")
    home.bus.add_async_listener(remember_updated, name="updated")
    home.bus.add_async_listener(remember_tick, name="ticked")


async def test_events_of_a_transaction_are_queued_only_at_its_commit(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    async with home.db.transaction():
        await home.insert("row")
        await home.bus.publish(UserCreated())
        ready = asyncio.create_task(home.mq.stats(), context=_bare())
        assert [each.ready for each in await ready] == [0, 0, 0]
    assert await home.queued() == ["UserCreated"]
    assert await home.words() == ["row"]


async def test_a_rollback_leaves_neither_rows_nor_events(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    with pytest.raises(ZeroDivisionError):
        async with home.db.transaction():
            await home.insert("row")
            await home.bus.publish(UserCreated())
            await home.bus.publish_many([Ticked(1), Ticked(2)])
            raise ZeroDivisionError
    assert (await home.words(), await home.queued()) == ([], [])


async def test_a_sync_listener_takes_part_in_the_transaction(home: Home) -> None:
    async def listener(event: UserCreated) -> None:
        home.seen.append(home.db.current())
        await home.insert("by the listener")
        await home.bus.publish(UserUpdated())

    home.bus.add_sync_listener(listener)
    subscribe_all(home)
    await home.start()
    with pytest.raises(ZeroDivisionError):
        async with home.db.transaction() as transaction:
            await home.bus.publish(UserCreated())
            assert home.seen == [transaction]
            raise ZeroDivisionError
    assert (await home.words(), await home.queued()) == ([], [])
    async with home.db.transaction():
        await home.bus.publish(UserCreated())
    assert (await home.words(), await home.queued()) == (["by the listener"], ["UserCreated", "UserUpdated"])


async def test_sync_listeners_outside_a_transaction_share_a_new_transaction(home: Home) -> None:
    async def first(event: UserCreated) -> None:
        await home.insert("first")

    async def second(event: UserCreated) -> None:
        await home.insert("second")
        await home.bus.publish(UserUpdated())
        if not home.seen:
            raise ZeroDivisionError

    home.bus.add_sync_listener(first)
    home.bus.add_sync_listener(second)
    subscribe_all(home)
    await home.start()
    with pytest.raises(ZeroDivisionError):
        await home.bus.publish(UserCreated())
    assert (await home.words(), await home.queued()) == ([], [])
    home.seen.append("go on")
    await home.bus.publish(UserCreated())
    assert await home.words() == ["first", "second"]
    assert sorted(await home.queued()) == ["UserCreated", "UserUpdated"]


async def test_implicit_transaction_begins_only_when_a_sync_listener_uses_it(home: Home) -> None:
    async def listener(event: UserCreated) -> None:
        current = home.db.current()
        assert current is not None
        home.seen.append(current.begun)

    home.bus.add_sync_listener(listener)
    await home.start()
    async with home.db.write_lock():  # whoever wants to write now would wait
        other = asyncio.create_task(home.bus.publish(UserCreated()), context=_bare())
        await asyncio.wait_for(other, 1)
    assert home.seen == [False]


async def test_publish_outside_a_transaction_returns_after_the_commit(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    await home.bus.publish(UserCreated())
    assert {each.name: each.ready for each in await home.mq.stats()} == {"created": 1, "updated": 0, "ticked": 0}


async def test_caught_error_of_a_sync_listener_still_rolls_the_transaction_back(home: Home) -> None:
    async def refuse(event: UserCreated) -> None:
        raise ZeroDivisionError("no")

    home.bus.add_sync_listener(refuse)
    subscribe_all(home)
    await home.start()
    with pytest.raises(TransactionRolledBack, match="ZeroDivisionError: no"):
        async with home.db.transaction():
            await home.insert("row")
            with contextlib.suppress(ZeroDivisionError):
                await home.bus.publish(UserCreated())
            await home.bus.publish(UserUpdated())
    assert (await home.words(), await home.queued()) == ([], [])


async def test_savepoint_rollback_discards_the_events_of_a_failed_publish(home: Home) -> None:
    async def refuse(event: UserCreated) -> None:
        await home.insert("by the listener")
        await home.bus.publish(Ticked(1))
        raise ZeroDivisionError

    home.bus.add_sync_listener(refuse)
    subscribe_all(home)
    await home.start()
    async with home.db.transaction():
        await home.bus.publish(UserUpdated())
        with contextlib.suppress(ZeroDivisionError):
            async with home.db.savepoint():
                await home.insert("inside")
                await home.bus.publish(UserCreated())
        await home.insert("after")
        await home.bus.publish(UserUpdated())
    assert (await home.words(), await home.queued()) == (["after"], ["UserUpdated", "UserUpdated"])


async def test_a_released_savepoint_keeps_its_events(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    async with home.db.transaction():
        async with home.db.savepoint():
            await home.bus.publish(UserCreated())
        async with home.db.savepoint(), home.db.savepoint():
            await home.insert("deep")
            await home.bus.publish(UserCreated())
    assert (await home.words(), await home.queued()) == (["deep"], ["UserCreated", "UserCreated"])


async def test_events_of_one_transaction_keep_their_publish_order(home: Home) -> None:
    async def deposit(event: UserCreated) -> None:
        await home.bus.publish(Deposited(account="a", amount=2))

    async def note(event: Deposited, delivery: Delivery) -> None: ...

    home.bus.add_sync_listener(deposit)
    home.bus.add_async_ordered_listener(note, name="note")
    await home.start()
    async with home.db.transaction():
        await home.bus.publish(Deposited(account="a", amount=1))
        await home.bus.publish(UserCreated())
        await home.bus.publish(Deposited(account="a", amount=3))
    consumer = await home.mq.consumer(WorkerInfo(id="reader", subscriptions=frozenset({"note"})))
    [claim] = await consumer.fetch({"note": 10}, wait=0)
    event_type = home.bus.event_types["Deposited"]
    frames = [decode_frame(delivery.body) for delivery in claim.deliveries]
    assert [event_type.decode(each.payload, 1).amount for each in frames] == [1, 2, 3]
    await consumer.close()


async def test_publish_from_a_task_without_the_transaction_fails_before_any_listener(home: Home) -> None:
    async def listener(event: UserCreated) -> None:
        home.seen.append(event)

    home.bus.add_sync_listener(listener)
    subscribe_all(home)
    await home.start()
    async with home.db.transaction():
        await home.insert("row")
        with pytest.raises(TransactionNotOwned):
            await asyncio.gather(home.bus.publish(UserCreated()))
        with pytest.raises(TransactionNotOwned):
            await asyncio.gather(home.bus.cancel("x"))
    assert home.seen == []
    assert (await home.words(), await home.queued()) == (["row"], [])


async def test_unencodable_event_fails_before_any_listener_and_rolls_back_the_transaction(home: Home) -> None:
    async def listener(event: UserCreated) -> None:
        home.seen.append(event)

    home.bus.add_sync_listener(listener)
    subscribe_all(home)
    await home.start()
    with pytest.raises(TransactionRolledBack):
        async with home.db.transaction():
            await home.insert("row")
            with pytest.raises(InvalidEvent):
                await home.bus.publish(UserCreated(email=5))  # type: ignore[arg-type]  # what the test is about
    assert home.seen == []
    assert await home.words() == []


async def test_cancelled_publisher_rolls_back_and_releases_the_write_lock(home: Home) -> None:
    inside = asyncio.Event()

    async def hang(event: UserCreated) -> None:
        await home.insert("by the listener")
        inside.set()
        await asyncio.Event().wait()

    home.bus.add_sync_listener(hang)
    subscribe_all(home)
    await home.start()

    async def create() -> None:
        async with home.db.transaction():
            await home.bus.publish(UserUpdated())
            await home.bus.publish(UserCreated())

    task = asyncio.create_task(create())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await home.insert("the lock is free")
    assert (await home.words(), await home.queued()) == (["the lock is free"], [])


async def test_queue_failure_fails_the_commit_or_is_counted_after_the_commit(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe_all(home)
    await home.start()

    async def fail(_: object) -> None:
        raise QueueUnavailable("disk full")

    monkeypatch.setattr(home.mq, "publish", fail)
    if home.mq.features.transactional:
        with pytest.raises(QueueUnavailable):
            async with home.db.transaction():
                await home.insert("row")
                await home.bus.publish(UserCreated())
        assert await home.words() == []
    else:
        async with home.db.transaction():
            await home.insert("row")
            await home.bus.publish(UserCreated())
        assert await home.words() == ["row"]
        assert home.bus.metrics.publish_failures == 1
    with pytest.raises(PublishRejected, match="disk full"):
        await home.bus.publish(UserCreated())


async def test_broadcasts_are_sent_after_commit_and_handled_locally_before_the_block_ends(home: Home) -> None:
    async def listener(event: UserUpdated) -> None:
        assert home.db.current() is None
        home.seen.append(event)

    home.bus.add_broadcast_listener(listener)
    await home.start()
    async with home.db.transaction():
        await home.bus.publish(UserUpdated())
        assert home.seen == []
    assert home.seen == [UserUpdated()]
    with pytest.raises(ZeroDivisionError):
        async with home.db.transaction():
            await home.bus.publish(UserUpdated())
            raise ZeroDivisionError
    assert home.seen == [UserUpdated()]
    await home.bus.publish(UserUpdated())
    assert home.seen == [UserUpdated(), UserUpdated()]


async def test_broadcast_reaches_other_processes_after_the_commit(home: Home) -> None:
    other = Bus(home.mq, home.db, clock=home.clock)
    heard = asyncio.Event()

    async def listener(event: UserUpdated) -> None:
        heard.set()

    async def own(event: UserUpdated) -> None:
        home.seen.append(event)

    home.bus.add_broadcast_listener(own)
    other.add_broadcast_listener(listener)
    await home.start(home.bus, other)
    async with home.db.transaction():
        await home.bus.publish(UserUpdated())
    for _ in range(500):
        if heard.is_set():
            break
        await home.clock.advance(0.1)
        await asyncio.sleep(0.001)  # the queue's own thread needs a moment, not a time
    assert heard.is_set()
    assert home.seen == [UserUpdated()]
    await other.close()


async def test_cancellation_takes_effect_only_if_its_transaction_commits(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    message_id = await home.bus.publish_delayed(Ticked(1), 60)
    with pytest.raises(ZeroDivisionError):
        async with home.db.transaction():
            assert await home.bus.cancel(message_id) is True
            raise ZeroDivisionError
    assert await home.mq.scheduled(message_id) is True
    async with home.db.transaction():
        assert await home.bus.cancel(message_id) is True
    assert await home.mq.scheduled(message_id) is False
    async with home.db.transaction():
        assert await home.bus.cancel(message_id) is False
        assert await home.bus.cancel("unknown") is False


async def test_delayed_event_can_be_cancelled_in_its_own_transaction(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    async with home.db.transaction():
        message_id = await home.bus.publish_delayed(Ticked(1), 60)
        kept = await home.bus.publish_delayed(Ticked(2), 60)
        assert await home.bus.cancel(message_id) is True
    assert [await home.mq.scheduled(each) for each in (message_id, kept)] == [False, True]


async def test_explicit_id_can_be_used_again_after_a_rollback(home: Home) -> None:
    subscribe_all(home)
    await home.start()
    with pytest.raises(ZeroDivisionError):
        async with home.db.transaction():
            await home.bus.publish(UserCreated(), id="once")
            raise ZeroDivisionError
    async with home.db.transaction():
        await home.bus.publish(UserCreated(), id="once")
    await home.bus.publish(UserCreated(), id="once")
    assert await home.queued() == ["UserCreated"]


async def test_events_of_concurrent_publishers_are_all_queued(home: Home) -> None:
    subscribe_all(home)
    await home.start()

    async def one(n: int) -> None:
        if n % 2:
            await home.bus.publish(Ticked(n))
        else:
            async with home.db.transaction():
                await home.insert(str(n))
                await home.bus.publish(Ticked(n))

    await asyncio.gather(*(one(n) for n in range(60)))
    assert len(await home.queued()) == 60
    assert len(await home.words()) == 30


async def test_publish_distinguishes_listener_errors_from_queue_errors(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = DatabaseUnavailable("the listener's own")
    failing: list[Exception] = [raised]

    async def listen(_event: UserCreated) -> None:
        if failing:
            raise failing[0]

    home.bus.add_sync_listener(listen)
    home.bus.add_async_listener(remember_created, name="created")
    await home.start()
    with pytest.raises(DatabaseUnavailable) as caught:
        await home.bus.publish(UserCreated())
    assert caught.value is raised
    failing.clear()

    async def fail(*_: object) -> None:
        raise QueueUnavailable("disk full")

    monkeypatch.setattr(home.mq, "publish", fail)
    if home.mq.features.transactional:
        with pytest.raises(PublishRejected, match="UserCreated was not published: disk full"):
            await home.bus.publish(UserCreated())
    assert await home.queued() == []


async def test_start_fails_when_the_queue_is_down(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: object) -> None:
        raise QueueUnavailable("the database is locked")

    monkeypatch.setattr(home.mq, "declare", down)
    with pytest.raises(BusError, match="the database is locked"):
        await home.bus.start()


def _bare() -> contextvars.Context:
    """Return a context in which no transaction is ambient, as another request's would be."""
    return contextvars.Context()
