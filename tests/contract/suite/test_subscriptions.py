"""The contract: declarations, the registry, aliases and renames."""

import asyncio

import pytest

from infra.mq import REGISTRY_TTL, MessageQueue, SubscriptionConflict
from tests.contract.acting import consumer, declare, drain, fetch, ids, message, start, stats, subscription, until_done
from tests.contract.harness import Harness


async def test_event_reaches_each_of_its_subscriptions_once(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("first", "second"))
    await queue.publish([message("a")])
    assert ids(await fetch(worker, "first")) == ["a"]
    assert ids(await fetch(worker, "second")) == ["a"]
    assert await fetch(worker, "first") == []


async def test_a_subscription_gets_only_its_own_events(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One", "Two")))
    await queue.publish([message("a", event="One"), message("b", event="Three"), message("c", event="Two")])
    assert await drain(await consumer(queue)) == ["a", "c"]


async def test_event_without_subscriptions_is_accepted_and_never_delivered_later(
    harness: Harness, queue: MessageQueue
) -> None:
    await queue.publish([message("a")])
    worker = await start(harness, queue)
    assert await fetch(worker) == []


async def test_publisher_in_another_process_reaches_a_subscription_once_declared(harness: Harness) -> None:
    here, elsewhere = await harness.queue(), await harness.queue()
    await elsewhere.publish([message("warm up")])
    worker = await start(harness, here)
    await elsewhere.publish([message("a")])
    assert await drain(worker) == ["a"]


async def test_no_outdated_subscription_cache_is_used_after_a_declaration(harness: Harness) -> None:
    here, elsewhere = await harness.queue(), await harness.queue()
    copy, taken_at = await elsewhere.registry(), elsewhere.time()
    await declare(harness, here, subscription(), broadcasts=["News"])
    outdated = elsewhere.time() - taken_at >= REGISTRY_TTL
    assert outdated or (copy.routed == {"Happened"} and copy.broadcast == {"News"})


async def test_registry_lists_routed_and_broadcast_events(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One", "Two")), broadcasts=["News"])
    registry = await queue.registry()
    assert set(registry.routed) == {"One", "Two"}
    assert set(registry.broadcast) == {"News"}


async def test_declare_adds_events_and_never_removes_absent_ones(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One",)), subscription("other"), broadcasts=["News"])
    await declare(harness, queue, subscription(events=("Two",)), broadcasts=["Weather"])
    assert (await stats(queue)).events == {"One", "Two"}
    assert (await stats(queue, "other")).events == {"Happened"}
    assert set((await queue.registry()).broadcast) == {"News", "Weather"}


async def test_repeated_declaration_returns_without_waiting(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(aliases=("old",)), broadcasts=["News"])
    await harness.clock.advance(10)
    before = harness.clock.time()
    await queue.declare([subscription(aliases=("old",))], ["News"])
    await queue.declare([], [])
    assert harness.clock.time() == before


async def test_a_change_of_the_ordering_mode_is_refused_and_adds_nothing(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("plain"), subscription("ordered", ordered=True))
    for wanted in (subscription("plain", ordered=True), subscription("ordered")):
        with pytest.raises(SubscriptionConflict, match=wanted.name):
            await declare(harness, queue, subscription("new"), wanted)
    assert [it.name for it in await queue.stats()] == ["ordered", "plain"]


async def test_concurrent_declarations_of_a_subscription_create_one_subscription(harness: Harness) -> None:
    queues = [await harness.queue() for _ in range(3)]

    async def together() -> None:
        await asyncio.gather(*(it.declare([subscription(events=("One", "Two"))], ["News"]) for it in queues))

    await until_done(harness, together())
    await queues[0].publish([message("a", event="One")])
    assert [it.name for it in await queues[1].stats()] == ["work"]
    assert await drain(await consumer(queues[2])) == ["a"]


async def test_a_renamed_subscription_keeps_its_backlog(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("old"))
    await queue.publish([message("a")])
    await queue.publish([message("later", due_at=queue.time() + 60)])
    await declare(harness, queue, subscription("new", aliases=("old",)))
    assert [it.name for it in await queue.stats()] == ["new"]
    worker = await consumer(queue, "new")
    await queue.publish([message("b")])
    assert await drain(worker, "new") == ["a", "b"]
    await harness.clock.advance(60)
    assert await drain(await consumer(queue, "new"), "new") == ["later"]


async def test_old_and_new_names_share_one_subscription(harness: Harness) -> None:
    old_code, new_code = await harness.queue(), await harness.queue()
    await declare(harness, old_code, subscription("old", events=("One",), ordered=True))
    await declare(harness, new_code, subscription("new", events=("Two",), ordered=True, aliases=("old",)))
    await declare(harness, old_code, subscription("old", events=("One",), ordered=True))
    await old_code.publish([message("a", event="One", key="k"), message("b", event="Two", key="m")])
    by_old = await fetch(await consumer(old_code, "old"), "old", 1)
    by_new = await fetch(await consumer(new_code, "new"), "new")
    assert ids(by_old) == ["a"]
    assert ids(by_new) == ["b"]
    assert [it.name for it in await new_code.stats()] == ["new"]


async def test_claim_carries_the_requested_subscription_name(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("new", aliases=("old", "older")))
    await queue.publish([message("a"), message("b")])
    worker = await consumer(queue, "old")
    [first] = await fetch(worker, "older", 1)
    [second] = await fetch(worker, "new", 1)
    assert (first.subscription, first.deliveries[0].subscription) == ("older", "older")
    assert (second.subscription, second.deliveries[0].subscription) == ("new", "new")


async def test_every_call_with_a_subscription_name_accepts_an_alias(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("new", ordered=True, aliases=("old",)))
    worker = await consumer(queue, "old")
    assert (await stats(queue, "new")).workers == 1
    await queue.pause("old")
    assert (await stats(queue, "new")).paused
    await queue.resume("old")
    assert not (await stats(queue, "new")).paused
    await worker.close()
    assert await queue.retire("old") == 0
    assert await queue.stats() == []


async def test_name_and_alias_with_separate_subscriptions_are_refused(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("old"), subscription("new"))
    with pytest.raises(SubscriptionConflict, match="old"):
        await declare(harness, queue, subscription("another"), subscription("new", aliases=("old",)))
    assert [it.name for it in await queue.stats()] == ["new", "old"]


async def test_rolled_back_rename_keeps_one_subscription(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("old"))
    await declare(harness, queue, subscription("new", aliases=("old",)))
    await declare(harness, queue, subscription("old", aliases=("new",)))
    await queue.publish([message("a")])
    assert len(await queue.stats()) == 1
    assert ids(await fetch(await consumer(queue, "old"), "old")) == ["a"]


async def test_messages_published_while_another_process_declares_are_accepted(harness: Harness) -> None:
    here, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, here)

    async def both() -> None:
        declaring = asyncio.ensure_future(elsewhere.declare([subscription("second")], []))
        await here.publish([message("a")])
        await declaring

    await until_done(harness, both())
    assert await drain(worker) == ["a"]
