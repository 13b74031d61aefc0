"""Operations on many deliveries run in bounded steps on SQLite, and every claim stays recoverable."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.clock import FakeClock
from infra.db import Database
from infra.mq import Outcome, QueueClosed, QueueUnavailable, Settlement
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import membership, parking, presence, scheduling, settling
from infra.mq.drivers.sql.sqlite.writer import Writer
from infra.mq.types import Claim, Message
from tests.infra.mq.acting import consumer, done, handle_all, ids, message, messages, subscription

WANTS = {"work": 1000, "mail": 1000}


def writer_of(queue: SqlQueue) -> Writer:
    found = queue._dialect._writer  # type: ignore[attr-defined]  # to count its groups
    assert isinstance(found, Writer)
    return found


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


async def until_after(queue: SqlQueue, at: float) -> None:
    while queue.time() <= at:  # noqa: ASYNC110  # nothing happens at that time
        await asyncio.sleep(0.01)


async def all_claimed(queue: SqlQueue, count: int) -> list[Claim]:
    worker = await consumer(queue, "gone")
    await queue.publish(messages(count, keys=count))
    claims = await worker.fetch(WANTS, wait=0)
    assert len(ids(claims)) == 2 * count
    worker.abandon()
    return claims


async def test_dead_workers_claims_are_taken_over_in_steps(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RELEASED_AT_ONCE", 20)
    monkeypatch.setattr(membership, "MAILBOXES_AT_ONCE", 2)
    await all_claimed(queue, 50)
    other = await consumer(queue)
    before = writer_of(queue).groups
    assert await other.recover() == 100
    assert writer_of(queue).groups - before > 50 // 2
    claims = await other.fetch(WANTS, wait=0)
    assert {it.takeovers for claim in claims for it in claim.deliveries} == {1}


async def test_interrupted_takeover_is_completed_and_counts_once_per_delivery(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "RELEASED_AT_ONCE", 20)
    monkeypatch.setattr(membership, "MAILBOXES_AT_ONCE", 2)
    await all_claimed(queue, 50)
    other = await consumer(queue)
    honest, left = membership.take_over_some, iter(range(2))

    def dying(*args: object, **named: object) -> object:
        if next(left, None) is None:
            raise sqlite3.OperationalError("the process is gone")
        return honest(*args, **named)  # type: ignore[arg-type]  # handed on as it came

    with monkeypatch.context() as patch:
        patch.setattr(membership, "take_over_some", dying)
        with pytest.raises(QueueUnavailable):
            await other.recover()
    assert 0 < await other.recover() < 100
    claims = await other.fetch(WANTS, wait=0)
    assert len(ids(claims)) == 100
    assert {it.takeovers for claim in claims for it in claim.deliveries} == {1}


async def test_claims_without_a_worker_are_recovered(queue: SqlQueue, path: Path) -> None:
    await all_claimed(queue, 3)
    execute(path, "DELETE FROM beneath_worker")
    other = await consumer(queue)
    assert await other.recover() == 6
    assert len(await handle_all(other, WANTS)) == 6


async def test_closing_worker_releases_in_steps(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "RELEASED_AT_ONCE", 20)
    monkeypatch.setattr(membership, "MAILBOXES_AT_ONCE", 2)
    worker = await consumer(queue)
    await queue.publish(messages(50, keys=50))
    await worker.fetch(WANTS, wait=0)
    before = writer_of(queue).groups
    await worker.close()
    assert writer_of(queue).groups - before > 50 // 2
    assert len(await handle_all(await consumer(queue), WANTS)) == 100


async def test_claim_that_arrives_after_close_takes_nothing(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of a worker with a kept claim stays: further claims would be recovered only after the process ends."""
    worker = await consumer(queue)
    await queue.publish([message("kept")])
    [claim] = await worker.fetch({"work": 1}, wait=0)
    worker.keep(claim)
    await queue.publish([message("other")])
    member = worker._member  # type: ignore[attr-defined]  # as the claim has it
    await worker.close()
    with pytest.raises(QueueClosed, match="has left"):
        await queue._dialect.workers.claim(member, {"work": 1}, CLAIM_LIMITS, queue.time())
    assert await handle_all(await consumer(queue), {"work": 10}) == ["other"]


async def test_deleted_lock_file_is_restored_before_a_takeover(queue: SqlQueue, path: Path) -> None:
    worker, other = await consumer(queue, "alive"), await consumer(queue)
    await queue.publish([message("m")])
    await worker.fetch({"work": 1}, wait=0)
    lock = path.with_name(f"{path.name}.workers") / "alive.lock"
    lock.unlink()
    assert await other.recover() == 0, "it may be alive"
    assert worker.renew()
    assert lock.exists()
    assert await other.recover() == 0
    worker.abandon()
    assert await other.recover() == 1


async def test_worker_with_missing_lock_file_is_considered_dead_after_a_time(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_claimed(queue, 1)
    (path.with_name(f"{path.name}.workers") / "gone.lock").unlink()
    other = await consumer(queue)
    assert await other.recover() == 0
    monkeypatch.setattr(presence, "MISSING_PATIENCE", 0.0)
    assert await other.recover() == 2


async def test_unparking_is_done_in_steps_and_once(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "UNPARKED_AT_ONCE", 10)
    worker = await consumer(queue)
    await queue.publish(messages(25, keys=25))
    claims = await worker.fetch(WANTS, wait=0)
    ends = [
        Settlement(claim=it, delivery=it.deliveries[0], outcome=Outcome.PARK, needs="Happened@2", close=it.ordered)
        for it in claims
    ]
    assert await worker.settle(ends) == []
    assert await worker.unpark({"work": ["Happened"], "mail": ["Happened"]}) == 0, "it needs more than the event"
    before = writer_of(queue).groups
    assert await worker.unpark({"work": ["Happened", "Happened@2"], "mail": ["Happened@2"]}) == 50
    assert writer_of(queue).groups - before >= 6
    assert len(await handle_all(worker, WANTS)) == 50


async def test_settlements_run_in_steps_that_keep_claims_whole(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLED_AT_ONCE", 25)
    worker = await consumer(queue)
    await queue.publish(messages(100, keys=10))
    claims = await worker.fetch({"mail": 100}, wait=0)
    before = writer_of(queue).groups
    assert await worker.settle(done(claims)) == []
    assert writer_of(queue).groups - before == 5, "two mailboxes of ten each"
    assert await worker.fetch({"mail": 100}, wait=0) == []


async def test_dead_letters_are_retried_and_discarded_in_steps(queue: SqlQueue) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(450))
    claims = await worker.fetch({"work": 1000}, wait=0)
    ends = [Settlement(claim=it, delivery=it.deliveries[0], outcome=Outcome.DEAD) for it in claims]
    assert await worker.settle(ends) == []
    letters = [it.id for it in await queue.dead_letters(limit=1000)]
    before = writer_of(queue).groups
    assert await queue.retry_dead([*letters[:210], "nonsense", "99999"]) == 210
    assert await queue.discard_dead(letters) == 240
    assert writer_of(queue).groups - before == 5


async def test_fetch_is_bounded_in_bytes_over_all_subscriptions(queue: SqlQueue) -> None:
    size = CLAIM_LIMITS.fetch_bytes // 3
    big = [Message(id=f"m{each}", event="Happened", body=b"x" * size, published_at=1.0) for each in range(4)]
    await queue.publish(big)
    worker = await consumer(queue)
    seen = 0
    while claims := await worker.fetch({"work": 100, "mail": 100}, wait=0):
        bodies = [sum(len(it.body) for it in claim.deliveries) for claim in claims]
        assert sum(bodies) <= CLAIM_LIMITS.fetch_bytes or len(claims) == 1
        seen += len(ids(claims))
        await worker.settle(done(claims))
    assert seen == 8


async def test_delivery_larger_than_a_fetch_is_claimed_alone(queue: SqlQueue) -> None:
    await queue.publish(
        [Message(id="big", event="Happened", body=b"x" * (CLAIM_LIMITS.fetch_bytes + 1), published_at=1.0)]
    )
    worker = await consumer(queue)
    claims = await worker.fetch({"work": 100, "mail": 100}, wait=0)
    assert ids(claims) == ["big"]


async def test_published_message_is_placed_behind_due_messages(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes more due messages than one claim places into mailboxes."""
    monkeypatch.setattr(scheduling, "PROMOTED_AT_ONCE", 2)
    monkeypatch.setattr(scheduling, "LEAST_PROMOTED", 2)
    soon = queue.time() + 0.05
    await queue.publish([message(f"due{each}", key="k", due_at=soon + each / 1e4) for each in range(7)])
    await until_after(queue, soon + 0.01)
    await queue.publish([message("published", key="k"), message("elsewhere", key="other")])
    worker = await consumer(queue)
    handled = [it for it in await handle_all(worker, {"mail": 10}) if it != "elsewhere"]
    assert handled == [*(f"due{each}" for each in range(7)), "published"]


async def test_retried_dead_letter_is_placed_behind_due_messages(queue: SqlQueue) -> None:
    worker = await consumer(queue)
    await queue.publish([message("died", key="k")])
    [claim] = await worker.fetch({"mail": 1}, wait=0)
    end = Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.DEAD, close=True)
    assert await worker.settle([end]) == []
    soon = queue.time() + 0.02
    await queue.publish([message("due", key="k", due_at=soon)])
    await until_after(queue, soon)
    [letter] = await queue.dead_letters(subscription="mail")
    assert await queue.retry_dead([letter.id]) == 1
    assert await handle_all(worker, {"mail": 10}) == ["due", "died"]


async def test_overdue_deliveries_of_another_listener_do_not_reduce_a_claim(
    queue: SqlQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "PROMOTED_AT_ONCE", 1)
    await queue.declare([subscription("idle", events=["Reminded"])], [])
    due = queue.time() + 0.02
    await queue.publish([message(f"r{each}", event="Reminded", due_at=due) for each in range(50)])
    await queue.publish([message("mine", due_at=due)])
    await until_after(queue, due)
    assert ids(await (await consumer(queue)).fetch({"work": 10}, wait=0)) == ["mine"]


async def test_cancellation_is_judged_by_the_time_at_which_the_lock_is_held(queue: SqlQueue, db: Database) -> None:
    """The cancellation waits for the lock past the due time, while one of two subscriptions gets its delivery."""
    due = queue.time() + 0.2
    await queue.publish([message("m", due_at=due)])
    async with db.write_lock():
        cancelling = asyncio.create_task(queue.cancel("m"))
        await until_after(queue, due)
    assert await cancelling is False
    assert sorted(await handle_all(await consumer(queue), WANTS)) == ["m", "m"]


@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_declaring_waits_from_the_end_of_its_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Until then publishers may read the previous registry, and cache it."""
    db = Database(f"sqlite:///{path}")
    await db.open()
    queue = SqlQueue(db, clock=FakeClock(), registry_ttl=1.0)
    await queue.open()
    clock = queue._dialect.clock._clock  # type: ignore[attr-defined]  # the one that it was given
    honest = Writer._commit

    def slow(self: Writer, *args: object) -> object:
        clock.move_to(clock.time() + seconds)
        return honest(self, *args)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(Writer, "_commit", slow)
    declaring = asyncio.create_task(queue.declare([subscription("new")], []))
    async with asyncio.timeout(10):
        while (await queue.registry()).routed != {"Happened"}:  # noqa: ASYNC110  # it is written in a thread
            await asyncio.sleep(0)
    visible = clock.time()
    while not declaring.done():
        await asyncio.sleep(0.005)
        await clock.advance(0.1)
    await declaring
    assert clock.time() - visible >= 1.0
    await queue.close()
    await db.close()


async def test_process_that_finds_a_declaration_waits_like_its_author(queue: SqlQueue, path: Path) -> None:
    execute(path, "UPDATE beneath_registry SET version = version + 1, changed_at = 0")
    dialect = queue._dialect
    before = queue.time()
    assert await dialect.declare([subscription("work")], []) >= before, "the time of the commit is unknown"
    again = await dialect.declare([subscription("work")], [])
    assert again <= queue.time()
    assert await dialect.declare([subscription("work")], []) == again, "the time is recorded by the first call"
