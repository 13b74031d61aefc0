"""The contract: pausing, unblocking and retiring."""

import asyncio
from typing import Literal

import pytest

from infra.mq import ListenerInUse, MailboxNotBlocked, MessageQueue, Outcome, SubscriptionNotFound
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
    until_done,
)
from tests.contract.harness import Harness, requires

BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])


@BOTH
async def test_paused_subscription_is_not_claimed_in_any_process_until_resumed(harness: Harness, ordered: bool) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue, ordered=ordered)
    other = await consumer(elsewhere)
    await queue.publish([message("a", key="k")])
    await elsewhere.pause("work")
    await queue.publish([message("b", key="k")])
    assert await fetch(worker) == []
    assert await fetch(other) == []
    await queue.resume("work")
    assert await drain(other) == ["a", "b"]


async def test_claims_fetched_before_a_pause_can_be_settled(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a"), message("b")])
    first, second = await fetch(worker)
    await queue.pause("work")
    assert await worker.settle([end(first), end(second, Outcome.RETRY)]) == []
    assert await fetch(worker) == []
    await queue.resume("work")
    assert counters((await fetch_one(worker)).deliveries[0]) == (1, 0, 0, 0)


async def test_pause_of_one_subscription_does_not_affect_the_others(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("paused", "other"))
    await queue.pause("paused")
    await queue.pause("paused")
    await queue.publish([message("a")])
    assert await drain(worker, "other") == ["a"]
    await queue.resume("paused")
    await queue.resume("paused")
    assert await drain(worker, "paused") == ["a"]


async def test_a_waiting_worker_notices_that_its_subscription_is_resumed(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.pause("work")
    await queue.publish([message("a")])
    fetching = asyncio.ensure_future(worker.fetch({"work": 1}, wait=8))
    await harness.clock.settle()
    await queue.resume("work")

    async def fetched() -> list[str]:
        return ids(await fetching)

    assert await until_done(harness, fetched(), step=0.1) == ["a"]


@requires("durable")
async def test_a_pause_survives_a_restart(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue)
    await queue.publish([message("a")])
    await queue.pause("work")
    reopened = await harness.reopen()
    assert await fetch(await consumer(reopened)) == []
    assert (await stats(reopened)).paused


async def test_operation_on_an_unknown_subscription_is_refused(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue)
    for refused in (
        queue.pause("unknown"),
        queue.resume("unknown"),
        queue.unblock("unknown", "k", skip=True),
        queue.retire("unknown"),
        queue.retire("work", event="Unknown"),
    ):
        with pytest.raises(SubscriptionNotFound):
            await refused


@BOTH
async def test_unblocking_a_key_that_is_not_blocked_is_refused(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", key="ready"), message("b", key="waiting")])
    claims = await fetch(worker)
    await worker.settle([end(claims[1], Outcome.RETRY, delay=60)])
    for key in ("ready", "waiting", "unknown"):
        for skip in (False, True):
            with pytest.raises(MailboxNotBlocked):
                await queue.unblock("work", key, skip=skip)


async def test_a_subscription_without_backlog_and_workers_is_retired(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("retired", "other"))
    await worker.close()
    assert await queue.retire("retired") == 0
    assert [it.name for it in await queue.stats()] == ["other"]
    await queue.publish([message("a")])
    assert await fetch(await consumer(queue), "retired") == []


async def test_event_without_a_remaining_subscription_is_no_longer_routed(
    harness: Harness, queue: MessageQueue
) -> None:
    await declare(harness, queue, subscription("first", events=("One", "Two")), subscription("second", events=("Two",)))
    await queue.retire("first")
    assert set((await queue.registry()).routed) == {"Two"}


async def test_a_listener_of_a_live_worker_is_not_retired(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    for backlog in ("refuse", "discard", "dead"):
        with pytest.raises(ListenerInUse, match="work"):
            await queue.retire("work", backlog=backlog)
    await harness.crash(worker)
    assert await queue.retire("work") == 0


@BOTH
async def test_backlog_fails_a_retirement_or_is_discarded_or_becomes_dead_letters(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered, names=("first", "second"))
    await worker.close()
    await queue.publish([message("a", key="k"), message("b", key="k"), message("later", due_at=queue.time() + 60)])
    with pytest.raises(ListenerInUse, match="first"):
        await queue.retire("first")
    assert (await stats(queue, "first")).ready == 2
    assert await queue.retire("first", backlog="discard") == 3
    assert await queue.dead_letters() == []
    assert await queue.retire("second", backlog="dead") == 3
    letters = await queue.dead_letters(subscription="second")
    assert sorted(it.message_id for it in letters) == ["a", "b", "later"]
    assert await queue.stats() == []


async def test_scheduled_message_reaches_the_remaining_subscriptions(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("retired"), subscription("left"))
    await queue.publish([message("a", due_at=queue.time() + 5)])
    with pytest.raises(ListenerInUse):
        await queue.retire("retired")
    assert await queue.retire("retired", backlog="discard") == 1
    await harness.clock.advance(5)
    assert await drain(await consumer(queue, "left"), "left") == ["a"]


@BOTH
async def test_event_is_retired_with_its_backlog_under_a_live_worker(
    harness: Harness, queue: MessageQueue, ordered: bool
) -> None:
    await declare(harness, queue, subscription(events=("Old", "Kept"), ordered=ordered))
    worker = await consumer(queue)
    await queue.publish(
        [
            message("o1", event="Old", key="k"),
            message("k1", event="Kept", key="k"),
            message("o2", event="Old", key="m"),
            message("o3", event="Old", due_at=queue.time() + 5),
        ]
    )
    with pytest.raises(ListenerInUse):
        await queue.retire("work", event="Old")
    assert await queue.retire("work", event="Old", backlog="discard") == 3
    assert (await stats(queue)).events == {"Kept"}
    await queue.publish([message("o4", event="Old", key="k"), message("k2", event="Kept", key="k")])
    await harness.clock.advance(5)
    assert await drain(worker) == ["k1", "k2"]


@pytest.mark.parametrize("backlog", ["discard", "dead"])
async def test_retirement_of_an_event_keeps_the_order_of_a_long_backlog(
    harness: Harness, queue: MessageQueue, backlog: Literal["discard", "dead"]
) -> None:
    await declare(harness, queue, subscription(events=("Old", "Kept")))
    worker = await consumer(queue)
    kept = [f"k{number}" for number in range(700)]
    both = [(message(f"{each}-old", event="Old"), message(each, event="Kept")) for each in kept]
    await queue.publish([each for pair in both for each in pair])
    assert await worker.settle([end(claim, Outcome.RETRY) for claim in await fetch(worker, limit=4)]) == []
    with pytest.raises(ListenerInUse, match="700 deliveries"):
        await queue.retire("work", event="Old")
    assert await queue.retire("work", event="Old", backlog=backlog) == 700
    assert (await stats(queue)).dead == (700 if backlog == "dead" else 0)
    assert (await stats(queue)).ready == 700
    drained = await drain(worker)
    assert sorted(drained) == sorted(kept)
    assert [each for each in drained if each not in {"k0", "k1"}] == kept[2:]


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.PARK, Outcome.BLOCK])
async def test_mailbox_continues_when_the_event_of_its_waiting_head_is_retired(
    harness: Harness, queue: MessageQueue, outcome: Outcome
) -> None:
    await declare(harness, queue, subscription(events=("Old", "Kept"), ordered=True))
    worker = await consumer(queue)
    await queue.publish([message("old", event="Old", key="k"), message("kept", event="Kept", key="k")])
    await worker.settle([end(await fetch_one(worker), outcome, delay=60)])
    assert await queue.retire("work", event="Old", backlog="dead") == 1
    assert ids(await fetch(worker)) == ["kept"]


async def test_claimed_delivery_is_retired_and_its_settlement_is_fenced(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("Old", "Kept")))
    worker = await consumer(queue)
    await queue.publish([message("old", event="Old"), message("kept", event="Kept")])
    old, kept = await fetch(worker)
    assert await queue.retire("work", event="Old", backlog="discard") == 1
    retry = end(old, Outcome.RETRY)
    assert await worker.settle([retry, end(kept, Outcome.RETRY)]) == [retry]
    assert await drain(worker) == ["kept"]


async def test_claimed_mailbox_continues_when_one_of_its_events_is_retired(
    harness: Harness, queue: MessageQueue
) -> None:
    await declare(harness, queue, subscription(events=("Old", "Kept"), ordered=True))
    worker = await consumer(queue)
    await queue.publish([message("old", event="Old", key="k"), message("kept", event="Kept", key="k")])
    claim = await fetch_one(worker)
    assert await queue.retire("work", event="Old", backlog="discard") == 1
    first, second = end(claim), end(claim, nth=1)
    assert await worker.settle([first, second]) == [first]
    await queue.publish([message("next", event="Kept", key="k")])
    assert await drain(worker) == ["next"]


async def test_dead_letters_outlive_their_subscription(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.settle([end(await fetch_one(worker), Outcome.DEAD, error="no")])
    await worker.close()
    assert await queue.retire("work") == 0
    assert [it.error for it in await queue.dead_letters()] == ["no"]


async def test_retired_name_can_be_declared_again_in_the_other_ordering_mode(
    harness: Harness, queue: MessageQueue
) -> None:
    await declare(harness, queue, subscription("new", aliases=("old",)))
    await queue.retire("new")
    await declare(harness, queue, subscription("new", ordered=True), subscription("old"))
    await queue.publish(keyed("a1", "a2"))
    worker = await consumer(queue, "new", "old")
    claim = await fetch_one(worker, "new")
    assert ids([claim]) == ["a1", "a2"]
    await finish(worker, claim)
    assert await drain(worker, "old") == ["a1", "a2"]
