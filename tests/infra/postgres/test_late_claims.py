"""Claims with a lost answer, a cancelled caller or a closing worker: all are recovered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from infra.db.postgresql_driver import Driver
from infra.mq import QueueClosed, QueueError, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres import claiming, membership, workers
from infra.mq.drivers.sql.postgres.owned_claims import OwnedClaims
from infra.mq.types import Claim, ClaimedDelivery, Outcome, Settlement
from tests.infra.mq.acting import done, handle_all, ids, message, messages, subscription
from tests.infra.postgres.queues import MAIL, WORK, Store, consumer, new_store, queue_dialect
from tests.postgres_servers import PostgresServer

WANTS = {WORK: 10, MAIL: 10}


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    async with new_store(server) as store:
        yield store


@pytest.fixture
async def queue(store: Store) -> SqlQueue:
    queue, _ = await store.open()
    await queue.declare([subscription(WORK), subscription(MAIL, ordered=True)], [])
    return queue


def unanswered(under_way: list[dict[str, Any]]) -> Callable[..., Awaitable[None]]:
    """Return an operation that is lost before it reaches the server; `under_way` gets its arguments."""

    async def lost(_: Driver, **arguments: Any) -> None:  # noqa: ANN401  # as it comes
        under_way.append(arguments)
        raise ConnectionResetError

    return lost


async def test_claim_that_arrives_after_its_caller_gave_up_is_void(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[dict[str, Any]] = []
    worker = await consumer(queue)
    await queue.publish(messages(3, keys=3))
    honest = claiming.claim
    with monkeypatch.context() as patch:
        patch.setattr(claiming, "claim", unanswered(under_way))
        with pytest.raises(QueueUnavailable):
            await worker.fetch(WANTS, wait=0)
    assert len(await worker.fetch({WORK: 1}, wait=0)) == 1
    with pytest.raises(QueueUnavailable, match="voided before it reached the server"):
        await queue_dialect(queue)._connections.run(partial(honest, **under_way[0]))
    assert await store.count("delivery", "state = 1") == 1
    assert await store.count("mailbox", "state = 1") == 0
    assert len(await worker.fetch(WANTS, wait=0)) == 5


async def test_claims_of_a_lost_answer_are_found_by_their_live_worker(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = claiming.claim
    worker = await consumer(queue)
    await queue.publish(messages(3, keys=3))
    [known] = await worker.fetch({WORK: 1}, wait=0)

    async def lost(*values: Any, **named: Any) -> claiming.Claimed:  # noqa: ANN401  # as it comes
        await honest(*values, **named)
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(claiming, "claim", lost)
        with pytest.raises(QueueUnavailable):
            await worker.fetch(WANTS, wait=0)
    assert await store.count("delivery", "state = 1") == 3
    assert await worker.recover() == 0
    assert await store.count("delivery", "state = 1") == 1
    found = await worker.fetch(WANTS, wait=0)
    assert sorted(ids([known, *found])) == sorted([*ids([known]), "m1", "m2", "m0", "m1", "m2"])
    assert [it.deliveries[0].takeovers for it in found] == [0] * 5


async def test_release_of_unknown_claims_that_arrives_late_releases_no_later_claim(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[dict[str, Any]] = []
    worker = await consumer(queue)
    await queue.publish(messages(3, keys=3))
    honest = membership.release_unknown
    with monkeypatch.context() as patch:
        patch.setattr(claiming, "claim", unanswered(under_way))
        with pytest.raises(QueueUnavailable):
            await worker.fetch(WANTS, wait=0)
    with monkeypatch.context() as patch:
        patch.setattr(membership, "release_unknown", unanswered(under_way))
        with pytest.raises(QueueError):
            await worker.recover()
    claims = await worker.fetch(WANTS, wait=0)
    assert len(claims) == 6
    await queue_dialect(queue)._connections.transaction(partial(honest, **under_way[1]))
    assert await store.count("delivery", "state = 1") == 3
    assert await store.count("mailbox", "state = 1") == 3
    assert await worker.settle(done(claims)) == []
    assert await worker.fetch(WANTS, wait=0) == []


async def test_claims_are_released_after_a_release_with_a_lost_answer(
    store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(3, keys=3))
    claim, release = claiming.claim, membership.release_unknown

    async def claim_lost(*values: Any, **named: Any) -> None:  # noqa: ANN401  # as it comes
        await claim(*values, **named)
        raise ConnectionResetError

    async def release_lost(driver: Driver, **named: Any) -> None:  # noqa: ANN401  # as it comes
        await release(driver, **named)
        await driver.execute("COMMIT")
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(claiming, "claim", claim_lost)
        with pytest.raises(QueueUnavailable):
            await worker.fetch(WANTS, wait=0)
    with monkeypatch.context() as patch:
        patch.setattr(membership, "release_unknown", release_lost)
        with pytest.raises(QueueError):
            await worker.recover()
    claims = await worker.fetch(WANTS, wait=0)
    assert len(claims) == 6
    assert await worker.settle(done(claims)) == []
    assert await store.count("delivery") == 0


async def test_worker_whose_epochs_the_server_has_lost_is_closed(
    server: PostgresServer, store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(1))
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(claiming, "claim", unanswered([]))
            with pytest.raises(QueueUnavailable):
                await worker.fetch(WANTS, wait=0)
        await server.execute("UPDATE beneath_worker SET epoch = greatest(epoch - 1, 0)", store.database)
    with pytest.raises(QueueClosed, match="considered dead"):
        await worker.fetch(WANTS, wait=0)


def test_answer_lost_during_a_release_keeps_claims_uncertain() -> None:
    owned = OwnedClaims(1)
    owned.mark_uncertain(5)
    lost = owned.lost_answers
    owned.mark_uncertain(3)
    owned.mark_certain(lost)
    assert owned.uncertain
    assert owned.unknown() == (3, [])
    owned.mark_certain(owned.lost_answers)
    assert not owned.uncertain


@pytest.mark.parametrize("steps", range(1, 14, 2))
async def test_fetch_cancelled_at_any_await_leaves_no_lost_claim(store: Store, queue: SqlQueue, steps: int) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(4, keys=4))
    for _ in range(10):
        fetching = asyncio.ensure_future(worker.fetch(WANTS, wait=0))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        fetching.cancel()
        try:
            claims = await fetching
        except asyncio.CancelledError:
            continue
        await worker.settle(
            [Settlement(claim=it, delivery=it.deliveries[0], outcome=Outcome.RELEASE, close=True) for it in claims]
        )
    handled: list[str] = []
    async with asyncio.timeout(10):
        while len(handled) < 8:
            handled += await handle_all(worker, WANTS)
    assert sorted(handled) == sorted([f"m{n}" for n in range(4)] * 2)
    assert await store.count("delivery") == 0


async def test_worker_closed_during_a_claim_leaves_no_lost_claim(store: Store, queue: SqlQueue) -> None:
    handled: list[str] = []
    for n in range(30):
        worker = await consumer(queue)
        await queue.publish([message(f"{n}-{each}", key=f"{n}-{each}") for each in range(10)])
        fetching = asyncio.ensure_future(worker.fetch({WORK: 100, MAIL: 100}, wait=0))
        await asyncio.sleep(0.0003 * n)
        await worker.close()
        await asyncio.gather(fetching, return_exceptions=True)
    assert await store.count("delivery", "state = 1") == 0
    assert await store.count("mailbox", "state = 1") == 0
    handled = await handle_all(await consumer(queue), {WORK: 1000, MAIL: 1000})
    assert len(handled) == 600


async def test_claim_of_an_unregistered_worker_is_recovered(
    server: PostgresServer, store: Store, queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ORPHANS_SLOW", float("inf"))
    victim, rescuer = await consumer(queue), await consumer(queue)
    await queue.publish(messages(3, keys=3))
    assert len(await victim.fetch(WANTS, wait=0)) == 6
    await server.execute("DELETE FROM beneath_worker WHERE name = 'unknown'", store.database)
    assert await rescuer.recover() == 0
    await server.fetch("DELETE FROM beneath_worker WHERE name = $1", victim.info.id, database=store.database)
    assert await rescuer.recover() == 6
    claims = await rescuer.fetch(WANTS, wait=0)
    assert [it.deliveries[0].takeovers for it in claims] == [1] * 6
    assert not await asyncio.to_thread(victim.renew)


async def test_worker_taken_over_can_neither_claim_nor_renew(queue: SqlQueue) -> None:
    victim, rescuer = await consumer(queue), await consumer(queue)
    await queue.publish(messages(1))
    await victim.fetch(WANTS, wait=0)
    victim.abandon()
    assert await rescuer.recover() == 2
    with pytest.raises(QueueError):
        await victim.fetch(WANTS, wait=0)


async def test_a_repeated_settlement_never_ends_a_later_claim_of_the_same_worker(queue: SqlQueue) -> None:
    worker = await consumer(queue)
    await queue.publish(messages(1))
    [first] = await worker.fetch({WORK: 1}, wait=0)
    retry = Settlement(claim=first, delivery=first.deliveries[0], outcome=Outcome.RETRY)
    assert await worker.settle([retry]) == []
    [second] = await worker.fetch({WORK: 1}, wait=0)
    assert second.fence > first.fence
    assert await worker.settle([retry]) == [retry]
    assert not await worker.isolate(first)
    assert await worker.isolate(second)
    assert await worker.settle(done([second])) == []


def claim_of(fence: int, *numbers: int, ordered: bool = False) -> list[Claim]:
    return [
        Claim(
            subscription=WORK,
            deliveries=[
                ClaimedDelivery(
                    id=it, subscription=WORK, message_id="m", event="E", ordering_key=None, body=b"", published_at=1.0
                )
            ],
            ordered=ordered,
            fence=fence,
        )
        for it in numbers
    ]


def test_unknown_claims_are_later_than_those_known_when_the_doubt_began() -> None:
    owned = OwnedClaims(5)
    early = claim_of(10, 1, 2)
    owned.claimed(early)
    owned.mark_uncertain(owned.latest)
    assert owned.uncertain
    assert owned.unknown() == (10, [])
    owned.claimed(claim_of(12, 3))
    assert owned.unknown() == (10, [12])
    owned.mark_uncertain(11)
    assert owned.unknown() == (10, [12])
    owned.mark_certain(owned.lost_answers)
    assert not owned.uncertain


def test_a_claim_is_known_until_all_its_deliveries_are_settled() -> None:
    owned = OwnedClaims(5)
    first, second = claim_of(10, 1, 2)
    owned.claimed([first, second])
    owned.mark_uncertain(5)
    for _ in range(2):
        owned.settled(done([first]))
        assert owned.unknown() == (5, [10])
    owned.settled(done([second]))
    assert owned.unknown() == (5, [])
    [mailbox] = claim_of(11, 3, ordered=True)
    owned.claimed([mailbox])
    open_still = Settlement(claim=mailbox, delivery=mailbox.deliveries[0], outcome=Outcome.DONE)
    owned.settled([open_still])
    assert owned.unknown() == (5, [11])
    owned.settled([Settlement(claim=mailbox, delivery=mailbox.deliveries[0], outcome=Outcome.RETRY)])
    assert owned.unknown() == (5, [])


async def test_another_worker_of_the_process_does_not_end_a_recovery(
    queue: SqlQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, rescuer = await consumer(queue), await consumer(queue)
    with monkeypatch.context() as patch:
        patch.setattr(claiming, "claim", unanswered([]))
        await queue.publish(messages(1))
        with pytest.raises(QueueUnavailable):
            await lost.fetch(WANTS, wait=0)

    async def remove(driver: Driver) -> None:
        await driver.execute("DELETE FROM beneath_worker WHERE name = $1", lost.info.id)

    await queue_dialect(queue)._connections.run(remove)
    assert await rescuer.recover() == 0
    with pytest.raises(QueueError):
        await lost.fetch(WANTS, wait=0)
