"""`once=True`: a handler's rows and events are committed once per message, however often it is delivered."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from bus import Delivery, Retry
from bus.testing import BusKit
from bus.worker import inbox as inbox_module
from bus.worker import worker as worker_module
from bus.worker.claim_limits import CLAIM_LIMITS
from bus.worker.inbox import Inbox, pruning
from bus.worker.slot import Slot, SlotTask
from infra.clock import FakeClock
from infra.db import CommitIndeterminate, Database, DatabaseUnavailable
from infra.db.transaction import Ending, Transaction
from infra.mq import Claim, Outcome, Settlement, WorkerInfo
from tests.bus.events import Ticked, UserUpdated

SOON = Retry(max_attempts=5, min_delay=1, jitter="none")


class Ledger:
    """A service whose handler writes a row and publishes, and fails on request after its transaction."""

    def __init__(self, kit: BusKit, db: Database) -> None:
        self._bus = kit.bus
        self._db = db
        self.attempts = 0
        self.fail_after_write = 0
        kit.bus.add_async_listener(self.on_tick, once=True, retry=SOON)
        kit.bus.add_async_listener(self.follow_up, retry=SOON)
        self.follow_ups = 0

    async def on_tick(self, event: Ticked) -> None:
        self.attempts += 1
        async with self._db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO ledger VALUES (:n)"), {"n": event.n})
            await self._bus.publish(UserUpdated())
        if self.fail_after_write:
            self.fail_after_write -= 1
            raise ConnectionError

    async def follow_up(self, event: UserUpdated, delivery: Delivery) -> None:
        self.follow_ups += 1

    async def rows(self) -> list[int]:
        async with self._db.read() as session:
            return list((await session.scalars(text("SELECT n FROM ledger"))).all())


@pytest.fixture
async def db(migrated_copy: Path) -> AsyncIterator[Database]:
    db = Database(f"sqlite:///{migrated_copy}", busy_timeout=30)
    await db.open()
    async with db.transaction() as transaction:
        await transaction.session.execute(text("CREATE TABLE ledger (n INTEGER)"))
    yield db
    await db.close()


@pytest.fixture
async def kit(db: Database) -> AsyncIterator[BusKit]:
    async with BusKit(db=db, clock=FakeClock()) as kit:
        yield kit


async def test_failed_attempt_leaves_neither_rows_nor_events(kit: BusKit, db: Database) -> None:
    ledger = Ledger(kit, db)
    ledger.fail_after_write = 2
    await kit.start()
    await kit.bus.publish(Ticked(7))
    await kit.drain()
    assert (await ledger.rows(), ledger.follow_ups) == ([], 0)
    await kit.advance(seconds=10)
    assert (ledger.attempts, await ledger.rows(), ledger.follow_ups) == (3, [7], 1)
    assert [each.outcome for each in kit.failures] == ["retry", "retry"]


async def test_message_redelivered_after_commit_is_settled_without_running_the_handler(
    kit: BusKit, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(kit, db)
    await kit.start()
    await kit.bus.publish(Ticked(7))
    deliver_twice(kit, monkeypatch)
    await kit.drain()
    assert (ledger.attempts, await ledger.rows(), ledger.follow_ups) == (1, [7], 1)


async def test_two_messages_with_equal_events_are_both_handled(kit: BusKit, db: Database) -> None:
    ledger = Ledger(kit, db)
    await kit.start()
    await kit.bus.publish_many([Ticked(7), Ticked(7)])
    await kit.drain()
    assert await ledger.rows() == [7, 7]


async def test_only_one_of_two_concurrent_attempts_commits(kit: BusKit, db: Database) -> None:
    both = asyncio.Barrier(2)
    outcomes: list[str] = []

    async def slow(event: Ticked) -> None:
        await both.wait()
        async with db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO ledger VALUES (1)"))
        outcomes.append("went on")

    kit.bus.add_async_listener(slow, name="slow", once=True)
    await kit.start()
    worker = kit.bus.worker()
    lane = worker.lanes()["slow"]
    await kit.bus.publish(Ticked(1))
    consumer = await kit.mq.consumer(WorkerInfo(id="w", subscriptions=frozenset({"slow"})), CLAIM_LIMITS)
    [claim] = await consumer.fetch({"slow": 1}, wait=0)
    settled: list[Settlement] = []
    await asyncio.gather(
        *(worker.executor.run(Slot(lane.listener), claim, lane.metrics, settled.append) for _ in range(2))
    )
    assert [each.outcome for each in settled] == [Outcome.DONE, Outcome.DONE]
    assert outcomes == ["went on"]
    async with db.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM ledger"))).scalar_one() == 1


async def test_second_attempt_that_suppresses_the_refusal_commits_nothing(
    kit: BusKit, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = asyncio.Barrier(2)

    async def careless(event: Ticked) -> None:
        await both.wait()
        try:
            async with db.transaction() as transaction:
                await transaction.session.execute(text("INSERT INTO ledger VALUES (1)"))
        except Exception:  # noqa: BLE001, S110 - the suppressed refusal under test
            pass

    kit.bus.add_async_listener(careless, name="careless", once=True)
    await kit.start()
    worker = kit.bus.worker()
    lane = worker.lanes()["careless"]
    await kit.bus.publish(Ticked(1))
    consumer = await kit.mq.consumer(WorkerInfo(id="w", subscriptions=frozenset({"careless"})), CLAIM_LIMITS)
    [claim] = await consumer.fetch({"careless": 1}, wait=0)
    settled: list[Settlement] = []
    await asyncio.gather(
        *(worker.executor.run(Slot(lane.listener), claim, lane.metrics, settled.append) for _ in range(2))
    )
    assert [each.outcome for each in settled] == [Outcome.DONE, Outcome.DONE]
    async with db.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM ledger"))).scalar_one() == 1


async def test_inbox_prunes_records_after_the_retention(kit: BusKit, db: Database) -> None:
    ledger = Ledger(kit, db)
    await kit.start()
    await kit.bus.publish(Ticked(7))
    await kit.drain()
    assert ledger.attempts == 1
    inbox = Inbox(db, kit.clock, retention=3600)
    assert await inbox.prune() == 0
    await kit.advance(hours=2)
    assert await inbox.prune() == 1


async def test_inbox_record_under_a_former_listener_name_counts(kit: BusKit, db: Database) -> None:
    inbox = Inbox(db, kit.clock, retention=3600)
    async with inbox.once("old", "m1"), db.transaction() as transaction:
        await transaction.session.execute(text("INSERT INTO ledger VALUES (1)"))
    assert await inbox.handled(("new", "old"), "m1")
    assert not await inbox.handled(("new",), "m1")


def deliver_twice(kit: BusKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose the settlement of the next delivery, so that the queue delivers the message again."""
    assert kit.consumer is not None
    settle = kit.consumer.settle
    lost: list[Claim] = []

    async def lossy(settlements: list[Settlement]) -> list[Settlement]:
        if lost:
            return await settle(settlements)
        lost.extend(each.claim for each in settlements)
        return await settle(
            [
                Settlement(claim=each.claim, delivery=each.delivery, outcome=Outcome.RELEASE, close=each.claim.ordered)
                for each in settlements
            ]
        )

    monkeypatch.setattr(kit.consumer, "settle", lossy)


class BlockingParticipant:
    """A participant whose step after the commit blocks until the test lets it continue."""

    def __init__(self) -> None:
        self.committed, self.go_on = asyncio.Event(), asyncio.Event()

    def savepoint(self) -> object:
        return None

    def rollback_to(self, mark: object) -> None: ...

    async def before_commit(self) -> None: ...

    async def after_commit(self) -> None:
        self.committed.set()
        await self.go_on.wait()

    async def after_rollback(self) -> None: ...


@pytest.mark.parametrize("by", ["stop", "timeout"])
async def test_cancellation_after_commit_leaves_the_delivery_done(kit: BusKit, db: Database, by: str) -> None:
    participant = BlockingParticipant()

    async def handler(event: Ticked) -> None:
        async with db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO ledger VALUES (1)"))
            transaction.participant("participant", lambda: participant)

    kit.bus.add_async_listener(handler, name="l", once=True, retry=Retry(max_attempts=1))
    await kit.start()
    worker = kit.bus.worker()
    lane = worker.lanes()["l"]
    await kit.bus.publish(Ticked(1))
    [claim] = await kit.consumer.fetch({"l": 1}, wait=0)
    settled: list[Settlement] = []
    slot = Slot(lane.listener)
    slot.task = SlotTask(slot, worker.executor.run(slot, claim, lane.metrics, settled.append))
    await participant.committed.wait()
    if by == "stop":
        slot.stop()
    else:
        slot.interrupt()
    await slot.task
    assert [each.outcome for each in settled] == [Outcome.DONE]


def lose_commit_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Transaction.end

    async def lose(transaction: Transaction, error: BaseException | None) -> Ending:
        begun = transaction.begun
        ending = await end(transaction, error)
        return Ending(kept=False, error=CommitIndeterminate("lost"), cancelled=None) if begun else ending

    monkeypatch.setattr(Transaction, "end", lose)


async def test_committed_delivery_with_a_failed_last_attempt_is_no_dead_letter(
    kit: BusKit, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(event: Ticked) -> None:
        async with db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO ledger VALUES (1)"))

    kit.bus.add_async_listener(handler, name="l", once=True, retry=Retry(max_attempts=1))
    await kit.start()
    await kit.bus.publish(Ticked(1))
    lose_commit_reply(monkeypatch)
    await kit.drain()
    assert (await kit.dead_letters(), kit.bus.metrics.listeners["l"].failed) == ([], 1)
    assert [(it.ready, it.retrying, it.in_flight) for it in await kit.mq.stats()] == [(0, 0, 0)]


async def test_committed_delivery_with_repeated_process_deaths_is_no_dead_letter(kit: BusKit, db: Database) -> None:
    ledger = Ledger(kit, db)
    await kit.start()
    await kit.bus.publish(Ticked(7))
    worker = kit.bus.worker()
    name, lane = next((name, lane) for name, lane in worker.lanes().items() if lane.listener.options.once)
    settled: list[Settlement] = []
    [claim] = await kit.consumer.fetch({name: 1}, wait=0)
    await worker.executor.run(Slot(lane.listener), claim, lane.metrics, settled.append)
    claim.deliveries[0].crashes = 3  # as if three processes had died before they settled
    await worker.executor.run(Slot(lane.listener), claim, lane.metrics, settled.append)
    assert ([each.outcome for each in settled], ledger.attempts) == ([Outcome.DONE, Outcome.DONE], 1)


async def test_delivery_is_not_dead_lettered_while_the_inbox_is_unreachable(
    kit: BusKit, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = True
    handled = Inbox.handled

    async def asked(inbox: Inbox, listeners: tuple[str, ...], message_id: str) -> bool:
        if unreachable:
            raise DatabaseUnavailable("unreachable")
        return await handled(inbox, listeners, message_id)

    monkeypatch.setattr(Inbox, "handled", asked)

    async def handler(event: Ticked) -> None: ...

    kit.bus.add_async_listener(handler, name="l", once=True, retry=Retry(max_attempts=1))
    await kit.start()
    await kit.bus.publish(Ticked(1))
    await kit.advance(minutes=1)
    assert await kit.dead_letters() == []
    unreachable = False
    await kit.advance(minutes=1)
    assert await kit.dead_letters() == []
    assert kit.bus.metrics.listeners["l"].handled == 1


async def test_pruning_deletes_the_oldest_records_in_bounded_batches(
    kit: BusKit, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "PRUNED_AT_ONCE", 10)
    monkeypatch.setattr(worker_module, "PRUNED_AT_ONCE", 10)
    Ledger(kit, db)
    async with db.transaction() as transaction:
        for each in range(35):
            await transaction.session.execute(text(f"INSERT INTO beneath_inbox VALUES ('x', 'm{each}', {each})"))  # noqa: S608  # numbers
    assert await Inbox(db, kit.clock, retention=3600).prune() == 10
    async with db.read() as session:
        left = (await session.execute(text("SELECT min(handled_at) FROM beneath_inbox"))).scalar_one()
    assert left == 10, "the oldest first"
    await kit.start()
    worker = asyncio.create_task(kit.bus.worker().run())
    await kit.clock.advance(worker_module.PRUNE_EVERY)
    async with asyncio.timeout(10):
        while await count_records(db):
            await kit.clock.advance(worker_module.PRUNE_AGAIN)
    worker.cancel()
    await asyncio.wait([worker])


async def count_records(db: Database) -> int:
    async with db.read() as session:
        return int((await session.execute(text("SELECT count(*) FROM beneath_inbox"))).scalar_one())


async def test_pruning_reads_only_the_records_that_it_deletes(db: Database) -> None:
    statement = pruning(1.0).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    async with db.read() as session:
        lines = [row[3] for row in await session.execute(text(f"EXPLAIN QUERY PLAN {statement}"))]
    assert any("ix_beneath_inbox_handled_at" in it for it in lines)
    assert not [it for it in lines if it.startswith("SCAN") or "TEMP B-TREE" in it], lines
