"""The memory driver beyond the contract: due times, bounded memory, leases and receivers."""

import asyncio
import math

import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.clock import FakeClock
from infra.mq import DeadLetterNotFound, Message, Outcome, QueueClosed, Settlement, Subscription, WorkerInfo
from infra.mq.drivers.memory import MemoryQueue
from infra.mq.drivers.memory.broadcast import RECEIVER_LIMIT


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def queue(clock: FakeClock) -> MemoryQueue:
    queue = MemoryQueue(clock=clock, lease=math.inf)
    await queue.open()
    await queue.declare([Subscription(name="work", events=frozenset({"Happened"}))], [])
    return queue


def message(number: int, due_at: float | None = None) -> Message:
    return Message(id=str(number), event="Happened", body=b"", published_at=0.0, due_at=due_at)


async def test_nothing_is_due_next_in_an_empty_queue(queue: MemoryQueue) -> None:
    assert queue.next_due() is None


async def test_next_due_is_the_earliest_future_due_time(queue: MemoryQueue, clock: FakeClock) -> None:
    worker = await queue.consumer(WorkerInfo(id="w", subscriptions=frozenset({"work"})), CLAIM_LIMITS)
    now = clock.time()
    await queue.publish([message(1), message(2, now + 30), message(3, now + 10)])
    assert queue.next_due() == now + 10
    [claim] = await worker.fetch({"work": 1}, wait=0)
    retry = Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.RETRY, delay=5)
    await worker.settle([retry])
    assert queue.next_due() == now + 5
    await clock.advance(5)
    assert queue.next_due() == now + 10
    assert await queue.cancel("3")
    assert queue.next_due() == now + 30
    await clock.advance(30)
    assert queue.next_due() is None


async def test_cancelled_messages_do_not_accumulate(queue: MemoryQueue, clock: FakeClock) -> None:
    far = clock.time() + 1_000_000
    await queue.publish([message(number, far) for number in range(1000)])
    for number in range(999):
        assert await queue.cancel(str(number))
    assert len(queue._store.agenda._heap) < 200
    assert queue.next_due() == far


async def test_expired_ids_do_not_accumulate(queue: MemoryQueue, clock: FakeClock) -> None:
    for number in range(100):
        await queue.publish([Message(id=str(number), event="Happened", body=b"", published_at=0.0, dedupe=True)])
        await clock.advance(10)
    assert len(queue._recent._accepted) == len(queue._recent._ages) <= 13


async def test_worker_with_an_infinite_lease_survives_clock_jumps(queue: MemoryQueue, clock: FakeClock) -> None:
    worker = await queue.consumer(WorkerInfo(id="w", subscriptions=frozenset({"work"})), CLAIM_LIMITS)
    await clock.advance(365 * 86400)
    assert not worker.lost
    assert await worker.fetch({"work": 1}, wait=0) == []


async def test_registry_includes_later_declarations(queue: MemoryQueue) -> None:
    registry = await queue.registry()
    await queue.declare([Subscription(name="more", events=frozenset({"Other"}))], ["News"])
    assert set(registry.routed) == {"Happened", "Other"}
    assert "News" in registry.broadcast
    await queue.retire("more")
    assert "Other" not in registry.routed


async def test_unread_receiver_drops_the_oldest_broadcasts_and_reports_one_gap(queue: MemoryQueue) -> None:
    receiver = await queue.receiver(origin="here")
    await queue.broadcast([str(number).encode() for number in range(RECEIVER_LIMIT + 5)], origin="there")
    frames, gap = await receiver.receive(0)
    assert (len(frames), frames[0], gap) == (RECEIVER_LIMIT, b"5", True)
    await queue.broadcast([b"next"], origin="there")
    assert await receiver.receive(0) == ([b"next"], False)


async def test_use_before_open_is_an_error(clock: FakeClock) -> None:
    with pytest.raises(QueueClosed):
        await MemoryQueue(clock=clock).publish([message(1)])


async def test_contents_survive_close_and_reopen(queue: MemoryQueue) -> None:
    worker = await queue.consumer(WorkerInfo(id="w", subscriptions=frozenset({"work"})), CLAIM_LIMITS)
    await queue.publish([message(1), message(2)])
    await worker.fetch({"work": 1}, wait=0)
    await queue.close()
    await queue.open()
    worker = await queue.consumer(WorkerInfo(id="x", subscriptions=frozenset({"work"})), CLAIM_LIMITS)
    assert await worker.recover() == 1
    assert len(await worker.fetch({"work": 9}, wait=0)) == 2


async def test_waiting_worker_notices_a_later_declaration_of_its_subscription(
    queue: MemoryQueue, clock: FakeClock
) -> None:
    worker = await queue.consumer(WorkerInfo(id="w", subscriptions=frozenset({"late"})), CLAIM_LIMITS)
    fetching = asyncio.ensure_future(worker.fetch({"late": 1}, wait=60))
    await clock.settle()
    await queue.declare([Subscription(name="late", events=frozenset({"Happened"}))], [])
    await clock.settle()
    await queue.publish([message(1)])
    assert len(await fetching) == 1


async def test_text_that_is_no_dead_letter_id_is_not_found(queue: MemoryQueue) -> None:
    for nonsense in ("x", "-1", "1.5", "²", ""):
        with pytest.raises(DeadLetterNotFound):
            await queue.dead_letter(nonsense)
        assert await queue.dead_letters(after=nonsense) == []
