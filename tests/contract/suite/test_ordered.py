"""The contract: ordered subscriptions and their mailboxes."""

import pytest

from infra.mq import Claim, MessageQueue, Outcome
from tests.contract.acting import (
    consumer,
    counters,
    declare,
    drain,
    end,
    fetch,
    fetch_one,
    finish,
    ids,
    keyed,
    message,
    start,
    stats,
    subscription,
)
from tests.contract.harness import Harness


async def test_retry_stays_at_the_head_and_blocks_only_its_key(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "b1", "a2", "b2"))
    by_a, by_b = await fetch(worker)
    await worker.settle([end(by_a, Outcome.RETRY, delay=5)])
    await finish(worker, by_b)
    await queue.publish(keyed("a3", "b3"))
    assert await drain(worker) == ["b3"]
    await harness.clock.advance(5)
    assert await drain(worker) == ["a1", "a2", "a3"]


async def test_mailboxes_are_claimed_in_the_order_of_their_due_times(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "b1", "c1", "a2"))
    delays = {"a": 3.0, "b": 1.0, "c": 2.0}
    claims = await fetch(worker)
    await worker.settle([end(it, Outcome.RETRY, delay=delays[it.ordering_key or ""]) for it in claims])
    await harness.clock.advance(5)
    assert ids(await fetch(worker)) == ["b1", "c1", "a1", "a2"]


async def test_deliveries_done_before_a_retry_in_one_claim_are_not_repeated(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2", "a3"))
    claim = await fetch_one(worker)
    assert await worker.settle([end(claim), end(claim, Outcome.RETRY, nth=1)]) == []
    again = await fetch_one(worker)
    assert ids([again]) == ["a2", "a3"]
    assert [counters(it) for it in again.deliveries] == [(1, 0, 0, 0), (0, 0, 0, 0)]


async def test_claim_may_be_settled_in_several_calls(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2", "a3"))
    claim = await fetch_one(worker)
    for nth in range(2):
        assert await worker.settle([end(claim, nth=nth)]) == []
        assert await fetch(worker) == []
    assert (await stats(queue)).in_flight == 1
    assert await worker.settle([end(claim, Outcome.DEFER, nth=2)]) == []
    assert ids([await fetch_one(worker)]) == ["a3"]


async def test_key_continues_after_its_head_became_a_dead_letter(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    claim = await fetch_one(worker)
    assert await worker.settle([end(claim, Outcome.DEAD, error="no"), end(claim, nth=1)]) == []
    await queue.publish(keyed("a3"))
    assert await drain(worker) == ["a3"]
    assert [it.message_id for it in await queue.dead_letters()] == ["a1"]


async def test_fence_grows_with_every_claim_even_after_the_mailbox_was_empty(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    fences: list[int] = []
    for number in range(4):
        await queue.publish(keyed(f"a{number}"))
        claim = await fetch_one(worker)
        fences.append(claim.fence)
        await worker.settle([end(claim, Outcome.RETRY)])
        claim = await fetch_one(worker)
        fences.append(claim.fence)
        await finish(worker, claim)
    assert fences == sorted(set(fences))
    assert fences[0] > 0


async def test_an_old_claim_of_the_same_worker_is_fenced(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1"))
    old = await fetch_one(worker)
    await worker.settle([end(old, Outcome.RELEASE)])
    new = await fetch_one(worker)
    assert len(await worker.settle([end(old)])) == 1
    assert await worker.settle([end(new, Outcome.RETRY)]) == []
    assert counters((await fetch_one(worker)).deliveries[0]) == (1, 0, 0, 0)


async def test_old_claim_is_fenced_after_its_key_was_emptied_and_reused(harness: Harness, queue: MessageQueue) -> None:
    stale = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1"))
    old = await fetch_one(stale)
    await harness.crash(stale)
    worker = await consumer(queue)
    await worker.recover()
    await finish(worker, await fetch_one(worker))
    await queue.publish(keyed("a2"))
    new = await fetch_one(worker)
    assert len(await stale.settle([end(old, Outcome.RETRY)])) == 1
    await finish(worker, new)
    assert await fetch(worker) == []


async def test_released_mailbox_is_placed_behind_waiting_mailboxes(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "b1", "c1", "a2"))
    [first] = await fetch(worker, limit=1)
    await worker.settle([end(first, Outcome.RELEASE)])
    order: list[Claim] = []
    while claims := await fetch(worker, limit=1):
        order += claims
        await finish(worker, *claims)
    assert [it.ordering_key for it in order] == ["b", "c", "a"]


async def test_same_key_is_independent_in_each_subscription(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True, names=("first", "second"))
    await queue.publish(keyed("a1", "a2"))
    first = await fetch_one(worker, "first")
    await worker.settle([end(first, Outcome.RETRY, delay=60)])
    assert await drain(worker, "second") == ["a1", "a2"]


async def test_one_mailbox_holds_all_events_of_its_subscription(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One", "Two"), ordered=True))
    await queue.publish([message("a", event="Two", key="k"), message("b", event="One", key="k")])
    claim = await fetch_one(await consumer(queue))
    assert [(it.message_id, it.event) for it in claim.deliveries] == [("a", "Two"), ("b", "One")]


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.DEAD])
async def test_message_published_to_a_claimed_mailbox_is_not_lost(
    harness: Harness, queue: MessageQueue, outcome: Outcome
) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1"))
    claim = await fetch_one(worker)
    await queue.publish(keyed("a2"))
    assert await worker.settle([end(claim, outcome)]) == []
    expected = ["a2"] if outcome in {Outcome.DONE, Outcome.DEAD} else ["a1", "a2"]
    assert await drain(worker) == expected


async def test_a_blocked_key_stays_blocked_until_it_is_unblocked(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    assert await worker.settle([end(await fetch_one(worker), Outcome.BLOCK, error="KeyError: 'x'")]) == []
    await queue.publish(keyed("a3", "b1"))
    await harness.clock.advance(5)
    assert await drain(worker) == ["b1"]
    now = await stats(queue)
    assert now.blocked == 3
    assert dict(now.blocked_keys) == {"a": "KeyError: 'x'"}


async def test_unblocked_head_is_attempted_again_with_no_failures(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    await worker.settle([end(await fetch_one(worker), Outcome.RETRY)])
    await worker.settle([end(await fetch_one(worker), Outcome.BLOCK, error="no")])
    await queue.unblock("work", "a", skip=False)
    claim = await fetch_one(worker)
    assert ids([claim]) == ["a1", "a2"]
    assert claim.deliveries[0].failures == 0


async def test_unblocked_head_is_due_at_once_despite_the_delay_of_its_settlement(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1"))
    await worker.settle([end(await fetch_one(worker), Outcome.BLOCK, delay=60)])
    await queue.unblock("work", "a", skip=False)
    assert await drain(worker) == ["a1"]


async def test_skipping_a_blocked_head_makes_it_a_dead_letter(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    await worker.settle([end(await fetch_one(worker), Outcome.BLOCK, error="ValueError: no")])
    await queue.unblock("work", "a", skip=True)
    assert await drain(worker) == ["a2"]
    [letter] = await queue.dead_letters()
    assert (letter.message_id, letter.error, letter.failures) == ("a1", "ValueError: no", 1)
    assert letter.traceback == "traceback of ValueError: no"


async def test_skipping_the_only_delivery_of_a_blocked_key_leaves_the_key_usable(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1"))
    await worker.settle([end(await fetch_one(worker), Outcome.BLOCK, error="no")])
    await queue.unblock("work", "a", skip=True)
    assert await fetch(worker) == []
    await queue.publish(keyed("a2"))
    assert await drain(worker) == ["a2"]
