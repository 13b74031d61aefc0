"""Operations on many deliveries run in bounded, separately committed steps on PostgreSQL."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.db import Database
from infra.db.postgresql_driver import Driver
from infra.mq import Failure, ListenerInUse, MessageQueue, Outcome, QueueUnavailable, Settlement, SubscriptionConflict
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres import (
    administration,
    broadcasting,
    membership,
    publishing,
    registry,
    retiring,
    settling,
)
from infra.mq.drivers.sql.postgres.forgetting import Forgetter
from tests.infra.mq.acting import done, handle_all, ids, message, messages, subscription
from tests.infra.postgres.queues import MAIL, WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

WANTS = {WORK: 100, MAIL: 100}


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@pytest.fixture
async def opened(store: Store) -> tuple[SqlQueue, Database]:
    queue, db = await store.open()
    await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
    return queue, db


@pytest.fixture
def queue(opened: tuple[SqlQueue, Database]) -> SqlQueue:
    return opened[0]


class Transactions:
    """Counts the transactions of a queue, and can let one of them fail."""

    def __init__(self, queue: MessageQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(queue, SqlQueue)
        connections = queue_dialect(queue)._connections
        self.count = 0
        self.refuse: int | None = None
        honest = connections._attempt

        async def counted(operation: Any, **options: Any) -> Any:  # noqa: ANN401  # as it comes
            self.count += getattr(operation, "__name__", "") != "_send_notification"  # the notifier's, at any time
            if self.count == self.refuse:
                self.refuse = None
                raise QueueUnavailable("refused")
            return await honest(operation, **options)

        monkeypatch.setattr(connections, "_attempt", counted)


async def test_many_settlements_run_in_transactions_of_bounded_size(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "STEP", 10)
    worker = await consumer(queue)
    await queue.publish(messages(30, keys=30))
    settlements = done(await worker.fetch(WANTS, wait=0))
    transactions = Transactions(queue, monkeypatch)
    transactions.refuse = 3
    with pytest.raises(QueueUnavailable):
        await worker.settle(settlements)
    assert await store.count("delivery") == 60 - 20
    fenced = await worker.settle(settlements)
    assert all(it.claim.ordered for it in fenced)
    assert transactions.count == 3 + 6
    assert await store.count("delivery") == 0


async def test_settlements_of_one_claim_stay_in_one_transaction(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "STEP", 4)
    worker = await consumer(queue)
    await queue.publish(messages(30, keys=3))
    claims = await worker.fetch({MAIL: 100}, wait=0)
    shuffled = sorted(done(claims), key=lambda it: it.delivery.id)
    steps = [{id(it.claim) for it in step} for step in settling.steps_of(shuffled)]
    assert [len(it) for it in steps] == [1, 1, 1]
    assert await worker.settle(shuffled) == []


async def test_large_failures_are_divided_by_their_size(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(10))
    claims = await worker.fetch({WORK: 10}, wait=0)
    monkeypatch.setattr(settling, "STEP_BYTES", 100)
    failed = [
        Settlement(
            claim=it, delivery=it.deliveries[0], outcome=Outcome.DEAD, failure=Failure(error="e" * 40, traceback="")
        )
        for it in claims
    ]
    assert [len(it) for it in settling.steps_of(failed)] == [2] * 5


@pytest.mark.parametrize("act", ["recover", "leave"])
async def test_claims_of_a_worker_are_released_in_steps(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr(membership, "STEP", 7)
    victim, rescuer = await consumer(queue), await consumer(queue)
    await queue.publish(messages(30, keys=30))
    assert len(await victim.fetch(WANTS, wait=0)) == 60
    transactions = Transactions(queue, monkeypatch)
    if act == "recover":
        victim.abandon()
        transactions.refuse = 5
        with pytest.raises(QueueUnavailable):
            await rescuer.recover()
        assert 0 < await store.count("mailbox", "state = 1") < 30
        assert await store.count("worker") == 2
        await rescuer.recover()
    else:
        await victim.close()
    assert transactions.count >= 5
    assert await store.count("mailbox", "state = 1") == await store.count("delivery", "state = 1") == 0
    assert await store.count("worker") == 1
    claims = await rescuer.fetch(WANTS, wait=0)
    assert [it.deliveries[0].takeovers for it in claims] == [int(act == "recover")] * 60


async def test_worker_under_recovery_cannot_renew_its_lease(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "STEP", 2)
    victim, rescuer = await consumer(queue), await consumer(queue)
    await queue.publish(messages(10, keys=10))
    await victim.fetch(WANTS, wait=0)
    keeper = queue_dialect(queue).workers._keeper
    seen = dict(await queue_dialect(queue)._access.read(membership.leases))
    number = victim._member.number  # type: ignore[attr-defined]  # of this driver
    monkeypatch.setattr(keeper.observer, "dead", lambda _: [(number, seen[number])])
    monkeypatch.setattr(queue_dialect(queue).workers, "_is_alive_here", lambda _: False)
    transactions = Transactions(queue, monkeypatch)
    transactions.refuse = 3  # The first step after the step that ends the lease.
    with pytest.raises(QueueUnavailable):
        await rescuer.recover()
    assert not await asyncio.to_thread(victim.renew)


async def test_lease_renewed_meanwhile_is_not_taken_over(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, rescuer = await consumer(queue), await consumer(queue)
    await queue.publish(messages(1))
    await victim.fetch(WANTS, wait=0)
    workers = queue_dialect(queue).workers
    seen = await queue_dialect(queue)._access.read(membership.leases)
    assert await asyncio.to_thread(victim.renew)
    monkeypatch.setattr(workers._keeper.observer, "dead", lambda _: seen)
    monkeypatch.setattr(workers, "_is_alive_here", lambda number: number != victim._member.number)  # type: ignore[attr-defined]
    assert await rescuer.recover() == 0
    assert await asyncio.to_thread(victim.renew)


@pytest.mark.parametrize("event", [None, "Happened"])
@pytest.mark.parametrize("backlog", ["discard", "dead"])
async def test_interrupted_retirement_is_completed_by_the_next_call(
    store: Store,
    queue: SqlQueue,
    monkeypatch: pytest.MonkeyPatch,
    event: str | None,
    backlog: Any,  # noqa: ANN401
) -> None:
    monkeypatch.setattr(retiring, "STEP", 5)
    await queue.publish(messages(20, keys=20))
    await queue.publish([message("later", due_at=queue.time() + 60)])
    transactions = Transactions(queue, monkeypatch)
    transactions.refuse = 6
    with pytest.raises(QueueUnavailable):
        await queue.retire(MAIL, event=event, backlog=backlog)
    left = await store.count("delivery", "mailbox IS NOT NULL")
    assert 0 < left < 21
    [warning] = await queue.warnings()
    assert warning.startswith(f"retiring {MAIL}")
    await queue.publish([message("new")])
    assert await store.count("delivery", "mailbox IS NOT NULL") == left
    with pytest.raises(SubscriptionConflict, match="being retired"):
        await queue.declare([subscription(MAIL, ordered=True)], [])
    assert await queue.retire(MAIL, event=event) == left
    assert await store.count("delivery", "mailbox IS NOT NULL") == 0
    assert await queue.warnings() == []
    assert await store.count("dead_letter") == (21 if backlog == "dead" else 0)
    await queue.declare([subscription(MAIL, ordered=True)], [])
    await queue.publish([message("again")])
    assert await store.count("delivery", "mailbox IS NOT NULL") == 1


async def test_listener_of_a_live_worker_with_an_expired_lease_is_not_retired(
    server: PostgresServer, store: Store
) -> None:
    queue, _ = await store.open(lease=1.0)
    await queue.declare([subscription(WORK)], [])
    worker = await consumer(queue, WORK)
    # The lease looks expired, as after a step of the server's clock.
    await server.execute("UPDATE beneath_worker SET lease_until = 1", store.database)
    retiring_it = asyncio.ensure_future(queue.retire(WORK))
    await asyncio.sleep(0.2)
    assert await asyncio.to_thread(worker.renew)
    with pytest.raises(ListenerInUse):
        await retiring_it


async def test_dead_letters_are_retried_and_discarded_in_steps(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "STEP", 4)
    monkeypatch.setattr(administration, "STEP_BYTES", 8)
    worker = await consumer(queue)
    await queue.publish(messages(10))
    claims = await worker.fetch({WORK: 10}, wait=0)
    await worker.settle([Settlement(claim=it, delivery=it.deliveries[0], outcome=Outcome.DEAD) for it in claims])
    letters = [it.id for it in await queue.dead_letters()]
    transactions = Transactions(queue, monkeypatch)
    assert await queue.retry_dead([*letters[:5], "nothing", letters[0]]) == 5
    assert transactions.count == 2 + 2  # Two transactions prepare the work, and two carry it out.
    assert await queue.discard_dead(letters) == 5
    assert await store.count("dead_letter") == 0
    assert sorted(await handle_all(worker, {WORK: 10})) == [f"m{n}" for n in range(5)]


async def test_expired_ids_are_deleted_as_fast_as_ids_are_added(
    server: PostgresServer, store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "FORGOTTEN_AT_ONCE", 10)
    values = "SELECT 'Happened', n::text, n FROM generate_series(1, 95) AS n"
    await server.execute(f"INSERT INTO beneath_accepted (event, id, at) {values}", store.database)
    await (await consumer(queue)).recover()
    assert await store.count("accepted") == 0


async def test_unplaceable_scheduled_message_becomes_a_dead_letter_and_blocks_no_other(
    server: PostgresServer, store: Store, queue: SqlQueue
) -> None:
    # The previous release accepted such a key: it fits the index of scheduled rows, but not that of mailboxes.
    key = secrets.token_hex(1334)
    due_at = queue.time() - 1
    insert = """
        INSERT INTO beneath_delivery (subscription, state, due_at, published_at, message_id, event, mailbox, body)
        SELECT id, 3, $1, 1, 'long', 'Happened', $2, '' FROM beneath_subscription WHERE name = $3
    """
    await server.fetch(insert, due_at, key, MAIL, database=store.database)
    await queue.publish([message("short", key="k", due_at=due_at)])
    worker = await consumer(queue)
    assert sorted(await handle_all(worker, WANTS)) == ["short", "short"]
    [letter] = await queue.dead_letters()
    assert (letter.message_id, letter.subscription) == ("long", MAIL)
    assert "index row size" in letter.error
    assert await store.count("delivery") == 0


async def test_promotion_skips_messages_locked_by_other_transactions(
    queue: SqlQueue, opened: tuple[SqlQueue, Database], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "STEP", 5)
    other, _ = await store.open()
    due_at = queue.time() + 0.2
    await queue.publish([message(f"held {n}", key="held", due_at=due_at) for n in range(20)])
    await queue.publish([message(f"free {n}", key="free", due_at=due_at + 0.1) for n in range(20)])
    async with opened[1].transaction():
        await queue.publish([message("now", key="held")])
        await asyncio.sleep(0.4)
        worker = await consumer(other)
        async with asyncio.timeout(5):
            handled = await handle_all(worker, {MAIL: 100})
    assert handled == [f"free {n}" for n in range(20)]
    async with asyncio.timeout(10):
        while len(handled) < 41:
            handled += await handle_all(worker, {MAIL: 100})
    assert sorted(handled[20:]) == sorted(["now", *(f"held {n}" for n in range(20))])


async def test_promotion_skips_a_message_with_one_locked_delivery(
    store: Store, queue: SqlQueue, opened: tuple[SqlQueue, Database]
) -> None:
    due_at = queue.time() + 0.5
    await queue.publish([message(name, key=name, due_at=due_at) for name in ("held", "free")])
    worker = await consumer(queue)
    lock = text("SELECT 1 FROM beneath_delivery WHERE message_id = 'held' ORDER BY id DESC LIMIT 1 FOR UPDATE")
    async with opened[1].transaction() as other:
        await other.session.execute(lock)
        handled: list[str] = []
        async with asyncio.timeout(20):
            while len(handled) < 2:
                handled += await handle_all(worker, WANTS)
    assert handled == ["free", "free"]
    async with asyncio.timeout(20):
        while len(handled) < 4:
            handled += await handle_all(worker, WANTS)
    assert handled[2:] == ["held", "held"]


async def test_failed_promotion_does_not_prevent_claims(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise QueueUnavailable("refused")

    await queue.publish([message("now")])
    await queue.publish([message("later", due_at=queue.time() + 0.05)])
    await asyncio.sleep(0.1)
    worker = await consumer(queue)
    monkeypatch.setattr(publishing, "promote", fail)
    assert await handle_all(worker, WANTS) == ["now", "now"]


@pytest.mark.parametrize("name", [WORK, MAIL])
@pytest.mark.parametrize("backlog", ["discard", "dead"])
async def test_deliveries_of_an_event_being_retired_are_not_claimed(
    queue: SqlQueue,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    backlog: Any,  # noqa: ANN401
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise QueueUnavailable("refused")

    both = ["Happened", "Else"]
    await queue.declare([subscription(WORK, events=both), subscription(MAIL, events=both, ordered=True)], [])
    await queue.publish([*messages(25), message("kept", event="Else", key="k0")])
    with monkeypatch.context() as patch:
        patch.setattr(retiring, "step", fail)
        with pytest.raises(QueueUnavailable):
            await queue.retire(name, event="Happened", backlog=backlog)
    worker = await consumer(queue)
    handled: list[str] = []
    for _ in range(4):
        handled += await handle_all(worker, {name: 100})
    assert handled == ["kept"]
    assert len(await queue.dead_letters(limit=50)) == (25 if backlog == "dead" else 0)
    assert await queue.retire(name, event="Happened") == 0


@pytest.mark.parametrize("late", ["step", "end"])
async def test_retirement_that_another_call_completed_removes_no_later_message(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    other, _ = await store.open()
    honest = getattr(retiring, late)
    declared = [subscription(WORK, events=["Happened", "Else"])]

    async def only_later(driver: Driver, retirement: retiring.Retirement, now: float) -> Any:  # noqa: ANN401
        monkeypatch.setattr(retiring, late, honest)
        assert await other.retire(WORK, event="Happened", backlog="discard") == (1 if late == "step" else 0)
        await other.declare(declared, [])
        await other.publish([message("new")])
        return await honest(driver, retirement, now)

    await queue.declare(declared, [])
    await queue.publish([message("old")])
    monkeypatch.setattr(retiring, late, only_later)
    await queue.retire(WORK, event="Happened", backlog="discard")
    assert await queue.retire(WORK, event="Happened", backlog="dead") == 1
    assert [it.message_id for it in await queue.dead_letters()] == ["new"]


async def test_message_accepted_while_a_backlog_is_counted_fails_the_retirement(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = retiring.count_backlog

    async def late(driver: Driver, **named: Any) -> int:  # noqa: ANN401  # as it comes
        count = await honest(driver, **named)
        await queue.publish([message("late")])
        return count

    monkeypatch.setattr(retiring, "count_backlog", late)
    with pytest.raises(ListenerInUse, match="1 deliveries"):
        await queue.retire(WORK, event="Happened")
    assert await handle_all(await consumer(queue), {WORK: 10}) == ["late"]
    monkeypatch.undo()
    assert await queue.retire(WORK, event="Happened") == 0


async def test_deletion_of_expired_ids_resumes_and_periodically_restarts(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[float, float]] = []
    answers: list[float | None] = [3.0, 7.0, None, None, 2.0, None]

    async def step(_: Driver, before: float, after: float) -> float | None:
        begun.append((before, after))
        return answers.pop(0)

    forgetter = Forgetter(queue_dialect(queue)._connections, 100.0, 100.0)
    monkeypatch.setattr(forgetter, "_kinds", ((step, 10.0),))
    await forgetter.forget(20.0)
    await forgetter.forget(30.0)
    forgetter._anew_at = 0.0
    await forgetter.forget(40.0)
    start = float("-inf")
    assert begun == [(10.0, start), (10.0, 3.0), (10.0, 7.0), (20.0, 10.0), (30.0, start), (30.0, 2.0)]


async def test_publish_to_a_mailbox_with_many_overdue_deliveries_keeps_the_order(store: Store, queue: SqlQueue) -> None:
    now = queue.time()
    early = [msgspec.structs.replace(message(f"early {n:03}", key="k"), published_at=now) for n in range(120)]
    await queue.publish(early)
    # As after a long time without a worker.
    await store.server.execute(
        "UPDATE beneath_delivery SET state = 3, due_at = published_at - 5 + id / 1e9 WHERE state = 4",
        store.database,
    )
    for n in range(3):
        await queue.publish([message(f"late {n}", key="k")])
    assert await store.count("delivery", "state = 4") == 0
    worker = await consumer(queue)
    handled = await handle_all(worker, {MAIL: 10})
    assert handled == [*(f"early {n:03}" for n in range(120)), *(f"late {n}" for n in range(3))]


async def test_a_fetch_is_bounded_in_bytes_over_all_subscriptions(queue: SqlQueue) -> None:
    large = bytes(CLAIM_LIMITS.fetch_bytes // 4)
    for it in messages(8, keys=8):
        await queue.publish([msgspec.structs.replace(it, body=large)])
    worker = await consumer(queue)
    claims = await worker.fetch(WANTS, wait=0)
    sizes = [len(it.body) for claim in claims for it in claim.deliveries]
    assert {it.ordered for it in claims} == {False, True}
    assert sum(sizes[1:]) <= CLAIM_LIMITS.fetch_bytes


async def test_read_of_broadcasts_is_bounded_in_bytes(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasting, "BYTES_AT_ONCE", 25)
    receiver = await queue.receiver(origin="here")
    frames = [bytes([n]) * 10 for n in range(7)]
    await queue.broadcast(frames, origin="there")
    answers = [await receiver.receive(0) for _ in range(4)]
    assert [len(it) for it, _ in answers] == [3, 3, 1, 0]
    assert [frame for it, _ in answers for frame in it] == frames
    assert not any(gap for _, gap in answers)


async def test_unchanged_declaration_costs_one_read(queue: SqlQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [subscription(WORK), subscription(MAIL, ordered=True)]
    await queue.declare(declared, [])
    transactions = Transactions(queue, monkeypatch)
    await queue.declare(declared, [])
    assert transactions.count == 1


async def test_declaration_waits_from_the_moment_of_its_visibility(
    server: PostgresServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, _ = await store.open()
    honest = registry.mark_changed

    async def slow(driver: Driver, now: float) -> None:
        await honest(driver, now - 3600.0)  # As if the COMMIT had taken an hour.

    monkeypatch.setattr(registry, "mark_changed", slow)
    before = queue.time()
    assert await queue_dialect(queue).declare([subscription(WORK)], []) >= before
    # Another process sees the declaration before its visibility is recorded.
    await server.execute("UPDATE beneath_registry SET visible_version = 0", store.database)
    other, _ = await store.open()
    before = other.time()
    assert await queue_dialect(other).declare([subscription(WORK)], []) >= before - 0.1
    again = await queue_dialect(other).declare([subscription(WORK)], [])
    assert before - 0.1 <= again <= other.time()


async def test_one_id_on_two_events_is_no_duplicate(store: Store, queue: SqlQueue) -> None:
    await queue.declare([subscription(WORK, events=["Happened", "Else"])], [])
    for event in ("Happened", "Else", "Else"):
        await queue.publish([msgspec.structs.replace(message("one", event=event), dedupe=True)])
    assert await store.count("delivery", "mailbox IS NULL") == 2


async def test_ids_accepted_by_the_previous_release_are_deduplicated(
    server: PostgresServer, store: Store, queue: SqlQueue
) -> None:
    await server.fetch("INSERT INTO beneath_dedupe (id, at) VALUES ('one', $1)", queue.time(), database=store.database)
    await queue.publish([msgspec.structs.replace(message("one"), dedupe=True)])
    assert await store.count("delivery") == 0


async def test_a_group_of_large_messages_is_published_whole(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "BYTES_AT_ONCE", 10)
    many = messages(20, keys=20)
    assert sum(len(it) for it in publishing.parts_of(many)) == 20
    assert len(list(publishing.parts_of(many))) > 3
    await queue.publish(many)
    assert await store.count("delivery") == 40
    assert sorted(ids(await (await consumer(queue)).fetch({WORK: 100}, wait=0))) == sorted(it.id for it in many)
