"""The contract: scheduled messages and their cancellation."""

from infra.mq import MessageQueue, Outcome
from tests.contract.acting import (
    consumer,
    declare,
    drain,
    end,
    fetch,
    fetch_one,
    finish,
    ids,
    message,
    rolled_back,
    start,
    stats,
    subscription,
)
from tests.contract.harness import Harness, requires


async def test_delayed_message_is_never_claimed_early(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 5)])
    assert await fetch(worker) == []
    await harness.clock.advance(4.999)
    assert await fetch(worker) == []
    await harness.clock.advance(0.001)
    assert await drain(worker) == ["a"]


async def test_message_already_due_is_claimable_at_once(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time()), message("b", due_at=queue.time() - 100)])
    assert sorted(await drain(worker)) == ["a", "b"]


async def test_delayed_messages_are_claimed_in_the_order_of_their_due_times(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue)
    now = queue.time()
    await queue.publish([message(str(delay), due_at=now + delay) for delay in (3, 1, 4, 2)])
    await harness.clock.advance(5)
    assert await drain(worker) == ["1", "2", "3", "4"]


async def test_delayed_message_joins_the_end_of_its_mailbox_when_due(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    now = queue.time()
    await queue.publish([message("at 3", key="k", due_at=now + 3), message("at 2", key="k", due_at=now + 2)])
    await queue.publish([message("now", key="k")])
    await harness.clock.advance(2.5)
    await queue.publish([message("at 2.5", key="k")])
    await harness.clock.advance(1)
    assert await drain(worker) == ["now", "at 2", "at 2.5", "at 3"]


async def test_delayed_message_joins_a_claimed_or_waiting_mailbox(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish([message("a", key="k"), message("b", key="k", due_at=queue.time() + 1)])
    claim = await fetch_one(worker)
    await harness.clock.advance(1)
    assert await fetch(worker) == []
    await finish(worker, claim)
    assert ids([await fetch_one(worker)]) == ["b"]


async def test_delayed_message_reaches_the_subscriptions_declared_at_its_acceptance(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, names=("before",))
    await queue.publish([message("a", due_at=queue.time() + 5)])
    await declare(harness, queue, subscription("after"))
    await harness.clock.advance(5)
    assert await drain(worker, "before") == ["a"]
    assert await drain(await consumer(queue, "after"), "after") == []


async def test_cancelled_message_is_never_delivered(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, names=("first", "second"))
    await queue.publish([message("a", due_at=queue.time() + 5), message("b", due_at=queue.time() + 5)])
    assert await elsewhere.cancel("a")
    await harness.clock.advance(6)
    assert await drain(worker, "first") == ["b"]
    assert await drain(worker, "second") == ["b"]


async def test_cancel_returns_whether_the_message_was_still_scheduled(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 5), message("due", due_at=queue.time() + 1)])
    await queue.publish([message("now")])
    await harness.clock.advance(1)
    assert await queue.cancel("a")
    assert not await queue.cancel("a")
    assert not await queue.cancel("due")
    assert not await queue.cancel("now")
    assert not await queue.cancel("unknown")
    assert sorted(await drain(worker)) == ["due", "now"]


async def test_check_for_a_scheduled_message_changes_nothing(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 5), message("b", due_at=queue.time() + 5)])
    assert await queue.scheduled("a")
    assert await queue.scheduled("a")
    assert not await queue.scheduled("unknown")
    assert await queue.cancel("a")
    assert not await queue.scheduled("a")
    await harness.clock.advance(5)
    assert not await queue.scheduled("b")
    assert await drain(worker) == ["b"]


async def test_scheduled_message_cannot_be_cancelled_after_a_retry(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 1)])
    await harness.clock.advance(1)
    claim = await fetch_one(worker)
    await worker.settle([end(claim, Outcome.RETRY, delay=5)])
    assert not await queue.cancel("a")


async def test_id_of_a_cancelled_message_can_be_published_again_at_once(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 5, dedupe=True)])
    assert await elsewhere.cancel("a")
    await queue.publish([message("a", due_at=queue.time() + 2, dedupe=True)])
    await queue.publish([message("a", due_at=queue.time() + 1, dedupe=True)])
    await harness.clock.advance(1.5)
    assert await fetch(worker) == []
    await harness.clock.advance(4)
    assert await drain(worker) == ["a"]
    await queue.publish([message("a", dedupe=True)])
    assert await drain(worker) == []


@requires("transactional")
async def test_transaction_can_reschedule_under_the_same_id(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 9, dedupe=True)])
    async with rolled_back(harness, queue):
        assert await queue.cancel("a")
        await queue.publish([message("a", due_at=queue.time() + 1, dedupe=True)])
    async with harness.transaction(queue):
        assert await queue.cancel("a")
        await queue.publish([message("a", due_at=queue.time() + 2, dedupe=True)])
    await harness.clock.advance(1.5)
    assert await fetch(worker) == []
    await harness.clock.advance(1)
    assert await drain(worker) == ["a"]
    await harness.clock.advance(9)
    assert await fetch(worker) == []


@requires("transactional")
async def test_a_cancellation_counts_only_if_its_transaction_commits(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", due_at=queue.time() + 5), message("b", due_at=queue.time() + 5)])
    async with rolled_back(harness, queue):
        assert await queue.cancel("a")
    async with harness.transaction(queue):
        assert await queue.cancel("b")
    assert (await stats(queue)).scheduled == 1
    await harness.clock.advance(5)
    assert await drain(worker) == ["a"]


@requires("transactional")
async def test_transaction_can_cancel_its_own_message(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    async with harness.transaction(queue):
        await queue.publish([message("a", due_at=queue.time() + 5)])
        assert await queue.scheduled("a")
        assert await queue.cancel("a")
    await harness.clock.advance(5)
    assert await fetch(worker) == []
